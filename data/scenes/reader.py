"""Parses a reason of the built-in grammar: what it says about the scene, and which plans that supports.

The inverse of sentence.py, for scoring. A sentence becomes factors such as ("light", "red") or ("car", "near"), which
are true or false in the scene. Only our own wordings are known; other clauses are ignored.
"""
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from data.scenes.expert import acceptable_plans
from data.scenes.geometry import SIDES
from data.scenes.geometry import SPEEDS as PACE_SPEEDS
from data.scenes.sentence import CAUSES, EVENT_CAUSES, PACES, PATHS, SPEEDS, STANDING
from data.scenes.world import BANDS, EVENTS, LEAD_KINDS, Scene, speed_band
from rewards import Decision

Factor = tuple[str, str]                                     # name and value

FROM_QUESTION = ("pace", "route", "route_later")             # known from the question; the others from the picture
CLAIMS: dict[str, tuple[Factor, ...]] = {                    # what each cause of sentence.py claims about the scene
    "crossing": (("pedestrian", "crossing"),), "kerb": (("pedestrian", "kerb"),),
    "light_near": (("light", "{light}"), ("light_distance", "near")),
    "light_far": (("light", "{light}"), ("light_distance", "far")), "green": (("light", "green"),),
    "brake_near": (("car", "near"), ("car_brakes", "yes"), ("car_kind", "{kind}")),
    "brake_far": (("car", "far"), ("car_brakes", "yes"), ("car_kind", "{kind}")),
    "lead_near": (("car", "near"), ("car_kind", "{kind}")), "lead_far": (("car", "far"), ("car_kind", "{kind}")),
    "side_cyclist": (("side", "cyclist_{bend}"),), "side_car": (("side", "car_{bend}"),),
    "junction": (("junction", "near"),), "bend": (("bend", "{bend}"),), "clear": (("ahead", "clear"),),
    "cones": (("obstacle", "cones"),), "parked": (("obstacle", "parked"),),
}
PATH_CLAIMS: dict[str, tuple[Factor, ...]] = {"no other lane is free": (("other_lanes", "taken"),)} | {
    words: factors for side in SIDES for words, factors in {
        f"no {side} lane is free": ((f"{side}_lane", "not free"),),
        f"the route turns {side}": (("route", side),),
        f"the {side} lane is free": ((f"{side}_lane", "free"),),
        f"the {side} lane I need is free".lower(): ((f"{side}_lane", "free"), ("route", side)),
        f"the {side} lane I want is free".lower(): ((f"{side}_lane", "free"), ("route_later", side))}.items()}
SPEED_WORDS = {words: speed for table in (SPEEDS, STANDING) for speed, words in table.items()}
PATH_WORDS = {"stay in lane": "STRAIGHT", **{words: path for path, words in PATHS.items()}}


@dataclass(frozen=True)
class Reading:
    """The content of a reason: its factors, the plan it ends with, the plans its facts support, all clauses parsed?"""
    factors: frozenset[Factor]
    announced: Decision | None
    supported: frozenset[Decision]
    understood: bool


def read_reason(text: str) -> Reading:
    """Parses any text; text outside the grammar gives an empty Reading and no exception.

    supported: the acceptable plans of a scene with the named facts and no others. Empty without a pace and another
    fact, or if two facts contradict each other.
    """
    because, _, consequence = re.sub(r", hence i ", ", so i ", " ".join(text.lower().split())).partition(", so i ")
    clauses = re.split(r", | and (?!a child)", because.removesuffix("."))
    factors = frozenset(factor for clause in clauses for factor in PHRASES.get(clause, ()))
    announced = read_plan(consequence.removesuffix("."))
    understood = announced is not None and all(clause in PHRASES for clause in clauses)
    return Reading(factors, announced, supported_plans(factors), understood)


def read_plan(words: str) -> Decision | None:
    """`slow down and turn left` -> DECELERATE, LEFT_TURN; None for other words."""
    speed, _, path = words.partition(" and ")
    speed, path = SPEED_WORDS.get(speed), PATH_WORDS.get(path.removeprefix("then "))
    return Decision(speed, path) if speed and path else None


def supported_plans(factors: Collection[Factor]) -> frozenset[Decision]:
    """The acceptable plans of the scene that the factors describe; see `read_reason`."""
    named = dict(factors)
    on_the_way = named.keys() - {*FROM_QUESTION, "left_lane", "right_lane", "other_lanes"}
    if "pace" not in named or not on_the_way or len(named) < len({*factors}):
        return frozenset()
    return frozenset(acceptable_plans(told_scene(named)))


