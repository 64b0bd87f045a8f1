"""The 20 candidate plans as motions: 4 speeds x 5 paths, 3 s of a bicycle model each, labelled by the label rule.

    KEEP 0, ACCELERATE +1.2, DECELERATE -1.5, STOP -3.5 m/s2 down to rest
    STRAIGHT follows the lane; a turn is an arc from the junction's stop line; a change is a quintic of 3.5 m

data/meta_action.py labels each motion, as it does for real drives. STOP from 13 m/s is still moving after 3 s and
becomes DECELERATE; a turn that begins later becomes STRAIGHT. That rule cannot tell lane changes from S-bends, but here
they are known: a change counts once 1 m of it is driven.
"""
import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from data.meta_action import STEP, distances, make_track, meta_action
from data.scenes.geometry import BEND_CURVATURE, GAPS, LANE_WIDTH, SIDES, SPEEDS, TURN_RADIUS, side_of
from data.scenes.world import BANDS
from rewards import Decision

HORIZON = 3.0                                                    # s
TIMES = np.linspace(0.0, HORIZON, round(HORIZON / STEP) + 1)     # (31,)
ACCELERATIONS = {"KEEP": 0.0, "ACCELERATE": 1.2, "DECELERATE": -1.5, "STOP": -3.5}       # m/s2
SHORTEST_CHANGE = 10.0                                           # m, for a car starting from rest
CHANGE_COUNTS = 1.0                                              # m sideways
DRIVEN_SPEEDS = tuple(ACCELERATIONS)                             # of the scenes' car, whatever lists a planner has
DRIVEN_PATHS = ("STRAIGHT", "RIGHT_CHANGE", "LEFT_CHANGE", "RIGHT_TURN", "LEFT_TURN")
CANDIDATES = tuple(Decision(speed, path) for speed in DRIVEN_SPEEDS for path in DRIVEN_PATHS)


@dataclass(frozen=True, eq=False)           # hashed by identity: roll_out makes one for each speed and road
class Rollouts:
    """All candidates for one speed and road, in the order of CANDIDATES, one column for each of TIMES.

    Frame as in geometry.py: x, y of the front bumper, along and across the lane. labels: by data/meta_action.py.
    """
    x: np.ndarray            # (20, 31) m
    y: np.ndarray            # (20, 31) m
    speeds: np.ndarray       # (20, 31) m/s
    lengths: np.ndarray      # (20, 31) m, distance driven
    curvatures: np.ndarray   # (20, 31) 1/m, of the road plus the plan's own steering
    labels: tuple[Decision, ...]


@cache
def roll_out(band: str, road: str) -> Rollouts:
    """The candidates of all scenes with this speed and road."""
    start, bend = SPEEDS[band], {"curve_left": 1, "curve_right": -1}.get(road, 0) * BEND_CURVATURE
    speeds = np.array([speed_profile(start, ACCELERATIONS[plan.speed]) for plan in CANDIDATES])       # (20, 31)
    ways = [drive(row, plan.path, start, turn_entry(band, road)) for row, plan in zip(speeds, CANDIDATES, strict=True)]
    x, y, steering = (np.array(part) for part in zip(*ways, strict=True))                             # (20, 31) each
    labels = tuple(label(*row) for row in zip(speeds, steering + bend, y[:, -1], CANDIDATES, strict=True))
    return Rollouts(x, y, speeds, np.array([distances(row) for row in speeds]), steering + bend, labels)


def turn_entry(band: str, road: str) -> float:
    """x in m where a turn begins; infinite unless a junction is near."""
    return GAPS["junction_near"][BANDS.index(band)] if road == "junction_near" else math.inf


def speed_profile(start: float, acceleration: float) -> np.ndarray:
    """Speed at each time, (31,), never negative."""
    return np.maximum(start + acceleration * TIMES, 0.0)


def drive(speeds: np.ndarray, path: str, start: float, entry: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bicycle model along a path in the lane's frame: x, y and steered curvature at each time, (31,) each."""
    x, y, heading, curvatures = [0.0], [0.0], 0.0, []
    for step in np.diff(distances(speeds)):                            # midpoint steering and heading
        curvatures.append(steer(path, x[-1] + step / 2 * math.cos(heading), heading, start, entry))
        middle = heading + curvatures[-1] * step / 2
        x.append(x[-1] + step * math.cos(middle))
        y.append(y[-1] + step * math.sin(middle))
        heading += curvatures[-1] * step
    return np.array(x), np.array(y), np.array([*curvatures, curvatures[-1]])


def steer(path: str, x: float, heading: float, start: float, entry: float) -> float:
    """The curvature, 1/m, that keeps the car on its path at x with this heading."""
    side = SIDES.get(side_of(path), 0)
    if path.endswith("TURN"):
        return side / TURN_RADIUS["left" if side > 0 else "right"] * (x >= entry and abs(heading) < math.pi / 2)
    if path.endswith("CHANGE"):
        length = max(SHORTEST_CHANGE, HORIZON * start)           # a lane change takes 3 s at the present speed
        part = min(x / length, 1.0)
        slope = side * LANE_WIDTH / length * (30 * part**2 - 60 * part**3 + 30 * part**4)
        bending = side * LANE_WIDTH / length**2 * (60 * part - 180 * part**2 + 120 * part**3)
        return bending / (1 + slope**2) ** 1.5                   # y = 3.5 (10 p^3 - 15 p^4 + 6 p^5)
    return 0.0


def label(speeds: np.ndarray, curvatures: np.ndarray, aside: float, plan: Decision) -> Decision:
    """The label rule's plan for one motion over the ground; `aside` is its offset from the lane in m."""
    steps = np.diff(distances(speeds))                                                # (30,)
    headings = np.concatenate([[0.0], np.cumsum(curvatures[:-1] * steps)])      # (31,)
    middles = (headings[1:] + headings[:-1]) / 2
    moves = steps * np.stack([np.cos(middles), np.sin(middles)])                # (2, 30)
    positions = np.concatenate([[[0.0, 0.0]], moves.cumsum(axis=1).T])          # (31, 2)
    found = meta_action(make_track(TIMES, positions, headings)).decision
    return Decision(found.speed, plan.path) if plan.path.endswith("CHANGE") and abs(aside) >= CHANGE_COUNTS else found
