"""The score of a motion in a built-in scene, after NAVSIM's PDMS (arXiv 2406.15349): every factor in [0, 1].

    pdms   = no_collision * on_road * (5 progress + 5 time_to_collision + 2 comfort) / 12              reported
    reward = the same with 4 agreement in the brackets and / 16, where a plan is named                  trained on

A box that is there with odds below 1 costs its odds. P scenes, G motions each. Units: m, s.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.scenes.geometry import CAR_LENGTH, CAR_WIDTH, LANE_WIDTH, TURN_RADIUS
from trajectory.field import BUMPER, Field
from trajectory.kinematics import COUNT, STEP, Motion, names

FACTORS = ("pdms", "no_collision", "on_road", "progress", "time_to_collision", "comfort", "agreement")
JUNCTION = (-1.0, 15.0)                 # m before and behind the stop line where no edge holds
AHEAD = (0.3, 0.6, 0.9)                 # s of constant velocity for the time to collision
STANDING = 0.05                         # m/s
OFF_ROUTE = 2.5                         # m
NO_WAY = 2.0                            # m: where no more is possible, progress is 1
WINDOW = 8                              # steps over which derivatives are averaged; NAVSIM smooths as long
# (lowest, highest) value: NAVSIM's limits of comfort
COMFORT = {"acceleration": (-4.05, 2.40), "lateral": (-4.89, 4.89), "jerk_along": (-4.13, 4.13), "jerk": (0.0, 8.37),
           "yaw_rate": (-0.95, 0.95), "yaw_acceleration": (-1.93, 1.93)}


@dataclass(frozen=True)
class Score:
    """Factors and totals, (P, G) each."""

    no_collision: Tensor
    on_road: Tensor
    progress: Tensor
    time_to_collision: Tensor
    comfort: Tensor
    agreement: Tensor                 # with the named plan: half for the speed, half for the path; 0 without one
    pdms: Tensor
    reward: Tensor


def score(motion: Motion, field: Field, reach: Tensor, plan: Tensor | None = None) -> Score:
    """Judge motions. reach (P,): the progress of the best safe one of 20 motions (trajectory/demonstrations.py); plan
    (P, 2): ids of a named speed and path, -1 where none is named."""
    collision, road = no_collision(motion, field), on_road(motion, field)
    way, time, smooth = progress(motion, field, reach), time_to_collision(motion, field), comfort(motion)
    weighted, gate = 5 * way + 5 * time + 2 * smooth, collision * road
    named = torch.zeros_like(field.speed) if plan is None else (plan[:, 0] >= 0).float()
    driven = names(motion, field)                                               # (P, G, 2)
    agreement = torch.zeros_like(way) if plan is None else \
        (driven == plan[:, None]).float().mean(-1) * named[:, None]
    reward = gate * (weighted + 4 * agreement) / (12 + 4 * named[:, None])
    return Score(collision, road, way, time, smooth, agreement, gate * weighted / 12, reward)


# ---------------------------------------------------------------- collisions

def no_collision(motion: Motion, field: Field) -> Tensor:
    """1 - odds of the worst box met at any moment; 0 for a car in an occupied lane. (P, G).

    Deviation from NAVSIM, which intersects polygons: the car is the bounding box of its corners along the lane, 3.4 m
    wide for a car of 1.9 m that stands 20 degrees aslant (docs/trajectories.md)."""
    sides, heights = outline(motion)
    met = overlaps(sides, heights, field, torch.arange(COUNT + 1) * STEP).any(-1)       # (P, G, 5)
    cost = (met * field.boxes[:, None, :, 6]).amax(-1)
    return (1 - cost) * (~in_occupied_lane(motion, field)).float()


def outline(motion: Motion) -> tuple[Tensor, Tensor]:
    """The car's bounding box at each moment: (lowest, highest) x and y, (2, P, G, 41) each."""
    x, y = corners(motion)
    return torch.stack([x.amin(0), x.amax(0)]), torch.stack([y.amin(0), y.amax(0)])


def corners(motion: Motion) -> tuple[Tensor, Tensor]:
    """x and y of the four corners at each moment, (4, P, G, 41) each.

    Deviation from NAVSIM: on a bend the car's outline stays straight in the lane's frame; the bumper, 3.7 m ahead of
    the axle, lies 0.15 m off at R = 45 m."""
    cos, sin = motion.heading.cos(), motion.heading.sin()
    places = [(along, aside) for along in (BUMPER, BUMPER - CAR_LENGTH) for aside in (CAR_WIDTH / 2, -CAR_WIDTH / 2)]
    return (torch.stack([motion.x + along * cos - aside * sin for along, aside in places]),
            torch.stack([motion.y + along * sin + aside * cos for along, aside in places]))


def overlaps(x: Tensor, y: Tensor, field: Field, times: Tensor, ahead: float = 0.0) -> Tensor:
    """Whether a box from x[0], y[0] to x[1], y[1], (P, G, T) each, meets the field's boxes at these times, or
    `ahead` seconds later at the speeds they have then. -> (P, G, 5, T)."""
    near = box_places(field, times)                                             # (P, 5, T)
    near = (near + ahead * box_speeds(field, times))[:, None] if ahead else near[:, None]
    x, y = x[:, :, :, None], y[:, :, :, None]                                   # (2, P, G, 1, T)
    boxes = field.boxes[:, None, :, :, None]                                    # (P, 1, 5, 7, 1)
    along = (x[1] > near) & (x[0] < near + boxes[..., 5, :])
    aside = (y[1] > boxes[..., 2, :]) & (y[0] < boxes[..., 1, :])
    return along & aside & (boxes[..., 6, :] > 0)


