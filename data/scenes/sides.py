"""What a side view alone shows, in the scenes of three cameras: `--camera-count 3`.

    cyclist   rides towards the own lane from the left or right and will cross it within the 3 s
    car       comes along the crossing road of a near junction without a light, and goes first
    beside    drives next to the own car: that lane looks free ahead, but is not

The front view hides the fact and nothing else, so who sees it alone can only guess. A fact is kept where it decides,
that is, where the expert's usual plan without it is another one.
"""
import random
from dataclasses import replace

from data.scenes.expert import usual_plan
from data.scenes.geometry import SIDES
from data.scenes.world import Scene

# In this order; the share of the scenes with the kind among those in which it would decide. A quarter of all scenes of
# the balanced prior then has a side fact.
SHARES = {"car": 0.4, "beside": 0.3, "cyclist": 0.12}


def with_side(rng: random.Random, scene: Scene) -> Scene:
    """The scene, often with a fact that only a side view shows. Scenes with a rare event stay as they are."""
    for kind, share in SHARES.items() if scene.event == "none" else ():
        for side in rng.sample(list(SIDES), len(SIDES)):
            if fits(scene, kind, side):
                changed = with_fact(scene, kind, side)
                if usual_plan(changed) != usual_plan(scene) and rng.random() < share:
                    return changed
    return scene


def fits(scene: Scene, kind: str, side: str) -> bool:
    """Whether the fact is possible and not told by the front view."""
    if kind == "beside":
        return getattr(scene, f"{side}_lane") == "free"
    if kind == "car":
        return scene.road == "junction_near" and scene.light == "none"
    return scene.pedestrian != "crossing"


def with_fact(scene: Scene, kind: str, side: str) -> Scene:
    """The scene with this fact; a car beside takes its lane."""
    lane = {f"{side}_lane": "occupied"} if kind == "beside" else {}
    return replace(scene, side=f"{kind}_{side}", **lane)
