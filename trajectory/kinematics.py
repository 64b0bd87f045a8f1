"""Driving with controls: a kinematic bicycle in the frame of the lane, and the names of what it drives.

    controls   8 knots of (acceleration m/s2, curvature 1/m over the ground), linear in between, 4 s in steps of 0.1 s
    motion     x along the lane, y to its left, heading against the lane; reference point: the middle of the rear axle

With the rear axle as reference the car's rear follows its front; a bumper that followed the lane would swing the tail
out of it. `to_policy` exchanges curvature for (curvature - road's) (v0^2 + 9), so that noise of one size moves a slow
and a fast car aside alike.

P scenes, G motions each. Units: m, s, rad.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.meta_action import (
    SPEED_CHANGE,
    SPEED_CHANGE_SHARE,
    STOP_END_SPEED,
    STOP_TOP_SPEED,
    STOP_TURN_LENGTH,
    TURN_CURVATURE,
    TURN_HEADING,
)
from data.scenes.rollout import CHANGE_COUNTS, DRIVEN_PATHS, DRIVEN_SPEEDS
from rewards import Decision
from trajectory.field import Field

KNOTS, STEP, COUNT = 8, 0.1, 40         # 40 steps of 0.1 s: NAVSIM's horizon of 4 s
LABELLED = 30                           # steps that the label rule reads
WAYPOINTS = [5 * (i + 1) for i in range(8)]     # steps at 0.5, 1.0 ... 4.0 s
NUDGE, DAMPING = 0.01, 0.01             # of `retrace`
NO_PLAN = (-1, -1)                      # ids where no plan is named
LIMITS = ((-8.0, 3.0), (-0.2, 0.2))     # of acceleration and curvature


@dataclass(frozen=True)
class Motion:
    """P x G motions of 41 moments, and what the car did in the 40 steps between."""

    x: Tensor                         # (P, G, 41)
    y: Tensor                         # (P, G, 41)
    heading: Tensor                   # (P, G, 41) against the lane
    speed: Tensor                     # (P, G, 41)
    acceleration: Tensor              # (P, G, 40), 0 once the car stands
    curvature: Tensor                 # (P, G, 40) over the ground


def knot_weights() -> Tensor:
    """(40, 8): the weight of each knot (at 0.25, 0.75 ... 3.75 s) in the middle of each step; constant outside."""
    place = ((torch.arange(COUNT) + 0.5) * STEP - 0.25) / 0.5                   # in knots
    place = place.clamp(0, KNOTS - 1)
    return (1 - (place[:, None] - torch.arange(KNOTS)).abs()).clamp(min=0)


def project(controls: Tensor) -> Tensor:
    """Controls within the car's limits. They belong to the car, not to the policy: no log-probability changes.

    Shapes: (..., 2)."""
    return torch.stack([controls[..., i].clamp(*limits) for i, limits in enumerate(LIMITS)], dim=-1)


def drive(controls: Tensor, field: Field) -> Motion:
    """The motion under controls (P, G, 8, 2), differentiable.

        v' = max(v + a h, 0);  vm = (v + v') / 2;  ds = vm h cos(e) / (1 - road y)       Frenet form on a bend
        de = vm h kappa - road ds;  em = e + de / 2;  x += vm h cos(em) / (1 - road y);  y += vm h sin(em)
    """
    return drive_steps(torch.einsum("tk,pgkc->tpgc", knot_weights().to(controls), project(controls)), field)


def drive_steps(steps: Tensor, field: Field) -> Motion:
    """The motion under acceleration and curvature of every step, (40, P, G, 2)."""
    road, v = field.road[:, None], field.speed[:, None].expand(steps.shape[1:3])
    x = y = e = torch.zeros_like(steps[0, ..., 0])
    states, applied = [(x, y, e, v)], []
    for acceleration, curvature in zip(*steps.unbind(-1), strict=True):
        x, y, e, v, used = advance(x, y, e, v, acceleration, curvature, road)
        states.append((x, y, e, v))
        applied.append(used)
    return Motion(*(torch.stack(part, dim=-1) for part in zip(*states, strict=True)),
                  torch.stack(applied, dim=-1), steps[..., 1].movedim(0, -1))


def advance(x: Tensor, y: Tensor, e: Tensor, v: Tensor, acceleration: Tensor, curvature: Tensor,
            road: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One step of 0.1 s -> position, heading, speed, and the acceleration that the car really had."""
    after = (v + acceleration * STEP).clamp(min=0)
    way = (v + after) / 2 * STEP
    stretch = 1 - road * y                                  # a metre of lane is longer outside of a bend
    turned = way * curvature - road * way * e.cos() / stretch
    middle = e + turned / 2
    return x + way * middle.cos() / stretch, y + way * middle.sin(), e + turned, after, (after - v) / STEP


