"""Terms and scores of candidate plans, by hand."""
from dataclasses import replace

import pytest

from data.scenes import PRIORS, label_distribution, sample_scene
from data.scenes.expert import plan_odds, plan_scores
from data.scenes.geometry import obstacles
from data.scenes.priors import scene_seeds
from data.scenes.rollout import roll_out
from data.scenes.scores import scores, time_to_collision
from rewards import Decision
from tests.data.scenes.test_rollout import OPEN_ROAD, number


def test_score_of_a_free_road():
    # ACCELERATE gets farthest and has every term in full. KEEP: 24 / 29.4 = .81633, (6 * .81633 + 15) / 21 = .94752
    # DECELERATE: 17.25 / 29.4 = .58673, comfort (1.7 - 1.5) / .5 = .4: (3.52041 + 6 + .8 + 5 + 2) / 21 = .82478
    # STOP: 9.145 / 29.4 = .31105, comfort 0: (1.86633 + 13) / 21 = .70792
    best = {plan.speed: score for plan, score in plan_scores(OPEN_ROAD).items() if plan.path == "STRAIGHT"}
    assert best == pytest.approx({"ACCELERATE": 1.0, "KEEP": .94752, "DECELERATE": .82478, "STOP": .70792}, abs=1e-4)


def test_time_gap_to_the_car_ahead():
    # KEEP at 8 m/s, 8 m behind: 1.0 s, (1.0 - .4) / .8 = .75. DECELERATE ends at 3.5 m/s, 14.75 m behind: full
    scene = replace(OPEN_ROAD, lead="near")
    marks = time_to_collision(roll_out("medium", "straight"), obstacles(scene))
    assert marks[number("KEEP, STRAIGHT")] == pytest.approx(.75)
    assert marks[number("DECELERATE, STRAIGHT")] == 1.0
    # the far one, slowing by 2 m/s2, is at 23 + 15 = 38 m and has 2 m/s: 14 m at 6 m/s are 2.333 s, (2.333 - 1) / 2
    marks = time_to_collision(roll_out("medium", "straight"), obstacles(replace(scene, lead="far", braking=True)))
    assert marks[number("KEEP, STRAIGHT")] == pytest.approx(.6667, abs=1e-3)


def test_what_may_step_out_counts_by_its_odds_and_the_speed():
    # kerb 16 m ahead, odds .8: KEEP meets it at 8 m/s, 1 - 8 / 12 = 1/3: 1 - .8 * 2/3 = .46667
    marks = scores(replace(OPEN_ROAD, pedestrian="kerb")).terms["time_to_collision"]
    assert marks[number("KEEP, STRAIGHT")] == pytest.approx(.46667, abs=1e-4)
    assert marks[number("STOP, STRAIGHT")] == 1.0


def test_navigation():
    value = scores(replace(OPEN_ROAD, road="junction_near", turn_100="left")).terms["navigation"]
    assert [value[number(f"KEEP, {path}")] for path in ("STRAIGHT", "LEFT_TURN", "RIGHT_TURN")] == [0, 1, 0]
    value = scores(replace(OPEN_ROAD, turn_200="left", left_lane="free")).terms["navigation"]
    assert [value[number(f"KEEP, {path}")] for path in ("STRAIGHT", "LEFT_CHANGE")] == [.6, 1]
    value = scores(replace(OPEN_ROAD, blockage="cones")).terms["navigation"]
    assert [value[number(f"KEEP, {path}")] for path in ("STRAIGHT", "LEFT_CHANGE", "RIGHT_CHANGE")] == [1, .75, .65]


def test_progress_ends_where_the_route_is_left():
    # a turn at 26 m, 13 m/s: straight on counts 26 of its 39 m, the hardest braking 23.25 / 26 = .8942
    value = scores(replace(OPEN_ROAD, road="junction_near", turn_100="left", speed=13.0)).terms["progress"]
    assert value[number("KEEP, STRAIGHT")] == 1.0 and value[number("STOP, LEFT_TURN")] == pytest.approx(.8942, abs=1e-4)


def test_rules():
    kept = scores(replace(OPEN_ROAD, pedestrian="kerb")).terms["rules"]           # 16 m ahead, passed by both
    assert kept[number("KEEP, STRAIGHT")] == 1 and kept[number("ACCELERATE, STRAIGHT")] == 0
    assert scores(OPEN_ROAD).terms["rules"][number("ACCELERATE, STRAIGHT")] == 1
    assert scores(replace(OPEN_ROAD, speed=13.0)).terms["rules"][number("ACCELERATE, STRAIGHT")] == 0      # 16.6 m/s


def test_where_every_gate_is_closed_the_hardest_braking_is_left():
    # a cyclist 11 m ahead at 4 m/s has come to 23 m, and from 13 m/s even 3.5 m/s2 take 23.25 m
    scene = replace(OPEN_ROAD, lead="near", lead_kind="cyclist", speed=13.0)
    assert scores(scene).total.max() == 0
    assert plan_odds(scene) == {Decision("DECELERATE", "STRAIGHT"): 1.0}


@pytest.mark.parametrize("prior", PRIORS)
def test_some_plan_is_always_acceptable(prior):
    for scene in map(sample_scene, scene_seeds("val", 1000, 0, prior)):
        assert sum(plan_odds(scene).values()) == pytest.approx(1.0)
        assert sum(label_distribution(scene).values()) == pytest.approx(1.0)