def told_scene(named: dict[str, str]) -> Scene:
    """An otherwise empty scene (straight road, one lane) with the named facts.

    A light, a junction event, or a turning route without a free lane puts the car at a junction.
    """
    event = named.get("event", "none")
    changes = any(named.get(f"{side}_lane") == "free" for side in SIDES)
    side = named.get("side", "none")
    at_junction = "light_distance" in named or side.startswith("car") or (
        not changes and {"light", "junction", "route"} & named.keys())
    where = named.get("light_distance", "near")
    road = f"junction_{where}" if at_junction else f"curve_{named['bend']}" if "bend" in named else "straight"
    facts = {"road": road, "light": named.get("light", "none"), "lead": named.get("car", "none"),
             "braking": "car_brakes" in named, "lead_kind": named.get("car_kind", "car"),
             "side": side, "pedestrian": named.get("pedestrian", "none"), "blockage": named.get("obstacle", "none"),
             **{f"{side}_lane": "free" if named.get(f"{side}_lane") == "free" else "none" for side in SIDES},
             "turn_100": named.get("route", "straight"), "turn_200": named.get("route_later", "straight")}
    of_event = {name: value for name, value in EVENTS.get(event, {}).items() if value not in ("none", False)}
    return Scene(seed=0, night=False, speed=PACE_SPEEDS[named["pace"]], **{**facts, "event": event, **{
        name: value for name, value in of_event.items() if name in facts}})


def scene_facts(scene: Scene) -> frozenset[Factor]:
    """Every factor that is true in this scene."""
    junction = scene.road.removeprefix("junction_") if scene.road.startswith("junction") else "none"
    facts = {("pedestrian", scene.pedestrian), ("light", scene.light), ("car", scene.lead), ("junction", junction),
             ("obstacle", scene.blockage), ("pace", speed_band(scene.speed)), ("route", scene.turn_100),
             ("route_later", scene.turn_200), ("left_lane", scene.left_lane), ("right_lane", scene.right_lane),
             ("event", scene.event), ("side", scene.side)}
    if scene.light != "none":
        facts.add(("light_distance", junction))
    if scene.lead != "none":
        facts.add(("car_kind", scene.lead_kind))
    if scene.braking:
        facts.add(("car_brakes", "yes"))
    if scene.road.startswith("curve_"):
        facts.add(("bend", scene.road.removeprefix("curve_")))
    if (scene.pedestrian, scene.lead, scene.blockage, scene.event) == ("none",) * 4:
        facts.add(("ahead", "clear"))
    facts |= {(f"{side}_lane", "not free") for side in SIDES if getattr(scene, f"{side}_lane") != "free"}
    if "free" not in (scene.left_lane, scene.right_lane):
        facts.add(("other_lanes", "taken"))
    return frozenset(facts)


def factor_scores(reasons: Sequence[str], references: Sequence[str], scenes: Sequence[Scene]) -> dict:
    """Precision and recall of the named factors, summed over all reasons.

        precision = named factors that are true in the scene / named factors
        recall    = factors of the expert's own reason that are named / factors of the expert's own reason

    Both count only factors known from the picture; pace and route appear in `by_factor` alone.
    understood: share of the reasons with every clause parsed. Undefined values are None.
    """
    counts = {name: Counter() for name in ("named", "right", "expected", "found")}
    readings = [read_reason(reason) for reason in reasons]
    for reading, reference, scene in zip(readings, references, scenes, strict=True):
        expected = read_reason(reference).factors
        for kind, factors in (("named", reading.factors), ("right", reading.factors & scene_facts(scene)),
                              ("expected", expected), ("found", reading.factors & expected)):
            counts[kind].update(name for name, _ in factors)
    names = sorted({*counts["named"], *counts["expected"]})
    return {**_ratios(counts, [name for name in names if name not in FROM_QUESTION]),
            "understood": sum(reading.understood for reading in readings) / len(readings),
            "by_factor": {name: _ratios(counts, [name]) for name in names}}


def _ratios(counts: dict[str, Counter], names: Sequence[str]) -> dict[str, float | int | None]:
    named, right, expected, found = (sum(counts[kind][name] for name in names)
                                     for kind in ("named", "right", "expected", "found"))
    return {"precision": right / named if named else None, "recall": found / expected if expected else None,
            "named": named, "expected": expected}


def _phrases() -> dict[str, tuple[Factor, ...]]:
    """Every clause of the grammar in lower case -> its factors."""
    table = {PACES[band].lower(): (("pace", band),) for band in BANDS} | PATH_CLAIMS
    for event, wordings in EVENT_CAUSES.items():
        table |= {words.lower(): (("event", event),) for words in wordings}
    for cause, wordings in CAUSES.items():
        for light, bend, kind in zip(("red", "yellow", "red"), (*SIDES, "left"), LEAD_KINDS, strict=True):
            claims = tuple((name, value.format(light=light, bend=bend, kind=kind)) for name, value in CLAIMS[cause])
            table |= {words.format(light=light, bend=bend, kind=kind, side=bend).lower(): claims for words in wordings}
    return table


PHRASES = _phrases()
