"""Metrics of driven trajectories on lines that fit on paper."""

import json
import math

import pytest

from evaluation.comparison import compare
from evaluation.page.trajectories import shades
from evaluation.predictions import replace_lines
from evaluation.trajectories import compare_trajectories, trajectory_metrics, trajectory_summary

STRAIGHT = [[float(2 * t), 0.0] for t in range(1, 9)]
ASIDE = [[float(2 * t), 3.0] for t in range(1, 9)]                              # 3 m to the left all along
FASTER = [[float(3 * t), 0.0] for t in range(1, 9)]                             # ahead by 1 m, 2 m, ... 8 m


def one(points, driven, pdms, **factors):
    return {"waypoints": points, "driven": driven, "pdms": pdms, "no_collision": 1.0, "on_road": 1.0, "progress": 0.5,
            "time_to_collision": 1.0, "comfort": 1.0, "violations": [], **factors}


def line(name="a", **changes):
    return {"id": name, "scene": 1, "truth": "KEEP, STRAIGHT", "plan": None,
            "acceptable": ["KEEP, STRAIGHT", "STOP, STRAIGHT"], "demonstration": one(STRAIGHT, "KEEP, STRAIGHT", 0.6),
            "greedy": one(STRAIGHT, "KEEP, STRAIGHT", 0.75),
            "trajectories": [one(STRAIGHT, "KEEP, STRAIGHT", 0.5), one(ASIDE, "KEEP, LEFT_CHANGE", 0.0)], **changes}


def test_one_scene_by_hand():
    found = trajectory_metrics([line()])
    assert found["pdms"] == 0.25 and found["greedy_pdms"] == 0.75 and found["best_pdms"] == 0.5
    assert found["validity"] == 0.5                         # the first of two
    assert found["modes_covered"] == 0.5                    # KEEP of KEEP and STOP
    assert found["modes"] == 2
    assert (found["ade"], found["fde"]) == (1.5, 1.5)       # 0 and 3 m
    assert (found["min_ade"], found["min_fde"]) == (0.0, 0.0)
    assert found["diversity"] == 3.0
    assert "named_plan" not in found                        # no scene names one


def test_final_distance_is_that_of_the_last_point():
    row = line(trajectories=[one(FASTER, "ACCELERATE, STRAIGHT", 0.2)])
    found = trajectory_metrics([row])
    assert found["ade"] == pytest.approx(4.5)               # mean of 1 ... 8
    assert found["fde"] == 8.0
    assert "diversity" not in found                         # one trajectory has no pair


def test_the_best_is_chosen_for_each_number():
    # 1 ... 8 m ahead: ADE 4.5, FDE 8; 6 m aside but 1.5 m at the end: ADE 43.5 / 8 = 5.4375, FDE 1.5
    late = [[float(2 * t), 6.0 if t < 8 else 1.5] for t in range(1, 9)]
    row = line(trajectories=[one(FASTER, "ACCELERATE, STRAIGHT", 0.2), one(late, "KEEP, LEFT_CHANGE", 0.7)])
    found = trajectory_metrics([row])
    assert (found["min_ade"], found["min_fde"], found["best_pdms"]) == (4.5, 1.5, 0.7)


def test_diversity_is_the_mean_over_pairs():
    third = one([[float(2 * t), -3.0] for t in range(1, 9)], "KEEP, RIGHT_CHANGE", 0.1)
    row = line(trajectories=[*line()["trajectories"], third])
    assert trajectory_metrics([row])["diversity"] == pytest.approx((3 + 3 + 6) / 3)


def test_named_plans_count_only_where_one_is_named():
    named = line("b", plan="KEEP, STRAIGHT")
    assert trajectory_metrics([line(), named])["named_plan"] == 0.5


def test_logs_have_no_score_of_boxes():
    def bare(points):
        return {"waypoints": points, "driven": "KEEP, STRAIGHT", "comfort": 1.0, "violations": ["curvature"]}

    row = line(scene=None, acceptable=None, greedy=bare(STRAIGHT), trajectories=[bare(STRAIGHT), bare(ASIDE)])
    found = trajectory_metrics([row])
    assert "pdms" not in found and "validity" not in found
    assert found["comfort"] == 1.0 and found["ade"] == 1.5
    assert found["violations"] == {"curvature": 1.0}
    assert "curvature 100.0%" in trajectory_summary(found)


