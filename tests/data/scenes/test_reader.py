"""The reader of reasons: sentences read by hand, and the expert's own read back without loss."""

from dataclasses import replace

import pytest

from data.scenes import PRIORS, reason, sample_scene, scene_examples
from data.scenes.reader import factor_scores, read_reason, scene_facts
from data.scenes.world import Scene
from rewards import Decision

PLAIN = Scene(seed=0, road="junction_near", light="red", lead="none", braking=False, pedestrian="none", blockage="none",
              left_lane="free", right_lane="occupied", night=True, speed=2.0, turn_100="left", turn_200="straight")


def plans(*names):
    return {Decision(*name.split(", ")) for name in names}


# factors, announced plan and supported plans: those of a scene with these facts alone (scenes/test_expert.py)
SENTENCES = [
    ("The light is red, I am slow and the route turns left, so I stop and stay in lane.",
     {("light", "red"), ("light_distance", "near"), ("pace", "slow"), ("route", "left")},
     "STOP, STRAIGHT", ["STOP, STRAIGHT"]),
    ("My lane is clear and my speed is moderate, hence I speed up and go straight.",
     {("ahead", "clear"), ("pace", "medium")}, "ACCELERATE, STRAIGHT", ["ACCELERATE, STRAIGHT", "KEEP, STRAIGHT"]),
    ("Cones stand in my lane, I am fast and the left lane is free, so I keep my speed and change left.",
     {("obstacle", "cones"), ("pace", "fast"), ("left_lane", "free")}, "KEEP, LEFT_CHANGE", ["KEEP, LEFT_CHANGE"]),
    ("A car is parked ahead, I am fast and no other lane is free, so I slow down and stay in lane.",
     {("obstacle", "parked"), ("pace", "fast"), ("other_lanes", "taken")},
     "DECELERATE, STRAIGHT", ["DECELERATE, STRAIGHT"]),
    ("The car ahead is near, I am slow and the right lane is free, so I keep my speed and change right.",
     {("car", "near"), ("car_kind", "car"), ("pace", "slow"), ("right_lane", "free")},
     "KEEP, RIGHT_CHANGE", ["KEEP, RIGHT_CHANGE", "KEEP, STRAIGHT"]),
    ("The truck ahead is near and I am slow, so I keep my speed and go straight.",
     {("car", "near"), ("car_kind", "truck"), ("pace", "slow")}, "KEEP, STRAIGHT", ["KEEP, STRAIGHT"]),
    ("A cyclist is far ahead and I am fast, so I slow down and go straight.",
     {("car", "far"), ("car_kind", "cyclist"), ("pace", "fast")}, "DECELERATE, STRAIGHT", ["DECELERATE, STRAIGHT"]),
    ("A yellow light is far ahead and I stand still, so I start and go straight.",
     {("light", "yellow"), ("light_distance", "far"), ("pace", "standing")},
     "ACCELERATE, STRAIGHT", ["ACCELERATE, STRAIGHT"]),
    ("The near car shows brake lamps and I stand still, hence I stay stopped and stay in lane.",
     {("car", "near"), ("car_kind", "car"), ("car_brakes", "yes"), ("pace", "standing")},
     "STOP, STRAIGHT", ["STOP, STRAIGHT"]),
    ("The light is red, the near car brakes and I stand still, so I stay stopped and stay in lane.",
     {("light", "red"), ("light_distance", "near"), ("car", "near"), ("car_kind", "car"), ("car_brakes", "yes"),
      ("pace", "standing")}, "STOP, STRAIGHT", ["STOP, STRAIGHT"]),
    ("A bend to the right comes and I am fast, so I slow down and go straight.",
     {("bend", "right"), ("pace", "fast")}, "DECELERATE, STRAIGHT", ["DECELERATE, STRAIGHT", "KEEP, STRAIGHT"]),
    ("The light is green and I am fast, so I stop and stay in lane.",                       # announced, not supported
     {("light", "green"), ("pace", "fast")}, "STOP, STRAIGHT", ["KEEP, STRAIGHT"]),
    ("The junction is near, my speed is moderate and the route turns left, so I slow down and turn left.",
     {("junction", "near"), ("pace", "medium"), ("route", "left")}, "DECELERATE, LEFT_TURN", ["DECELERATE, LEFT_TURN"]),
    ("Nothing is in my way, I am fast and the left lane I want is free, so I keep my speed and change left.",
     {("ahead", "clear"), ("pace", "fast"), ("left_lane", "free"), ("route_later", "left")},
     "KEEP, LEFT_CHANGE", ["KEEP, LEFT_CHANGE", "KEEP, STRAIGHT"]),
    ("The light is green, I am fast and no left lane is free, so I keep my speed and go straight.",
     {("light", "green"), ("pace", "fast"), ("left_lane", "not free")}, "KEEP, STRAIGHT", ["KEEP, STRAIGHT"]),
    ("The light is green, I am fast and the left lane I need is free, so I keep my speed and change left.",
     {("light", "green"), ("pace", "fast"), ("left_lane", "free"), ("route", "left")},      # before the junction
     "KEEP, LEFT_CHANGE", ["KEEP, LEFT_CHANGE"]),
    ("A car comes towards me, I am fast and the right lane is free, so I keep my speed and change right.",
     {("event", "wrong_way"), ("pace", "fast"), ("right_lane", "free")}, "KEEP, RIGHT_CHANGE", ["KEEP, RIGHT_CHANGE"]),
    ("A car drives the wrong way and my speed is moderate, so I stop and stay in lane.",
     {("event", "wrong_way"), ("pace", "medium")}, "STOP, STRAIGHT", ["STOP, STRAIGHT"]),
    ("I see a ball and a child and my speed is moderate, so I stop and stay in lane.",
     {("event", "ball"), ("pace", "medium")}, "STOP, STRAIGHT", ["STOP, STRAIGHT"]),
    ("An officer waves me through, I am slow and the route turns right, so I keep my speed and turn right.",
     {("event", "waved_through"), ("pace", "slow"), ("route", "right")}, "KEEP, RIGHT_TURN", ["KEEP, RIGHT_TURN"]),
    ("An officer waves me through and I am slow, so I speed up and go straight.",
     {("event", "waved_through"), ("pace", "slow")}, "ACCELERATE, STRAIGHT", ["ACCELERATE, STRAIGHT"]),
]


