"""The imitated driver: follows a plan in closed loop, with human sloppiness, and now and then collides.

    plan        drawn from the expert's odds for the scene (no label noise)
    driver      holds the plan's acceleration, brakes evenly to what stands ahead, changes lanes on a quintic, turns on
                an arc; strength, gaps, lengths and reaction time are his own
    controls    8 knots fitted to the drive, so that every demonstration is in the policy's space

Cloning such a driver copies his mistakes, which is what reinforcement learning is to mend. The library of all 20 plans,
driven without sloppiness, gives `reach`: how far a safe motion gets. Measured on 1,000 scenes: docs/trajectories.md.
"""

import math
import random

import torch
from torch import Tensor

from data.example import Example
from data.scenes import sample_scene
from data.scenes.expert import plan_odds
from data.scenes.geometry import LANE_WIDTH, SIDES, TURN_RADIUS, side_of
from data.scenes.rollout import ACCELERATIONS, CANDIDATES, DRIVEN_PATHS, DRIVEN_SPEEDS
from data.scenes.world import pick
from rewards import Decision
from trajectory.field import BUMPER, Field
from trajectory.kinematics import COUNT, STEP, Motion, advance, drive, drive_steps, fit, knot_weights, names, plan_ids
from trajectory.score import no_collision, on_road, route_way

FITTED = list(range(2, COUNT + 1, 2))   # steps at which knots are fitted to a drive
GRIP = 4.0                              # m/s2 sideways that a driver accepts in a turn
TOP_SPEED = 15.0                        # m/s, where he stops accelerating
EASING = 1.6                            # 1/s: braking never exceeds this times the speed
HARDEST = -6.0                          # m/s2
CHANGE_LENGTH = (14.0, 3.0, 13.0)  # m: at least, s times the speed, from rest
STYLE = {"vigour": (0.75, 1.25), "gap": (0.6, 2.5), "stretch": (1.0, 1.35), "radius": (0.95, 1.1),
         "shift": (-0.4, 0.4), "delay": (0.3, 1.0)}
LATE = 0.15                             # share of drivers who react late
CHUNK = 256                             # scenes whose library is judged at once
CALM = {"vigour": 1.0, "gap": 1.0, "stretch": 1.0, "radius": 1.0, "shift": 0.0, "delay": 0.0}


def demonstrate(examples: list[Example], field: Field, seed: int,
                named: list[Decision] | None = None) -> tuple[Tensor, Tensor]:
    """Demonstrations of built-in scenes -> controls (P, 8, 2), and the plan that each drives, as ids (P, 2).

    named: the plans to follow, else drawn from the expert's odds."""
    plans, styles = [], []
    for i, example in enumerate(examples):
        rng = random.Random(f"driver {seed} {example.scene}")  # noqa: S311  nothing secret
        drawn = pick(rng, plan_odds(sample_scene(example.scene)))
        plan = drawn if named is None else named[i]
        plans.append(plan_ids(plan))
        style = {name: rng.uniform(*ends) for name, ends in STYLE.items()}
        styles.append({**style, "delay": style["delay"] * (rng.random() < LATE)})
    style = {name: torch.tensor([one[name] for one in styles])[:, None] for name in STYLE}
    motion = follow(torch.tensor(plans)[:, None], field, style)                 # (P, 1, ...)
    points = torch.stack([motion.x[..., FITTED], motion.y[..., FITTED]], dim=-1)
    steps = torch.stack([motion.acceleration, motion.curvature], dim=-1)        # (P, 1, 40, 2)
    closest = torch.linalg.pinv(knot_weights()) @ steps                         # knots nearest to them
    controls = fit(points, FITTED, field, closest, updates=20)
    return controls[:, 0], names(drive(controls, field), field)[:, 0]


@torch.no_grad()
def reach(field: Field) -> Tensor:
    """Progress of the best motion that neither collides nor leaves the road, of the 20 plans driven calmly: (P,)."""
    plans = torch.tensor([plan_ids(plan) for plan in CANDIDATES])
    style = {name: torch.full((1, 1), value) for name, value in CALM.items()}
    found = []
    for index in torch.arange(len(field)).split(CHUNK):
        part = field.at(index)
        motion = follow(plans.expand(len(part), -1, -1), part, style)
        safe = no_collision(motion, part) * on_road(motion, part) > 0.99
        found.append((route_way(motion, part) * safe).amax(1))
    return torch.cat(found)


