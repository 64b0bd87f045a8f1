"""The caption task: true of the picture, silent about the rest, answered without knowledge, on scenes of its own."""
from collections import Counter
from dataclasses import replace

import pytest

from data.example import target_text
from data.scenes import SPLITS, Scene, acceptable_plans, sample_scene, scene_examples
from data.scenes.caption import caption, caption_examples
from data.scenes.priors import scene_seeds
from rewards import parse_plan

SCENE = Scene(seed=1, road="junction_near", light="red", lead="near", braking=True, pedestrian="kerb", blockage="none",
              left_lane="free", right_lane="none", night=True, speed=5.0, turn_100="left", turn_200="straight")


def test_caption_in_full():
    assert caption(SCENE) == ("The junction is near, red light, near car brakes, pedestrian at the kerb, left lane "
                              "free, no right lane, night.")
    plain = replace(SCENE, road="straight", light="none", lead="none", braking=False, pedestrian="none", night=False)
    assert caption(plain) == "A straight road, left lane free, no right lane."
    assert caption(replace(plain, blockage="cones", weather="fog", right_lane="occupied")) == (
        "A straight road, cones block, left lane free, right lane taken, fog.")
    assert caption(replace(plain, event="cone_truck", lead="near")) == (
        "A straight road, truck with cones, left lane free, no right lane.")
    assert caption(replace(plain, event="blocked_turn", turn_100="left")) == (
        "A straight road, left turn closed, left lane free, no right lane.")


@pytest.mark.parametrize("change", [
    {"road": "straight"}, {"light": "green"}, {"lead": "far"}, {"braking": False}, {"pedestrian": "crossing"},
    {"blockage": "parked"}, {"left_lane": "occupied"}, {"right_lane": "free"}, {"night": False}, {"weather": "rain"},
    {"event": "animal"}, {"lead_kind": "truck"}])
def test_every_visible_factor_is_told(change):
    assert caption(replace(SCENE, **change)) != caption(SCENE)


def test_what_is_not_in_the_picture_is_not_told():
    assert caption(replace(SCENE, speed=0.0, turn_100="right", turn_200="left", seed=9)) == caption(SCENE)


def test_caption_scenes_belong_to_no_other_split():
    own = {example.scene for example in caption_examples(200)}
    assert len(own) == 200 and own == set(scene_seeds("caption", 200, 0, "balanced"))
    assert not own & {example.scene for split in SPLITS for example in scene_examples(split, 200)}


def test_caption_examples_train_with_the_sft_step_s_target():
    examples = caption_examples(300)
    assert examples[2].id == "caption-0-000002" and examples[2].split == "caption" and examples[2].acceptable is None
    assert caption_examples(1, 3, "natural")[0].id == "natural-caption-3-000000"
    for example in examples:
        assert example.reasoning == caption(sample_scene(example.scene))
        assert parse_plan(target_text(example)) == example.decision
    assert examples == caption_examples(400)[:300] != caption_examples(300, seed=1)


def test_answers_know_nothing():
    # 8000 draws of 20 plans: 400 each, 4 standard errors are 4 * sqrt(8000 * .05 * .95) = 78
    examples = caption_examples(8000)
    counts = Counter(example.decision for example in examples)
    assert len(counts) == 20 and all(abs(count - 400) < 78 for count in counts.values())
    # right by chance for 1 of 20, whatever the expert would do: 400 of 8000 within 78
    usual = sum(example.decision == acceptable_plans(sample_scene(example.scene))[0] for example in examples)
    assert abs(usual - 400) < 78


def test_wrong_requests():
    with pytest.raises(ValueError, match="prior 'x'"):
        caption_examples(1, prior="x")
    with pytest.raises(ValueError, match="count -1"):
        caption_examples(-1)
