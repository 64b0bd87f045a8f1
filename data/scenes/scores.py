"""The score of each candidate plan in a scene: weighted terms in [0, 1], times the gate.

    s = gate * (6 progress + 6 time to collision + 2 comfort + 5 navigation + 2 rules) / 21

The first three are simplified terms of NAVSIM (arXiv 2406.15349).
"""
from dataclasses import dataclass
from functools import cache

import numpy as np

from data.meta_action import STEP
from data.scenes.gates import PATHS, final_speed, gates, lateral, meets, room, still_ahead
from data.scenes.geometry import SIDES, SPEED_LIMIT, Obstacle, obstacles
from data.scenes.rollout import DRIVEN_PATHS, Rollouts, roll_out, turn_entry
from data.scenes.world import Scene, speed_band

WEIGHTS = {"progress": 6.0, "time_to_collision": 6.0, "comfort": 2.0, "navigation": 5.0, "rules": 2.0}
TIME_LEFT = (1.0, 3.0)                   # s before a collision: term 0, term 1
TIME_GAP = (0.4, 1.2)                    # s behind a moving car
HARMLESS = (12.0, 0.0)                   # m/s at impact
ALONG, ACROSS = (1.7, 1.2), (4.0, 2.0)   # m/s2: term 0, term 1
LANE_ASKED = {"next": 0.3, "later": 0.6}     # value of staying where the route asks for another lane
CHANGE_WORTH = {"needed": 0.75, "idle": 0.15}    # value of a change the route does not ask for; right: 0.1 less


@dataclass(frozen=True)
class Scores:
    """For each candidate, (20,): gates by name (1 or 0), terms by name, and the score."""
    gates: dict[str, np.ndarray]
    terms: dict[str, np.ndarray]
    total: np.ndarray


def scores(scene: Scene) -> Scores:
    """Gates, terms and score of the 20 candidates."""
    rollouts, boxes = roll_out(speed_band(scene.speed), scene.road), obstacles(scene)
    passed = gates(scene, rollouts)
    gate = np.prod(list(passed.values()), axis=0)                               # (20,)
    terms = {"progress": progress(scene, rollouts, gate), "time_to_collision": time_to_collision(rollouts, boxes),
             "comfort": comfort(rollouts), "navigation": navigation(scene), "rules": rules(rollouts, boxes)}
    weighted = sum(WEIGHTS[name] * term for name, term in terms.items()) / sum(WEIGHTS.values())
    return Scores(passed, terms, gate * weighted)


def mark(value: np.ndarray, none: float, full: float) -> np.ndarray:
    """Linear from 0 at `none` to 1 at `full`, clipped."""
    return np.clip((value - none) / (full - none), 0.0, 1.0)


# ---------------------------------------------------------------- terms

def progress(scene: Scene, rollouts: Rollouts, gate: np.ndarray) -> np.ndarray:
    """Distance along the route, as a share of the longest that passes the gates; 1 for all if none exceeds 1 m.

    A plan that misses the route's turn counts up to the junction.
    """
    lengths = rollouts.lengths[:, -1]
    lengths = np.where(on_route(scene), lengths, np.minimum(lengths, turn_entry(speed_band(scene.speed), scene.road)))
    best = (lengths * gate).max()
    return np.minimum(lengths / best, 1.0) if best > 1.0 else np.ones(len(lengths))


def time_to_collision(rollouts: Rollouts, boxes: tuple[Obstacle, ...]) -> np.ndarray:
    """The lowest mark over all boxes; a box with odds below 1 subtracts only its share."""
    worst = np.ones(len(PATHS))
    for box in boxes:
        worst = np.minimum(worst, 1 - box.odds * (1 - box_marks(rollouts, box)))
    return worst


@cache
def box_marks(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """The mark for one box, (20,): by the speed at impact if it is hit within the 3 s.

    Otherwise it is the time left after the 3 s at the final speeds. Behind a moving box the time gap counts too.
    """
    now, later = meets(rollouts, box), np.where(still_ahead(rollouts, box), time_marks(rollouts, box), 1.0)
    impact = np.take_along_axis(rollouts.speeds, now.argmax(axis=1)[:, None], axis=1)[:, 0]       # first impact
    return np.where(now.any(axis=1), mark(impact, *HARMLESS), later)


def time_marks(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """The mark for time to collision and time gap to a box ahead, after the 3 s."""
    free, speed = np.maximum(room(rollouts, box)[:, -1], 0.0), rollouts.speeds[:, -1]
    marks = mark(free / np.maximum(speed - final_speed(box), 1e-6), *TIME_LEFT)
    return np.minimum(marks, mark(free / np.maximum(speed, 1e-6), *TIME_GAP)) if box.speed > 0 else marks


@cache
def comfort(rollouts: Rollouts) -> np.ndarray:
    """The lower of two marks: longitudinal acceleration, and lateral acceleration at the end of the 3 s."""
    along = np.abs(np.diff(rollouts.speeds, axis=1)).max(axis=1) / STEP
    return np.minimum(mark(along, *ALONG), mark(lateral(rollouts)[:, -1], *ACROSS))


def navigation(scene: Scene) -> np.ndarray:
    """0 off the route; on it 1, or less for a lane that the route does not ask for, (20,).

    A route that turns within 200 m asks for the lane on that side, more urgently within 100 m. Other lane changes have
    little value unless the own lane is obstructed.
    """
    wish = scene.turn_100 if scene.turn_100 != "straight" else scene.turn_200
    asked = wish in SIDES and scene.road != "junction_near" and getattr(scene, f"{wish}_lane") == "free"
    value = {path: 1.0 for path in DRIVEN_PATHS}
    if asked:
        value["STRAIGHT"] = LANE_ASKED["next" if scene.turn_100 == wish else "later"]
    worth = CHANGE_WORTH["needed" if obstructed(scene) else "idle"]
    for side in SIDES:
        if not (asked and side == wish):
            value[f"{side}_change".upper()] = worth - 0.1 * (side == "right")
    return on_route(scene) * np.array([value[path] for path in PATHS])


def on_route(scene: Scene) -> np.ndarray:
    """Which candidates follow the route, (20,): turns matter, lanes do not. A closed turn is ignored."""
    turns = scene.road == "junction_near" and scene.turn_100 != "straight" and scene.event != "blocked_turn"
    return PATHS == f"{scene.turn_100}_turn".upper() if turns else ~np.char.endswith(PATHS, "TURN")


def obstructed(scene: Scene) -> bool:
    return scene.blockage != "none" or scene.lead == "near" or scene.event in ("wrong_way", "door")


def rules(rollouts: Rollouts, boxes: tuple[Obstacle, ...]) -> np.ndarray:
    """0 for ending above the speed limit, or for accelerating past a line or person that may have priority; else 1."""
    wrong = rollouts.speeds[:, -1] > SPEED_LIMIT
    for box in boxes:
        if box.odds < 1:
            wrong = wrong | forces_its_way(rollouts, box)
    return 1.0 - wrong


@cache
def forces_its_way(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """Whether a plan accelerates past the box, (20,)."""
    return (rollouts.speeds[:, -1] > rollouts.speeds[:, 0]) & (room(rollouts, box)[:, -1] < 0)
