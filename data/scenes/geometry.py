"""The metres behind a scene's words: where things are and how they move.

The picture says "near" and "far" without a scale. The distance behind each word grows with the speed: "near" means that
a decision is due now, which is farther away at 13 m/s than at 3. A fixed distance would leave fast cars no choice.

Frame: front bumper at x = 0, x along the lane, y to the left of its middle; in a bend both follow the lane.
"""
from collections.abc import Callable
from dataclasses import dataclass

from data.scenes.world import BANDS, Scene, speed_band

SPEEDS = dict(zip(BANDS, (0.0, 3.0, 8.0, 13.0), strict=True))      # m/s, as the expert sees them
LANE_WIDTH = 3.5
CAR_LENGTH, CAR_WIDTH = 4.6, 1.9
BEND_CURVATURE = 1 / 45                  # 1/m, just below a turn in data/meta_action.py
TURN_RADIUS = {"left": 12.0, "right": 8.0}
SPEED_LIMIT = 13.9                       # m/s, 50 km/h
CYCLIST_SPEED = 4.0
GENTLE_BRAKING = 2.5                     # m/s2
MARGIN = 0.5                             # m left after stopping
LINE_ODDS = {"yellow": 0.8, "off": 0.6}  # probability of having to stop
MAY_STEP_OUT = 0.8                       # probability for a pedestrian at the kerb or a person at a car door
SIDES = {"left": 1, "right": -1}

#                    standing  slow  medium  fast
GAPS = {
    "junction_near": (1.0, 2.5, 10.5, 26.0),        # the stop line; hard braking just ends before it
    "junction_far":  (25.0, 25.0, 40.0, 50.0),
    "near":          (4.0, 6.0, 8.0, 11.0),         # a car ahead
    "far":           (20.0, 20.0, 23.0, 28.0),
    "crossing":      (3.0, 5.0, 12.0, 26.0),
    "kerb":          (6.0, 8.0, 16.0, 36.0),
    "blockage":      (8.0, 10.0, 16.0, 32.0),
    "animal":        (4.0, 6.0, 12.0, 27.0),
    "ball":          (5.0, 8.0, 16.0, 30.0),
    "wrong_way":     (20.0, 21.0, 31.0, 45.0),
    "cut_in":        (2.0, 4.0, 6.0, 9.0),
    "door":          (6.0, 8.0, 14.0, 30.0),
}


@dataclass(frozen=True)
class Obstacle:
    """A box `gap` m ahead of the bumper that moves along the road at `speed` (negative: oncoming), slowed by `braking`.

    left, right: y of its sides. odds: probability that it is there; below 1 for what may step into the way.
    """
    gap: float
    left: float
    right: float
    speed: float = 0.0
    braking: float = 0.0
    length: float = CAR_LENGTH
    odds: float = 1.0


Metres = Callable[[Scene, str], float]      # scene, a name of GAPS -> m
Pace = Callable[[Scene], float]             # scene -> the car's speed, m/s


def side_of(path: str) -> str:
    """`LEFT_TURN` -> left; straight for STRAIGHT."""
    return path.split("_")[0].lower()


def expert_speed(scene: Scene) -> float:
    """The speed of the scene's band, m/s."""
    return SPEEDS[speed_band(scene.speed)]


def gap(scene: Scene, name: str) -> float:
    return GAPS[name][BANDS.index(speed_band(scene.speed))]


def obstacles(scene: Scene, metres: Metres = gap, pace: Pace = expert_speed) -> tuple[Obstacle, ...]:
    """Everything the car must not hit, as boxes with a predicted motion.

    metres, pace: distances and the car's speed; as the expert sees them, unless others are passed."""
    return (*road_users(scene, metres, pace), *standing_things(scene, metres), *lines(scene, metres))


def road_users(scene: Scene, metres: Metres = gap, pace: Pace = expert_speed) -> list[Obstacle]:
    """Cars and cyclists ahead in the own lane. Brake lamps mean 2 m/s2."""
    speed, found = pace(scene), []
    if scene.lead != "none":
        own = min(speed, CYCLIST_SPEED) if scene.lead_kind == "cyclist" else speed
        found.append(in_lane(metres(scene, scene.lead), speed=own, braking=2.0 * scene.braking))
    if scene.event == "cut_in":
        found.append(in_lane(metres(scene, "cut_in"), speed=0.7 * speed))
    if scene.event == "wrong_way":
        found.append(in_lane(metres(scene, "wrong_way"), speed=-4.0))
    return found


def standing_things(scene: Scene, metres: Metres = gap) -> list[Obstacle]:
    """Objects in the lane, and people who may step into it."""
    found = []
    if scene.blockage != "none":
        found.append(in_lane(metres(scene, "blockage")))
    if scene.pedestrian == "crossing":
        found.append(across(metres(scene, "crossing")))
    if scene.pedestrian == "kerb":
        found.append(across(metres(scene, "kerb"), odds=MAY_STEP_OUT))
    if scene.side.startswith("cyclist"):
        found.append(across(metres(scene, "crossing")))
    if scene.side.startswith("car"):
        found.append(across(metres(scene, "junction_near")))
    if scene.event in ("animal", "ball"):
        found.append(across(metres(scene, scene.event)))
    if scene.event == "door":
        found.append(in_lane(metres(scene, "door"), odds=MAY_STEP_OUT))
    return found


def lines(scene: Scene, metres: Metres = gap) -> list[Obstacle]:
    """The stop line as a wall: for red, for an ambulance, and for yellow if a gentle stop is possible, by the expert's
    distances. For a later yellow or a dead light, the wall is there with a probability below 1."""
    if not scene.road.startswith("junction") or scene.event == "waved_through":
        return []
    stops = gap(scene, scene.road) >= expert_speed(scene) ** 2 / (2 * GENTLE_BRAKING) + MARGIN
    closed = scene.light == "red" or (scene.light == "yellow" and stops) or scene.event == "ambulance"
    odds = 1.0 if closed else LINE_ODDS.get(scene.light, 0.0)
    return [across(metres(scene, scene.road), odds=odds)] if odds else []


def in_lane(distance: float, **motion: float) -> Obstacle:
    return Obstacle(distance, CAR_WIDTH / 2, -CAR_WIDTH / 2, **motion)


def across(distance: float, **motion: float) -> Obstacle:
    """A box across all lanes."""
    return Obstacle(distance, 20.0, -20.0, length=0.5, **motion)
