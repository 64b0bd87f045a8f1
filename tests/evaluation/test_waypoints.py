"""Scores of way-points, worked out by hand on three scenes."""
import numpy as np
import pytest

from data.scenes import scene_examples
from evaluation import waypoints
from evaluation.scoring import waypoint_line
from evaluation.waypoints import agrees, driven_action, driven_scores, waypoint_metrics
from grpo.engine.examples import with_demonstrations
from rewards import Decision
from rewards.waypoints import write_waypoints

STEADY = [(4.0 * k, 0.0) for k in range(1, 9)]              # 8 m/s straight on
STANDING = [(0.0, 0.0)] * 8


def text(points, plan="KEEP, STRAIGHT"):
    return f"<answer> {plan} </answer> {write_waypoints(points)}"


def rows_of(*experts):
    """Lines of predictions.jsonl of logs."""
    return [{"id": i, "scene": None, "truth": "KEEP, STRAIGHT", "trajectory": expert}
            for i, expert in enumerate(experts)]


def moved(points, aside):
    return [(x, y + aside) for x, y in points]


def test_greedy_scores_by_hand():
    # scene 0: 1 m aside everywhere; scene 1: no block; scene 2: 3 m aside; scene 3: no expert
    rows = rows_of(STEADY, STEADY, STEADY, None)
    answers = [text(moved(STEADY, 1.0)), "<answer> KEEP, STRAIGHT </answer>",
               text(moved(STEADY, -3.0), "STOP, STRAIGHT"), text(STEADY)]
    scores = waypoint_metrics(rows, [[answer] for answer in answers])
    assert scores == {"well_formed": 0.75, "ade": pytest.approx(2.0), "fde": pytest.approx(2.0), "ade_scenes": 2,
                      "ade_interval": (pytest.approx(1.0), pytest.approx(3.0)), "min_ade": pytest.approx(2.0),
                      "agreement": 0.5}                                         # scenes 0 and 3
    assert waypoint_line(scores) == (
        "way-points  ADE 2.00 m (95 % 1.00 to 3.00), FDE 2.00 m; 0.7500 well-formed, 0.5000 agree with their plan")


def test_the_best_of_a_group():
    # ADE 1 and 3 m, then 5 m alone: the best ones are 1 and 5, the scenes' means 2 and 5
    groups = [[text(moved(STEADY, 1.0)), text(moved(STEADY, -3.0))], [text(moved(STEADY, 5.0)), "x"]]
    scores = waypoint_metrics(rows_of(STEADY, STEADY), groups)
    assert (scores["ade"], scores["min_ade"], scores["well_formed"]) == (pytest.approx(3.5), pytest.approx(3.0), 0.75)
    assert scores["fde"] == pytest.approx(3.5) and scores["ade_interval"] == pytest.approx((2.0, 5.0))
    nothing = waypoint_metrics(rows_of(None, STEADY), [["x"], ["y"]])
    assert nothing == {"well_formed": 0.0, "ade": None, "fde": None, "ade_interval": None, "ade_scenes": 0,
                       "min_ade": None, "agreement": 0.0}
    assert waypoint_line(nothing).startswith("way-points  no readable way-points of which the expert's are known;")


LEFT = [(1.9, 0.2), (3.5, 0.9), (4.7, 2.1), (5.5, 3.5), (5.9, 5.1), (6.0, 7.0), (6.0, 9.0), (6.0, 11.0)]
BRAKING = [(3.5, 0.0), (6.0, 0.0), (7.5, 0.0), (8.0, 0.0), (8.0, 0.0), (8.0, 0.0), (8.0, 0.0), (8.0, 0.0)]
FASTER = [(4.0 * k / 2 + 0.25 * k * k, 0.0) for k in range(1, 9)]              # 4 m/s, 2 m/s^2


