"""The world of the built-in benchmark: what a scene is and how one is drawn at random from a seed."""
import random
from dataclasses import dataclass

# How often each value occurs; the conditions between factors are in sample_scene.
ROADS = {"straight": 0.24, "curve_left": 0.11, "curve_right": 0.11, "junction_near": 0.30, "junction_far": 0.24}
LIGHTS = {"none": 0.20, "red": 0.26, "yellow": 0.20, "green": 0.34}
AHEAD_AT_JUNCTION = {"clear": 0.56, "lead_far": 0.14, "lead_near": 0.18, "crossing": 0.12}
AHEAD_ON_ROAD = {"clear": 0.21, "lead_far": 0.14, "lead_near": 0.21, "crossing": 0.08, "cones": 0.20, "parked": 0.16}
LANES = {"none": 0.25, "free": 0.45, "occupied": 0.30}
TURNS = {"straight": 0.20, "left": 0.40, "right": 0.40}
SPEED_BANDS = {"standing": 0.15, "slow": 0.22, "medium": 0.33, "fast": 0.30}
BAND_TENTHS = {"standing": (0, 0), "slow": (10, 39), "medium": (40, 89), "fast": (90, 150)}       # 0.1 m/s, inclusive


@dataclass(frozen=True)
class Scene:
    """One moment in front of the car; `sample_scene` makes it, the picture, the expert and the sentence read it.

    road       straight | curve_left | curve_right | junction_near (entered within 3 s) | junction_far
    light      none | red | yellow | green; only at a junction
    lead       none | far | near, and `braking` says whether its brake lamps are lit
    pedestrian none | kerb | crossing
    blockage   none | cones | parked: stands in the own lane
    left_lane, right_lane   none | free | occupied
    speed      of the ego car in m/s, one decimal
    turn_100, turn_200      the route within 100 m and 200 m: straight | left | right
    """
    seed: int
    road: str
    light: str
    lead: str
    braking: bool
    pedestrian: str
    blockage: str
    left_lane: str
    right_lane: str
    night: bool
    speed: float
    turn_100: str
    turn_200: str


def sample_scene(seed: int) -> Scene:
    """The scene of a seed: independent draws, but lights and near turns only at junctions, one thing in the lane."""
    rng = random.Random(seed)
    road = pick(rng, ROADS)
    junction = road.startswith("junction")
    ahead = pick(rng, AHEAD_AT_JUNCTION if junction else AHEAD_ON_ROAD)
    kerb = "kerb" if rng.random() < 0.15 else "none"
    turn_100 = pick(rng, TURNS) if junction else "straight"
    return Scene(
        seed=seed, road=road,
        light=pick(rng, LIGHTS) if junction else "none",
        lead=ahead.removeprefix("lead_") if ahead.startswith("lead") else "none",
        braking=ahead.startswith("lead") and rng.random() < 0.5,
        pedestrian="crossing" if ahead == "crossing" else kerb,
        blockage=ahead if ahead in ("cones", "parked") else "none",
        left_lane=pick(rng, LANES), right_lane=pick(rng, LANES),
        night=rng.random() < 0.25,
        speed=sample_speed(rng),
        turn_100=turn_100,
        turn_200=pick(rng, TURNS) if turn_100 == "straight" else "straight")


def sample_speed(rng: random.Random) -> float:
    low, high = BAND_TENTHS[pick(rng, SPEED_BANDS)]
    return rng.randint(low, high) / 10


def speed_band(speed: float) -> str:
    """standing (0) | slow (below 4 m/s) | medium (below 9 m/s) | fast: what the expert and the sentence speak of."""
    if speed < 0.5:
        return "standing"
    return "slow" if speed < 4 else "medium" if speed < 9 else "fast"


def pick(rng: random.Random, shares: dict) -> object:
    """One key, drawn with the shares as odds."""
    return rng.choices(list(shares), weights=list(shares.values()))[0]
