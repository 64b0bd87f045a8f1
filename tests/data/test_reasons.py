"""Which reasons are kept, and the controls that stand in their place."""
from collections import Counter
from dataclasses import replace

import pytest

from data.example import Example
from data.reasons import choose_reasons, control_reasons
from rewards import Decision

PLANS = {"k": Decision("KEEP", "STRAIGHT"), "s": Decision("STOP", "STRAIGHT"), "t": Decision("KEEP", "LEFT_TURN")}


def make(letters):
    """One example per letter; number i is reasoned "Fact i, so I go."."""
    return [Example(id=str(i), scene=i, prompt="?", decision=PLANS[letter], reasoning=f"Fact {i}, so I go.")
            for i, letter in enumerate(letters)]


def kept(examples):
    return {example.id for example in examples if example.reasoning is not None}


@pytest.mark.parametrize("how", ["random", "balanced"])
def test_a_share_is_kept_and_all_else_stays(how):
    examples = make("kkkkkkkkst")
    chosen = choose_reasons(examples, 0.27, how, seed=3)                       # .27 * 10 = 2.7 -> 3
    assert len(kept(chosen)) == 3
    for before, after in zip(examples, chosen, strict=True):
        assert after in (before, replace(before, reasoning=None))
    assert choose_reasons(examples, 1.0, how) == examples and not kept(choose_reasons(examples, 0.0, how))
    assert all(example.reasoning for example in examples)                      # what was given is as it was


def test_random_choice_follows_the_classes():
    # 300 of 1000, of whom 900 keep: 270 expected, 4 standard errors are 4 * sqrt(300 * .9 * .1 * .7) = 17.4
    chosen = choose_reasons(make("k" * 900 + "s" * 100), 0.3)
    assert abs(sum(e.decision == PLANS["k"] for e in chosen if e.reasoning) - 270) < 18


def test_balanced_choice_fills_the_classes_in_turn():
    # 9 of 18 over classes of 12, 4, 2: 2 are all of t, the other 7 are 4 and 3 of k and s
    examples = make("k" * 12 + "s" * 4 + "t" * 2)
    counts = Counter(e.decision for e in choose_reasons(examples, 0.5, "balanced") if e.reasoning)
    assert counts[PLANS["t"]] == 2 and sorted(counts.values()) == [2, 3, 4]
    counts = Counter(e.decision for e in choose_reasons(examples, 1 / 3, "balanced") if e.reasoning)
    assert set(counts.values()) == {2}


@pytest.mark.parametrize("how", ["random", "balanced"])
def test_choice_depends_on_the_seed_and_grows_with_the_share(how):
    examples = make("kst" * 20)
    assert kept(choose_reasons(examples, .3, how, 1)) == kept(choose_reasons(examples, .3, how, 1))
    assert kept(choose_reasons(examples, .3, how, 1)) != kept(choose_reasons(examples, .3, how, 2))
    assert kept(choose_reasons(examples, .3, how, 1)) < kept(choose_reasons(examples, .6, how, 1))


def test_share_is_of_those_that_have_a_reason():
    examples = [replace(e, reasoning=None) if int(e.id) % 2 else e for e in make("ks" * 10)]
    assert len(kept(choose_reasons(examples, 0.5))) == 5                        # of 10 reasons
    assert choose_reasons([], 0.5) == []


@pytest.mark.parametrize("share, how, told", [(1.01, "random", "share of reasons 1.01: give a number from 0 to 1"),
                                              (-.1, "random", "share of reasons -0.1"),
                                              (float("nan"), "random", "share of reasons nan"),
                                              (.5, "even", "choice of reasons 'even': use one of random, balanced")])
def test_wrong_choices(share, how, told):
    with pytest.raises(ValueError, match=told):
        choose_reasons(make("k"), share, how)


# ---------------------------------------------------------------- controls

def test_shuffled_reasons_come_from_another_scene_with_the_same_plan():
    examples = make("kskskkssktk")                                              # t is alone with its plan
    mixed = control_reasons(examples, "shuffled", seed=5)
    source = {f"Fact {i}, so I go.": i for i in range(11)}
    for before, after in zip(examples, mixed, strict=True):
        assert replace(after, reasoning=None) == replace(before, reasoning=None)
        if before.decision == PLANS["t"]:
            assert after.reasoning is None
            continue
        assert source[after.reasoning] != int(after.id)
        assert examples[source[after.reasoning]].decision == after.decision
    told = [e.reasoning for e in mixed if e.reasoning]
    assert len(told) == len(set(told)) == 10                                    # nobody's reason is used twice
    assert mixed == control_reasons(examples, "shuffled", seed=5) != control_reasons(examples, "shuffled", seed=6)


def test_filler_has_the_length_and_says_nothing():
    examples = [replace(make("k")[0], reasoning="A red light is right ahead, I am slow and so I stop today.")]
    assert control_reasons(examples, "filler")[0].reasoning == (               # 14 words, eight in turn
        "so the and I is a then my so the and I is a")
    assert control_reasons([replace(examples[0], reasoning=None)], "filler")[0].reasoning is None


@pytest.mark.parametrize("reason, turned", [
    ("The light is red and I am slow, so I stop and stay in lane.",
     "I stop and stay in lane, because the light is red and I am slow."),
    ("A car brakes, I am fast and my lane is clear, hence I slow down.",
     "I slow down, because a car brakes, I am fast and my lane is clear."),
    ("I am at the junction and I am slow, so I turn left.", "I turn left, because I am at the junction and I am slow."),
    ("Brake for the bus.", "KEEP, STRAIGHT, because: Brake for the bus.")])
def test_posthoc_says_the_plan_first(reason, turned):
    examples = [replace(make("k")[0], reasoning=reason)]
    assert control_reasons(examples, "posthoc")[0].reasoning == turned


def test_unknown_control():
    with pytest.raises(ValueError, match="control of reasons 'none': use one of shuffled, filler, posthoc"):
        control_reasons(make("k"), "none")
