"""BLEU-4, CIDEr and METEOR: by hand, and against the usual tools' values (golden/text_metrics.json)."""

import json
from pathlib import Path

import pytest

from evaluation.text_metrics import bleu4, cider, meteor, think_text

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/text_metrics.json").read_text())
METRICS = {"bleu4": bleu4, "cider": cider, "meteor": meteor}


# ---------------------------------------------------------------- against the tools

def test_golden_says_how_it_was_made():
    assert GOLDEN["made_by"] == "tests/golden/make_text_metrics.py"
    assert {"nltk", "pycocoevalcap"} <= set(GOLDEN["versions"])
    assert len(GOLDEN["hypotheses"]) == len(GOLDEN["references"]) >= 30 and "" in GOLDEN["hypotheses"]


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("corpus", GOLDEN["corpora"])
def test_corpora_equal_the_tools(corpus, name):
    want = GOLDEN["corpora"][corpus]
    hypotheses, references = ([GOLDEN[side][i] for i in want["pairs"]] for side in ("hypotheses", "references"))
    assert METRICS[name](hypotheses, references) == pytest.approx(want[name], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("name", ["bleu4", "meteor"])
def test_single_texts_equal_the_tools(name):
    got = [METRICS[name]([hypothesis], [reference])
           for hypothesis, reference in zip(GOLDEN["hypotheses"], GOLDEN["references"], strict=True)]
    assert got == pytest.approx(GOLDEN["single"][name], rel=1e-9, abs=1e-15)


# ---------------------------------------------------------------- by hand

def test_bleu4_by_hand():
    # "a b c d e" for "a b c d f": 4/5, 3/4, 2/3, 1/2, product 1/5, fourth root .668740; lengths equal
    assert bleu4(["a b c d e"], ["a b c d f"]) == pytest.approx(0.668740, abs=1e-6)
    # "a b c d" for "a b c d e": every part 1, brevity exp(1 - 5/4) = .778801; the other way round 4/5 3/4 2/3 1/2
    assert bleu4(["a b c d"], ["a b c d e"]) == pytest.approx(0.778801, abs=1e-6)
    assert bleu4(["a b c d e"], ["a b c d"]) == pytest.approx(0.668740, abs=1e-6)
    # two texts as one corpus: (4+4)/(4+5), (3+3)/(3+4), (2+2)/(2+3), (1+1)/(1+2) = .888889 .857143 .8 .666667,
    # product .406349, root .798408; 9 words for 9
    assert bleu4(["a b c d", "a b c d e"], ["a b c d", "a b c d f"]) == pytest.approx(0.798408, abs=1e-6)
    # a word counts as often as the reference has it: 2/6, 1/5, then none
    assert bleu4(["the the the the the the"], ["the the red car stops here"]) < 1e-3
    # three right words hold no 4-gram: (1e-15 / 1e-9) ^ (1/4), as in the COCO tools
    assert bleu4(["I turn left"], ["I turn left"]) == pytest.approx(0.0316228, abs=1e-6)


def test_cider_by_hand():
    # 2 references without a common word: every weight ln 2. Text 1 equal: 1 for n = 1, 2 and 0 for n = 3, 4, which
    # two words do not have: 10 * 2/4 = 5. Text 2 shares "c" of c, d and e, d: cosine 1/2 at n = 1: 10 * .5/4 = 1.25.
    assert cider(["a b", "e d"], ["a b", "c d"]) == pytest.approx(3.125)
    # a word that all references have weighs nothing: text 1 "x a" for "x b" shares x only
    assert cider(["x a", "x c"], ["x b", "x d"]) == 0
    # repeating is cut: a a a a for "a b" has min(4, 1) * 1 / (4 * sqrt 2) = .176777 at n = 1, 0 beyond; two words too
    # many: exp(-4 / 72) = .945959; 10 / 4 * .176777 * .945959 = .418061; with the other text's 0 half of it
    assert cider(["a a a a", ""], ["a b", "c d"]) == pytest.approx(0.209030, abs=1e-6)
    assert cider(["the light is red", "go on"], ["the light is red", "stop here now please"]) == pytest.approx(5.0)
    assert cider(["a b c d"], ["a b c d"]) == 0                                 # ln(1 / 1): a single text


def test_meteor_by_hand():
    # 4 of 4 words in 1 chunk: 1 - .5 / 64
    assert meteor(["the light is red"], ["the light is red"]) == pytest.approx(0.9921875)
    # "a c" for "a b c d": P 1, R 1/2, F = .5 / (.9 + .05) = .526316; 2 chunks of 2 matches: times 1/2
    assert meteor(["a c"], ["a b c d"]) == pytest.approx(0.263158, abs=1e-6)
    # stems: "slows" ~ "slowing"; 3 of 3 in 1 chunk: 1 - .5 / 27
    assert meteor(["car slows now"], ["car slowing now"]) == pytest.approx(0.981481, abs=1e-6)
    # an equal word is taken before an equal stem: "stop" to the last, "stops" to the first: 2 chunks: 1 - .5
    assert meteor(["stop stops"], ["stops stop"]) == pytest.approx(0.5)
    assert meteor(["halt"], ["stop"]) == 0                                      # synonyms are left out
    # the mean over texts, the empty one included: .9921875 / 2
    assert meteor(["the light is red", ""], ["the light is red", "stop"]) == pytest.approx(0.49609375)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_nothing_said_scores_nothing(metric):
    assert metric(["", " .,! "], ["the light is red", "the car ahead brakes"]) == 0
    assert metric(["", ""], ["", ""]) == 0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_case_and_punctuation_do_not_count(metric):
    references = ["the light isn't red so i go", "a car brakes"]
    plain = metric(["the light isn't red so i stop", "a car brakes hard"], references)
    assert plain > 0
    assert metric(["The LIGHT isn't red,\nso I stop!", "A car... brakes - hard"], references) == plain


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_wrong_lists_are_refused(metric):
    with pytest.raises(ValueError, match="got 1 and 2"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        metric([], [])
    with pytest.raises(ValueError, match="text 1 is None: leave out examples"):
        metric(["a", "b"], ["a", None])
    with pytest.raises(ValueError, match="lists of texts"):
        metric("abc", ["a", "b", "c"])


def test_think_text():
    assert think_text("<think> the light is red </think> <answer> STOP, STRAIGHT </answer>") == "the light is red"
    assert think_text("<think>a\nb</think> no answer") == "a\nb"
    for text in ("", "the light is red", "<think> cut off", "<think> </think>", "<answer>a</answer> <think>b</think>",
                 "<think>a</think> <think>b</think>"):
        assert think_text(text) == ""
