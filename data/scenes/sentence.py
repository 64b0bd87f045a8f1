"""The reason for a plan: one causal sentence of at most 25 words, true of the picture, the speed and the route."""
import random
from dataclasses import replace
from itertools import combinations

from data.scenes.causes import explanation, facts_of, only
from data.scenes.expert import acceptable_plans, usual_plan
from data.scenes.geometry import SIDES, side_of
from data.scenes.world import Scene, speed_band
from rewards import Decision

MOST_WORDS = 25
CAUSES = {
    "crossing": ("A pedestrian is crossing", "Someone walks across my lane", "A pedestrian crosses my lane",
                 "Someone is crossing ahead"),
    "kerb": ("A pedestrian waits at the kerb", "Someone stands at the kerb", "A pedestrian stands at the kerb",
             "Someone is at the kerb"),
    "light_near": ("The light is {light}", "A {light} light is right ahead", "I see a {light} light",
                   "The near light is {light}"),
    "light_far": ("The far light is {light}", "A {light} light is far ahead", "I see a far {light} light",
                  "Far ahead the light is {light}"),
    "brake_near": ("The near {kind} brakes", "The near {kind} shows brake lamps", "A near {kind} brakes",
                   "Brake lamps of a near {kind} shine"),
    "brake_far": ("The far {kind} brakes", "The far {kind} shows brake lamps", "A far {kind} brakes",
                  "Brake lamps of a far {kind} shine"),
    "lead_near": ("The {kind} ahead is near", "A near {kind} is in my lane", "A {kind} is right ahead",
                  "I am close to a {kind}"),
    "lead_far": ("The {kind} ahead is far away", "Only a far {kind} is ahead", "A {kind} is far ahead",
                 "A far {kind} is in my lane"),
    "bend": ("The road bends {bend}", "A bend to the {bend} comes", "The road turns into a bend {bend}",
             "I see a bend to the {bend}"),
    "side_cyclist": ("A cyclist comes from the {side}", "A cyclist crosses from the {side}",
                     "I see a cyclist from the {side}", "A cyclist rides in from the {side}"),
    "side_car": ("A car comes from the {side}", "A car crosses from the {side}", "I see a car from the {side}",
                 "A car drives in from the {side}"),
    "junction": ("The junction is near", "I am at the junction", "A junction is right ahead", "I reach the junction"),
    "green": ("The light is green", "A green light is ahead", "I see a green light", "The light shows green"),
    "clear": ("The road ahead is clear", "My lane is clear", "Nothing is in my way", "The way ahead is clear"),
    "cones": ("Cones block my lane", "Cones stand in my lane", "My lane is blocked by cones", "I see cones in my lane"),
    "parked": ("A parked car blocks my lane", "A car is parked ahead", "A parked car is in my lane",
               "My lane is blocked by a parked car"),
}
EVENT_CAUSES = {                        # of the rare events of world.EVENTS
    "animal": ("An animal stands in my lane", "A deer is on the road", "A deer stands ahead", "An animal is in my way"),
    "ball": ("A ball rolls into my lane", "A child follows a ball", "A ball is in my way", "I see a ball and a child"),
    "ambulance": ("An ambulance crosses the junction", "An ambulance on a call comes", "An ambulance needs the way",
                  "I see an ambulance on a call"),
    "wrong_way": ("A car comes towards me", "A car drives the wrong way", "I see a car coming towards me",
                  "A car is on the wrong side"),
    "cut_in": ("A car cuts in from the left", "A car moves into my lane", "A car from the left cuts in",
               "A car comes into my lane"),
    "light_off": ("The light is off", "The light does not work", "The junction has no working light",
                  "The light is dead"),
    "door": ("A car door opens", "The door of a parked car opens", "A door opens beside my lane",
             "I see an open car door"),
    "cone_truck": ("A truck with cones is near", "The near truck carries cones", "A near truck has cones on it",
                   "The cones ahead are on a truck"),
    "waved_through": ("An officer waves me through", "The officer overrules the red light", "An officer waves me on",
                      "I see an officer who waves"),
    "blocked_turn": ("Cones close the turn", "The turn is closed by cones", "My turn is closed", "The turn is blocked"),
}
PACES = {"standing": "I stand still", "slow": "I am slow", "medium": "my speed is moderate", "fast": "I am fast"}
SPEEDS = {"KEEP": "keep my speed", "ACCELERATE": "speed up", "DECELERATE": "slow down", "STOP": "stop"}
STANDING = {"KEEP": "keep my place", "ACCELERATE": "start", "DECELERATE": "hold back", "STOP": "stay stopped"}
PATHS = {"STRAIGHT": "go straight", "LEFT_TURN": "turn left", "RIGHT_TURN": "turn right",
         "LEFT_CHANGE": "change left", "RIGHT_CHANGE": "change right"}
OPENINGS = ("event", "side", "pedestrian", "light", "blockage", "lead", "bend")          # facts that have wordings


