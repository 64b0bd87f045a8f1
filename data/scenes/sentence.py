"""The reason for a plan: one causal sentence of at most 25 words that the picture, the speed and the route bear out."""
import random

from data.scenes.expert import CHANGE, TURN, cause, path_odds
from data.scenes.world import Scene, speed_band
from rewards import Decision

CAUSES = {
    "crossing": ("A pedestrian is crossing", "Someone walks across my lane"),
    "red_near": ("The light is red", "A red light is right ahead"),
    "brake_near": ("The near car brakes", "The near car shows brake lamps"),
    "yellow_near": ("The light is yellow", "A yellow light is right ahead"),
    "lead_near": ("The car ahead is near", "A near car drives in my lane"),
    "kerb": ("A pedestrian waits at the kerb", "Someone stands at the kerb"),
    "turn": ("The junction is near", "I am at the junction"),
    "light_far": ("The far light is {light}", "A {light} light is far ahead"),
    "overtake": ("The car ahead is near", "A near car drives in my lane"),
    "curve": ("The road bends {bend}", "A bend to the {bend} comes"),
    "brake_far": ("The far car brakes", "The far car shows brake lamps"),
    "lead_far": ("The car ahead is far away", "Only a far car is ahead"),
    "prepare": ("The road ahead is clear", "My lane is clear"),
    "green": ("The light is green", "A green light is ahead"),
    "clear": ("The road ahead is clear", "My lane is clear"),
}
EVENT_CAUSES = {                        # of the rare events of world.EVENTS
    "animal": ("An animal stands in my lane", "A deer is on the road"),
    "ball": ("A ball rolls into my lane", "A child follows a ball"),
    "ambulance": ("An ambulance crosses the junction", "An ambulance on a call comes"),
    "wrong_way": ("A car comes towards me", "A car drives the wrong way"),
    "cut_in": ("A car cuts in from the left", "A car moves into my lane"),
    "light_off": ("The light is off", "The light does not work"),
    "door": ("A car door opens", "The door of a parked car opens"),
    "cone_truck": ("A truck with cones is near", "The near truck carries cones"),
    "waved_through": ("An officer waves me through", "The officer overrules the red light"),
    "blocked_turn": ("Cones close the turn", "The turn is closed by cones"),
}
BLOCKED = {"cones": ("Cones block my lane", "Cones stand in my lane"),
           "parked": ("A parked car blocks my lane", "A car is parked ahead")}
EXPLAINED_BY_EVENT = {("cone_truck", "lead_near"), ("cone_truck", "overtake"), ("waved_through", "clear"),
                      ("waved_through", "turn"), ("blocked_turn", "clear"),
                      ("wrong_way", "evade")}                   # (event, cause it explains better)
PACES = {"standing": "I stand still", "slow": "I am slow", "medium": "my speed is moderate", "fast": "I am fast"}
SPEEDS = {"KEEP": "keep my speed", "ACCELERATE": "speed up", "DECELERATE": "slow down", "STOP": "stop"}
STANDING = {"KEEP": "keep my place", "ACCELERATE": "start", "DECELERATE": "hold back", "STOP": "stay stopped"}
PATHS = {"STRAIGHT": "go straight", "LEFT_TURN": "turn left", "RIGHT_TURN": "turn right",
         "LEFT_CHANGE": "change left", "RIGHT_CHANGE": "change right"}


def reason(scene: Scene, decision: Decision) -> str:
    """Why `decision` is taken here: what is ahead, the own speed, what the path rests on, then the plan.

    A plan that the expert would not take (label noise) is stated beside the same facts, without a claim that supports
    its path. The wording is chosen by the scene's seed.
    """
    rng = random.Random(f"sentence {scene.seed}")
    name = cause(scene, decision.path)
    opening = rng.choice(openings(scene, name)).format(light=scene.light, bend=scene.road.removeprefix("curve_"))
    facts = [opening, PACES[speed_band(scene.speed)], *path_facts(scene, decision.path)]
    speeds = STANDING if scene.speed == 0 else SPEEDS
    because = f"{', '.join(facts[:-1])} and {facts[-1]}"
    return f"{because}, {rng.choice(('so', 'hence'))} I {speeds[decision.speed]} and {path_words(decision, name)}."


def openings(scene: Scene, name: str) -> tuple[str, ...]:
    """The wordings of a cause; a clear road under a green light is told by the light."""
    if name in ("waits", "dodge"):
        return BLOCKED[scene.blockage]
    if name == scene.event or (scene.event, name) in EXPLAINED_BY_EVENT:
        return EVENT_CAUSES[scene.event]
    return CAUSES["green" if name == "clear" and scene.light == "green" else name]


def path_facts(scene: Scene, path: str) -> list[str]:
    """What makes the path right, or nothing when the expert would not take it."""
    if path not in path_odds(scene):
        return []
    if path in TURN.values():
        return [f"the route turns {side_of(path)}"]
    if path in CHANGE.values():
        return [f"the {side_of(path)} lane is free"]
    return ["no other lane is free"] if cause(scene, path) == "waits" and len(path_odds(scene)) == 1 else []


def side_of(path: str) -> str:
    return path.split("_")[0].lower()


def path_words(decision: Decision, name: str) -> str:
    """The path's words, fit for a car that comes to rest or waits behind something."""
    if decision.path == "STRAIGHT" and (decision.speed == "STOP" or name == "waits"):
        return "stay in lane"
    return f"then {PATHS[decision.path]}" if decision.speed == "STOP" else PATHS[decision.path]