def follow(plan: Tensor, field: Field, style: dict[str, Tensor]) -> Motion:
    """Drive plans (P, G, 2), ids of speed and path, in closed loop."""
    shape = plan.shape[:2]
    road, v = field.road[:, None].expand(shape), field.speed[:, None].expand(shape)
    x = y = e = torch.zeros(shape)
    steps = []
    for step in range(COUNT):
        awake = step * STEP >= style["delay"]
        acceleration = torch.where(awake, longitudinal(plan, x, v, field, style), 0.0)
        curvature = road + torch.where(awake, lateral(plan, x, e, field, style), 0.0)
        x, y, e, v, _ = advance(x, y, e, v, acceleration, curvature, road)
        steps.append(torch.stack([acceleration, curvature], dim=-1))
    return drive_steps(torch.stack(steps), field)


def longitudinal(plan: Tensor, x: Tensor, v: Tensor, field: Field, style: dict[str, Tensor]) -> Tensor:
    """The driver's acceleration at x with speed v: (P, G)."""
    base = torch.tensor([ACCELERATIONS[name] for name in DRIVEN_SPEEDS])[plan[..., 0]] * style["vigour"]
    base = torch.where((base > 0) & (v > TOP_SPEED), 0.0, base)
    brakes = base < 0
    room = standing_place(plan, field) - BUMPER - style["gap"] - x              # (P, G)
    even = -(v ** 2) / (2 * room.clamp(min=0.3))
    base = torch.where(brakes & room.isfinite(), even.clamp(min=HARDEST), base)
    start, radius = turn_arc(plan, field, style)
    slow = (GRIP * radius).sqrt()                           # the speed of the arc
    needed = -((v ** 2 - slow ** 2) / (2 * (start - x).clamp(min=0.5))).clamp(min=0)
    base = torch.where(radius.isfinite() & (v > slow), torch.minimum(base, needed.clamp(min=HARDEST)), base)
    return torch.maximum(base, torch.where(base < 0, -EASING * v - 0.05, base))


def standing_place(plan: Tensor, field: Field) -> Tensor:
    """x of the nearest thing on the plan's path that stands or comes to a stop; inf: none. (P, G).

    For an oncoming car: where it will be after 4 s."""
    near, left, right, speed, braking, _, odds = (field.boxes[:, None, :, i] for i in range(7))     # (P, 1, 5)
    rest = near + torch.where(braking > 0, speed ** 2 / (2 * braking.clamp(min=1e-6)), speed * COUNT * STEP)
    in_lane = (left > 0) & (right < 0)
    stands = (odds > 0) & in_lane & ((speed <= 0) | (braking > 0))
    across = left - right > LANE_WIDTH
    changes = torch.tensor(["CHANGE" in name for name in DRIVEN_PATHS])[plan[..., 1]][..., None]    # (P, G, 1)
    return torch.where(stands & (across | ~changes), rest, math.inf).amin(-1)


def turn_arc(plan: Tensor, field: Field, style: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where a turn begins, and its radius; inf without one. (P, G) each."""
    radii = torch.tensor([TURN_RADIUS[side_of(name)] if name.endswith("TURN") else math.inf for name in DRIVEN_PATHS])
    return (field.entry - BUMPER)[:, None] + style["shift"], radii[plan[..., 1]] * style["radius"]


def lateral(plan: Tensor, x: Tensor, e: Tensor, field: Field, style: dict[str, Tensor]) -> Tensor:
    """The curvature that the driver adds to the road's at x with heading e: (P, G)."""
    side = torch.tensor([float(SIDES.get(side_of(name), 0)) for name in DRIVEN_PATHS])[plan[..., 1]]
    turns = torch.tensor([name.endswith("TURN") for name in DRIVEN_PATHS])[plan[..., 1]]
    start, radius = turn_arc(plan, field, style)
    arc = side / radius * ((x >= start) & (e.abs() < math.pi / 2))
    least, seconds, standing = CHANGE_LENGTH
    speed = field.speed[:, None]
    length = torch.where(speed < 0.5, standing, (seconds * speed).clamp(min=least)) * style["stretch"]
    part = (x / length).clamp(0, 1)
    slope = side * LANE_WIDTH / length * (30 * part ** 2 - 60 * part ** 3 + 30 * part ** 4)
    bending = side * LANE_WIDTH / length ** 2 * (60 * part - 180 * part ** 2 + 120 * part ** 3)
    return torch.where(turns, arc, bending / (1 + slope ** 2) ** 1.5)