def reason(scene: Scene, decision: Decision) -> str:
    """Why `decision` is taken: its causes, the own speed, the facts for its path, then the plan.

    A plan that the expert would not take (label noise) follows the causes of the expert's own plan, without a claim
    that supports its path. The scene's seed chooses the wording. If the sentence is too long, the shortest wordings are
    used; then the least urgent causes that the plan does not need are dropped.
    """
    rng = random.Random(f"sentence {scene.seed}")
    choice, joint = rng.random(), rng.choice(("so", "hence"))
    told = explanation(scene, decision)
    things = [fact for fact in told if fact in OPENINGS] or [background(scene, decision, told)]
    others = [fact for fact in told if fact not in OPENINGS]
    ending = [PACES[speed_band(scene.speed)], *path_facts(scene, decision, told)]
    speeds = STANDING if scene.speed == 0 else SPEEDS
    plan = f"{joint} I {speeds[decision.speed]} and {path_words(scene, decision)}"
    texts = {}
    for subset in subsets(things):
        for words in (wording, shortest):
            text = sentence([*(words(scene, thing, choice) for thing in subset), *ending], plan)
            if len(text.split()) <= MOST_WORDS:
                texts.setdefault(text, support(scene, decision, [*subset, *others]))
    return max(texts, key=texts.get)                                            # the first one with the most support


def support(scene: Scene, decision: Decision, facts: list[str]) -> int:
    """How far these facts alone imply the plan: 2 fully, 1 its path, 0 not at all."""
    plans = acceptable_plans(only(scene, facts))
    return 2 if decision in plans else int(decision.path in [plan.path for plan in plans])


def subsets(things: list[str]) -> list[tuple[str, ...]]:
    """All things, then every subset with one less, and so on; urgent things are kept longest."""
    return [subset for size in range(len(things), 0, -1) for subset in combinations(things, size)]


def sentence(facts: list[str], plan: str) -> str:
    text = f"{', '.join(facts[:-1])} and {facts[-1]}, {plan}."
    return text[0].upper() + text[1:]


def shortest(scene: Scene, thing: str, choice: float) -> str:
    """The wording with the fewest words; `choice` is ignored."""
    return min(all_wordings(scene, thing), key=lambda text: len(text.split()))


def wording(scene: Scene, thing: str, choice: float) -> str:
    """The wording of a thing that `choice` in [0, 1) selects."""
    texts = all_wordings(scene, thing)
    return texts[int(choice * len(texts))]


def all_wordings(scene: Scene, thing: str) -> list[str]:
    """All wordings of a fact, or of `junction`, `green` and `clear`, in lower case unless they begin with I."""
    kind, _, side = scene.side.partition("_")
    key = {"side": f"side_{kind}", "pedestrian": scene.pedestrian, "blockage": scene.blockage,
           "lead": f"{'brake' if scene.braking else 'lead'}_{scene.lead}",
           "light": f"light_{scene.road.removeprefix('junction_')}"}.get(thing, thing)
    of_event = thing == "event" or (thing == "lead" and scene.event == "cone_truck")
    texts = [text.format(light=scene.light, kind=scene.lead_kind, bend=scene.road.removeprefix("curve_"), side=side)
             for text in (EVENT_CAUSES[scene.event] if of_event else CAUSES[key])]
    return [text if text.startswith("I ") else text[0].lower() + text[1:] for text in texts]


def background(scene: Scene, decision: Decision, told: list[str]) -> str:
    """The opening where nothing is a cause: a harmless object, or else that the road is clear."""
    harmless = [fact for fact in facts_of(scene) if fact in OPENINGS and fact != "bend"]
    fitting = [fact for fact in harmless if decision in acceptable_plans(only(scene, [fact, *told]))]
    if harmless:
        return (fitting or harmless)[0]
    if scene.road == "junction_near" and "route" in told:
        return "junction"
    return "green" if scene.light == "green" else "clear"


def path_facts(scene: Scene, decision: Decision, told: list[str]) -> list[str]:
    """The clauses that support the path; none if the expert would not take the plan."""
    if decision not in acceptable_plans(scene):
        return []
    side = side_of(decision.path)
    if decision.path.endswith("CHANGE"):
        wish = "I need " if scene.turn_100 == side else "I want " if scene.turn_200 == side else ""
        return [f"the {side} lane {wish if 'route' in told else ''}is free"]
    if "route" in told:
        return [f"the route turns {scene.turn_100}"]
    return missing_lanes(scene)


def missing_lanes(scene: Scene) -> list[str]:
    """Clauses about lanes that are not free, where a free lane would change the expert's usual plan."""
    usual = usual_plan(scene)
    missed = [side for side in SIDES if getattr(scene, f"{side}_lane") != "free"
              and usual_plan(replace(scene, **{f"{side}_lane": "free"})) != usual]
    if len(missed) == 2:
        return ["no other lane is free"]
    return [f"no {side} lane is free" for side in missed]


def path_words(scene: Scene, decision: Decision) -> str:
    """The words for the path, adapted to a car that stops or waits behind something."""
    if decision.path == "STRAIGHT" and (decision.speed == "STOP" or scene.blockage != "none"):
        return "stay in lane"
    return f"then {PATHS[decision.path]}" if decision.speed == "STOP" else PATHS[decision.path]