def box_places(field: Field, times: Tensor) -> Tensor:
    """x of every box's near side at these times: (P, 5, T). A braking box stops and stays."""
    near, speed, braking = (field.boxes[..., i, None] for i in (0, 3, 4))
    moving = torch.minimum(times.to(near), torch.where(braking > 0, speed / braking.clamp(min=1e-6), math.inf))
    return near + speed * moving - braking * moving ** 2 / 2


def box_speeds(field: Field, times: Tensor) -> Tensor:
    """Speed of every box at these times: (P, 5, T)."""
    speed, braking = (field.boxes[..., i, None] for i in (3, 4))
    return torch.where(braking > 0, (speed - braking * times.to(speed)).clamp(min=0), speed)


def in_occupied_lane(motion: Motion, field: Field) -> Tensor:
    """Whether the car reaches into a lane that other cars occupy, before the junction: (P, G) bool."""
    x, y = corners(motion)
    border = LANE_WIDTH - CAR_WIDTH / 2                     # where the cars of that lane begin
    before = x < (field.entry + JUNCTION[0])[:, None, None]
    left, right = field.closed_left[:, None, None], field.closed_right[:, None, None]
    return (((y > border) & left) | ((y < -border) & right)).logical_and(before).any(0).any(-1)


def time_to_collision(motion: Motion, field: Field) -> Tensor:
    """1 - odds of the worst road user that would be met within 0.9 s at constant speed. (P, G)."""
    (x_low, x_high), (y_low, y_high) = outline(motion)
    moves = (motion.speed > STANDING)[:, :, None]                               # (P, G, 1, 41)
    partner = (field.boxes[..., 6] * ~field.is_line)[:, None]                   # (P, 1, 5)
    cost = torch.zeros_like(motion.x[..., 0])
    times = torch.arange(COUNT + 1) * STEP
    for ahead in AHEAD:
        dx, dy = (motion.speed * ahead * part for part in (motion.heading.cos(), motion.heading.sin()))
        hit = overlaps(torch.stack([x_low + dx, x_high + dx]), torch.stack([y_low + dy, y_high + dy]), field, times,
                       ahead)
        cost = torch.maximum(cost, ((hit & moves).any(-1) * partner).amax(-1))
    return 1 - cost


# ---------------------------------------------------------------- road and route

def on_road(motion: Motion, field: Field) -> Tensor:
    """1 if all four corners stay between the edges, which end at a junction: (P, G)."""
    x, y = corners(motion)                                                      # (4, P, G, 41)
    start = field.entry[:, None, None]
    free = (x > start + JUNCTION[0]) & (x < start + JUNCTION[1])
    inside = (y <= field.left[:, None, None]) & (y >= -field.right[:, None, None])
    return (free | inside).all(0).all(-1).float()


def progress(motion: Motion, field: Field, reach: Tensor) -> Tensor:
    """Way along the route as a share of the best safe one's, at most 1; 1 where that is below 2 m: (P, G)."""
    way = route_way(motion, field)
    share = (way / reach.clamp(min=NO_WAY)[:, None]).clamp(0, 1)
    return torch.where((reach < NO_WAY)[:, None], torch.ones_like(share), share)


def route_way(motion: Motion, field: Field) -> Tensor:
    """Metres driven along the route: x, or on a route that turns the arc length of straight, arc, straight.

    On a turning route only places within 2.5 m of it count. (P, G)."""
    side, start = field.turn[:, None, None], (field.entry - BUMPER)[:, None, None]
    turning = (field.turn != 0)[:, None]
    start = torch.where(turning[..., None], start, 0.0)
    radius = torch.where(side > 0, TURN_RADIUS["left"], TURN_RADIUS["right"])
    along, aside = motion.x - start, side * motion.y
    angle = torch.atan2(along, radius - aside)
    behind = aside > radius                                 # past the arc
    before = along < 0
    way = torch.where(before, motion.x, start + radius * angle.clamp(0, math.pi / 2) + (aside - radius).clamp(min=0))
    off = torch.where(before, aside.abs(), torch.where(behind, (along - radius).abs(),
                                                       (torch.hypot(along, radius - aside) - radius).abs()))
    counted = torch.where(off <= OFF_ROUTE, way, 0.0).amax(-1)
    return torch.where(turning, counted, motion.x[..., -1])


# ---------------------------------------------------------------- comfort

def comfort(motion: Motion) -> Tensor:
    """1 if no limit of comfort is broken: (P, G)."""
    return (~torch.stack([broken for broken in violations(motion).values()]).any(0)).float()


def violations(motion: Motion) -> dict[str, Tensor]:
    """Limit -> whether each motion breaks it, (P, G) bool."""
    return {name: ((value < COMFORT[name][0]) | (value > COMFORT[name][1])).any(-1)
            for name, value in dynamics(motion).items()}


def dynamics(motion: Motion) -> dict[str, Tensor]:
    """What the limits of comfort are about, over time. Derivatives are means over 0.8 s."""
    speed = (motion.speed[..., 1:] + motion.speed[..., :-1]) / 2                # (P, G, 40)
    yaw_rate, lateral = speed * motion.curvature, speed ** 2 * motion.curvature
    jerk_along, jerk_across, yaw_acceleration = (
        (value[..., WINDOW:] - value[..., :-WINDOW]) / (WINDOW * STEP)
        for value in (motion.acceleration, lateral, yaw_rate))
    return {"acceleration": motion.acceleration, "lateral": lateral, "jerk_along": jerk_along,
            "jerk": torch.hypot(jerk_along, jerk_across), "yaw_rate": yaw_rate, "yaw_acceleration": yaw_acceleration}
