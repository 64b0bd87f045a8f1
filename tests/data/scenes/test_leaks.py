"""Nothing but picture, speed and route predicts a plan: not the name, not the seed, not how a route is worded."""
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from data.example import prompt_text
from data.scenes import PRIORS, draw, label_distribution, sample_scene, scene_examples
from data.scenes.world import speed_band
from rewards import Decision

COUNT = 6000


@pytest.fixture(scope="module")
def examples():
    return {split: scene_examples(split, COUNT) for split in ("sft", "test")}


def gain(examples, statistic, known=lambda example: ()):
    """How much better the commonest plan of each value of (known, statistic) predicts than that of known alone.

    Fitted on the first half, scored on the second: the nearest prototype of a statistic with discrete values.
    -> gain in accuracy, its standard error."""
    half, hits = len(examples) // 2, []
    for view in (known, lambda example: (known(example), statistic(example))):
        cells = defaultdict(Counter)
        for example in examples[:half]:
            cells[view(example)][example.decision] += 1
        guess = {cell: plans.most_common(1)[0][0] for cell, plans in cells.items()}
        hits.append(np.array([guess.get(view(e)) == e.decision for e in examples[half:]], dtype=float))
    difference = hits[1] - hits[0]
    return difference.mean(), difference.std() / len(difference) ** .5 + 1e-9


def text_facts(example):
    return speed_band(example.speed), example.factors["turn_100"], example.factors["turn_200"]


NAMES_AND_SEEDS = {**{f"seed modulo {m}": lambda e, m=m: e.scene % m for m in (2, 3, 5, 7, 10, 16, 31, 100)},
                   **{f"number in the id, modulo {m}": lambda e, m=m: int(e.id[-6:]) % m for m in (2, 4, 9)},
                   "last digit but one of the id": lambda e: e.id[-2],
                   "bits of the seed": lambda e: bin(e.scene).count("1"),
                   "which dozen": lambda e: int(e.id[-6:]) // 12 % 10}


@pytest.mark.parametrize("name", NAMES_AND_SEEDS)
def test_names_and_seeds_predict_nothing(examples, name):
    for split in ("sft", "test"):
        better, error = gain(examples[split], NAMES_AND_SEEDS[name])
        assert better < 3.5 * error, (name, split, better, error)


WORDING = {"form of the route": lambda e: isinstance(e.navigation, str),
           "words of the route": lambda e: str(e.navigation).replace("left", "side").replace("right", "side"),
           "length of the prompt": lambda e: len(prompt_text(e, "compact")),
           "last digit of the speed": lambda e: round(e.speed * 10) % 10}


@pytest.mark.parametrize("name", WORDING)
def test_how_a_prompt_says_it_predicts_nothing(examples, name):
    # what it says does predict, and should: a route to the left makes a left turn likely
    better, error = gain(examples["sft"], WORDING[name], known=text_facts)
    assert better < 3.5 * error, (name, better, error)
    telling, error = gain(examples["sft"], text_facts)
    assert telling > 10 * error


def test_a_planted_leak_is_found(examples):
    plans = sorted({str(example.decision) for example in examples["sft"]})
    better, error = gain(examples["sft"], lambda e: plans.index(str(e.decision)) % 3)
    assert better > 10 * error
    rare = Decision("ACCELERATE", "LEFT_TURN")                      # one seed in ten always has the same odd label
    leaky = [replace(e, decision=rare) if e.scene % 10 == 3 else e for e in examples["sft"]]
    better, error = gain(leaky, NAMES_AND_SEEDS["seed modulo 10"])
    assert better > 10 * error


def test_the_noise_of_a_label_is_not_in_the_seed(examples):
    # hits of the usual plan among seeds of one remainder against their odds: |z| < 4 for each
    for modulus in (2, 3, 7, 10):
        for rest in range(modulus):
            group = [e for e in examples["test"] if e.scene % modulus == rest]
            expected = [max(label_distribution(sample_scene(e.scene)).values()) for e in group]
            hits = sum(e.decision == e.acceptable[0] for e in group)
            assert abs(hits - sum(expected)) < 4 * sum(q * (1 - q) for q in expected) ** .5


def test_what_means_nothing_in_a_picture_predicts_nothing(examples):
    """Sky, houses and grass are drawn from the seed: the nearest of each plan's mean colours is no help."""
    chosen = [e for e in examples["test"] if not e.factors["night"]][:1200]
    colours = np.array([np.asarray(draw(sample_scene(e.scene)))[[1, 8, 15, 44], 0].ravel() for e in chosen], float)
    labels = np.array([str(e.decision) for e in chosen])
    names = [name for name, count in Counter(labels[:600]).most_common(8)]
    means = np.array([colours[:600][labels[:600] == name].mean(axis=0) for name in names])
    guess = np.array(names)[((colours[600:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]
    majority = (labels[600:] == names[0]).mean()
    error = (majority * (1 - majority) / 600) ** .5                                    # .015 for .16
    assert (guess == labels[600:]).mean() < majority + 3 * error


def test_names_of_all_splits_and_priors_differ():
    names = [e.id for prior in PRIORS for split in ("sft", "rl", "val", "test") for seed in (0, 1)
             for e in scene_examples(split, 5, seed, prior=prior)]
    assert len(set(names)) == 3 * 4 * 2 * 5