def test_the_page_draws_along_the_lane():
    """On a bend a line holds both frames; on a straight road, and in files of earlier versions, the two are one."""
    row = line(trajectories=[one(STRAIGHT, "KEEP, STRAIGHT", 0.1), one(ASIDE, "KEEP, STRAIGHT", 0.2, lane=FASTER)])
    assert [points for _, points in shades(row)] == [STRAIGHT, FASTER]


def test_violations_are_shares_of_all_trajectories():
    rows = [line(trajectories=[one(STRAIGHT, "KEEP, STRAIGHT", 1.0, violations=["jerk"]),
                               one(STRAIGHT, "KEEP, STRAIGHT", 1.0, violations=["jerk", "braking"])]), line("b")]
    assert trajectory_metrics(rows)["violations"] == {"braking": 0.25, "jerk": 0.5}


def test_paired_comparison():
    better = [one(STRAIGHT, "KEEP, STRAIGHT", 0.75)]
    found = compare_trajectories([line()], [line(trajectories=better)], names=("pdms",))
    assert found == {"pdms": {"difference": 0.5, "interval": [0.5, 0.5], "scenes": 1}}      # .75 - .25


def test_intervals_resample_scenes():
    # two of four scenes score 1 with both trajectories: the mean of four draws is 0 or 1 in 1 of 16 each; that of eight
    # independent trajectories would be .125 to .875
    rows = [line(name, trajectories=[one(STRAIGHT, "KEEP, STRAIGHT", pdms)] * 2)
            for name, pdms in zip("abcd", (1.0, 1.0, 0.0, 0.0), strict=True)]
    none = [line(name, trajectories=[one(STRAIGHT, "KEEP, STRAIGHT", 0.0)] * 2) for name in "abcd"]
    assert trajectory_metrics(rows)["pdms_interval"] == [0.0, 1.0]
    assert compare_trajectories(none, rows, names=("pdms",))["pdms"]["interval"] == [0.0, 1.0]


def test_files_are_compared_on_their_common_scenes(tmp_path):
    def told(*rows, **how):
        for name, lines in (("a", [line("a"), line("b")]), ("b", rows)):
            (tmp_path / name).mkdir(exist_ok=True)
            replace_lines(tmp_path / name / "trajectories.jsonl", lines)
            (tmp_path / name / "metrics.json").write_text(json.dumps(
                {"plan": "none", "best_of": 1, "eta": 0.0, "metre_noise": 0.12, **(how if name == "b" else {})}))
        return compare([str(tmp_path / name) for name in ("a", "b")]).splitlines()

    better = line("b", trajectories=[one(STRAIGHT, "KEEP, STRAIGHT", 0.75)] * 2)
    text = told(better, line("c", trajectories=[one(STRAIGHT, "KEEP, STRAIGHT", 0.0)] * 2))
    assert text[0] == "1 scenes that all runs answered, of up to 2"
    assert text[1].startswith(f"{tmp_path / 'a'}: 1 scenes, 2 trajectories each")
    assert [row for row in text if "PDMS-like   0.750 " in row]                 # of the common scene, not .375 of both
    assert "1 scenes: pdms +0.500" in "".join(text) and "note:" not in "".join(text)
    (note,) = [row for row in told({**better, "trajectories": better["trajectories"][:1]}, plan="expert")
               if row.startswith("note:")]
    assert note.endswith(" were not driven alike: plan none and expert, trajectories per scene 2 and 1")
    (note,) = [row for row in told(better, best_of=16, eta=1.0) if row.startswith("note:")]
    assert note.endswith(" were not driven alike: best of 1 and 16, eta 0.0 and 1.0")
    assert told(better, metre_noise=0.0)[-1].endswith("/a, not compared: metre noise 0.12 and 0.0")
    assert "not compared" not in told({**better, "scene": None}, metre_noise=0.0)[-1]          # logs have no such noise
    for rows, message in (([better, better], "b answers some id twice"), ([line("z")], "no scene in common"),
                          ([line("b", truth="STOP, STRAIGHT")], "scene b has different truths")):
        with pytest.raises(ValueError, match=message):
            told(*rows)


def test_summary_names_the_numbers():
    text = trajectory_summary(trajectory_metrics([line()]))
    assert "PDMS-like   0.250 (0.250 to 0.250), greedy 0.750, best of 2 0.500" in text
    assert "closest ADE 0.00" in text and not math.isnan(float(text.split("ADE ")[1].split(",")[0]))
