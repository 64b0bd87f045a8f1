"""The wording of prompts and targets: literal texts."""
import dataclasses
from dataclasses import replace

import pytest

from data import Example
from data.example import front_view, prompt_text, target_text, views_record
from rewards import Decision

PROBLEM = (
    "You are an expert driving assistant. Your current speed is 4.2m/s, the navigation command is '{'100m': "
    "'Straight', '200m': 'Turn left'}', based on the understanding of the driving scene and the navigation "
    "information, what is your driving plan for the next three seconds? Output the planning reasoning process in "
    "<think> </think> and final planning answer in <answer> </answer> tags, respectively. Planning answer consists of "
    "SPEED plan and PATH plan, SPEED includes KEEP, ACCELERATE, DECELERATE, and STOP. PATH includes STRAIGHT, "
    "RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, and LEFT_TURN. For example, a correct answer format is like '<think> "
    "planning reasoning process here </think> <answer> KEEP, LEFT_TURN </answer>'.")
ANSWER_PROBLEM = (
    "You are an expert driving assistant. Your current speed is 4.2m/s, the navigation command is '{'100m': "
    "'Straight', '200m': 'Turn left'}', based on the understanding of the driving scene and the navigation "
    "information, what is your driving plan for the next three seconds? Output the final planning answer in <answer> "
    "</answer> tags. Planning answer consists of SPEED plan and PATH plan, SPEED includes KEEP, ACCELERATE, "
    "DECELERATE, and STOP. PATH includes STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, and LEFT_TURN. For example, "
    "a correct answer format is like '<answer> KEEP, LEFT_TURN </answer>'.")
RELEASED = {"image": "front.jpg", "problem": PROBLEM, "solution": "<answer> ACCELERATE, STRAIGHT </answer>",
            "thinking": "<think> The light is green. </think>"}
OURS = {"id": "a", "scene": 7, "speed": 4.2, "navigation": {"100m": "Straight"}, "decision": "STOP, LEFT_TURN"}


def example(**changes):
    base = Example(id="a", scene=7, speed=4.2, navigation={"100m": "Straight", "200m": "Turn left"},
                   decision=Decision("STOP", "LEFT_TURN"), reasoning="Red.")
    return dataclasses.replace(base, **changes)


def test_alphadrive_prompt_is_the_released_wording():
    assert prompt_text(example(), "alphadrive", reasoning=True) == PROBLEM
    assert prompt_text(example(), "alphadrive", reasoning=False) == ANSWER_PROBLEM


def test_verbatim_prompt_is_kept_and_loses_only_its_reasoning():
    assert prompt_text(example(prompt=PROBLEM, speed=None, navigation=None), "alphadrive", reasoning=True) == PROBLEM
    assert prompt_text(example(prompt=PROBLEM), "alphadrive", reasoning=False) == ANSWER_PROBLEM


def test_unknown_wording_gets_one_sentence_when_reasoning_is_off():
    asked = example(prompt="What now? Think first.", speed=None, navigation=None)
    assert prompt_text(asked, "alphadrive", reasoning=True) == "What now? Think first."
    assert prompt_text(asked, "alphadrive", reasoning=False) == (
        "What now? Think first. Give only the final answer in <answer> </answer> tags, without any reasoning.")
    assert prompt_text(asked, "compact") == "What now? Think first."


def test_half_known_wording_does_not_keep_a_request_for_think():
    changed = PROBLEM.replace("planning reasoning process here", "your thoughts")
    assert prompt_text(example(prompt=changed), "alphadrive", reasoning=False).endswith("without any reasoning.")


def test_compact_prompt():
    assert prompt_text(example(), "compact", reasoning=True) == "speed 4.2 m/s. straight, then left."
    assert prompt_text(example(), "compact", reasoning=False) == "speed 4.2 m/s. straight, then left. Answer."
    assert prompt_text(example(speed=0.0), "compact") == "speed 0.0 m/s. straight, then left."


def test_free_text_navigation_in_both_styles():
    typed = example(navigation="Go straight for 100 m, then turn right")
    assert prompt_text(typed, "compact") == "speed 4.2 m/s. Go straight for 100 m, then turn right."
    assert "command is 'Go straight for 100 m, then turn right', based" in prompt_text(typed, "alphadrive")


