"""Reads a reason of the built-in grammar back: what it says of the scene, and which plans that alone supports.

The inverse of sentence.py, for scoring: a sentence becomes named factors, ("light", "red") or ("car", "near"), that
the scene bears out or not. It knows our wordings and no others; a clause in other words is left unread.
"""
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from data.scenes.expert import BANDS, CHANGE, SPEED_RULES, TURN
from data.scenes.sentence import (
    BLOCKED,
    CAUSES,
    EVENT_CAUSES,
    EXPLAINED_BY_EVENT,
    PACES,
    PATHS,
    SPEEDS,
    STANDING,
)
from data.scenes.world import Scene, speed_band
from rewards import Decision

Factor = tuple[str, str]                                     # name and value

FROM_QUESTION = ("pace", "route")                            # said in the question; all others only the picture tells
SIDES = ("left", "right")
CLAIMS: dict[str, tuple[Factor, ...]] = {                    # what naming a cause of sentence.py says of the scene
    "crossing": (("pedestrian", "crossing"),), "kerb": (("pedestrian", "kerb"),),
    "red_near": (("light", "red"), ("light_distance", "near")),
    "yellow_near": (("light", "yellow"), ("light_distance", "near")),
    "light_far": (("light", "{light}"), ("light_distance", "far")), "green": (("light", "green"),),
    "brake_near": (("car", "near"), ("car_brakes", "yes")), "brake_far": (("car", "far"), ("car_brakes", "yes")),
    "lead_near": (("car", "near"),), "overtake": (("car", "near"),), "lead_far": (("car", "far"),),
    "turn": (("junction", "near"),), "curve": (("bend", "{bend}"),),
    "prepare": (("ahead", "clear"),), "clear": (("ahead", "clear"),),
}
# Causes that share their words, apart from turning: the second is meant where the path changes the lane.
WITH_CHANGE = {"lead_near": "overtake", "waits": "dodge", "clear": "prepare", "wrong_way": "evade"}
SPEED_WORDS = {words: speed for table in (SPEEDS, STANDING) for speed, words in table.items()}
PATH_WORDS = {"stay in lane": "STRAIGHT", **{words: path for path, words in PATHS.items()}}


@dataclass(frozen=True)
class Reading:
    """What a reason says: factors, the plan its last words announce, and the plans its facts support.

    `understood` says that every clause was read."""

    factors: frozenset[Factor]
    announced: Decision | None
    supported: frozenset[Decision]
    understood: bool


def read_reason(text: str) -> Reading:
    """Any text -> what of it our grammar understands; other text gives an empty reading and no exception.

    supported: the plans that the rule expert takes where nothing but the named facts is known. The path is the one
    that a fact backs (the route turns left, the left lane is free), without such a fact STRAIGHT; the speeds are those
    that SPEED_RULES has for the named cause at the named pace. Without one cause and one pace, nothing is supported.
    """
    because, _, consequence = re.sub(r", hence i ", ", so i ", " ".join(text.lower().split())).partition(", so i ")
    clauses = re.split(r", | and ", because.removesuffix("."))
    factors = frozenset(factor for clause in clauses for factor in PHRASES.get(clause, ((), ()))[0])
    causes = [PHRASES[clause][1] for clause in clauses if clause in PHRASES and PHRASES[clause][1]]
    announced = read_plan(consequence.removesuffix("."))
    understood = announced is not None and all(clause in PHRASES for clause in clauses)
    return Reading(factors, announced, supported_plans(causes, factors), understood)


def read_plan(words: str) -> Decision | None:
    """`slow down and turn left` -> DECELERATE, LEFT_TURN; None for other words."""
    speed, _, path = words.partition(" and ")
    speed, path = SPEED_WORDS.get(speed), PATH_WORDS.get(path.removeprefix("then "))
    return Decision(speed, path) if speed and path else None


