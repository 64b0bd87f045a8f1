"""The built-in benchmark: deterministic, causal, with known odds, and unsolvable from one input alone."""
import re
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from data.scenes import (
    SPLITS,
    Scene,
    acceptable_plans,
    bayes_ceiling,
    draw,
    draw_label,
    label_distribution,
    reason,
    sample_scene,
    scene_examples,
    scene_text_corpus,
)
from data.scenes.world import speed_band
from rewards import Decision

FREE_ROAD = Scene(seed=1, road="straight", light="none", lead="none", braking=False, pedestrian="none", blockage="none",
                  left_lane="none", right_lane="none", night=False, speed=10.0, turn_100="straight",
                  turn_200="straight")


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(seed) for seed in range(6000)]


@pytest.fixture(scope="module")
def odds(scenes):
    return [label_distribution(scene) for scene in scenes]


def plans(**changes):
    return {str(plan) for plan in acceptable_plans(replace(FREE_ROAD, **changes))}


# ---------------------------------------------------------------- what the expert does, each with one counterfactual

def test_light_near_and_far():
    assert plans(road="junction_near", light="red", speed=8.0) == {"STOP, STRAIGHT"}
    assert plans(road="junction_near", light="red", speed=13.0) == {"DECELERATE, STRAIGHT"}    # not at rest after 3 s
    assert plans(road="junction_near", light="green", speed=13.0) == {"KEEP, STRAIGHT"}
    assert plans(road="junction_near", light="yellow", speed=2.0) == {"STOP, STRAIGHT"}
    assert plans(road="junction_near", light="yellow", speed=13.0) == {"KEEP, STRAIGHT", "DECELERATE, STRAIGHT"}
    assert plans(road="junction_far", light="red", speed=8.0) == {"DECELERATE, STRAIGHT", "KEEP, STRAIGHT"}
    assert plans(road="junction_far", light="red", speed=13.0) == {"DECELERATE, STRAIGHT"}
    assert plans(road="junction_far", light="green", speed=13.0) == {"KEEP, STRAIGHT"}


def test_route_turns_only_at_the_near_junction():
    assert plans(road="junction_near", turn_100="left", speed=8.0) == {"DECELERATE, LEFT_TURN"}
    assert plans(road="junction_near", turn_100="left", speed=13.0) == {"DECELERATE, STRAIGHT"}     # turns later
    assert plans(road="junction_near", turn_100="right", light="red", speed=8.0) == {"STOP, STRAIGHT"}
    assert plans(road="junction_far", turn_100="left", speed=13.0) == {"KEEP, STRAIGHT"}
    assert plans(road="junction_far", turn_100="left", left_lane="free", speed=13.0) == {"KEEP, LEFT_CHANGE"}
    assert plans(road="junction_far", turn_100="left", left_lane="occupied", speed=13.0) == {"KEEP, STRAIGHT"}
    assert plans(turn_200="left", left_lane="free", speed=13.0) == {"KEEP, LEFT_CHANGE", "KEEP, STRAIGHT"}


def test_lead_car():
    assert plans(lead="near", speed=0.0) == {"STOP, STRAIGHT"}
    assert plans(lead="near", speed=3.0) == {"KEEP, STRAIGHT"}
    assert plans(lead="near", braking=True, speed=3.0) == {"STOP, STRAIGHT"}
    assert plans(lead="near", braking=True, speed=8.0) == {"DECELERATE, STRAIGHT"}
    assert plans(lead="near", braking=True, speed=13.0, left_lane="free") == {"KEEP, LEFT_CHANGE"}
    assert plans(lead="far", speed=3.0) == {"ACCELERATE, STRAIGHT"}
    assert plans(lead="far", braking=True, speed=3.0) == {"KEEP, STRAIGHT"}


def test_a_cyclist_is_slower_than_a_car():
    assert plans(lead="far", speed=13.0) == {"KEEP, STRAIGHT"}
    assert plans(lead="far", lead_kind="truck", speed=13.0) == {"KEEP, STRAIGHT"}
    assert plans(lead="far", lead_kind="cyclist", speed=13.0) == {"DECELERATE, STRAIGHT"}


def test_blocked_lane():
    assert plans(blockage="cones", speed=3.0) == {"STOP, STRAIGHT"}
    assert plans(blockage="cones", speed=3.0, right_lane="free") == {"KEEP, RIGHT_CHANGE"}
    assert plans(blockage="parked", speed=13.0, left_lane="free", right_lane="occupied") == {"KEEP, LEFT_CHANGE"}
    assert plans(blockage="parked", speed=13.0, left_lane="free", right_lane="free") == {
        "KEEP, LEFT_CHANGE", "KEEP, RIGHT_CHANGE"}


