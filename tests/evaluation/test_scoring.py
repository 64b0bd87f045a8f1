"""metrics.json and the paper's row by hand, from lines of predictions.jsonl."""

import math
from dataclasses import replace

import pytest

from evaluation import scoring
from rewards.actions import ALPHADRIVE

KEEP, STOP, TURN = "KEEP, STRAIGHT", "STOP, STRAIGHT", "KEEP, LEFT_TURN"
REASON = "The light is red and I am slow, so I stop and stay in lane."


def test_scores_by_hand(answer, line):
    rows = [line("a", STOP, answer(STOP), [answer(STOP)] * 2),
            line("b", STOP, answer(KEEP), [answer(KEEP), answer(STOP)]),
            line("c", KEEP, "nothing", ["nothing", answer(KEEP)]), line("d", KEEP, answer(KEEP), [answer(KEEP)] * 2)]
    for row in rows:
        row["acceptable"] = [row["truth"], KEEP]
    metrics = scoring.score(rows)
    assert metrics["planning_accuracy"] == 0.5 and metrics["invalid_rate"] == 0.25
    assert metrics["acceptable_accuracy"] == 0.75                       # right, acceptable, unreadable, right
    low, high = metrics["planning_accuracy_interval"]
    assert (low, high) == (0.0, 1.0)                                    # four draws of four are all wrong in 1 of 16
    assert metrics["sampled"]["planning_accuracy"] == 0.75              # (2 + 1 + 1 + 2) / 8
    # two groups of one plan: 0; two of two outcomes: ln 2 each
    assert metrics["sampled"]["plan_entropy"] == pytest.approx(math.log(2) / 2)
    assert metrics["invalid_causes"]["no_answer"] == 0.25 and metrics["sampled"]["invalid_causes"]["no_answer"] == 0.125
    assert metrics["majority"] == {"plan": STOP, "accuracy": 0.5}       # two of four, named before the other two
    assert "bayes_ceiling" not in metrics and metrics["text"] is None and metrics["multimodality"] == []


def test_intervals_resample_scenes(answer, line):
    # two of four scenes are right in all 8 samples; of 32 independent ones the middle 95 % would be about .33 to .67
    rows = [line(name, STOP, answer(plan), [answer(plan)] * 8) for name, plan in zip("abcd", (STOP, STOP, KEEP, KEEP),
                                                                                  strict=True)]
    assert scoring.score_samples(rows)["planning_accuracy_interval"] == (0.0, 1.0)


def test_plans_without_their_texts_are_scored(answer, line):
    row = {**line("a", STOP, answer(STOP)), "sample_decisions": [STOP, KEEP]}
    for kept in (row, {name: value for name, value in row.items() if name != "samples"}):
        sampled = scoring.score([kept])["sampled"]
        assert sampled["planning_accuracy"] == 0.5 and "invalid_causes" not in sampled


