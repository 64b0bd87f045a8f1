"""Evaluation metrics by hand."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation.metrics import (
    INVALID_CAUSES,
    bootstrap_interval,
    factor_accuracy,
    invalid_cause,
    invalid_causes,
    mcnemar,
    multimodality,
    paired_interval,
    paper_metrics,
    pass_at_k,
    plan_entropy,
    planning_metrics,
    safety_errors,
    sample_metrics,
    subset_accuracy,
    total_variation,
    wilson_interval,
)
from rewards import Decision, parse_plan

ROOT = Path(__file__).resolve().parents[2]
KEEP, STOP = Decision("KEEP", "STRAIGHT"), Decision("STOP", "STRAIGHT")
LEFT, CHANGE = Decision("KEEP", "LEFT_TURN"), Decision("KEEP", "LEFT_CHANGE")
SLOW, GO = Decision("DECELERATE", "STRAIGHT"), Decision("ACCELERATE", "STRAIGHT")
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


def test_accuracy_where_one_plan_is_acceptable():
    # scenes 1 and 4 have a single acceptable plan: KEEP right, STOP right; a plan listed twice is still one
    acceptable = [(KEEP,), (KEEP, STOP), (KEEP, STOP), [STOP, STOP]]
    assert planning_metrics(TRUTHS, PREDICTIONS, acceptable)["unambiguous"] == {"count": 2, "accuracy": 1.0}
    got = planning_metrics(TRUTHS, PREDICTIONS, [None, (STOP,), (KEEP,), None])["unambiguous"]
    assert got == {"count": 2, "accuracy": 0.0}              # STOP -> KEEP wrong, KEEP -> invalid wrong
    assert planning_metrics(TRUTHS, PREDICTIONS)["unambiguous"] == {"count": 0, "accuracy": None}


def test_macro_f1_of_nine_and_joint_confusion():
    # F1 with support: KEEP 1/2, STOP 2/3, STRAIGHT 6/7; (.5 + .666667 + .857143) / 3
    got = planning_metrics(TRUTHS, PREDICTIONS)
    assert got["macro_f1"] == pytest.approx(0.674603, abs=1e-6)
    assert got["joint_confusion"] == {
        "KEEP, STRAIGHT": {"KEEP, STRAIGHT": 1, "STOP, STRAIGHT": 0, "invalid": 1},
        "STOP, STRAIGHT": {"KEEP, STRAIGHT": 1, "STOP, STRAIGHT": 1, "invalid": 0}}
    only_predicted = planning_metrics([KEEP], [LEFT])["joint_confusion"]
    assert only_predicted["KEEP, LEFT_TURN"] == {"KEEP, STRAIGHT": 0, "KEEP, LEFT_TURN": 0, "invalid": 0}
    assert only_predicted["KEEP, STRAIGHT"]["KEEP, LEFT_TURN"] == 1


def test_seven_classes_of_the_paper():
    # LEFT_TURN -> LEFT_CHANGE and LEFT_CHANGE -> STRAIGHT, KEEP -> KEEP, STOP -> invalid. Nine classes: 1 of 4 right.
    # Merged: LEFT tp 1, fn 1, fp 0: P 1, R 1/2, F1 2/3. STRAIGHT tp 1, fp 1, fn 1: F1 1/2. RIGHT no support.
    # speed: KEEP 3 of 3, STOP 0 of 1: F1 1 and 0. macro of the seven (1 + 0 + 2/3 + 1/2) / 4 = .541667
    truths, predictions = [LEFT, CHANGE, KEEP, STOP], [CHANGE, KEEP, KEEP, None]
    got = planning_metrics(truths, predictions)
    assert got["planning_accuracy"] == 0.25 and got["path"]["LEFT_TURN"]["f1"] == 0
    paper = got["paper"]
    assert paper == paper_metrics(truths, predictions)
    assert paper["planning_accuracy"] == 0.5 and paper["path_accuracy"] == 0.5
    assert paper["path"] == {
        "STRAIGHT": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        "LEFT": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(0.666667, abs=1e-6), "support": 2},
        "RIGHT": {"precision": None, "recall": None, "f1": None, "support": 0}}
    assert paper["path_macro_f1"] == pytest.approx(0.583333, abs=1e-6)
    assert paper["macro_f1"] == pytest.approx(0.541667, abs=1e-6)
    assert paper["path_confusion"]["LEFT"] == {"STRAIGHT": 1, "LEFT": 1, "RIGHT": 0, "invalid": 0}
    assert paper["path_confusion"]["STRAIGHT"] == {"STRAIGHT": 1, "LEFT": 0, "RIGHT": 0, "invalid": 1}
    right = planning_metrics([Decision("KEEP", "RIGHT_TURN")], [Decision("STOP", "RIGHT_CHANGE")])["paper"]
    assert right["path"]["RIGHT"]["f1"] == 1 and right["planning_accuracy"] == 0       # the speed is wrong


def test_safety_errors_by_hand():
    # truth brakes in 6 scenes. STOP -> ACCELERATE 3/3, STOP -> KEEP 2/3, DECELERATE -> ACCELERATE 2/3,
    # DECELERATE -> KEEP 1/3: 8/3 in 4 answers. STOP -> DECELERATE and DECELERATE -> invalid are no such errors,
    # nor is KEEP -> ACCELERATE. rate 4/6, cost 8/3 / 6 = 4/9
    truths = [STOP, STOP, SLOW, SLOW, STOP, SLOW, KEEP]
    predictions = [GO, KEEP, GO, LEFT, SLOW, None, GO]
    got = safety_errors(truths, predictions)
    assert got == {"support": 6, "count": 4, "rate": pytest.approx(0.666667, abs=1e-6),
                   "cost": pytest.approx(0.444444, abs=1e-6)}
    assert planning_metrics(truths, predictions)["safety"] == got
    assert safety_errors([STOP], [GO])["cost"] == 1 and safety_errors([SLOW], [STOP])["cost"] == 0
    assert safety_errors([KEEP, GO], [GO, KEEP]) == {"support": 0, "count": 0, "rate": None, "cost": None}


@pytest.mark.parametrize(("text", "cause"), [
    ("<think> why </think> <answer> KEEP, STRAIGHT </answer>", None),
    ("<answer>stop straight.</answer>", None),
    ("<answer>KEEP, STRAIGHT</answer> <answer>STOP, STRAIGHT</answer>", "several_answers"),
    ("<answer>KEEP, STRAIGHT</answer></answer>", "several_answers"),
    ("<answer>KEEP, STRAIGHT</answer> <answer>", "several_answers"),
    ("<think> why </think> <answer> KEEP, STR", "truncated"),
    ("<think> the light is red and", "truncated"),
    ("<think> why </think> <ans", "truncated"),
    ("<answer> KEEP, STRAIGHT </answer", "truncated"),
    ("", "no_answer"),
    ("KEEP, STRAIGHT", "no_answer"),
    ("<think> why </think> KEEP, STRAIGHT", "no_answer"),
    ("KEEP, STRAIGHT </answer>", "no_answer"),
    ("<think> <answer> KEEP, STRAIGHT </answer> </think>", "no_answer"),
    ("<answer> KEEP, STOP, STRAIGHT </answer>", "several_plans"),
    ("<answer> KEEP/stop, STRAIGHT </answer>", "several_plans"),
    ("<answer> STOP, LEFT_TURN or RIGHT_TURN </answer>", "several_plans"),
    ("<answer> KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, LEFT_TURN </answer>", "several_plans"),
    ("<answer> YIELD, STRAIGHT </answer>", "unknown_word"),
    ("<answer> I KEEP, STRAIGHT </answer>", "unknown_word"),
    ("<answer> \u017ftop, STRAIGHT </answer>", "unknown_word"),                  # a long s
    ("<answer> KEEPING </answer>", "unknown_word"),
    ("<answer> STOP </answer>", "missing_action"),
    ("<answer> LEFT_TURN. </answer>", "missing_action"),
    ("<answer></answer>", "missing_action"),
    ("<answer> KEEP, KEEP, STRAIGHT </answer>", "malformed"),
    ("<answer> KEEP; STRAIGHT </answer>", "malformed"),
])
def test_invalid_cause(text, cause):
    assert invalid_cause(text) == cause
    assert (cause is None) == (parse_plan(text) is not None)


def test_the_sampler_knows_better_whether_a_text_was_cut_off():
    assert invalid_cause("<think> why </think>") == "no_answer"
    assert invalid_cause("<think> why </think>", truncated=True) == "truncated"
    assert invalid_cause("<answer> YIELD </answer>", truncated=True) == "unknown_word"
    assert invalid_cause("<answer> KEEP, STRAIGHT </answer> and", truncated=True) is None


def test_invalid_causes_are_shares_of_all():
    texts = ["", "<answer>KEEP, STRAIGHT</answer>", "<answer>STOP</answer>", "stop"]
    got = invalid_causes(texts)
    assert tuple(got) == INVALID_CAUSES
    assert {cause: share for cause, share in got.items() if share} == {"no_answer": 0.5, "missing_action": 0.25}
    got = invalid_causes(texts, truncated=[True, False, False, False])
    assert (got["truncated"], got["no_answer"], got["missing_action"]) == (0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="texts is empty"):
        invalid_causes([])


def test_subset_and_factor_accuracy():
    right = [1.0, 0.0, 0.5, 1.0]
    assert subset_accuracy(right, [True, True, False, False]) == {"count": 2, "accuracy": 0.5}
    assert subset_accuracy(right, [False] * 4) == {"count": 0, "accuracy": None}
    factors = [{"light": "red", "night": True}, {"light": "red", "night": False, "lanes": 2}, None,
               {"light": "green", "night": True, "distance": 3.5, "tags": ["rain"]}]
    assert factor_accuracy(right, factors) == {             # without values of one scene
        "light": {"red": {"count": 2, "accuracy": 0.5}}, "night": {"True": {"count": 2, "accuracy": 1.0}}}
    with pytest.raises(ValueError):
        subset_accuracy(right, [True])


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


def test_total_variation_by_hand():
    # frequencies KEEP 1/2, STOP 1/4, invalid 1/4; q KEEP .6, SLOW .4: (.1 + .25 + .25 + .4) / 2
    assert total_variation([KEEP, KEEP, STOP, None], {KEEP: 0.6, SLOW: 0.4}) == pytest.approx(0.5)
    assert total_variation([KEEP, STOP], {KEEP: 0.5, STOP: 0.5}) == 0
    assert total_variation([None], {KEEP: 1.0}) == 1
    for samples, chances in (([], {KEEP: 1.0}), ([KEEP], {KEEP: 0.5})):
        with pytest.raises(ValueError, match="sum to 1"):
            total_variation(samples, chances)


def test_total_variation_is_the_same_in_every_process():
    # 2 of 7 are plan 0 (chance .01), 3 plan 1 (.02), 2 invalid: (2/7 - .01 + 3/7 - .02 + 2/7 + .97) / 2. The order
    # of a set follows the seed of Python's hashes; a sum that rounds at each step depends on it: .9700000000000001 ...
    program = ("from evaluation.metrics import total_variation\nfrom rewards.actions import ALPHADRIVE\n"
               "PLANS = ALPHADRIVE.plans\n"
               "chances = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 21)\n"
               "print(total_variation([PLANS[0]] * 2 + [PLANS[1]] * 3 + [None] * 2, "
               "{plan: chance / 100 for plan, chance in zip(PLANS, chances)}))")
    runs = [subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": str(seed)}, text=True,
                           capture_output=True, check=True, cwd=ROOT) for seed in range(4)]
    assert [run.stdout for run in runs] == ["0.97\n"] * 4


def test_multimodality_by_hand():
    # scene 1: A = {KEEP, STOP}, label STOP, samples KEEP KEEP STOP invalid. validity 3/4, coverage 1, F 6/7,
    #          entropy inside (2/3, 1/3) .636514, / ln 2 = .918296; pass@2: acceptable 1 - C(1,2)/C(4,2) = 1,
    #          label 1 - C(3,2)/C(4,2) = 1/2; q (.5, .5): (0 + .25 + .25) / 2 = 1/4
    # scene 2: A = {KEEP, LEFT}, label LEFT, samples SLOW x 4. all 0, entropies undefined; q (.5, .5): distance 1
    # scene 3: one acceptable plan: not looked at; scene 4: unknown
    truths, acceptable = [STOP, LEFT, KEEP, KEEP], [(KEEP, STOP), (KEEP, LEFT), (KEEP,), None]
    groups = [[KEEP, KEEP, STOP, None], [SLOW] * 4, [KEEP] * 4, [KEEP] * 4]
    odds = [{KEEP: 0.5, STOP: 0.5}, {KEEP: 0.5, LEFT: 0.5}, {KEEP: 1.0}, {KEEP: 1.0}]
    got = multimodality(truths, groups, acceptable, odds, ks=(1, 2, 8))
    passed = got.pop("pass_at_k")
    assert got == pytest.approx({"scenes": 2, "validity": 0.375, "coverage": 0.5, "f_mode": 0.428571,
                                 "entropy": 0.636514, "evenness": 0.918296, "total_variation": 0.625}, abs=1e-6)
    assert passed == {"acceptable": {"1": 0.375, "2": 0.5}, "label": {"1": 0.125, "2": 0.25}}  # k = 8 > 4 samples
    single = multimodality(truths, groups, acceptable, modes=1)
    assert single["scenes"] == 3 and single["validity"] == pytest.approx(0.583333, abs=1e-6)  # (.75 + 0 + 1) / 3
    assert single["total_variation"] is None
    assert json.loads(json.dumps(single)) == single


def test_multimodality_without_such_scenes():
    got = multimodality([KEEP], [[KEEP]], [(KEEP, KEEP)])
    assert got == {"scenes": 0, "validity": None, "coverage": None, "f_mode": None, "entropy": None, "evenness": None,
                   "total_variation": None, "pass_at_k": {"acceptable": {}, "label": {}}}
    with pytest.raises(ValueError):
        multimodality([KEEP, STOP], [[KEEP]], [(KEEP, STOP)])


def test_mcnemar_by_hand():
    # a alone right 5 times, b alone once: 2 * (C(6,0) + C(6,1)) / 2^6 = 14 / 64
    a, b = [1] * 5 + [0] + [1] * 3 + [0] * 2, [0] * 5 + [1] + [1] * 3 + [0] * 2
    assert mcnemar(a, b) == {"only_a": 5, "only_b": 1, "p_value": 0.21875}
    assert mcnemar(b, a) == {"only_a": 1, "only_b": 5, "p_value": 0.21875}
    assert mcnemar([True] * 8, [False] * 8)["p_value"] == 0.0078125             # 2 / 2^8
    assert mcnemar([1, 0], [0, 1])["p_value"] == 1                              # 2 * (1 + 2) / 4 is cut to 1
    assert mcnemar([1.0, 0.0], [1.0, 0.0]) == {"only_a": 0, "only_b": 0, "p_value": 1.0}
    assert mcnemar([1] * 3000, [0] * 3000)["p_value"] == 0                      # far below the smallest float
    for other in ([1], [1, 0.5]):
        with pytest.raises(ValueError, match="0 or 1"):
            mcnemar([1, 0], other)


def test_bootstrap_interval():
    assert bootstrap_interval([0.3] * 50, seed=0) == pytest.approx((0.3, 0.3))
    values = [1.0] * 60 + [0.0] * 40
    low, high = bootstrap_interval(values, seed=0)
    # the mean .6 of 100 draws has standard error sqrt(.24 / 100) = .049, so about .6 +- 1.96 * .049 = .504 ... .696
    assert low == pytest.approx(0.504, abs=0.015) and high == pytest.approx(0.696, abs=0.015)
    assert bootstrap_interval(values, seed=0) == (low, high) != bootstrap_interval(values, seed=1, draws=100)
    # of an earlier version, which drew the 2,000 samples one by one: the stream of random numbers is the same
    squares = [i * i / 10 for i in range(600)]
    assert bootstrap_interval(squares, seed=3) == pytest.approx((11120.650720833333, 12819.801654166668), rel=1e-12)
    narrow = bootstrap_interval(values, seed=0, level=0.5)
    assert low < narrow[0] < 0.6 < narrow[1] < high
    for bad in ([], [1.0, math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="one finite number per scene"):
            bootstrap_interval(bad, seed=0)


def test_wilson_interval_by_hand():
    # z^2 = 3.841459. 10 of 10: (11.920729 -+ 1.959964 sqrt(.960365)) / 13.841459; 5 of 10: .5 -+ .263406
    assert wilson_interval(10, 10) == pytest.approx((0.722467, 1.0))
    assert wilson_interval(5, 10) == pytest.approx((0.236593, 0.763407), abs=1e-6)


def test_paired_interval_is_narrower_than_two_separate_ones():
    # b fails where a fails and on 10 scenes more: the difference is .1 with standard error sqrt(.09 / 100) = .03,
    # so about .1 +- .059; two independent means would have +- 1.96 * sqrt(.0024 + .0025) = .137
    a, b = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 50
    low, high = paired_interval(a, b, seed=0)
    assert low == pytest.approx(0.041, abs=0.015) and high == pytest.approx(0.159, abs=0.015)
    assert paired_interval(b, a, seed=0) == pytest.approx((-high, -low), abs=0.011)
    with pytest.raises(ValueError, match="same scenes"):
        paired_interval([1.0], [1.0, 0.0], seed=0)
