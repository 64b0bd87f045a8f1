"""The reasons: true of the scene, and leading to the decision."""
import re
from dataclasses import replace

from data.scenes import acceptable_plans, label_distribution, reason
from rewards import Decision
from tests.data.scenes.test_scenes import FREE_ROAD

CLAIMS = {                                                     # words -> is it so in the scene?
    "red": lambda s: s.light == "red", "yellow": lambda s: s.light == "yellow", "green": lambda s: s.light == "green",
    "light": lambda s: s.light != "none", "light is far ahead": lambda s: s.road == "junction_far",
    "far ahead the light": lambda s: s.road == "junction_far",
    "car is far ahead": lambda s: s.lead == "far",
    "pedestrian": lambda s: s.pedestrian != "none", "crossing": lambda s: s.pedestrian == "crossing",
    "someone walks": lambda s: s.pedestrian == "crossing", "kerb": lambda s: s.pedestrian == "kerb",
    "near car": lambda s: s.lead == "near", "car ahead is near": lambda s: s.lead == "near",
    "far car": lambda s: s.lead == "far", "car ahead is far": lambda s: s.lead == "far",
    "brake": lambda s: s.braking, "cones": lambda s: s.blockage == "cones", "parked": lambda s: s.blockage == "parked",
    "bends left": lambda s: s.road == "curve_left", "bends right": lambda s: s.road == "curve_right",
    "bend to the left": lambda s: s.road == "curve_left", "bend to the right": lambda s: s.road == "curve_right",
    "far light": lambda s: s.road == "junction_far", "junction is near": lambda s: s.road == "junction_near",
    "at the junction": lambda s: s.road == "junction_near",
    "the left lane is free": lambda s: s.left_lane == "free",
    "the right lane is free": lambda s: s.right_lane == "free",
    "no left lane is free": lambda s: s.left_lane != "free", "no right lane is free": lambda s: s.right_lane != "free",
    "no other lane is free": lambda s: "free" not in (s.left_lane, s.right_lane),
    "the route turns left": lambda s: s.turn_100 == "left",
    "the route turns right": lambda s: s.turn_100 == "right",
    "stand still": lambda s: s.speed == 0, "i am slow": lambda s: 0 < s.speed < 5,
    "moderate": lambda s: 5 <= s.speed < 11, "i am fast": lambda s: s.speed >= 11,
    "truck": lambda s: s.lead_kind == "truck", "cyclist": lambda s: s.lead_kind == "cyclist",
    "nothing is in my way": lambda s: (s.lead, s.blockage, s.pedestrian) == ("none",) * 3,
    "the left lane i need": lambda s: s.turn_100 == "left", "the right lane i need": lambda s: s.turn_100 == "right",
    "the left lane i want": lambda s: s.turn_200 == "left", "the right lane i want": lambda s: s.turn_200 == "right",
    "lane is clear": lambda s: (s.lead, s.blockage) == ("none", "none") and s.pedestrian != "crossing",
    "road ahead is clear": lambda s: (s.lead, s.blockage) == ("none", "none") and s.pedestrian != "crossing",
}
SPEED_WORDS = {"KEEP": ("keep my speed", "keep my place"), "ACCELERATE": ("speed up", "start"),
               "DECELERATE": ("slow down", "hold back"), "STOP": ("stop", "stay stopped")}
PATH_WORDS = {"STRAIGHT": ("go straight", "stay in lane"), "LEFT_TURN": ("turn left",),
              "RIGHT_TURN": ("turn right",), "LEFT_CHANGE": ("change left",), "RIGHT_CHANGE": ("change right",)}


def check_sentence(scene, decision):
    sentence = reason(scene, decision)
    assert len(sentence.split()) <= 25 and sentence.count(".") == 1 and sentence.endswith(".")
    for words, holds in CLAIMS.items():
        if re.search(rf"\b{words}", sentence.lower()):
            assert holds(scene), (sentence, words, scene)
    plan = re.split(r", (?:so|hence) I ", sentence)[1]
    assert plan.startswith(SPEED_WORDS[decision.speed]), (sentence, decision)
    assert plan.removesuffix(".").endswith(PATH_WORDS[decision.path]), (sentence, decision)


def test_reasons_are_true_of_the_scene_and_lead_to_the_decision(scenes):
    for scene in scenes[:3000]:
        for plan in acceptable_plans(scene):
            check_sentence(scene, plan)


def test_reasons_for_label_noise_are_true_too(scenes):
    for scene in scenes[:300]:
        for plan in label_distribution(scene):
            check_sentence(scene, plan)


def test_a_reason_has_several_wordings_chosen_by_the_seed():
    told = {reason(replace(FREE_ROAD, seed=seed), Decision("KEEP", "STRAIGHT")) for seed in range(60)}
    assert told == {f"{opening} and my speed is moderate, {joint} I keep my speed and go straight."
                    for opening in ("The road ahead is clear", "My lane is clear", "Nothing is in my way",
                                    "The way ahead is clear") for joint in ("so", "hence")}
