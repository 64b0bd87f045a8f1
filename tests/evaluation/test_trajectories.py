"""Metrics of driven trajectories on lines that fit on paper."""

import math

import pytest

from evaluation.trajectories import compare_trajectories, trajectory_metrics, trajectory_summary

STRAIGHT = [[float(2 * t), 0.0] for t in range(1, 9)]
ASIDE = [[float(2 * t), 3.0] for t in range(1, 9)]                              # 3 m to the left all along
FASTER = [[float(3 * t), 0.0] for t in range(1, 9)]                             # ahead by 1 m, 2 m, ... 8 m


def one(points, driven, pdms, **factors):
    return {"waypoints": points, "driven": driven, "pdms": pdms, "no_collision": 1.0, "on_road": 1.0, "progress": 0.5,
            "time_to_collision": 1.0, "comfort": 1.0, "violations": [], **factors}


def line(name="a", **changes):
    return {"id": name, "scene": 1, "plan": None, "acceptable": ["KEEP, STRAIGHT", "STOP, STRAIGHT"],
            "demonstration": one(STRAIGHT, "KEEP, STRAIGHT", 0.6), "greedy": one(STRAIGHT, "KEEP, STRAIGHT", 0.75),
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


def test_violations_are_shares_of_all_trajectories():
    rows = [line(trajectories=[one(STRAIGHT, "KEEP, STRAIGHT", 1.0, violations=["jerk"]),
                               one(STRAIGHT, "KEEP, STRAIGHT", 1.0, violations=["jerk", "braking"])]), line("b")]
    assert trajectory_metrics(rows)["violations"] == {"braking": 0.25, "jerk": 0.5}


def test_paired_comparison():
    base = [line("a"), line("b")]                           # .25 each
    better = [one(STRAIGHT, "KEEP, STRAIGHT", 0.75)]
    found = compare_trajectories(base, [line("b", trajectories=better), line("c")], names=("pdms",))
    assert found == {"pdms": {"difference": 0.5, "interval": [0.5, 0.5], "scenes": 1}}
    with pytest.raises(ValueError, match="share no scene"):
        compare_trajectories(base, [line("z")])


def test_summary_names_the_numbers():
    text = trajectory_summary(trajectory_metrics([line()]))
    assert "PDMS-like   0.250 (0.250 to 0.250), greedy 0.750, best of 2 0.500" in text
    assert "closest ADE 0.00" in text and not math.isnan(float(text.split("ADE ")[1].split(",")[0]))