def test_pedestrian_bend_and_free_road():
    assert plans(pedestrian="crossing", speed=8.0) == {"STOP, STRAIGHT"}
    assert plans(pedestrian="crossing", left_lane="free", speed=8.0) == {"STOP, STRAIGHT"}     # crosses that lane, too
    assert plans(pedestrian="kerb", speed=13.0) == {"KEEP, STRAIGHT", "DECELERATE, STRAIGHT"}
    assert plans(road="curve_left", speed=13.0) == {"KEEP, STRAIGHT", "DECELERATE, STRAIGHT"}
    assert plans(speed=13.0) == {"KEEP, STRAIGHT"}
    assert plans(speed=0.0) == plans(speed=3.0) == {"ACCELERATE, STRAIGHT"}
    assert plans(speed=8.0) == {"ACCELERATE, STRAIGHT", "KEEP, STRAIGHT"}


# ---------------------------------------------------------------- the distribution as a whole

def test_odds_sum_to_one_and_every_plan_has_some(scenes, odds):
    for scene, q in zip(scenes, odds, strict=True):
        accepted = acceptable_plans(scene)
        assert sum(q.values()) == pytest.approx(1.0) and len(q) == 20
        assert accepted and min(q.values()) >= 0.0005 - 1e-12                  # .01 of all labels over 20 plans
        assert q[accepted[0]] == max(q.values())


def test_drawn_labels_follow_the_odds(scenes, odds):
    # 6000 draws: a plan's count differs from its expectation by less than 4 standard errors, sqrt(sum q (1 - q))
    drawn = Counter(draw_label(scene) for scene in scenes)
    for plan in odds[0]:
        shares = [q[plan] for q in odds]
        error = sum(share * (1 - share) for share in shares) ** 0.5
        assert abs(drawn[plan] - sum(shares)) < 4 * error
    hits = sum(draw_label(scene) == acceptable_plans(scene)[0] for scene in scenes)
    expected = [max(q.values()) for q in odds]
    assert abs(hits - sum(expected)) < 4 * sum(share * (1 - share) for share in expected) ** 0.5


def test_classes_are_balanced_and_many_scenes_have_several_plans(scenes, odds):
    speeds, paths = Counter(), Counter()
    for q in odds:
        for plan, share in q.items():
            speeds[plan.speed] += share / len(odds)
            paths[plan.path] += share / len(odds)
    assert min(speeds.values()) >= 0.18 and min(paths.values()) >= 0.08
    several = sum(len(acceptable_plans(scene)) >= 2 for scene in scenes) / len(scenes)
    many = sum(len(acceptable_plans(scene)) >= 3 for scene in scenes) / len(scenes)
    assert 0.34 <= several <= 0.50 and 0.05 <= many <= 0.15


def best_accuracy(scenes, odds, view):
    """Accuracy of the best predictor that knows q but sees only view(scene)."""
    cells = defaultdict(Counter)
    for scene, q in zip(scenes, odds, strict=True):
        cells[view(scene)].update(q)
    return sum(max(cell.values()) for cell in cells.values()) / len(scenes)


def test_both_inputs_are_needed(scenes, odds):
    # measured on 20,000 scenes: ceiling .827, text alone .38, picture alone .45
    ceiling = sum(max(q.values()) for q in odds) / len(odds)
    text = best_accuracy(scenes, odds, lambda s: (speed_band(s.speed), s.turn_100, s.turn_200))
    shown = [replace(scene, seed=0, night=False, speed=speed_band(scene.speed)) for scene in scenes]
    picture = best_accuracy(shown, odds, lambda s: replace(s, speed=0.0, turn_100="", turn_200=""))
    speedless = best_accuracy(shown, odds, lambda s: replace(s, speed=0.0))
    routeless = best_accuracy(shown, odds, lambda s: replace(s, turn_100="", turn_200=""))
    assert 0.78 <= ceiling <= 0.88
    assert text <= ceiling - 0.40 and picture <= ceiling - 0.25
    assert speedless <= ceiling - 0.10 and routeless <= ceiling - 0.10    # few scenes a cell: both are too high


def test_bayes_ceiling_by_hand():
    # scene 2 has one plan, STOP, STRAIGHT; scene 28 is a free road at moderate speed (fails if the world changes)
    examples = [replace(scene_examples("val", 1)[0], scene=seed) for seed in (2, 28)]
    assert [len(acceptable_plans(sample_scene(seed))) for seed in (2, 28)] == [1, 2]
    # one plan: .95 + .0005 = .9505; its neighbours DECELERATE .0205 and two changes of .0105; 16 of .0005
    # two: .6407 and .3303, four changes of .00717, .00717, .00383, .00383, 14 of .0005 (test_expert.py has the odds)
    # greedy (.9505 + .6407) / 2 = .7956
    # sampled (.90345 + .00042 + 2 * .00011 + .41050 + .10910 + 2 * .00005 + 2 * .00001 + .00001) / 2 = .7119
    assert bayes_ceiling(examples) == pytest.approx((.7956, .7119), abs=1e-4)
    with pytest.raises(ValueError, match="known for built-in scenes only"):
        bayes_ceiling([replace(examples[0], scene=None, image="x.png")])


