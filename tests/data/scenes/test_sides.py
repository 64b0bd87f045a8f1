"""Scenes of three cameras: what a side view alone shows, that it decides, and that the front view hides it."""
from collections import Counter
from dataclasses import replace

import pytest

from data.scenes import draw, reason, sample_scene, scene_examples
from data.scenes.expert import acceptable_plans, usual_plan
from data.scenes.reader import read_reason, scene_facts
from data.scenes.sides import fits, with_fact
from data.scenes.world import Scene
from rewards import Decision

OPEN = Scene(seed=5, road="straight", light="none", lead="none", braking=False, pedestrian="none", blockage="none",
             left_lane="free", right_lane="none", night=False, speed=8.0, turn_100="straight", turn_200="left")
JUNCTION = replace(OPEN, road="junction_near", turn_100="right", turn_200="straight", left_lane="none")


@pytest.fixture(scope="module")
def examples():
    return scene_examples("test", 800, cameras=3)


def test_a_quarter_of_the_plans_depends_on_a_side_view_and_is_tagged(examples):
    sides = Counter(example.factors["side"] for example in examples)
    assert 0.20 < 1 - sides["none"] / len(examples) < 0.30
    assert {"cyclist_left", "cyclist_right", "car_left", "car_right", "beside_left", "beside_right"} < sides.keys()
    assert all(example.cameras == ("front", "front_left", "front_right") for example in examples)


def test_every_side_fact_decides(examples):
    for scene in (sample_scene(example.scene) for example in examples):
        kind, _, side = scene.side.partition("_")
        lane = {f"{side}_lane": "free"} if kind == "beside" else {}
        assert scene.side == "none" or usual_plan(replace(scene, side="none", **lane)) != usual_plan(scene)


@pytest.mark.parametrize(("scene", "kind", "side", "before", "after"), [
    (OPEN, "cyclist", "right", "ACCELERATE, LEFT_CHANGE", "STOP, STRAIGHT"),
    (OPEN, "beside", "left", "ACCELERATE, LEFT_CHANGE", "ACCELERATE, STRAIGHT"),
    (JUNCTION, "car", "left", "DECELERATE, RIGHT_TURN", "STOP, STRAIGHT")])
def test_plans_and_pictures_with_a_side_fact(scene, kind, side, before, after):
    assert fits(scene, kind, side)
    changed = with_fact(scene, kind, side)
    assert (str(usual_plan(scene)), str(usual_plan(changed))) == (before, after)
    other = {"left": "right", "right": "left"}[side]
    same = {view: draw(scene, view=view).tobytes() == draw(changed, view=view).tobytes()
            for view in ("front", f"front_{side}", f"front_{other}")}
    assert same == {"front": True, f"front_{side}": False, f"front_{other}": True}


def test_a_fact_that_the_front_view_tells_or_that_is_impossible_does_not_fit():
    assert not fits(replace(OPEN, left_lane="occupied"), "beside", "left")
    assert not fits(OPEN, "car", "left") and not fits(replace(JUNCTION, light="green"), "car", "left")
    assert not fits(replace(OPEN, pedestrian="crossing"), "cyclist", "left")


def test_reasons_name_what_comes_from_the_side_and_are_read_back(examples):
    changed = with_fact(OPEN, "cyclist", "right")
    text = reason(changed, Decision("STOP", "STRAIGHT"))
    assert "cyclist" in text and "from the right" in text
    assert ("side", "cyclist_right") in read_reason(text).factors
    for example in examples[:300]:
        scene, reading = sample_scene(example.scene), read_reason(example.reasoning)
        assert reading.understood and reading.factors <= scene_facts(scene)
        if scene.side.startswith(("cyclist", "car")) and example.decision in acceptable_plans(scene):
            assert example.decision in reading.supported


def test_the_views_of_one_camera_and_of_three_share_no_scene(examples):
    one = scene_examples("test", 50)
    assert {example.scene for example in one}.isdisjoint(example.scene for example in examples)
    assert all(example.cameras is None and "side" not in example.factors for example in one)
    for prior in ("natural", "long_tail"):
        assert all(example.factors.keys() >= {"side", "weather"} for example in scene_examples("val", 5, prior=prior,
                                                                                              cameras=3))
    with pytest.raises(ValueError, match="2 cameras: the built-in scenes have 1 or 3"):
        scene_examples("test", 1, cameras=2)
    with pytest.raises(ValueError, match="view 'rear': a built-in scene has front, front_left, front_right"):
        draw(OPEN, view="rear")
