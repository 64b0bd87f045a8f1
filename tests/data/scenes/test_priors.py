"""Published scenes do not change; the other priors and their rare events."""
import hashlib
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data.scenes import (
    PRIORS,
    SPLITS,
    acceptable_plans,
    draw,
    draw_label,
    label_distribution,
    reason,
    sample_scene,
    scene_examples,
)
from data.scenes.expert import NATURAL_PATHS, NATURAL_SPEEDS
from data.scenes.priors import prior_of, scene_seeds
from data.scenes.world import EVENTS
from rewards import Decision
from tests.data.scenes.test_scenes import FREE_ROAD
from tests.data.scenes.test_sentence import check_sentence

# ---------------------------------------------------------------- published results rest on these

def told(example):
    """All that an example says and what its scene's odds are, as one line; odds in units of 1e-5."""
    odds = label_distribution(sample_scene(example.scene))
    parts = [example.id, example.scene, example.speed, example.navigation, example.decision,
             "; ".join(map(str, example.acceptable)),
             " ".join(f"{plan}:{100_000 * odds[plan]:.0f}" for plan in sorted(odds, key=str)), example.reasoning,
             " ".join(f"{name}={value}" for name, value in sorted(example.factors.items()))]
    return " | ".join(map(str, parts))


@pytest.mark.parametrize("split, pinned", [("sft", "cec3ee1338d8edd7"), ("rl", "420ff9aee32bf046"),
                                           ("val", "5e65c0d13693c7e9"), ("test", "575ddf31b904db18")])
def test_the_first_fifty_scenes_are_those_of_the_published_results(split, pinned):
    # taken when the simulated expert came in. Who changes it measures docs/results.md again
    lines = "\n".join(map(told, scene_examples(split, 50)))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == pinned


def test_the_first_test_scene_in_words():
    example = scene_examples("test", 1)[0]
    assert (example.scene, example.speed, str(example.decision)) == (3 * 10**12, 4.3, "STOP, STRAIGHT")
    assert example.reasoning == "A red light is right ahead and I am slow, so I stop and stay in lane."


def test_pictures_are_as_they_were():
    # mean red, green, blue of the upper and lower half of the first test pictures, read off once; a
    # version of Pillow that rounds edges differently keeps them, another lamp, car or bend does not
    pinned = [[(119, 150, 167), (108, 111, 108)], [(126, 165, 185), (106, 112, 110)], [(55, 67, 66), (68, 70, 65)]]
    for example, halves in zip(scene_examples("test", 3), pinned, strict=True):
        pixels = np.asarray(draw(sample_scene(example.scene)), dtype=float)
        means = [pixels[rows].mean(axis=(0, 1)) for rows in (slice(0, 56), slice(56, 112))]
        assert np.abs(np.array(means) - halves).max() <= 1.0


# ---------------------------------------------------------------- priors

def test_priors_splits_and_data_seeds_share_no_scene():
    seeds = [number for prior in PRIORS for split in (*SPLITS, "caption") for seed in (0, 1, 99_999)
             for number in scene_seeds(split, 20, seed, prior)]
    assert len(set(seeds)) == 3 * 5 * 3 * 20
    assert max(scene_seeds("caption", 10**7, 99_999, "balanced")) < min(scene_seeds("sft", 1, 0, "natural"))


def test_a_seed_knows_its_prior():
    assert [prior_of(scene_seeds("val", 1, 3, prior)[0]) for prior in PRIORS] == ["balanced", "natural", "long_tail"]
    assert prior_of(10**30) == prior_of(-1) == "balanced"       # a file may name any seed
    with pytest.raises(ValueError, match="prior 'real': the built-in scenes have balanced, natural, long_tail"):
        scene_examples("sft", 1, prior="real")


def test_other_priors_have_names_and_factors_of_their_own():
    example = scene_examples("test", 3, prior="natural")[2]
    assert (example.id, example.split) == ("natural-test-0-000002", "test")
    assert {"weather", "event"} <= example.factors.keys() and "prior" not in example.factors
    assert scene_examples("rl", 5, prior="long_tail") == scene_examples("rl", 9, prior="long_tail")[:5]


