"""The tables of docs/results.md: scores, intervals, corrections and verdicts by hand; the arms and what they need."""

import json

import numpy as np
import pytest

from benchmarks import controls, figures, paper_rewards, results, tables
from benchmarks.claims import CLAIMS, Claim
from benchmarks.controls import best_answers, matching_temperature, noisy_labels
from data.scenes import scene_examples
from grpo.engine.flags import STAGES, EvalConfig, parse_flags
from rewards import Decision

LABEL = "DECELERATE, STRAIGHT"
ROW = {"truth": LABEL, "decision": "KEEP, STRAIGHT", "acceptable": [LABEL, "STOP, STRAIGHT", "DECELERATE, LEFT_CHANGE"],
       "text": "<think> Nothing. </think> <answer> KEEP, STRAIGHT </answer>",
       "sample_decisions": [LABEL, "STOP, STRAIGHT", "ACCELERATE, STRAIGHT", None, LABEL, LABEL]}   # four of them count


def claim(sign=1, score="acceptable"):
    return Claim("family", "a", "b", score, "", "", sign)


def test_scores_of_a_scene():
    scores = tables.scene_scores(ROW)
    assert scores["acceptable_sampled"] == 0.5 and scores["right_sampled"] == 0.25 and scores["invalid"] == 0.25
    assert scores["acceptable"] == scores["right"] == scores["faithful"] == 0.0
    assert scores["cost"] == pytest.approx(2 / 3 / 4)               # DECELERATE -> ACCELERATE: two steps of three
    assert scores["entropy"] == pytest.approx(1.386294)             # ln 4
    assert scores["covered"] == pytest.approx(2 / 3)
    assert tables.scene_scores({**ROW, "acceptable": [LABEL]})["covered"] == 0
    assert tables.blocks([ROW] * 12)["cost"] == "1.667 0.3333"      # ten scenes and the other two


@pytest.mark.parametrize(("truth", "plan", "cost"), [
    ("STOP, STRAIGHT", "ACCELERATE, STRAIGHT", 1), ("STOP, STRAIGHT", "KEEP, STRAIGHT", 2 / 3), (LABEL, None, 0),
    ("STOP, STRAIGHT", LABEL, 0), ("KEEP, STRAIGHT", "ACCELERATE, STRAIGHT", 0)])
def test_missed_brakes(truth, plan, cost):
    assert tables.missed_brakes(truth, plan) == pytest.approx(cost)


def test_the_interval_covers_seeds_and_scenes():
    assert tables.hierarchical(np.full((3, 5), 0.02))[:3] == pytest.approx((0.02, 0.02, 0.02))
    # seeds differ, scenes do not: a draw of two seeds is -1, 0 or 1 with odds 1/4, 1/2, 1/4
    mean, low, high, p = tables.hierarchical(np.array([[1.0] * 4, [-1.0] * 4]))
    assert (mean, low, high, p) == (0, -1, 1, 1)
    # scenes differ, seeds do not
    assert tables.hierarchical(np.array([[1.0, -1.0]] * 3))[1:3] == (-1, 1)
    # one scene of eight is 1, the others 0: no draw is below 0, but (7/8)^8 = 34 % are 0
    assert tables.hierarchical(np.array([[1.0] + [0.0] * 7] * 3))[3] == pytest.approx(2 * 0.3436, abs=0.03)
    assert tables.hierarchical(np.full((3, 5), 0.02))[3] == pytest.approx(0.0002, abs=1e-5)     # 2 / 10,001