def test_unknown_style_and_nothing_to_ask_from():
    with pytest.raises(ValueError, match="prompt style 'short': choose one of alphadrive, compact"):
        prompt_text(example(), "short")
    with pytest.raises(ValueError, match="example 'a' has neither a prompt nor both speed and navigation"):
        prompt_text(example(speed=None), "compact")


def test_target_text():
    assert target_text(example(), reasoning=True) == "<think> Red. </think> <answer> STOP, LEFT_TURN </answer>"
    assert target_text(example(), reasoning=False) == "<answer> STOP, LEFT_TURN </answer>"
    with pytest.raises(ValueError, match="example 'a' has no reasoning: turn reasoning off"):
        target_text(example(reasoning=None), reasoning=True)


# ---------------------------------------------------------------- way-points in the answer

POINTS = ((2.1, 0.0), (4.2, 0.0), (6.3, 0.1), (8.4, 0.1), (10.5, 0.2), (12.6, 0.3), (14.7, 0.4), (16.8, 0.54))
REQUEST = (
    " Behind the answer, output the car's positions in 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5 and 4.0 seconds in "
    "<trajectory> </trajectory> tags: eight pairs x,y in metres with one decimal, x forward and y to the left, for "
    "example '<trajectory> 2.1,0.0 4.2,0.0 6.3,0.1 8.4,0.1 10.5,0.2 12.6,0.3 14.7,0.4 16.8,0.5 </trajectory>'.")


def test_the_question_asks_for_way_points():
    assert prompt_text(example(), answer="trajectory") == PROBLEM + REQUEST
    assert prompt_text(example(), reasoning=False, answer="trajectory") == ANSWER_PROBLEM + REQUEST
    assert prompt_text(example(prompt="What now?"), answer="trajectory") == "What now?" + REQUEST
    assert prompt_text(example(), "compact", answer="trajectory") == (
        "speed 4.2 m/s. straight, then left. Way-points.")
    assert prompt_text(example(), "compact", reasoning=False, answer="trajectory") == (
        "speed 4.2 m/s. straight, then left. Answer. Way-points.")


def test_the_target_holds_the_expert_s_way_points():
    block = "<trajectory> 2.1,0.0 4.2,0.0 6.3,0.1 8.4,0.1 10.5,0.2 12.6,0.3 14.7,0.4 16.8,0.5 </trajectory>"
    driven = example(trajectory=POINTS)
    assert target_text(driven, answer="trajectory") == (
        f"<think> Red. </think> <answer> STOP, LEFT_TURN </answer> {block}")
    assert target_text(driven, reasoning=False, answer="trajectory") == f"<answer> STOP, LEFT_TURN </answer> {block}"
    assert target_text(driven) == "<think> Red. </think> <answer> STOP, LEFT_TURN </answer>"
    with pytest.raises(ValueError, match="example 'a' has no way-points: use --answer plan or add"):
        target_text(example(), answer="trajectory")


def test_several_cameras_are_named_in_order_before_the_question():
    example = Example(id="a", images=("f.png", "l.png"), cameras=("front", "front_left"), speed=4.0,
                      navigation="Go straight", decision=Decision("STOP", "STRAIGHT"))
    plain = replace(example, image="f.png", images=None, cameras=None)
    assert prompt_text(example, "compact") == "front, front left. speed 4.0 m/s. Go straight."
    assert prompt_text(example) == "The pictures show, in this order: front, front left. " + prompt_text(plain)
    assert prompt_text(replace(example, cameras=None)) == prompt_text(plain)        # without names nothing is told
    assert (front_view(example), front_view(plain)) == (plain, plain)
    turned = replace(example, cameras=("front_left", "front"))
    for names in (("cam_back", "CAM_FRONT"), ("left", "front_camera")):
        assert front_view(replace(turned, cameras=names)).image == turned.images[1]
    with pytest.raises(ValueError, match="keeps the camera `front`, and the cameras are CAM_BACK, left; name one"):
        front_view(replace(turned, cameras=("CAM_BACK", "left")))
    assert front_view(turned).image == "l.png" and front_view(replace(turned, cameras=None)).image == "f.png"
    assert (example.pictures, plain.pictures) == (("f.png", "l.png"), ("f.png",))
    assert views_record(example) == {"images": ["f.png", "l.png"], "cameras": ["front", "front_left"]}
    assert views_record(plain) == {}
