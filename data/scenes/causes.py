"""Why a plan is right: the facts of a scene without which the expert would choose another plan.

A fact is a named part of a scene that can be removed. It is a cause if the usual plan changes when it is removed. If
two facts each ask for the same plan, neither is a cause by this test; then enough facts to imply the plan are named.
"""
from dataclasses import replace

from data.scenes.expert import acceptable_plans, usual_plan
from data.scenes.world import EVENTS, Scene
from rewards import Decision

# urgent first
FACTS = ("event", "side", "pedestrian", "light", "blockage", "lead", "bend", "route", "left_lane", "right_lane")
JUNCTION_EVENTS = tuple(event for event, facts in EVENTS.items() if facts.get("road") == "junction_near")


def facts_of(scene: Scene) -> list[str]:
    """The facts of a scene, most urgent first. A car and its brake lamps are one fact; a green light is none."""
    present = {"event": scene.event not in ("none", "cone_truck", "dark_pedestrian"),
               "side": scene.side.startswith(("cyclist", "car")),
               "pedestrian": scene.pedestrian != "none",
               "light": scene.light in ("red", "yellow") and scene.event not in JUNCTION_EVENTS,
               "blockage": scene.blockage != "none", "lead": scene.lead != "none",
               "bend": scene.road.startswith("curve"),
               "route": (scene.turn_100, scene.turn_200) != ("straight", "straight"),
               "left_lane": scene.left_lane == "free", "right_lane": scene.right_lane == "free"}
    return [fact for fact in FACTS if present[fact]]


def without(scene: Scene, fact: str) -> Scene:
    """The scene with one fact removed."""
    changes = {"event": {"event": "none", **({"light": "none"} if scene.light == "off" else {})},
               "side": {"side": "none"}, "pedestrian": {"pedestrian": "none"},
               "light": {"light": "green"}, "blockage": {"blockage": "none"},
               "lead": {"lead": "none", "braking": False, "lead_kind": "car"}, "bend": {"road": "straight"},
               "route": {"turn_100": "straight", "turn_200": "straight"},
               "left_lane": {"left_lane": "none"}, "right_lane": {"right_lane": "none"}}
    return replace(scene, **changes[fact])


def only(scene: Scene, facts: list[str]) -> Scene:
    """The scene reduced to the given facts: all that a reader of these facts knows."""
    for fact in facts_of(scene):
        if fact not in facts:
            scene = without(scene, fact)
    return scene


def causes(scene: Scene) -> list[str]:
    """The facts whose removal changes the expert's usual plan."""
    usual = usual_plan(scene)
    return [fact for fact in facts_of(scene) if usual_plan(without(scene, fact)) != usual]


def explanation(scene: Scene, plan: Decision) -> list[str]:
    """The facts to name for `plan`, most urgent first: its causes, plus further facts until they imply the plan.

    A free lane is named only for a plan that uses it, the route only for a plan that follows it. If the expert would
    not take the plan (label noise), the causes of the expert's own plan are named.
    """
    present = [fact for fact in facts_of(scene) if fact not in unused(scene, plan)]
    told = [fact for fact in causes(scene) if fact in present]
    for fact in present:
        if plan not in acceptable_plans(scene) or plan in acceptable_plans(only(scene, told)):
            break
        if fact not in told:
            told.append(fact)
    return sorted(told, key=FACTS.index)


def unused(scene: Scene, plan: Decision) -> set[str]:
    """Facts that do not support a plan's path. At a near junction the route may still explain braking on STRAIGHT."""
    side, _, kind = plan.path.lower().partition("_")
    lanes = {"left_lane", "right_lane"} - ({f"{side}_lane"} if kind == "change" else set())
    return lanes | ({"route"} if plan.path == "STRAIGHT" and scene.road != "junction_near" else set())