# ---------------------------------------------------------------- controls of the policy

def to_policy(controls: Tensor, field: Field) -> Tensor:
    """Controls (P, G, 8, 2) -> the policy's 16 numbers (P, G, 16): accelerations, then sideways controls."""
    scale = (field.speed ** 2 + 9)[:, None, None]
    sideways = (controls[..., 1] - field.road[:, None, None]) * scale
    return torch.cat([controls[..., 0], sideways], dim=-1)


def from_policy(numbers: Tensor, field: Field) -> Tensor:
    """The inverse of `to_policy`: (P, G, 16) -> (P, G, 8, 2)."""
    acceleration, sideways = numbers.split(KNOTS, dim=-1)
    scale = (field.speed ** 2 + 9)[:, None, None]
    return torch.stack([acceleration, sideways / scale + field.road[:, None, None]], dim=-1)


def fit(points: Tensor, steps: list[int], field: Field, start: Tensor | None = None, updates: int = 60) -> Tensor:
    """Controls whose motion passes through points (P, G, T, 2) after these steps, by Adam. -> (P, G, 8, 2).

    start: controls to begin with, else the road's curvature at constant speed. A squared second difference of the
    knots, of small weight, chooses the smoothest among equals."""
    if start is None:
        start = torch.zeros(*points.shape[:2], KNOTS, 2, device=points.device)
        start[..., 1] = field.road[:, None, None]
    numbers = to_policy(start, field).requires_grad_(True)
    optimizer = torch.optim.Adam([numbers], lr=0.3, betas=(0.8, 0.95))
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (1 - update / updates) + 0.01
        motion = drive(from_policy(numbers, field), field)
        found = torch.stack([motion.x[..., steps], motion.y[..., steps]], dim=-1)
        bends = numbers.unflatten(-1, (2, KNOTS)).diff(n=2, dim=-1)
        loss = ((found - points) ** 2).sum((-1, -2)) + 1e-3 * (bends ** 2).sum((-1, -2))
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    return from_policy(numbers.detach(), field)


@torch.no_grad()
def retrace(points: Tensor, field: Field, updates: int = 3) -> Tensor:
    """Controls whose motion passes through way-points (P, G, 8, 2), by Gauss-Newton. -> (P, G, 8, 2).

    What `fit` minimises, in a tenth of its time. Derivatives are differences of 17 motions. Damping keeps the step
    finite where the car stands, because no control but the acceleration matters there."""
    numbers, goal = to_policy(estimate(points, field), field), points.flatten(-2)              # (P, G, 16) each
    second, one = torch.eye(KNOTS).diff(n=2, dim=0), torch.eye(2 * KNOTS).to(points)
    smooth = 1e-3 * torch.block_diag(second.T @ second, second.T @ second).to(points)
    for _ in range(updates):
        tried = torch.cat([numbers[:, :, None], numbers[:, :, None] + NUDGE * one], dim=2)      # (P, G, 17, 16)
        motion = drive(from_policy(tried.flatten(1, 2), field), field)
        found = waypoints(motion).flatten(-2).view(tried.shape)
        slopes = (found[:, :, 1:] - found[:, :, :1]) / NUDGE                    # (P, G, control, coordinate)
        pull = (slopes @ (goal - found[:, :, 0])[..., None])[..., 0] - numbers @ smooth
        numbers = numbers + torch.linalg.solve(slopes @ slopes.mT + smooth + DAMPING * one, pull)
    return from_policy(numbers, field)


def estimate(points: Tensor, field: Field) -> Tensor:
    """Controls read off way-points (P, G, 8, 2) by differences, to begin a fit with. -> (P, G, 8, 2)."""
    moves = torch.cat([torch.zeros_like(points[..., :1, :]), points], dim=-2).diff(dim=-2)      # (P, G, 8, 2)
    speeds = moves.norm(dim=-1) / 0.5                       # at 0.25, 0.75 ... 3.75 s, where the knots are
    known = torch.cat([field.speed[:, None, None].expand_as(speeds[..., :1]), speeds], dim=-1)
    changes = known.diff(dim=-1) / torch.tensor([0.25] + [0.5] * (KNOTS - 1), device=points.device)
    acceleration = (changes + torch.cat([changes[..., 1:], changes[..., -1:]], dim=-1)) / 2
    heading = torch.atan2(moves[..., 1], moves[..., 0].clamp(min=0.1))
    turned = torch.cat([torch.zeros_like(heading[..., :1]), heading], dim=-1).diff(dim=-1)
    curvature = field.road[:, None, None] + turned / (speeds * 0.5).clamp(min=1.0)
    return project(torch.stack([acceleration, curvature], dim=-1))