@pytest.mark.parametrize(("points", "plan"), [
    (STEADY, "KEEP, STRAIGHT"), (STANDING, "STOP, STRAIGHT"), (BRAKING, "STOP, STRAIGHT"), (LEFT, "KEEP, LEFT_TURN"),
    ([(x, -y) for x, y in LEFT], "KEEP, RIGHT_TURN"), (FASTER, "ACCELERATE, STRAIGHT")])
def test_driven_actions(points, plan):
    assert str(driven_action(points)) == plan and agrees(points, Decision(*plan.split(", ")))


def test_what_does_not_agree():
    assert not agrees(None, Decision("KEEP", "STRAIGHT")) and not agrees(STEADY, None)
    assert not agrees(STEADY, Decision("STOP", "STRAIGHT")) and not agrees(STEADY, Decision("KEEP", "LEFT_TURN"))


def test_a_lane_change_is_a_metre_aside_after_three_seconds():
    # 3.5 m to the left over 4 s; 2.6 m after 3 s
    change = [(4.0 * k, y) for k, y in zip(range(1, 9), (0.1, 0.4, 0.8, 1.4, 2.0, 2.6, 3.2, 3.5), strict=True)]
    assert agrees(change, Decision("KEEP", "LEFT_CHANGE")) and not agrees(change, Decision("KEEP", "RIGHT_CHANGE"))
    assert not agrees(change, Decision("STOP", "LEFT_CHANGE")) and not agrees(STEADY, Decision("KEEP", "LEFT_CHANGE"))
    # where the rule sees no turn, the lane is not known: it may as well be a bend
    assert agrees(change, Decision("KEEP", "STRAIGHT")) and not agrees(LEFT, Decision("KEEP", "LEFT_CHANGE"))


def test_a_slow_car_has_no_direction_from_rounded_way_points():
    # 0.5 m/s, rounded to a decimetre: single chords point 11 degrees aside
    slow = [(0.2, 0.0), (0.5, 0.1), (0.7, 0.0), (1.0, 0.1), (1.2, 0.0), (1.5, 0.1), (1.7, 0.0), (2.0, 0.1)]
    assert driven_action(slow).path == "STRAIGHT"


def test_the_interval_of_driven_scores_resamples_scenes(monkeypatch):
    # as for accuracies: the mean of four scenes, not of 32 completions, two of which score 1 in all of theirs
    monkeypatch.setattr(waypoints, "judge_written", lambda *_: {"pdms": np.repeat([[1.0], [1.0], [0.0], [0.0]], 8, 1)})
    rows = [{"id": i, "scene": i, "truth": "KEEP, STRAIGHT"} for i in range(4)]
    assert driven_scores(rows, [[None] * 8] * 4, [[None] * 8] * 4) == {"pdms": 0.5, "pdms_interval": (0.0, 1.0)}


def test_built_in_scenes_are_also_driven():
    examples = with_demonstrations(scene_examples("test", 6))
    rows = [{"id": e.id, "scene": e.scene, "truth": str(e.decision), "trajectory": e.trajectory} for e in examples]
    groups = [[text(e.trajectory, str(e.decision)), "no answer"] for e in examples]
    scores = waypoint_metrics(rows, groups)
    greedy = waypoint_metrics(rows, [group[:1] for group in groups])
    assert (scores["well_formed"], greedy["well_formed"]) == (0.5, 1.0)
    assert scores["ade"] == greedy["ade"] < 0.05                                # the rounding to a decimetre
    for name in ("pdms", "no_collision", "on_road", "progress", "time_to_collision", "comfort", "agreement"):
        assert scores[name] == pytest.approx(greedy[name] / 2) and 0.3 < greedy[name] <= 1   # unread answers earn 0
    assert greedy["pdms_interval"][0] <= greedy["pdms"] <= greedy["pdms_interval"][1]
    assert f", PDMS-like {greedy['pdms']:.4f}; 1.0000 well-formed" in waypoint_line(greedy)