def supported_plans(causes: Sequence[tuple[str, ...]], factors: Collection[Factor]) -> frozenset[Decision]:
    """Plans that one cause, one pace and at most one fact about the path support; see `read_reason`."""
    named = dict(factors)
    paths = {"STRAIGHT": "other_lanes" in named,
             **{TURN[side]: named.get("route") == side for side in SIDES},
             **{CHANGE[side]: named.get(f"{side}_lane") == "free" for side in SIDES}}
    backed = [path for path, is_backed in paths.items() if is_backed] or ["STRAIGHT"]
    contradicts = len(named) < len({*factors})               # two lights, two paces
    if len(causes) != 1 or len(backed) != 1 or "pace" not in named or contradicts:
        return frozenset()
    cause = meant_cause(causes[0], backed[0])
    speeds = SPEED_RULES[cause][BANDS.index(named["pace"])] if cause else ()
    return frozenset(Decision(speed, backed[0]) for speed in speeds)


def meant_cause(causes: Sequence[str], path: str) -> str | None:
    """Of the causes a clause may stand for, the one that goes with the path; None if none does."""
    if path in TURN.values() and "turn" in causes:
        return "turn"
    unfit = WITH_CHANGE.keys() if path in CHANGE.values() else WITH_CHANGE.values()
    return next((cause for cause in causes if cause not in unfit), None)


def scene_facts(scene: Scene) -> frozenset[Factor]:
    """Every factor that a reason may truly name in this scene."""
    junction = scene.road.removeprefix("junction_") if scene.road.startswith("junction") else "none"
    facts = {("pedestrian", scene.pedestrian), ("light", scene.light), ("car", scene.lead), ("junction", junction),
             ("obstacle", scene.blockage), ("pace", speed_band(scene.speed)), ("route", scene.turn_100),
             ("route", scene.turn_200), ("left_lane", scene.left_lane), ("right_lane", scene.right_lane),
             ("event", scene.event)}
    if scene.light != "none":
        facts.add(("light_distance", junction))
    if scene.braking:
        facts.add(("car_brakes", "yes"))
    if scene.road.startswith("curve_"):
        facts.add(("bend", scene.road.removeprefix("curve_")))
    in_the_way = scene.event in SPEED_RULES                  # an animal, a ball: the events that are causes themselves
    if (scene.pedestrian, scene.lead, scene.blockage) == ("none", "none", "none") and not in_the_way:
        facts.add(("ahead", "clear"))
    if "free" not in (scene.left_lane, scene.right_lane):
        facts.add(("other_lanes", "taken"))
    return frozenset(facts)


def factor_scores(reasons: Sequence[str], references: Sequence[str], scenes: Sequence[Scene]) -> dict:
    """Precision and recall of the factors that reasons name, counted over all of them.

        precision = named factors that the scene bears out / named factors
        recall    = factors of the expert's own reason that are named / factors of the expert's own reason

    Both count what only the picture tells; pace and route, which the question says, stand in `by_factor` alone.
    understood: share of the reasons read to their last clause. Undefined values are None.
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


def _phrases() -> dict[str, tuple[tuple[Factor, ...], tuple[str, ...]]]:
    """Every clause of the grammar in lower case: its factors, and the causes of SPEED_RULES it may stand for."""
    table = {PACES[band].lower(): ((("pace", band),), ()) for band in BANDS}
    table |= {f"the route turns {side}": ((("route", side),), ()) for side in SIDES}
    table |= {f"the {side} lane is free": (((f"{side}_lane", "free"),), ()) for side in SIDES}
    table["no other lane is free"] = ((("other_lanes", "taken"),), ())
    for blockage, wordings in BLOCKED.items():
        table |= {words.lower(): ((("obstacle", blockage),), ("waits", "dodge")) for words in wordings}
    for event, wordings in EVENT_CAUSES.items():
        causes = ([event] if event in SPEED_RULES else []) + sorted(c for e, c in EXPLAINED_BY_EVENT if e == event)
        table |= {words.lower(): ((("event", event),), tuple(causes)) for words in wordings}
    for cause, wordings in CAUSES.items():
        for light, bend in zip(("red", "yellow"), SIDES, strict=True):         # no wording has both: all are met
            claims = tuple((name, value.format(light=light, bend=bend)) for name, value in CLAIMS[cause])
            for words in wordings:
                clause = words.format(light=light, bend=bend).lower()
                earlier = table.get(clause, ((), ()))[1]
                table[clause] = claims, tuple(dict.fromkeys((*earlier, "clear" if cause == "green" else cause)))
    return table


PHRASES = _phrases()