def test_counts_of_four_pairs(answer, line):
    """KEEP -> KEEP, STOP -> KEEP, KEEP -> invalid, STOP -> STOP. KEEP: 1 hit, 1 wrong, 1 missed; STOP: 1, 0, 1."""
    everything = "KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN"
    rows = [line("a", KEEP, answer(KEEP)), line("b", STOP, answer(KEEP)), line("c", KEEP, answer(everything)),
            line("d", STOP, answer(STOP, "KEEP, LEFT_TURN"))]           # words of the reasoning do not count
    metrics = scoring.score(rows)
    assert metrics["planning_accuracy"] == 0.5 and metrics["invalid_causes"]["several_plans"] == 0.25
    assert metrics["speed"]["KEEP"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert metrics["speed"]["STOP"]["precision"] == 1.0 and metrics["speed"]["STOP"]["f1"] == pytest.approx(2 / 3)


def test_naming_every_action_scores_nothing(answer, line):
    hedge = answer("KEEP, ACCELERATE, DECELERATE, STOP, STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, LEFT_TURN")
    metrics = scoring.score([line("a", STOP, hedge), line("b", KEEP, hedge)])
    assert metrics["planning_accuracy"] == metrics["speed_accuracy"] == metrics["path_accuracy"] == 0.0
    assert metrics["invalid_rate"] == 1.0


def test_curve_by_hand(answer, line):
    rows = [line("a", KEEP, answer(KEEP), acceptable=[KEEP, STOP], sweep={"0.5": [KEEP, KEEP], "2": [STOP, KEEP]}),
            line("b", KEEP, answer(KEEP), acceptable=[KEEP, TURN], sweep={"0.5": [KEEP, KEEP], "2": [None, STOP]}),
            line("c", KEEP, answer(KEEP), acceptable=[KEEP], sweep={"0.5": [STOP, STOP], "2": [STOP, STOP]})]
    cold, hot = scoring.score(rows)["multimodality"]                    # c has one acceptable plan: not counted
    assert (cold["temperature"], cold["scenes"], cold["validity"], cold["coverage"]) == (0.5, 2, 1.0, 0.5)
    assert (hot["temperature"], hot["validity"], hot["coverage"]) == (2.0, 0.5, 0.5)      # (1 + 0) / 2, (1 + 0) / 2
    assert hot["pass_at_k"]["acceptable"] == {"1": 0.5, "2": 0.5} and hot["total_variation"] is None


def test_reasons_by_hand(answer, line):
    scene = {"scene": 3, "image": None, "reason": REASON}
    rows = [line("a", STOP, answer(STOP, REASON), **scene), line("b", STOP, answer(KEEP, REASON), **scene),
            line("c", STOP, f"<answer> {STOP} </answer>", **scene), line("d", KEEP, answer(KEEP), scene=3)]
    metrics = scoring.score(rows)
    text = metrics["text"]
    assert text["count"] == 3                                           # d has nothing to be compared with
    # two texts of 15 words equal their reference, one is empty; one chunk of 15: 1 - 0.5 / 15^3
    assert text["meteor"] == pytest.approx(2 / 3 * (1 - 0.5 / 3375))
    # 30 of 45 words are written, all n-grams of them right: brevity exp(1 - 45 / 30)
    assert text["bleu4"] == pytest.approx(math.exp(-0.5), rel=1e-6) and text["cider"] == 0.0   # equal references
    assert text["faithfulness"] == text["consistency"] == pytest.approx(1 / 3)      # of a, b, c only a
    assert text["factors"]["recall"] == pytest.approx(2 / 3) and text["factors"]["understood"] == pytest.approx(2 / 3)
    assert metrics["bayes_ceiling"] > metrics["bayes_ceiling_sampled"] > 0


def test_consistent_is_not_faithful(answer, line):
    """The first reason supports two plans and announces the second; the second reason supports another plan."""
    kerb = "Someone stands at the kerb and I am fast, hence I slow down and go straight."
    green = "The light is green and I am slow, so I stop and stay in lane."
    said = [(KEEP, kerb), (KEEP, kerb), ("DECELERATE, STRAIGHT", kerb), (STOP, green)]
    rows = [line(str(i), STOP, answer(*pair), scene=3, image=None, reason=REASON) for i, pair in enumerate(said)]
    text = scoring.score([*rows, line("none", STOP, "nothing", scene=3, image=None, reason=REASON)])["text"]
    assert (text["faithfulness"], text["consistency"]) == (0.6, 0.4)            # no plan is neither


def test_reasons_of_plans_with_own_actions(answer, line):
    """CREEP is no action of AlphaDrive's; the scene's reason does not support it."""
    own = replace(ALPHADRIVE, speeds=(*ALPHADRIVE.speeds, "CREEP"))
    row = line("a", STOP, answer("CREEP, STRAIGHT", REASON), scene=3, image=None, reason=REASON)
    text = scoring.score([{**row, "decision": "CREEP, STRAIGHT"}], own)["text"]
    assert text["faithfulness"] == 0 and text["consistency"] == 0


def test_reasons_of_real_pictures_are_compared_as_text_alone(answer, line):
    text = scoring.score([line("a", STOP, answer(STOP, REASON), reason=REASON)])["text"]
    assert text["meteor"] > 0.99 and "factors" not in text and "faithfulness" not in text


def test_row_of_the_papers_table(answer, line):
    # left: a truth LEFT_CHANGE answered LEFT_TURN is right on the paper's three paths, and no right plan of ours
    rows = [line("a", STOP, answer(STOP)), line("b", "KEEP, LEFT_CHANGE", answer(TURN)), line("c", KEEP, answer(STOP))]
    metrics = scoring.score(rows)
    row = scoring.paper_row(metrics)
    assert row["Acc."] == pytest.approx(1 / 3) and row["path left"] == row["path straight"] == 1.0
    assert row["path right"] is None and row["ceiling"] is None and row["METEOR"] is None
    assert row["speed keep"] == row["speed stop"] == pytest.approx(2 / 3)
    header, rule, cells = scoring.paper_table({"mine": {**metrics, "bayes_ceiling": 0.8123}}).splitlines()
    assert [cell.strip() for cell in header.split("|")[1:-1]] == [
        "run", "scenes", "Acc.", "ceiling", "path straight", "path left", "path right", "speed keep", "speed acc.",
        "speed dec.", "speed stop", "BLEU-4", "CIDEr", "METEOR"]
    assert set(rule) <= set("|- ")
    assert [cell.strip() for cell in cells.split("|")[1:-1]] == [
        "mine", "3", "33.3 (0.0 to 100.0)", "81.2", "100.0", "100.0", "-", "66.7", "-", "-", "66.7", "-", "-", "-"]
