"""Gates that rule out a candidate plan: off the road, collision, grip, speed limit. Each is 1 or 0, shape (20,).

What depends on the motions and one box alone is cached: few pairs of them occur in any number of scenes.
"""
from functools import cache

import numpy as np

from data.scenes import geometry
from data.scenes.geometry import SIDES, Obstacle, obstacles, side_of
from data.scenes.rollout import CANDIDATES, DRIVEN_PATHS, TIMES, Rollouts
from data.scenes.world import Scene

MAX_LATERAL = 4.89                       # m/s2, NAVSIM's limit
LIMIT_TOLERANCE = 1.1                    # times the speed limit
PATHS = np.array([plan.path for plan in CANDIDATES])
CHANGE_SIDES = np.array([SIDES[side_of(path)] if path.endswith("CHANGE") else 0 for path in PATHS])


def gates(scene: Scene, rollouts: Rollouts) -> dict[str, np.ndarray]:
    """All gates by name."""
    passed = {"drivable": drivable(scene, rollouts), "collision": ~collides(rollouts, obstacles(scene)),
              "grip": grips(rollouts), "limit": rollouts.speeds[:, -1] <= LIMIT_TOLERANCE * geometry.SPEED_LIMIT}
    return {name: values.astype(float) for name, values in passed.items()}


# ---------------------------------------------------------------- the road

def drivable(scene: Scene, rollouts: Rollouts) -> np.ndarray:
    """Whether the plan stays on the road and completes its lane change."""
    may = {path: may_take(scene, path) for path in DRIVEN_PATHS}
    return np.array([may[path] for path in PATHS]) & completes_change(rollouts)


@cache
def completes_change(rollouts: Rollouts) -> np.ndarray:
    """Whether a plan that changes lanes is labelled so after the 3 s; true of all others."""
    done = np.array([label.path == path for label, path in zip(rollouts.labels, PATHS, strict=True)])
    return done | (CHANGE_SIDES == 0)


def may_take(scene: Scene, path: str) -> bool:
    """A turn needs a junction and an open road. A change needs a free lane.

    There are no lane changes at a stop line, beside a car that cuts in, or towards an oncoming car.
    """
    side, _, kind = path.lower().partition("_")
    if kind == "turn":
        return scene.road.startswith("junction") and not (scene.event == "blocked_turn" and scene.turn_100 == side)
    if kind == "change":
        unwise = scene.event == "cut_in" or (scene.event == "wrong_way" and side == "left")
        return getattr(scene, f"{side}_lane") == "free" and scene.road != "junction_near" and not unwise
    return True


# ---------------------------------------------------------------- collisions

def collides(rollouts: Rollouts, boxes: tuple[Obstacle, ...]) -> np.ndarray:
    """Whether a box of odds 1 is hit within the 3 s, or is then too close for a gentle stop behind it."""
    hit = np.zeros(len(PATHS), dtype=bool)
    for box in boxes:
        if box.odds == 1:
            hit |= hits(rollouts, box)
    return hit


@cache
def hits(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """Whether the box is hit within the 3 s or cannot be avoided after them, (20,)."""
    return meets(rollouts, box).any(axis=1) | cannot_stop(rollouts, box)


def meets(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """Whether the car and the box overlap, (20, 31)."""
    ahead = room(rollouts, box)
    return beside(rollouts.y, box) & (ahead < 0) & (ahead > -geometry.CAR_LENGTH - box.length)


def cannot_stop(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """Whether braking at 2.5 m/s2 after the 3 s leaves less than 0.5 m to a box that also brakes at 2.5 m/s2."""
    ours, theirs = rollouts.speeds[:, -1], max(final_speed(box), 0.0)
    left = room(rollouts, box)[:, -1] + (theirs**2 - ours**2) / (2 * geometry.GENTLE_BRAKING)
    return still_ahead(rollouts, box) & (left < geometry.MARGIN)


def still_ahead(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """Whether the box is still ahead after the 3 s and in the lane that the plan heads for."""
    heading_for = np.where(CHANGE_SIDES == 0, rollouts.y[:, -1], CHANGE_SIDES * geometry.LANE_WIDTH)
    return beside(heading_for, box) & (room(rollouts, box)[:, -1] > -geometry.CAR_LENGTH - box.length)


def room(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """Gap in m between bumper and box at each time, (20, 31)."""
    return box.gap + travelled(box) - rollouts.x


def beside(y: np.ndarray, box: Obstacle) -> np.ndarray:
    """Whether a car at y overlaps the box sideways."""
    return (y + geometry.CAR_WIDTH / 2 > box.right) & (y - geometry.CAR_WIDTH / 2 < box.left)


def travelled(box: Obstacle) -> np.ndarray:
    """Distance in m that a box has moved by each time, (31,). A braking box stops and stays."""
    moving = np.minimum(TIMES, box.speed / box.braking) if box.braking else TIMES
    return box.speed * moving - box.braking * moving**2 / 2


def final_speed(box: Obstacle) -> float:
    """Speed of a box after the 3 s, m/s."""
    return max(box.speed - box.braking * TIMES[-1], 0.0) if box.braking else box.speed


# ---------------------------------------------------------------- grip

@cache
def grips(rollouts: Rollouts) -> np.ndarray:
    """Whether the sideways acceleration stays within the limit, (20,)."""
    return lateral(rollouts).max(axis=1) <= MAX_LATERAL


def lateral(rollouts: Rollouts) -> np.ndarray:
    """Sideways acceleration at each time, m/s2, (20, 31)."""
    return rollouts.speeds**2 * np.abs(rollouts.curvatures)