# ---------------------------------------------------------------- pictures

def test_same_scene_same_bytes():
    assert draw(sample_scene(5)).tobytes() == draw(sample_scene(5)).tobytes()
    assert draw(sample_scene(5)).tobytes() != draw(sample_scene(6)).tobytes()
    assert draw(sample_scene(5), (448, 224)).size == (448, 224)


@pytest.mark.parametrize("night", [False, True])
@pytest.mark.parametrize("base, changes, least", [
    ({}, {"road": "curve_left"}, 2000), ({"road": "curve_left"}, {"road": "curve_right"}, 2000),
    ({}, {"road": "junction_near"}, 2000), ({}, {"road": "junction_far"}, 900),
    ({"road": "junction_near"}, {"light": "red"}, 700),
    ({"road": "junction_near", "light": "red"}, {"light": "yellow"}, 200),
    ({"road": "junction_near", "light": "yellow"}, {"light": "green"}, 200),
    ({"road": "junction_far", "light": "red"}, {"light": "green"}, 120),
    ({}, {"lead": "far"}, 250), ({}, {"lead": "near"}, 1500), ({"lead": "near"}, {"braking": True}, 300),
    ({"lead": "far"}, {"braking": True}, 80), ({}, {"blockage": "cones"}, 500), ({}, {"blockage": "parked"}, 1000),
    ({}, {"pedestrian": "crossing"}, 350), ({}, {"pedestrian": "kerb"}, 400),
    ({}, {"left_lane": "free"}, 2000), ({"left_lane": "free"}, {"left_lane": "occupied"}, 1000),
    ({}, {"right_lane": "free"}, 2000), ({"right_lane": "free"}, {"right_lane": "occupied"}, 1000)])
def test_every_signal_changes_many_pixels(base, changes, least, night):
    """A fact of the scene must be visible: at least `least` of 25,088 pixels change by more than 20 of 255."""
    without = replace(FREE_ROAD, night=night, **base)
    before, after = (np.asarray(draw(scene), dtype=int) for scene in (without, replace(without, **changes)))
    assert before.shape == (112, 224, 3)
    assert (abs(before - after).max(axis=2) > 20).sum() >= least


def test_what_the_text_says_is_not_in_the_picture():
    shown = draw(FREE_ROAD).tobytes()
    assert draw(replace(FREE_ROAD, speed=0.0, turn_100="left", turn_200="right")).tobytes() == shown


# ---------------------------------------------------------------- kinds of leaders

LEADER_COLOURS = {"truck": ((222, 206, 160), (120, 104, 76)),           # the box and the seams of its doors
                  "cyclist": ((178, 246, 26), (245, 245, 240))}         # jacket and helmet


def count_near(picture, colours, window, light=1.0):
    """Pixels of a window (left, top, right, bottom) that are within 24 of one of these colours."""
    pixels = np.asarray(picture.crop(window), dtype=float)[:, :, None]
    wanted = np.array(colours) * light
    return int((abs(pixels - wanted).max(axis=3) <= 24).any(axis=2).sum())


@pytest.mark.parametrize("night", [False, True])
@pytest.mark.parametrize("lead, window, least", [("near", (78, 20, 146, 99), {"truck": 1600, "cyclist": 300}),
                                                 ("far", (96, 28, 128, 65), {"truck": 250, "cyclist": 80})])
def test_each_kind_of_leader_shows_its_own_colours(lead, window, least, night):
    # windows: 34 and 16 pixels beside the lane's middle, u = 112, from above a truck's roof to below its wheels
    pictures = {kind: draw(replace(FREE_ROAD, lead=lead, lead_kind=kind, night=night))
                for kind in ("car", "truck", "cyclist")}
    for kind, colours in LEADER_COLOURS.items():
        light = .85 if night else 1.0
        counts = {shown: count_near(picture, colours, window, light) for shown, picture in pictures.items()}
        own = counts.pop(kind)
        assert own >= least[kind] and own > 2.5 * max(counts.values()), (kind, own, counts)
    without = np.asarray(draw(replace(FREE_ROAD, night=night)), dtype=int)
    for kind, picture in pictures.items():
        changed = abs(np.asarray(picture, dtype=int) - without).max(axis=2) > 20
        assert changed.sum() >= {"near": 600, "far": 180}[lead], kind
    for one, other in (("car", "truck"), ("car", "cyclist"), ("truck", "cyclist")):
        differ = abs(np.asarray(pictures[one], dtype=int) - np.asarray(pictures[other])).max(axis=2) > 20
        assert differ.sum() >= {"near": 1500, "far": 250}[lead], (one, other)