def test_holm():
    # sorted: .01 x 4 = .04, .02 x 3 = .06, .025 x 2 = .05 -> .06, .5 x 1
    assert tables.holm([0.5, 0.01, 0.025, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert tables.holm([0.9, 0.8]) == [1.0, 1.0]


def test_verdicts():
    assert tables.verdict(claim(), (0.01, 0.03), [0.01, 0.02, 0.03], 0.01) == "reproduces"
    assert tables.verdict(claim(-1), (-0.03, -0.01), [-0.01, -0.02, -0.03], 0.01) == "reproduces"
    assert tables.verdict(claim(), (0.01, 0.03), [0.04, -0.01, 0.03], 0.01) == "inconclusive"     # one seed disagrees
    assert tables.verdict(claim(), (0.01, 0.03), [0.01, 0.02, 0.03], 0.06) == "inconclusive"      # after correction
    assert tables.verdict(claim(), (-0.02, 0.009), [-0.01, 0.0, 0.0], 0.5) == "does not reproduce"
    assert tables.verdict(claim(-1), (0.01, 0.03), [0.01, 0.02, 0.03], 0.01) == "does not reproduce"
    assert tables.verdict(claim(score="cost"), (-0.02, 0.009), [0.0, 0.0, 0.0], 0.5) == "inconclusive"
    assert tables.verdict(claim(), (0.01, 0.03), [0.01, 0.02], 0.01) == "none: 2 of 3 seeds"


@pytest.fixture
def record():
    """Two arms with three seeds and two blocks of ten scenes each; b is right in 5 and 6 of them, a in 7 and 8."""
    def rows(first, second):
        return {str(seed): {"several": 0.5, "blocks": {name: f"{first} {second}" for name in tables.SHOWN}}
                for seed in range(3)}
    return {"block": 10, "arms": {"a": rows(7, 8), "b": rows(5, 6)}}


def test_a_claim_is_compared_on_the_same_seeds_and_blocks(record):
    (row,) = tables.compare(record, [claim()])
    assert row["seeds"] == 3 and row["mean"] == pytest.approx(0.2) and row["interval"] == pytest.approx((0.2, 0.2))
    assert row["verdict"] == "reproduces" and row["by_seed"] == pytest.approx([0.2] * 3)
    assert tables.compare(record, [claim(score="covered")])[0]["mean"] == pytest.approx(0.4)    # of half of the scenes
    del record["arms"]["a"]["1"]
    assert tables.compare(record, [claim()])[0]["verdict"] == "none: 2 of 3 seeds"
    assert tables.compare({**record, "arms": {}}, [claim()]) == [{"claim": claim(), "seeds": 0}]


def test_rows_that_are_missing_say_so(record):
    lines = tables.missing_table(record, {"a": "short set", "b": "short set", "c": "Table 4"})
    assert lines[2:] == ["|Table 4|0/3|all 1|"]
    lines = tables.missing_table(record, {"a": "Table 4", "c": "Table 4"})
    assert lines[2:] == ["|Table 4|0/3|c|"]
    assert "|not run|" in tables.claim_table({**record, "arms": {}}, "modes")[-1]


def test_tables_stand_between_their_marks():
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb"
    assert tables.with_tables(page, {"x": ["new"]}) == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb"


def test_what_has_finished_is_read_and_the_rest_of_the_record_kept(tmp_path):
    for place in ("parts/seed-1", "seed-1/own/eval"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "parts/seed-1/own.json").write_text(json.dumps({"seconds": 3.0, "commit": "abc", "cpu": "some"}))
    row = {**ROW, "samples": ["x"] * 6}
    (tmp_path / "seed-1/own/eval/predictions.jsonl").write_text("\n".join([json.dumps(row)] * 10))
    speeds = {"ACCELERATE": {"f1": 0.5}, "DECELERATE": {"f1": None}}
    (tmp_path / "seed-1/own/eval/metrics.json").write_text(json.dumps(
        {"temperature": 0.7, "speed": speeds, "text": None, "multimodality": []}))
    before = {"arms": {"kept": {"0": {}}}, "sweep": 2}
    found = tables.collect(tmp_path, [0, 1], {"own": "own", "other": "other"}, before, {"x": 1})
    assert found["arms"].keys() == {"kept", "own"} and (found["x"], found["sweep"]) == (1, 2)
    assert found["arms"]["own"].keys() == {"1"}
    assert found["arms"]["own"]["1"]["commit"] == "abc" and found["arms"]["own"]["1"]["temperature"] == 0.7
    assert found["arms"]["own"]["1"]["blocks"]["right_sampled"] == "2.5"
    assert found["arms"]["own"]["1"]["several"] == 1


def test_curves_are_drawn_when_their_arms_have_run(record):
    one = record["arms"]["a"]
    assert figures.curves_figure(record) is None
    parts = [f"{name}, {share} of the data" for name in ("SFT", "RL alone", "SFT and RL") for share in ("1/5", "1/2")]
    record["arms"] |= dict.fromkeys([*parts, "SFT", "RL alone"], one)
    assert figures.data_lines(record) == {}                         # the arm of all data is missing
    record["arms"]["all rewards"] = record["arms"]["b"]
    lines = figures.data_lines(record)
    assert lines["SFT"] == [(0.2, 0.75), (0.5, 0.75), (1.0, 0.75)] and lines["SFT and RL"][2] == (1.0, 0.55)
    assert figures.curves_figure(record).count("<polyline") == 3
    seeds = (((.2, .9), (.4, .6)), ((.4, .7), (.6, .4)))
    curves = [[{"coverage": c, "validity": v} for c, v in points] for points in seeds]
    record["arms"] |= {f"{name}, several temperatures": {"0": {"curve": curves[0]}, "1": {"curve": curves[1]}}
                       for name in ("SFT", "all rewards")}
    assert figures.validity_lines(record)["SFT"] == [pytest.approx((.3, .8)), pytest.approx((.5, .5))]
    assert figures.curves_figure(record).count("<polyline") == 5


def test_a_star_marks_seeds_that_a_t_test_does_not_trust():
    # t = mean / (sd / sqrt 3): 2/2/2.3 gives 2.1 / 0.1 = 21 and p = .0023; 2.2/10.4/9.2 gives 2.85 and p = .104
    assert tables.seeds_p([2.0, 2.0, 2.3]) == pytest.approx(0.00226, abs=1e-4)
    assert tables.seeds_p([2.2, 10.4, 9.2]) == pytest.approx(0.104, abs=2e-3) and tables.seeds_p([1, 1, 1]) == 0.0
    row = {"seeds": 3, "mean": 0.07, "interval": (0.02, 0.1), "by_seed": [0.022, 0.104, 0.092], "verdict": "reproduces"}
    assert tables.outcome(row)[2] == "reproduces*"
    assert tables.outcome({**row, "by_seed": [0.02, 0.02, 0.023]})[2] == "reproduces"
    assert tables.outcome({**row, "verdict": "inconclusive"})[2] == "inconclusive"


# ---------------------------------------------------------------- the arms

def test_claims_and_starts_name_arms_and_arms_have_folders_of_their_own(tmp_path):
    known = {arm.name for arm in results.ARMS.values()}
    assert {claim.arm for claim in CLAIMS} | {claim.than for claim in CLAIMS} <= known
    assert {arm.start for arm in results.ARMS.values()} <= known | {""}
    assert len({results.slug(name) for name in known}) == len(known) == len((*results.SHORT, *results.FULL))
    rates = {"grpo": "1e-4", "sft": "1e-3"}
    parts = {part.name: part for seed in (0, 1) for arm in results.ARMS.values()
             for part in [results.arm_part(tmp_path, seed, arm, rates)]}
    assert len(parts) == 2 * len(known) and all(need in parts for part in parts.values() for need in part.needs)


def test_the_commands_of_the_arms_are_understood(tmp_path):
    rates = {"grpo": "1e-4", "sft": "1e-3"}
    parts = [results.arm_part(tmp_path, 0, arm, rates) for arm in results.ARMS.values()]
    commands = [command for part in parts for command in part.commands]
    for command in commands:
        if command[0] == "train.py":
            parse_flags(STAGES[command[2]], "", list(command[3:]))
        elif command[0] == "eval.py":
            EvalConfig(**parse_flags(EvalConfig, "", list(command[1:])))
    assert {command[0] for command in commands} == {"train.py", "eval.py", "benchmarks/controls.py"}


def test_the_full_set_is_what_the_record_lacks_and_what_that_needs():
    every = {arm.name: {"0": {}, "1": {}, "2": {}} for arm in results.ARMS.values()}
    assert results.wanted(False, [], {}) == list(results.SHORT) and results.wanted(True, [], {"arms": every}) == []
    del every["SFT, T of GRPO's entropy"]["1"]
    assert [arm.name for arm in results.wanted(True, [], {"arms": every})] == [
        "SFT", "all rewards", "SFT, T of GRPO's entropy"]
    named = results.wanted(False, ["F1, format, weights, several temperatures"], {"arms": every})
    assert [arm.name for arm in named] == ["SFT", "F1, format, weights", "F1, format, weights, several temperatures"]


def test_imitated_answers_are_the_best_and_readable():
    example = scene_examples("rl", 1)[0]
    right = f"<think> Right. </think> <answer> {example.decision} </answer>"
    wrong = Decision("KEEP" if example.decision.speed != "KEEP" else "STOP", example.decision.path)
    half = f"<think> Half. </think> <answer> {wrong} </answer>"
    (chosen,) = best_answers([{"samples": [half, "KEEP", right, right]}], [example])
    assert (chosen.decision, chosen.reasoning, chosen.split) == (example.decision, "Right.", "best")
    assert best_answers([{"samples": [half, "KEEP"]}], [example])[0].decision == wrong
    bare = f"<answer> {example.decision} </answer>"                  # no reason to imitate
    assert best_answers([{"samples": ["KEEP", "STOP"]}, {"samples": [bare]}], [example] * 2) == []


def test_the_temperature_between_two_of_the_sweep():
    # entropies: 0 at 0.5, ln 2 at 1
    rows = [{"sweep": {"0.5": ["a", "a"], "1": ["a", "b"]}}]
    assert matching_temperature(rows, 0.346574) == 0.75
    assert matching_temperature(rows, 5.0) == 1.0


def test_label_noise_changes_this_share_of_the_labels():
    examples = scene_examples("sft", 400)
    mistaken = noisy_labels(examples, 30)
    wrong = [a.decision != b.decision for a, b in zip(examples, mistaken, strict=True)]
    assert 0.23 < np.mean(wrong) < 0.37                              # 3 deviations of 400 draws
    assert [b.reasoning for b in mistaken] == [a.reasoning for a in examples]  # SFT leaves out those without one
    assert noisy_labels(examples, 0) == examples


def test_noisy_labels_may_be_the_first_file_of_their_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(controls.SIZES, "sft", 3)
    controls.main(["noise", "sft", "30", str(tmp_path / "seed-0/sft-noise-30.jsonl")])
    assert len((tmp_path / "seed-0/sft-noise-30.jsonl").read_text().splitlines()) == 3


def test_each_reward_of_table_2_adds_one_idea():
    example = next(e for e in scene_examples("rl", 200) if str(e.decision) == "KEEP, STRAIGHT")
    right = "<think> a </think> <answer> KEEP, STRAIGHT </answer>"
    hedge = "<think> a </think> <answer> KEEP, STOP, STRAIGHT </answer>"
    bare = "<answer> KEEP, STRAIGHT </answer>"
    assert paper_rewards.exact(example, [right, hedge, bare]) == [
        {"speed": 1, "path": 1}, {"speed": 0, "path": 1}, {"speed": 1, "path": 1}]
    assert [row["format"] for row in paper_rewards.exact_and_format(example, [right, hedge, bare])] == [1, 0, 0]
    assert paper_rewards.f1_and_format(example, [hedge])[0]["speed"] == pytest.approx(2 / 3)
    assert paper_rewards.weighted(example, [right])[0] == {"speed": 0.8, "path": 0.8, "format": 1}
    assert paper_rewards.safe(example, [right, "?"], [example.decision, None]) == [{"cost": 0, "format": 1},
                                                                                  {"cost": 0, "format": 0}]
    brake = next(e for e in scene_examples("rl", 200) if e.decision.speed == "STOP")
    assert paper_rewards.safe(brake, ["?"], [Decision("ACCELERATE", "STRAIGHT")]) == [{"cost": -1, "format": 0}]
    assert paper_rewards.braking(brake, ["?", "?"], [Decision("KEEP", "STRAIGHT"), None]) == [
        {"braking": pytest.approx(-2 / 3)}, {"braking": 0}]


def test_the_table_of_the_demo():
    def found(share, costs, *gaps):
        scores = {name: {"of_ceiling": share, "braking_cost": cost}
                  for name, cost in zip(("sft", "sft-continued", "grpo"), costs, strict=True)}
        return {"scores": scores, "braking": {
            name: {"difference": gap, "interval": (gap - 0.01, gap + 0.02)}
            for name, gap in zip(("grpo - sft", "grpo - sft-continued"), gaps, strict=True)}}
    lines = tables.demo_table({"seeds": {"3": found(0.7512, (0.12, 0.1, 0.0751), -0.0449, 0.025)}})
    assert lines[2:] == ["|3|0.75|0.120|0.100|0.075|-0.045 (-0.055 to -0.025)|+0.025 (+0.015 to +0.045)|"]


def test_a_second_run_lists_what_changed_its_verdict(monkeypatch):
    """By hand: b is right in 6 of 10 scenes and a in 5, again both in 5; c equals a in both and is not listed."""
    def arms(gain):
        def arm(value):
            return {str(seed): {"blocks": {"right": " ".join([f"{value:.4g}"] * 20)}} for seed in range(3)}
        return {"block": 10, "arms": {"a": arm(5), "b": arm(5 + gain), "c": arm(5)}}
    monkeypatch.setattr(tables, "CLAIMS", [Claim("rewards", name, "a", "right", "", "") for name in "bc"])
    (row,) = tables.again_table(arms(1), arms(0))[2:]
    assert row == "|b - a|label, greedy|+10.0 (+10.0 to +10.0)|reproduces|+0.0 (+0.0 to +0.0)|does not reproduce|"
    assert len(tables.again_table(arms(1), arms(1))) == 2 and len(tables.again_table(arms(1), {"arms": {}})) == 2


def test_a_setting_that_two_arms_share_is_named_once():
    assert tables.difference("SFT and RL, half the data", "SFT, half the data") == "SFT and RL - SFT (half the data)"
    assert tables.difference("F1, format", "exact, format") == "F1, format - exact, format"
    assert tables.difference("SFT, 1/5 of the data", "SFT") == "SFT, 1/5 of the data - SFT"