@pytest.mark.parametrize(("text", "factors", "announced", "supported"), SENTENCES)
def test_sentences_by_hand(text, factors, announced, supported):
    reading = read_reason(text)
    assert reading.understood and reading.factors == factors
    assert str(reading.announced) == announced and reading.supported == plans(*supported)
    assert read_reason(f" {text.upper().removesuffix('.')} ") == reading


@pytest.mark.parametrize("text", ["", "The dog sleeps.", "so I stop and stay in lane", ", so I", "<answer>"])
def test_foreign_text_says_nothing(text):
    reading = read_reason(text)
    assert (reading.factors, reading.announced, reading.supported) == (frozenset(), None, frozenset())
    assert not reading.understood


@pytest.mark.parametrize("facts", [
    "The light is red, I am slow and I am fast", "The light is red, the light is green and I am slow",
    "The light is red", "I am slow", "I am slow and the route turns left",
    "The road ahead is clear, I am slow, the route turns left and the route turns right",
    "The car ahead is near, the car ahead is far away and I am slow"])
def test_contradictions_and_gaps_support_nothing(facts):
    reading = read_reason(f"{facts}, so I stop and stay in lane.")
    assert reading.supported == frozenset() and str(reading.announced) == "STOP, STRAIGHT" and reading.factors


def test_a_clause_in_other_words_is_left_unread():
    reading = read_reason("The light is red, a dog sleeps and I am slow, so I stop and stay in lane.")
    assert not reading.understood and ("light", "red") in reading.factors
    assert reading.supported == plans("STOP, STRAIGHT")
    assert not read_reason("The light is red and I am slow.").understood       # no plan announced


@pytest.mark.parametrize("prior", PRIORS)
def test_the_expert_is_read_back_without_loss(prior):
    supported = []
    for example in scene_examples("val", 500, prior=prior):
        scene = sample_scene(example.scene)
        label = read_reason(example.reasoning)
        assert label.understood and label.announced == example.decision and label.factors <= scene_facts(scene)
        for plan in example.acceptable:                     # a noisy label need not be supported, these must be
            reading = read_reason(reason(scene, plan))
            assert reading.announced == plan and reading.understood
            supported.append(plan in reading.supported)
    assert sum(supported) >= 0.99 * len(supported)          # the others need a fact more than 25 words can hold


def test_facts_of_a_scene_by_hand():
    present = {(name, value) for name, value in scene_facts(PLAIN) if value not in ("none", "straight")}
    assert present == {("light", "red"), ("light_distance", "near"), ("junction", "near"), ("pace", "slow"),
                       ("route", "left"), ("left_lane", "free"), ("right_lane", "occupied"), ("right_lane", "not free"),
                       ("ahead", "clear")}
    blocked = scene_facts(replace(PLAIN, road="curve_left", light="none", blockage="cones", left_lane="none"))
    assert {("bend", "left"), ("obstacle", "cones"), ("other_lanes", "taken")} <= blocked
    assert not {("ahead", "clear"), ("light_distance", "none"), ("car_brakes", "yes")} & blocked
    assert ("ahead", "clear") not in scene_facts(replace(PLAIN, event="animal"))
    assert ("ahead", "clear") not in scene_facts(replace(PLAIN, event="waved_through"))
    assert {("car_brakes", "yes"), ("car_kind", "car")} <= scene_facts(replace(PLAIN, lead="far", braking=True))


def test_factor_scores_by_hand():
    expert = "The light is red, I am slow and the route turns left, so I stop and then turn left."
    said = ["The light is yellow, I am slow and the route turns left, so I stop and then turn left.", ""]
    scores = factor_scores(said, [expert, expert], [PLAIN, PLAIN])
    # of the picture: yellow (false) and near (true) are named; the expert names red and near, twice; near is found once
    assert (scores["precision"], scores["recall"]) == (0.5, 0.25)
    assert (scores["named"], scores["expected"], scores["understood"]) == (2, 4, 0.5)
    assert scores["by_factor"]["light"] == {"precision": 0.0, "recall": 0.0, "named": 1, "expected": 2}
    assert scores["by_factor"]["route"] == {"precision": 1.0, "recall": 0.5, "named": 1, "expected": 2}
    assert set(scores["by_factor"]) == {"light", "light_distance", "pace", "route"}
    assert factor_scores([""], ["Mist."], [PLAIN])["precision"] is None
