"""Evaluation metrics by hand."""

import json
import math

import pytest

from rewards import Decision, parse_plan
from rewards.metrics import (
    bootstrap_interval,
    paired_interval,
    pass_at_k,
    plan_entropy,
    planning_metrics,
    sample_metrics,
)

KEEP, STOP = Decision("KEEP", "STRAIGHT"), Decision("STOP", "STRAIGHT")
LEFT = Decision("KEEP", "LEFT_TURN")
TRUTHS, PREDICTIONS = [KEEP, STOP, KEEP, STOP], [KEEP, KEEP, None, STOP]


def test_counts_by_hand():
    # KEEP: tp 1, fp 1 (STOP -> KEEP), fn 1 (KEEP -> invalid): P 1/2, R 1/2, F1 1/2.
    # STOP: tp 1, fp 0, fn 1: P 1, R 1/2, F1 2/3.  macro (1/2 + 2/3) / 2.  STRAIGHT: tp 3, fn 1: P 1, R 3/4, F1 6/7
    got = planning_metrics(TRUTHS, PREDICTIONS)
    assert (got["count"], got["planning_accuracy"], got["speed_accuracy"], got["path_accuracy"]) == (4, 0.5, 0.5, 0.75)
    assert got["invalid_rate"] == 0.25 and got["acceptable_accuracy"] is None
    assert got["speed"]["KEEP"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert got["speed"]["STOP"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert got["path"]["STRAIGHT"] == {"precision": 1.0, "recall": 0.75, "f1": pytest.approx(0.857143, abs=1e-6),
                                       "support": 4}
    assert got["speed_macro_f1"] == pytest.approx(0.583333, abs=1e-6)
    assert got["path_macro_f1"] == pytest.approx(0.857143, abs=1e-6)
    assert got["speed_confusion"]["KEEP"] == {"KEEP": 1, "ACCELERATE": 0, "DECELERATE": 0, "STOP": 0, "invalid": 1}
    assert got["speed_confusion"]["STOP"] == {"KEEP": 1, "ACCELERATE": 0, "DECELERATE": 0, "STOP": 1, "invalid": 0}
    assert got["path_confusion"]["STRAIGHT"]["invalid"] == 1 and got["path_confusion"]["LEFT_TURN"]["STRAIGHT"] == 0


def test_actions_without_support():
    got = planning_metrics([KEEP, KEEP], [KEEP, STOP])
    assert got["speed"]["STOP"] == {"precision": 0.0, "recall": None, "f1": None, "support": 0}  # one prediction, wrong
    assert got["speed"]["ACCELERATE"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    never = planning_metrics([STOP], [KEEP])["speed"]["STOP"]
    assert never == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1}
    assert got["speed_macro_f1"] == pytest.approx(2 / 3)                        # KEEP alone: P 1, R 1/2


def test_listing_everything_scores_nothing_and_thoughts_are_not_read():
    everything = "<answer>KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, LEFT_TURN</answer>"
    thought = "<think> it should STOP, STRAIGHT </think> <answer>KEEP, STRAIGHT</answer>"
    got = planning_metrics([STOP, STOP], [parse_plan(everything), parse_plan(thought)])
    assert got["planning_accuracy"] == 0 and got["invalid_rate"] == 0.5 and got["speed"]["STOP"]["f1"] == 0


def test_acceptable_accuracy_counts_the_scenes_where_it_is_known():
    got = planning_metrics(TRUTHS, PREDICTIONS, [(KEEP,), (KEEP, STOP), (KEEP, STOP), None])
    assert got["acceptable_accuracy"] == pytest.approx(2 / 3)                   # KEEP yes, KEEP yes, invalid no
    assert planning_metrics(TRUTHS, PREDICTIONS, [None] * 4)["acceptable_accuracy"] is None


def test_all_right_and_all_invalid():
    assert planning_metrics(TRUTHS, TRUTHS)["planning_accuracy"] == 1.0
    got = planning_metrics(TRUTHS, [None] * 4)
    assert got["planning_accuracy"] == 0 and got["invalid_rate"] == 1 and got["speed_macro_f1"] == 0


def test_results_are_json():
    got = planning_metrics(TRUTHS, PREDICTIONS)
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_bad_lengths_are_refused():
    with pytest.raises(ValueError, match="empty"):
        planning_metrics([], [])
    with pytest.raises(ValueError, match="predictions has 1"):
        planning_metrics([KEEP, STOP], [KEEP])
    with pytest.raises(ValueError, match="acceptable has 1"):
        planning_metrics([KEEP, STOP], [KEEP, STOP], [(KEEP,)])


def test_plan_entropy_by_hand():
    assert plan_entropy([KEEP] * 4) == 0 and str(plan_entropy([KEEP])) == "0.0"
    assert plan_entropy([KEEP, STOP, KEEP, STOP]) == pytest.approx(0.693147, abs=1e-6)              # ln 2
    assert plan_entropy([KEEP, KEEP, STOP, None]) == pytest.approx(1.039721, abs=1e-6)  # .5 ln 2 + 2 * .25 ln 4


def test_sample_metrics_by_hand():
    # 4 samples KEEP KEEP STOP invalid, A = {KEEP, STOP, LEFT}: validity 3/4, coverage 2/3, F = 2 * .5 / (17/12) = 12/17
    # entropy inside (2/3, 1/3): .636514; / ln 3 = 1.098612 -> .579380
    got = sample_metrics([KEEP, KEEP, STOP, None], [KEEP, STOP, LEFT])
    want = {"validity": 0.75, "coverage": 0.666667, "f_mode": 0.705882, "evenness": 0.579380}
    assert got == pytest.approx(want, abs=1e-6)
    nothing = sample_metrics([None, STOP], [KEEP])
    assert nothing == {"validity": 0.0, "coverage": 0.0, "f_mode": 0.0, "evenness": None}
    assert sample_metrics([KEEP], [KEEP])["evenness"] is None
    with pytest.raises(ValueError, match="samples"):
        sample_metrics([], [KEEP])


def test_pass_at_k_by_hand():
    assert pass_at_k(4, 1, 2) == pytest.approx(0.5)                             # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
    assert pass_at_k(4, 0, 4) == 0 and pass_at_k(4, 3, 2) == 1 and pass_at_k(8, 8, 1) == 1
    with pytest.raises(ValueError, match="k = 5"):
        pass_at_k(4, 1, 5)


def test_bootstrap_interval():
    assert bootstrap_interval([0.3] * 50, seed=0) == pytest.approx((0.3, 0.3))
    values = [1.0] * 60 + [0.0] * 40
    low, high = bootstrap_interval(values, seed=0)
    # the mean .6 of 100 draws has standard error sqrt(.24 / 100) = .049, so about .6 +- 1.96 * .049 = .504 ... .696
    assert low == pytest.approx(0.504, abs=0.015) and high == pytest.approx(0.696, abs=0.015)
    assert bootstrap_interval(values, seed=0) == (low, high) != bootstrap_interval(values, seed=1, draws=100)
    narrow = bootstrap_interval(values, seed=0, level=0.5)
    assert low < narrow[0] < 0.6 < narrow[1] < high
    for bad in ([], [1.0, math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="one finite number per scene"):
            bootstrap_interval(bad, seed=0)


def test_paired_interval_is_narrower_than_two_separate_ones():
    # b fails where a fails and on 10 scenes more: the difference is .1 with standard error sqrt(.09 / 100) = .03,
    # so about .1 +- .059; two independent means would have +- 1.96 * sqrt(.0024 + .0025) = .137
    a, b = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
    low, high = paired_interval(a, b, seed=0)
    assert low == pytest.approx(0.041, abs=0.015) and high == pytest.approx(0.159, abs=0.015)
    assert paired_interval(b, a, seed=0) == pytest.approx((-high, -low), abs=0.011)
    with pytest.raises(ValueError, match="same scenes"):
        paired_interval([1.0], [1.0, 0.0], seed=0)