# ---------------------------------------------------------------- what a motion is called

def waypoints(motion: Motion) -> Tensor:
    """(x, y) after 0.5, 1.0 ... 4.0 s: (P, G, 8, 2)."""
    return torch.stack([motion.x[..., WAYPOINTS], motion.y[..., WAYPOINTS]], dim=-1)


def plan_ids(plan: Decision) -> tuple[int, int]:
    """Places of a plan's speed and path in the lists of actions."""
    return DRIVEN_SPEEDS.index(plan.speed), DRIVEN_PATHS.index(plan.path)


def names(motion: Motion, field: Field) -> Tensor:
    """The plan that each motion drives in its first 3 s, as ids of speed and path: (P, G, 2).

    The rule of data/meta_action.py, except that a second counts for curvature from 0.5 m on, there from 0.6 m. Near a
    junction the path can be a turn; elsewhere it is a lane change once the car is 1 m aside after 3 s, as in
    data/scenes/rollout.py. On a road without edges, that of logs and pictures, neither junction nor bend is known:
    what does not turn is a lane change only if it `straightens`. On a steady bend the car points twice as far aside as
    the way there leads."""
    speed = motion.speed[..., :LABELLED + 1]
    change, limit = speed[..., -1] - speed[..., 0], (SPEED_CHANGE_SHARE * speed[..., 0]).clamp(min=SPEED_CHANGE)
    stop = (speed[..., -1] < STOP_END_SPEED) | (speed.amax(-1) < STOP_TOP_SPEED)
    order = [DRIVEN_SPEEDS.index(name) for name in ("KEEP", "ACCELERATE", "DECELERATE", "STOP")]
    speed_id = torch.full_like(stop, order[0], dtype=torch.long)
    speed_id[change > limit], speed_id[change < -limit], speed_id[stop] = order[1:]
    lengths = way_driven(motion)[..., :LABELLED + 1]
    turned = ground_heading(motion)[..., :LABELLED + 1]
    ways, angles = lengths[..., 10:] - lengths[..., :-10], (turned[..., 10:] - turned[..., :-10]).abs()
    tightest = torch.where(ways > 0.5, angles / ways.clamp(min=0.5), 0.0).amax(-1)
    near = field.entry.isfinite()[:, None]
    unknown = field.left.isinf()[:, None]
    turns = (near | unknown) & (turned[..., -1].abs() >= math.radians(TURN_HEADING)) & (tightest >= TURN_CURVATURE)
    aside = motion.y[..., LABELLED]
    changes = ~near & ~turns & (aside.abs() >= CHANGE_COUNTS) & (~unknown | straightens(motion))
    left = torch.where(turns, turned[..., -1] > 0, aside > 0)
    path_id = torch.full_like(speed_id, DRIVEN_PATHS.index("STRAIGHT"))
    for moved, kind in ((turns, "TURN"), (changes, "CHANGE")):
        path_id[moved & left] = DRIVEN_PATHS.index(f"LEFT_{kind}")
        path_id[moved & ~left] = DRIVEN_PATHS.index(f"RIGHT_{kind}")
    path_id[stop & (lengths[..., -1] < STOP_TURN_LENGTH)] = DRIVEN_PATHS.index("STRAIGHT")
    return torch.stack([speed_id, path_id], dim=-1)


def straightens(motion: Motion) -> Tensor:
    """Whether the car points less aside after 4 s than the way there leads: (P, G) bool."""
    return motion.heading[..., -1].abs() * motion.x[..., -1] < motion.y[..., -1].abs()


def way_driven(motion: Motion) -> Tensor:
    """Distance driven at each moment: (P, G, 41)."""
    ways = (motion.speed[..., 1:] + motion.speed[..., :-1]) / 2 * STEP
    return torch.cat([torch.zeros_like(ways[..., :1]), ways.cumsum(-1)], dim=-1)


def ground_heading(motion: Motion) -> Tensor:
    """Heading over the ground at each moment, 0 at the start: (P, G, 41)."""
    turned = (motion.speed[..., 1:] + motion.speed[..., :-1]) / 2 * STEP * motion.curvature
    return torch.cat([torch.zeros_like(turned[..., :1]), turned.cumsum(-1)], dim=-1)