def test_natural_classes_are_as_rare_as_on_nuscenes(natural):
    # wanted: KEEP 78.7, ACCELERATE 1.4, DECELERATE .9, STOP 19.0; STRAIGHT 94, left 3, right 3 of a hundred
    speeds, paths = Counter(), Counter()
    for scene in natural:
        for plan, share in label_distribution(scene).items():
            speeds[plan.speed] += 100 * share / len(natural)
            paths[plan.path] += 100 * share / len(natural)
    assert abs(speeds["KEEP"] - 78.7) < 2.5 and abs(speeds["STOP"] - 19.0) < 2.5
    assert abs(speeds["ACCELERATE"] - 1.4) < .6 and abs(speeds["DECELERATE"] - .9) < .5
    assert abs(paths["STRAIGHT"] - 94) < 1.5
    assert abs(paths["LEFT_TURN"] + paths["LEFT_CHANGE"] - 3) < 1
    assert abs(paths["RIGHT_TURN"] + paths["RIGHT_CHANGE"] - 3) < 1


def test_natural_noise_by_hand():
    # a free road at 13 m/s: KEEP, STRAIGHT alone. .97 + .03 * .787 * .94 = .9921934
    # the rarest, DECELERATE with a turn: .03 * .009 * .01 = .0000027
    odds = label_distribution(replace(FREE_ROAD, speed=13.0, prior="natural"))
    assert odds[Decision("KEEP", "STRAIGHT")] == pytest.approx(0.9921934)
    assert odds[Decision("DECELERATE", "LEFT_TURN")] == pytest.approx(0.0000027)
    assert sum(odds.values()) == pytest.approx(1.0)
    assert sum(NATURAL_SPEEDS.values()) == pytest.approx(1.0) and sum(NATURAL_PATHS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("prior", ["natural", "long_tail"])
def test_labels_of_other_priors_follow_their_odds(prior, request):
    scenes = request.getfixturevalue(prior)
    hits = sum(draw_label(scene) == acceptable_plans(scene)[0] for scene in scenes)
    expected = [max(label_distribution(scene).values()) for scene in scenes]
    assert abs(hits - sum(expected)) < 4 * sum(share * (1 - share) for share in expected) ** 0.5
    assert all(sum(label_distribution(scene).values()) == pytest.approx(1.0) for scene in scenes[:300])


def test_rates_of_weather_and_events(natural, long_tail):
    # long_tail: 63 % of 3000 have an event, 4 standard errors are 4 * sqrt(.63 * .37 / 3000) = 3.5 points
    events = Counter(scene.event for scene in long_tail)
    assert abs(1 - events["none"] / 3000 - .63) < .035 and set(events) == {"none", *EVENTS}
    assert .02 < sum(scene.event != "none" for scene in natural) / 3000 < .10
    weather = Counter(scene.weather for scene in long_tail)
    assert abs(weather["rain"] / 3000 - .12) < .024 and abs(weather["fog"] / 3000 - .05) < .016
    assert all((s.weather, s.event, s.prior) == ("clear", "none", "balanced") for s in map(sample_scene, range(300)))


# ---------------------------------------------------------------- rare events

def plans(**changes):
    return {str(plan) for plan in acceptable_plans(replace(FREE_ROAD, **changes))}


def test_rules_of_rare_events():
    junction = {"road": "junction_near", "speed": 8.0}
    assert plans(event="animal", speed=5.0) == {"STOP, STRAIGHT"}
    assert plans(event="ball", speed=13.0, left_lane="free") == {"DECELERATE, STRAIGHT"}
    assert plans(event="ambulance", light="green", **junction) == {"STOP, STRAIGHT"}
    assert plans(event="waved_through", light="red", **junction) == {"ACCELERATE, STRAIGHT", "KEEP, STRAIGHT"}
    assert plans(event="none", light="red", **junction) == {"STOP, STRAIGHT"}
    assert "DECELERATE, STRAIGHT" in plans(event="light_off", light="off", **junction)
    assert plans(event="blocked_turn", light="green", turn_100="left", road="junction_near", speed=13.0) == {
        "KEEP, STRAIGHT"}
    assert plans(event="none", light="green", turn_100="left", road="junction_near", speed=13.0) == {
        "DECELERATE, STRAIGHT"}
    assert plans(event="cut_in", left_lane="free") == {"DECELERATE, STRAIGHT"}
    assert plans(event="wrong_way", speed=2.0) == {"STOP, STRAIGHT"}
    assert plans(event="wrong_way", speed=2.0, right_lane="free") == {"KEEP, RIGHT_CHANGE"}
    assert plans(event="wrong_way", speed=2.0, left_lane="free") == {"STOP, STRAIGHT"}
    assert plans(event="door", speed=13.0, left_lane="free") == {"KEEP, LEFT_CHANGE"}
    assert plans(event="door", speed=13.0) == {"KEEP, STRAIGHT", "DECELERATE, STRAIGHT"}
    assert plans(event="cone_truck", lead="near", speed=2.0) == plans(lead="near", speed=2.0) == {"KEEP, STRAIGHT"}


def test_rare_scenes_are_arranged_for_their_event(long_tail):
    for scene in long_tail:
        assert scene.turn_100 == "straight" or scene.road.startswith("junction")
        if scene.event != "none":
            assert scene.blockage == "none" and scene.lead == ("near" if scene.event == "cone_truck" else "none")
        if scene.event in ("light_off", "ambulance", "waved_through", "blocked_turn"):
            assert scene.road == "junction_near" and scene.light != "none"
        if scene.event == "blocked_turn":
            assert {"left": scene.left_lane, "right": scene.right_lane}[scene.turn_100] == "free"


UNUSUAL_WORDS = ("blocked_turn", "cone_truck", "door")        # cones and parked cars that block nothing
EVENT_WORDS = {"cone_truck": "truck", "ball": "ball", "light_off": "light is off|not work|no working|is dead",
               "ambulance": "mbulance", "animal": "animal|deer",
               "dark_pedestrian": "cross|walks", "wrong_way": "towards|wrong",
               "waved_through": "officer", "blocked_turn": "turn is|the turn", "cut_in": "cuts in|into my lane",
               "door": "door"}


def test_reasons_of_rare_events(long_tail):
    named = Counter()
    for scene in long_tail:
        for plan in acceptable_plans(scene):
            sentence = reason(scene, plan)
            assert len(sentence.split()) <= 25 and sentence.count(".") == 1
            if scene.event not in ("none", "dark_pedestrian", "light_off"):
                assert "lear" not in sentence, (sentence, scene)          # no road is clear where something happens
            if scene.event not in UNUSUAL_WORDS:
                check_sentence(scene, plan)
            named[scene.event, bool(re.search(EVENT_WORDS.get(scene.event, ""), sentence))] += 1
    for event in EVENTS:                                        # something else may be more urgent now and then
        assert named[event, True] > .75 * (named[event, True] + named[event, False]), (event, named)


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in ("dark_pedestrian", "light_off")])
def test_every_event_can_be_seen(event):
    facts = {"road": "straight", **EVENTS[event]}
    if event == "blocked_turn":
        facts["turn_100"] = "left"
    scene = replace(FREE_ROAD, left_lane="free", event=event, **{k: v for k, v in facts.items() if k != "night"})
    before, after = (np.asarray(draw(s), dtype=int) for s in (replace(scene, event="none"), scene))
    assert (abs(before - after).max(axis=2) > 20).sum() >= 300


