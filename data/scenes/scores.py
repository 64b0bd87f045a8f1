"""What a candidate plan is worth in a scene: a score of weighted terms, each in [0, 1], where no gate forbids it.

    s = gate * (6 progress + 6 time to collision + 2 comfort + 5 navigation + 2 rules) / 21

The first three are the terms by which NAVSIM (arXiv 2406.15349) grades a motion, in a simpler form.
"""
from dataclasses import dataclass

import numpy as np

from data.meta_action import STEP
from data.scenes.gates import PATHS, final_speed, gates, lateral, meets, room, still_ahead
from data.scenes.geometry import SIDES, SPEED_LIMIT, Obstacle, obstacles
from data.scenes.rollout import Rollouts, roll_out, turn_entry
from data.scenes.world import Scene, speed_band
from rewards.actions import PATH_ACTIONS

WEIGHTS = {"progress": 6.0, "time_to_collision": 6.0, "comfort": 2.0, "navigation": 5.0, "rules": 2.0}
TIME_LEFT = (1.0, 3.0)                   # s before a collision: none of the mark, the full mark
TIME_GAP = (0.4, 1.2)                    # s behind who drives ahead
HARMLESS = (12.0, 0.0)                   # m/s at which somebody is met
ALONG, ACROSS = (1.7, 1.2), (4.0, 2.0)   # m/s2: unpleasant, calm
LANE_ASKED = {"next": 0.3, "later": 0.6}     # what staying is worth where the route asks for another lane
CHANGE_WORTH = {"needed": 0.75, "idle": 0.15}    # of a change that the route does not ask for; to the right 0.1 less


@dataclass(frozen=True)
class Scores:
    """Of each candidate (20,): its gates by name, 1 or 0, its terms by name, and the score."""
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
    """0 at `none` and beyond, 1 at `full` and beyond, straight between them."""
    return np.clip((value - none) / (full - none), 0.0, 1.0)


# ---------------------------------------------------------------- terms

def progress(scene: Scene, rollouts: Rollouts, gate: np.ndarray) -> np.ndarray:
    """Way driven along the route, as a share of the longest that no gate forbids; 1 for all where nobody can get on.

    A plan that misses the route's turn is on the route up to the junction.
    """
    lengths = rollouts.lengths[:, -1]
    lengths = np.where(on_route(scene), lengths, np.minimum(lengths, turn_entry(speed_band(scene.speed), scene.road)))
    best = (lengths * gate).max()
    return np.minimum(lengths / best, 1.0) if best > 1.0 else np.ones(len(lengths))


def time_to_collision(rollouts: Rollouts, boxes: tuple[Obstacle, ...]) -> np.ndarray:
    """The worst mark of all boxes; one that may not be there takes off its share of odds.

    What is met within the 3 s counts by the speed of meeting, the rest by how soon it would be met after them at the
    speeds of then. Behind somebody who moves on the time gap counts, too.
    """
    worst = np.ones(len(PATHS))
    for box in boxes:
        now, later = meets(rollouts, box), np.where(still_ahead(rollouts, box), time_marks(rollouts, box), 1.0)
        impact = np.take_along_axis(rollouts.speeds, now.argmax(axis=1)[:, None], axis=1)[:, 0]   # at the first meeting
        grade = np.where(now.any(axis=1), mark(impact, *HARMLESS), later)
        worst = np.minimum(worst, 1 - box.odds * (1 - grade))
    return worst


def time_marks(rollouts: Rollouts, box: Obstacle) -> np.ndarray:
    """The mark for the time left and the time gap to a box ahead, after the 3 s."""
    free, speed = np.maximum(room(rollouts, box)[:, -1], 0.0), rollouts.speeds[:, -1]
    marks = mark(free / np.maximum(speed - final_speed(box), 1e-6), *TIME_LEFT)
    return np.minimum(marks, mark(free / np.maximum(speed, 1e-6), *TIME_GAP)) if box.speed > 0 else marks


def comfort(rollouts: Rollouts) -> np.ndarray:
    """The worse of two marks: speeding up or braking, and the sideways acceleration after the 3 s (a bend is ahead)."""
    along = np.abs(np.diff(rollouts.speeds, axis=1)).max(axis=1) / STEP
    return np.minimum(mark(along, *ALONG), mark(lateral(rollouts)[:, -1], *ACROSS))


def navigation(scene: Scene) -> np.ndarray:
    """0 off the route; on it 1, or less for a lane that it does not ask for, (20,).

    Where the route turns within 200 m it asks for the lane on that side, urgently if that is the next turn. Another
    change is worth little, unless the own lane is obstructed.
    """
    wish = scene.turn_100 if scene.turn_100 != "straight" else scene.turn_200
    asked = wish in SIDES and scene.road != "junction_near" and getattr(scene, f"{wish}_lane") == "free"
    value = {path: 1.0 for path in PATH_ACTIONS}
    if asked:
        value["STRAIGHT"] = LANE_ASKED["next" if scene.turn_100 == wish else "later"]
    worth = CHANGE_WORTH["needed" if obstructed(scene) else "idle"]
    for side in SIDES:
        if not (asked and side == wish):
            value[f"{side}_change".upper()] = worth - 0.1 * (side == "right")
    return on_route(scene) * np.array([value[path] for path in PATHS])


def on_route(scene: Scene) -> np.ndarray:
    """Which candidates follow the route, (20,): the lane does not matter, a turn does. A closed turn is given up."""
    turns = scene.road == "junction_near" and scene.turn_100 != "straight" and scene.event != "blocked_turn"
    return PATHS == f"{scene.turn_100}_turn".upper() if turns else ~np.char.endswith(PATHS, "TURN")


def obstructed(scene: Scene) -> bool:
    return scene.blockage != "none" or scene.lead == "near" or scene.event in ("wrong_way", "door")


def rules(rollouts: Rollouts, boxes: tuple[Obstacle, ...]) -> np.ndarray:
    """0 for ending above the speed limit, or for speeding up past a line or a person that may have to be yielded to."""
    ends, faster = rollouts.speeds[:, -1], rollouts.speeds[:, -1] > rollouts.speeds[:, 0]
    wrong = ends > SPEED_LIMIT
    for box in boxes:
        if box.odds < 1:
            wrong |= faster & (room(rollouts, box)[:, -1] < 0)
    return 1.0 - wrong