@pytest.mark.parametrize("night", [False, True])
@pytest.mark.parametrize("lead, window, lamps, glove", [("near", (72, 10, 152, 99), 350, 70),
                                                        ("far", (86, 22, 138, 65), 60, 25)])
def test_a_leader_that_slows_down_shows_it(lead, window, lamps, glove, night):
    def coloured(kind, braking, colour, light):
        scene = replace(FREE_ROAD, lead=lead, lead_kind=kind, braking=braking, night=night)
        return count_near(draw(scene), [colour], window, light)
    for kind in ("car", "truck"):                                       # lamps shine by night as by day
        assert coloured(kind, True, (255, 40, 30), 1.0) >= lamps > 10 > coloured(kind, False, (255, 40, 30), 1.0)
    light = .85 if night else 1.0
    assert coloured("cyclist", True, (255, 112, 10), light) >= glove > 5 > coloured("cyclist", False, (255, 112, 10),
                                                                                    light)
    assert coloured("cyclist", True, (255, 40, 30), 1.0) < 5            # a bicycle has no brake lamps


def test_a_cyclist_is_not_a_pedestrian():
    # a crossing pedestrian wears magenta, a waiting one cyan; a cyclist neither, and lime is nobody else's
    cyclist = draw(replace(FREE_ROAD, lead="near", lead_kind="cyclist"))
    crossing = draw(replace(FREE_ROAD, pedestrian="crossing"))
    whole = (0, 0, 224, 112)
    assert count_near(cyclist, [(226, 36, 150), (0, 214, 236)], whole) == 0
    assert count_near(crossing, [(226, 36, 150)], whole) > 150 and count_near(crossing, [(178, 246, 26)], whole) == 0


# ---------------------------------------------------------------- sentences

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


# ---------------------------------------------------------------- examples

def test_splits_and_data_seeds_share_no_scene():
    seeds = [example.scene for split in SPLITS for seed in (0, 1) for example in scene_examples(split, 50, seed)]
    assert len(set(seeds)) == 4 * 2 * 50


def test_examples_are_deterministic_and_a_longer_list_starts_with_the_shorter():
    assert scene_examples("rl", 20) == scene_examples("rl", 30)[:20]
    assert scene_examples("rl", 20) != scene_examples("rl", 20, seed=1)


def test_example_fields():
    example = scene_examples("test", 3)[2]
    assert (example.id, example.split, example.image, example.prompt) == ("test-0-000002", "test", None, None)
    assert example.acceptable == acceptable_plans(sample_scene(example.scene))
    assert set(example.factors) == {"road", "light", "lead", "braking", "pedestrian", "blockage", "left_lane",
                                    "right_lane", "night", "turn_100", "turn_200", "lead_kind"}
    assert example.reasoning and scene_examples("test", 3, with_reasons=False)[2].reasoning is None


def test_free_text_routes_only_in_training_and_true():
    training = [e for split in ("sft", "rl") for e in scene_examples(split, 1000)]
    typed = [e for e in training if isinstance(e.navigation, str)]
    assert 0.12 <= len(typed) / len(training) <= 0.18
    for example in typed:
        turns = {example.factors["turn_100"], example.factors["turn_200"]} - {"straight"}
        assert set(re.findall("left|right", example.navigation)) == turns
    assert all(isinstance(e.navigation, dict) for split in ("val", "test") for e in scene_examples(split, 200))


def test_turns_within_100_m_only_at_junctions(scenes):
    for scene in scenes:
        assert scene.turn_100 == "straight" or scene.road.startswith("junction")
        assert scene.light == "none" or scene.road.startswith("junction")


@pytest.mark.parametrize("split, count, seed, told", [
    ("train", 5, 0, "split 'train': the built-in scenes have sft, rl, val, test"),
    ("sft", -1, 0, "count -1"), ("sft", 10**7 + 1, 0, "count 10000001"), ("sft", 5, -1, "seed -1"),
    ("sft", 5, 10**5, "seed 100000")])
def test_wrong_requests(split, count, seed, told):
    with pytest.raises(ValueError, match=told):
        scene_examples(split, count, seed)


def test_text_corpus_holds_every_kind_of_text():
    texts = scene_text_corpus(30)
    assert len(texts) == 30 * 5
    assert texts[0].startswith("speed ") and texts[1].endswith(" Answer.")
    assert "<think> </think>" in texts[2] and "<think>" not in texts[3]
    assert texts[4].startswith("<think> ") and texts[4].endswith(" </answer>")
