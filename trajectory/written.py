"""Way-points that a language model writes: those of a demonstration, and the score of driving what was written.

Written way-points stand in the car's present frame, motions in the lane's. On a bend of curvature k, the place s along
the lane and y to its left is

    forward = sin(k s) (1 / k - y)        left = 1 / k - cos(k s) (1 / k - y)

P scenes, G completions each. Units: m, s.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.example import Example
from rewards import Decision
from rewards.waypoints import Points, parse_waypoints
from trajectory.demonstrations import demonstrate, reach
from trajectory.field import Field, make_field
from trajectory.kinematics import NO_PLAN, WAYPOINTS, Motion, drive, names, plan_ids, retrace, waypoints
from trajectory.score import FACTORS, score

TRIES = 4                               # demonstrations of a scene
STANDING = [(0.0, 0.0)] * len(WAYPOINTS)
MISSED = 0.5                            # m: way-points that the car misses by more cannot be driven


def demonstrated(examples: list[Example]) -> list[tuple[tuple[float, float], ...]]:
    """The way-points of built-in scenes, as in Example.trajectory: the imitated driver follows each example's plan.

    Of up to four drives the first counts that the label rule calls by that plan, else the first of all."""
    field, left = make_field(examples), torch.arange(len(examples))
    named = torch.tensor([plan_ids(example.decision) for example in examples])
    points = torch.zeros(len(examples), len(WAYPOINTS), 2)
    for seed in range(TRIES):
        own, part = [examples[i] for i in left], field.at(left)
        controls, driven = demonstrate(own, part, seed, [example.decision for example in own])
        ways = to_car(waypoints(drive(controls[:, None], part)), part)[:, 0]    # (left, 8, 2)
        right = (driven == named[left]).all(-1)
        taken = right | (seed == 0)
        points[left[taken]], left = ways[taken], left[~right]
        if not len(left):
            break
    return [tuple((round(x, 3), round(y, 3)) for x, y in way) for way in points.tolist()]


def written_pdms(example: Example, completions: list[str]) -> list[float]:
    """The PDMS-like score of driving each completion's way-points in a built-in scene."""
    ways = [parse_waypoints(text) for text in completions]
    return judge_written([example], [ways], [[None] * len(ways)])["pdms"][0].tolist()


def judge_written(examples: list[Example], ways: Sequence[Sequence[Points | None]],
                  plans: Sequence[Sequence[Decision | None]]) -> dict[str, np.ndarray]:
    """The score of way-points in built-in scenes and its factors, and whether they drive the named plan; 0 where they
    cannot be read or driven. Shapes: (P, G) each."""
    field = make_field(examples)
    known = torch.tensor([[way is not None for way in group] for group in ways])
    points = torch.tensor([[way or STANDING for way in group] for group in ways])               # (P, G, 8, 2)
    motion, missed = drive_written(points, field)
    found, valid = score(motion, field, reach(field)), known & (missed <= MISSED)
    named = torch.tensor([[NO_PLAN if plan is None else plan_ids(plan) for plan in group] for group in plans])
    values = {**{name: getattr(found, name) for name in FACTORS},
              "agreement": (names(motion, field) == named).all(-1)}
    return {name: torch.where(valid, value, 0).double().numpy() for name, value in values.items()}


def drive_written(points: Tensor, field: Field) -> tuple[Motion, Tensor]:
    """Drive way-points (P, G, 8, 2) of the car's frame as closely as the car can -> the motion, and by how many metres
    it misses them in the mean (P, G)."""
    goal = to_lane(points, field)
    motion = drive(retrace(goal, field), field)
    return motion, (waypoints(motion) - goal).norm(dim=-1).mean(-1)


def to_car(points: Tensor, field: Field) -> Tensor:
    """(s, y) of the lane -> (forward, left) of the car at the start: (P, G, T, 2)."""
    (s, y), bends, radius = points.unbind(-1), *bend(field)
    bent = torch.stack([(s / radius).sin() * (radius - y), radius - (s / radius).cos() * (radius - y)], dim=-1)
    return torch.where(bends[..., None], bent, points)


def to_lane(points: Tensor, field: Field) -> Tensor:
    """The inverse of `to_car`."""
    (forward, left), bends, radius = points.unbind(-1), *bend(field)
    side = radius.sign()
    angle = torch.atan2(side * forward, side * (radius - left))
    bent = torch.stack([angle * radius, radius - side * torch.hypot(forward, radius - left)], dim=-1)
    return torch.where(bends[..., None], bent, points)


def bend(field: Field) -> tuple[Tensor, Tensor]:
    """Whether the lane bends, and its radius, negative to the right: (P, 1, 1) each."""
    bends = (field.road != 0)[:, None, None]
    return bends, torch.where(bends, 1 / field.road[:, None, None], 1.0)
