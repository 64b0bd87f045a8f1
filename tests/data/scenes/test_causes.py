"""The causes of a plan and what supports its path."""
from dataclasses import replace

import pytest

from data.scenes import acceptable_plans, label_distribution, reason
from data.scenes.causes import causes, explanation, only
from data.scenes.gates import drivable
from data.scenes.rollout import roll_out
from rewards import Decision
from tests.data.scenes.test_rollout import OPEN_ROAD

RED = {"road": "junction_near", "light": "red"}


def test_a_cause_is_what_changes_the_plan():
    assert causes(replace(OPEN_ROAD, **RED)) == ["light"]
    assert causes(replace(OPEN_ROAD, lead="far")) == []                        # ACCELERATE with it and without it
    assert causes(replace(OPEN_ROAD, blockage="cones", left_lane="free")) == ["blockage", "left_lane"]
    assert causes(replace(OPEN_ROAD, **RED, event="waved_through")) == ["event"]
    assert causes(replace(OPEN_ROAD, turn_100="left", road="junction_near")) == ["route"]


def test_two_things_that_ask_for_the_same():
    # neither is a cause by itself; the more urgent one suffices
    scene = replace(OPEN_ROAD, **RED, pedestrian="crossing")
    assert causes(scene) == [] and explanation(scene, Decision("STOP", "STRAIGHT")) == ["pedestrian"]
    assert acceptable_plans(only(scene, ["light"])) == (Decision("STOP", "STRAIGHT"),)


def test_a_plan_from_noise_gets_no_support():
    scene = replace(OPEN_ROAD, **RED, left_lane="free")
    assert reason(scene, Decision("KEEP", "LEFT_CHANGE")) in {
        f"{opening} and my speed is moderate, {joint} I keep my speed and change left."
        for opening in ("The light is red", "A red light is right ahead", "I see a red light", "The near light is red")
        for joint in ("so", "hence")}


@pytest.mark.parametrize("scene, plan, facts", [
    (replace(OPEN_ROAD, blockage="cones", left_lane="free", speed=3.0), "KEEP, LEFT_CHANGE",
     "I am slow and the left lane is free, "),
    (replace(OPEN_ROAD, blockage="cones"), "STOP, STRAIGHT", "my speed is moderate and no other lane is free, "),
    (replace(OPEN_ROAD, road="junction_far", turn_100="left", left_lane="occupied", speed=13.0), "KEEP, STRAIGHT",
     "I am fast and no left lane is free, "),
    (replace(OPEN_ROAD, road="junction_near", turn_100="right"), "DECELERATE, RIGHT_TURN",
     "my speed is moderate and the route turns right, "),
    (replace(OPEN_ROAD, road="junction_far", turn_100="right", right_lane="free", speed=13.0), "KEEP, RIGHT_CHANGE",
     "I am fast and the right lane I need is free, "),
    (replace(OPEN_ROAD, turn_200="right", right_lane="free", speed=13.0), "KEEP, RIGHT_CHANGE",
     "I am fast and the right lane I want is free, ")])
def test_what_a_path_rests_on(scene, plan, facts):
    assert facts in reason(scene, Decision(*plan.split(", ")))


@pytest.mark.parametrize("fact", [{"night": True}, {"weather": "fog"}, {"seed": 9}])
def test_what_has_no_influence(fact):
    assert drivable(OPEN_ROAD, roll_out("medium", "straight"))[0] == 1
    assert label_distribution(replace(OPEN_ROAD, **fact)) == label_distribution(OPEN_ROAD)
