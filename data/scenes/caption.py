"""The caption task: describe the picture, then answer in the right format with a random plan.

It replaces the pre-training of Qwen2-VL for tiny models. A model trained on it can see and keeps the answer's format,
but has seen no label. GRPO can start from it without SFT on plans.
"""
import random

from data.example import VIEWS, Example
from data.scenes import route_text, scene_factors
from data.scenes.priors import sample_scene, scene_seeds
from data.scenes.rollout import DRIVEN_PATHS, DRIVEN_SPEEDS
from data.scenes.world import Scene
from rewards import Decision

ROADS = {"straight": "A straight road", "curve_left": "A bend to the left", "curve_right": "A bend to the right",
         "junction_near": "The junction is near", "junction_far": "The junction is far"}
LIGHTS = {"red": "red light", "yellow": "yellow light", "green": "green light", "off": "light is off"}
LEADS = {("near", False): "near {kind}", ("near", True): "near {kind} brakes",
         ("far", False): "far {kind}", ("far", True): "far {kind} brakes"}
PEDESTRIANS = {"kerb": "pedestrian at the kerb", "crossing": "pedestrian is crossing"}
BLOCKAGES = {"cones": "cones block", "parked": "parked car"}
LANES = {"none": "no {side} lane", "free": "{side} lane free", "occupied": "{side} lane taken"}
EVENTS = {"cone_truck": "truck with cones", "ball": "ball and child", "ambulance": "ambulance", "animal": "animal",
          "wrong_way": "car towards me", "waved_through": "officer waves", "blocked_turn": "{turn} turn closed",
          "cut_in": "car cuts in", "door": "car door opens"}
SIDES = {f"{kind}_{side}": f"{kind} from the {side}" for kind in ("cyclist", "car") for side in ("left", "right")}
WEATHER = {"overcast": "grey sky", "rain": "rain", "fog": "fog"}


def caption(scene: Scene) -> str:
    """What the picture shows, as one sentence without speed, route or plan.

    Anything not named is absent. Night is named, day is not.
    """
    lead = "" if scene.event == "cone_truck" else LEADS.get((scene.lead, scene.braking), "")
    seen = [ROADS[scene.road], LIGHTS.get(scene.light), lead.format(kind=scene.lead_kind),
            PEDESTRIANS.get(scene.pedestrian), BLOCKAGES.get(scene.blockage),
            EVENTS.get(scene.event, "").format(turn=scene.turn_100), SIDES.get(scene.side),
            LANES[scene.left_lane].format(side="left"), LANES[scene.right_lane].format(side="right"),
            WEATHER.get(scene.weather), "night" if scene.night else None]
    return ", ".join(part for part in seen if part) + "."


def uninformed_plan(seed: int) -> Decision:
    """One of the 20 plans, uniformly at random."""
    rng = random.Random(f"uninformed {seed}")
    return Decision(rng.choice(DRIVEN_SPEEDS), rng.choice(DRIVEN_PATHS))


def caption_examples(count: int, seed: int = 0, prior: str = "balanced", cameras: int = 1) -> list[Example]:
    """`count` examples of the caption task, on scenes that no other split, data seed or prior has.

    The reasoning is the caption. The decision is a random plan and no label, so `acceptable` stays empty.

    Raises: ValueError for an unknown prior, or numbers out of range.
    """
    name = "caption" if prior == "balanced" else f"{prior}-caption"
    name, views = (name, None) if cameras == 1 else (f"surround-{name}", VIEWS)
    scenes = map(sample_scene, scene_seeds("caption", count, seed, prior, cameras))
    return [Example(id=f"{name}-{seed}-{index:06d}", scene=scene.seed, speed=scene.speed,
                    navigation=route_text(scene, free_text_allowed=True), decision=uninformed_plan(scene.seed),
                    reasoning=caption(scene), split="caption", factors=scene_factors(scene), cameras=views)
            for index, scene in enumerate(scenes)]
