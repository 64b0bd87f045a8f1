"""The world of the built-in benchmark: the Scene record, the rates of its facts, and how a scene is drawn."""
import random
from dataclasses import dataclass, replace

BANDS = ("standing", "slow", "medium", "fast")
# in 0.1 m/s, inclusive; the thresholds 5.0 and 11.0 are left out
BAND_TENTHS = {"standing": (0, 0), "slow": (10, 49), "medium": (51, 109), "fast": (111, 150)}
Shares = dict[str, float]


@dataclass(frozen=True)
class Scene:
    """One moment ahead of the car. `sample_scene` makes it; picture, expert and sentence are made from it.

    road       straight | curve_left | curve_right | junction_near (entered within 3 s) | junction_far
    light      none | red | yellow | green | off; only at a junction
    lead       none | far | near; `braking`: its brake lamps are lit
    lead_kind  car | truck | cyclist; a cyclist has no brake lamps
    pedestrian none | kerb | crossing
    blockage   none | cones | parked, in the own lane
    left_lane, right_lane   none | free | occupied
    speed      of the ego car in m/s, one decimal
    turn_100, turn_200      the route within 100 m and 200 m: straight | left | right
    weather    clear | overcast | rain | fog; visible, but without influence on the plan
    event      none, or a key of EVENTS
    prior      the rates that the scene and its label noise are drawn with
    side       none, or what a side view alone shows and the plan depends on: KIND_left or KIND_right with the kinds
               cyclist and car (about to cross the own way) and beside (a car in that lane, next to the own one)
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
    weather: str = "clear"
    event: str = "none"
    lead_kind: str = "car"
    prior: str = "balanced"
    side: str = "none"


@dataclass(frozen=True)
class Rates:
    """The probability of each value; conditions between the facts are in draw_scene."""
    roads: Shares
    lights: Shares
    ahead_at_junction: Shares
    ahead_on_road: Shares
    lanes: Shares
    turns: Shares
    speed_bands: Shares
    kerb: float
    braking: float
    night: float
    weather: Shares
    events: Shares


# The facts that each rare event sets; with_event adds the rest.
ROADSIDE = {"lead": "none", "lead_kind": "car", "braking": False, "pedestrian": "none", "blockage": "none"}
AT_JUNCTION = {**ROADSIDE, "road": "junction_near"}
EVENTS = {
    "cone_truck":     {**ROADSIDE, "lead": "near", "lead_kind": "truck"},   # carries cones; the lane is not blocked
    "ball":           ROADSIDE,                                             # rolls into the lane; a child may follow
    "light_off":      {**AT_JUNCTION, "light": "off"},
    "ambulance":      {**AT_JUNCTION, "light": "green"},                    # crosses on a call at any light
    "animal":         ROADSIDE,
    "dark_pedestrian": {**ROADSIDE, "pedestrian": "crossing", "night": True},       # in dark clothes
    "wrong_way":      ROADSIDE,                                             # a car comes towards us in our lane
    "waved_through":  {**AT_JUNCTION, "light": "red"},                      # an officer overrules the light
    "blocked_turn":   {**AT_JUNCTION, "light": "green", "turn_200": "straight"},    # the route's turn is closed
    "cut_in":         ROADSIDE,                                             # from the left lane into ours
    "door":           {**ROADSIDE, "right_lane": "none"},                   # of a car parked on the right
}
EVENT_PERCENT = {"cone_truck": .5, "ball": .3, "light_off": .5, "ambulance": .4, "animal": .3, "dark_pedestrian": .6,
                 "wrong_way": .3, "waved_through": .3, "blocked_turn": 1.0, "cut_in": 1.5, "door": .6}


def event_shares(times: float) -> Shares:
    """The events at `times` their usual rate; no event otherwise."""
    shares = {event: percent * times / 100 for event, percent in EVENT_PERCENT.items()}
    return {"none": 1 - sum(shares.values()), **shares}


LEAD_KINDS = {"car": 0.70, "truck": 0.15, "cyclist": 0.15}
BALANCED = Rates(
    roads={"straight": 0.27, "curve_left": 0.06, "curve_right": 0.06, "junction_near": 0.38, "junction_far": 0.23},
    lights={"none": 0.26, "red": 0.18, "yellow": 0.20, "green": 0.36},
    ahead_at_junction={"clear": 0.66, "lead_far": 0.12, "lead_near": 0.14, "crossing": 0.08},
    ahead_on_road={"clear": 0.20, "lead_far": 0.14, "lead_near": 0.24, "crossing": 0.08, "cones": 0.19, "parked": 0.15},
    lanes={"none": 0.25, "free": 0.47, "occupied": 0.28},
    turns={"straight": 0.14, "left": 0.43, "right": 0.43},
    speed_bands={"standing": 0.15, "slow": 0.24, "medium": 0.38, "fast": 0.23},
    kerb=0.14, braking=0.45, night=0.25, weather={"clear": 1.0}, events={"none": 1.0})
NATURAL = Rates(
    roads={"straight": 0.45, "curve_left": 0.09, "curve_right": 0.09, "junction_near": 0.15, "junction_far": 0.22},
    lights={"none": 0.35, "red": 0.28, "yellow": 0.07, "green": 0.30},
    ahead_at_junction={"clear": 0.55, "lead_far": 0.25, "lead_near": 0.15, "crossing": 0.05},
    ahead_on_road={"clear": 0.48, "lead_far": 0.25, "lead_near": 0.17, "crossing": 0.02, "cones": 0.04, "parked": 0.04},
    lanes={"none": 0.25, "free": 0.45, "occupied": 0.30},
    turns={"straight": 0.80, "left": 0.10, "right": 0.10},
    speed_bands={"standing": 0.20, "slow": 0.15, "medium": 0.30, "fast": 0.35},
    kerb=0.05, braking=0.25, night=0.20, weather={"clear": 0.60, "overcast": 0.23, "rain": 0.12, "fog": 0.05},
    events=event_shares(1))
LONG_TAIL = replace(NATURAL, events=event_shares(10))


def draw_scene(rng: random.Random, seed: int, prior: str, rates: Rates) -> Scene:
    """A random scene: independent draws, but lights and near turns need a junction, and a lane holds one thing."""
    road = pick(rng, rates.roads)
    junction = road.startswith("junction")
    ahead = pick(rng, rates.ahead_at_junction if junction else rates.ahead_on_road)
    kerb = "kerb" if rng.random() < rates.kerb else "none"
    turn_100 = pick(rng, rates.turns) if junction else "straight"
    lead_kind = pick(rng, LEAD_KINDS) if ahead.startswith("lead") else "car"
    scene = Scene(
        seed=seed, road=road,
        light=pick(rng, rates.lights) if junction else "none",
        lead=ahead.removeprefix("lead_") if ahead.startswith("lead") else "none",
        braking=ahead.startswith("lead") and lead_kind != "cyclist" and rng.random() < rates.braking,
        pedestrian="crossing" if ahead == "crossing" else kerb,
        blockage=ahead if ahead in ("cones", "parked") else "none",
        left_lane=pick(rng, rates.lanes), right_lane=pick(rng, rates.lanes),
        night=rng.random() < rates.night,
        speed=sample_speed(rng, rates.speed_bands),
        turn_100=turn_100,
        turn_200=pick(rng, rates.turns) if turn_100 == "straight" else "straight",
        weather=pick(rng, rates.weather), lead_kind=lead_kind, prior=prior)
    return with_event(rng, scene, pick(rng, rates.events))


def with_event(rng: random.Random, scene: Scene, event: str) -> Scene:
    """The scene changed so that the event is visible and nothing else is in its place."""
    if event == "none":
        return scene
    facts = EVENTS[event]
    if "road" not in facts and scene.road.startswith("junction"):          # these events need an open road
        facts = {**facts, "road": "straight", "light": "none", "turn_100": "straight"}
    if event == "blocked_turn":
        side = rng.choice(("left", "right"))
        facts = {**facts, "turn_100": side, f"{side}_lane": "free"}         # no car hides the barrier
    if event == "cut_in":                                                   # the car has left that lane
        facts = {**facts, "left_lane": rng.choice(("free", "occupied"))}
    return replace(scene, event=event, **facts)


def sample_speed(rng: random.Random, bands: Shares) -> float:
    low, high = BAND_TENTHS[pick(rng, bands)]
    return rng.randint(low, high) / 10


def speed_band(speed: float) -> str:
    """standing (0) | slow (below 5 m/s) | medium (below 11 m/s) | fast, as used by expert and sentence.

    The label rule sets the limits: below 5 m/s gentle braking (1.5 m/s2) is a STOP within 3 s; from 11 m/s on hard
    braking (3.5 m/s2) is none.
    """
    if speed < 0.5:
        return "standing"
    return "slow" if speed < 5 else "medium" if speed < 11 else "fast"


def pick(rng: random.Random, shares: dict) -> object:
    """One key, drawn with its share as probability."""
    return rng.choices(list(shares), weights=list(shares.values()))[0]