def test_fog_is_thickest_at_the_horizon():
    # asphalt has 84, fog 196; share .86 of it at the horizon (v = 42), .22 at the car (v = 112), with depth squared
    # v = 111: 84 + 112 * .22 = 109; v = 55, depth 57 / 70: .22 + .64 * .663 = .644, 84 + 112 * .644 = 156
    foggy = draw(replace(FREE_ROAD, weather="fog"))
    assert abs(foggy.getpixel((112, 111))[0] - 109) <= 2 and abs(foggy.getpixel((112, 55))[0] - 156) <= 2


def test_nothing_is_too_small_to_be_drawn():
    for seed in scene_seeds("test", 60, 0, "long_tail"):
        assert draw(sample_scene(seed), (28, 28)).size == (28, 28)


def test_weather_is_seen_and_does_not_change_the_plan():
    base = replace(FREE_ROAD, road="junction_near", light="red")
    clear = np.asarray(draw(base), dtype=int)
    for weather in ("overcast", "rain", "fog"):
        scene = replace(base, weather=weather)
        assert (abs(np.asarray(draw(scene), dtype=int) - clear).max(axis=2) > 10).sum() > 8000
        assert draw(scene).getpixel((186, 10)) == draw(base).getpixel((186, 10))      # the red lamp shines through
        assert label_distribution(scene) == label_distribution(base)
