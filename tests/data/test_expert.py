"""The simulated expert by hand: roll-outs, gates, terms, style and noise, causes."""
from dataclasses import replace

import numpy as np
import pytest

from data.scenes import PRIORS, Scene, acceptable_plans, label_distribution, reason, sample_scene
from data.scenes.causes import causes, explanation, only
from data.scenes.expert import STYLES, neighbours, plan_odds, plan_scores
from data.scenes.gates import drivable, gates
from data.scenes.geometry import SPEEDS, obstacles
from data.scenes.priors import scene_seeds
from data.scenes.rollout import ACCELERATIONS, CANDIDATES, TIMES, label, roll_out, speed_profile
from data.scenes.scores import scores, time_to_collision
from data.scenes.world import BAND_TENTHS, speed_band
from rewards import Decision

OPEN_ROAD = Scene(seed=1, road="straight", light="none", lead="none", braking=False, pedestrian="none", blockage="none",
                  left_lane="none", right_lane="none", night=False, speed=8.0, turn_100="straight", turn_200="straight")


def number(plan):
    return CANDIDATES.index(Decision(*plan.split(", ")))


def end(band, road, plan):
    """x, y and speed after 3 s, and the plan's name."""
    rollouts, row = roll_out(band, road), number(plan)
    return rollouts.x[row, -1], rollouts.y[row, -1], rollouts.speeds[row, -1], str(rollouts.labels[row])


# ---------------------------------------------------------------- roll-outs

@pytest.mark.parametrize("band, plan, way, speed, named", [
    ("medium", "KEEP, STRAIGHT", 24.0, 8.0, "KEEP, STRAIGHT"),                 # 8 * 3
    ("medium", "ACCELERATE, STRAIGHT", 29.4, 11.6, "ACCELERATE, STRAIGHT"),    # 24 + 1.2 * 9 / 2; 8 + 3.6
    ("medium", "DECELERATE, STRAIGHT", 17.25, 3.5, "DECELERATE, STRAIGHT"),    # 24 - 1.5 * 9 / 2; 8 - 4.5
    ("medium", "STOP, STRAIGHT", 9.143, 0.0, "STOP, STRAIGHT"),                # 8^2 / (2 * 3.5)
    ("fast", "STOP, STRAIGHT", 23.25, 2.5, "DECELERATE, STRAIGHT"),            # 39 - 3.5 * 9 / 2; 13 - 10.5: rolls
    ("slow", "DECELERATE, STRAIGHT", 3.0, 0.0, "STOP, STRAIGHT"),              # 3^2 / (2 * 1.5)
    ("standing", "KEEP, STRAIGHT", 0.0, 0.0, "STOP, STRAIGHT"),
    ("standing", "ACCELERATE, STRAIGHT", 5.4, 3.6, "ACCELERATE, STRAIGHT")])
def test_straight_roll_outs(band, plan, way, speed, named):
    assert end(band, "straight", plan) == (pytest.approx(way, abs=0.01), 0.0, pytest.approx(speed), named)


def test_turns():
    # left at 3 m/s: in steps of .3 m the line at 2.5 m is passed in the one from 2.4; 6.6 m of arc on 12 m are .55 rad:
    # x = 2.4 + 12 sin .55 = 8.672, y = 12 (1 - cos .55) = 1.770
    x, y, _, named = end("slow", "junction_near", "KEEP, LEFT_TURN")
    assert (x, y) == (pytest.approx(8.672, abs=0.01), pytest.approx(1.770, abs=0.01)) and named == "KEEP, LEFT_TURN"
    # right: radius 8, .825 rad: y = -8 (1 - cos .825) = -2.571
    assert end("slow", "junction_near", "KEEP, RIGHT_TURN")[1] == pytest.approx(-2.571, abs=0.01)
    assert end("medium", "junction_near", "STOP, LEFT_TURN")[3] == "STOP, STRAIGHT"       # at rest before the line
    assert end("slow", "junction_far", "KEEP, LEFT_TURN")[3] == "KEEP, STRAIGHT"          # the turn is 25 m ahead


def test_changes():
    rollouts, row = roll_out("medium", "straight"), number("KEEP, LEFT_CHANGE")
    assert rollouts.y[row, 15] == pytest.approx(1.75, abs=0.05)      # half-way after half the time
    assert rollouts.y[row, -1] == pytest.approx(3.5, abs=0.05)
    assert (np.diff(rollouts.y[row]) > -1e-9).all()
    assert end("medium", "straight", "KEEP, RIGHT_CHANGE")[1] == pytest.approx(-3.5, abs=0.05)
    assert end("medium", "straight", "STOP, LEFT_CHANGE")[3] == "STOP, STRAIGHT"          # less than 1 m aside


def test_a_bend_is_no_turn():
    assert end("fast", "curve_left", "KEEP, STRAIGHT")[3] == "KEEP, STRAIGHT"             # radius 45 m
    assert roll_out("fast", "curve_right").curvatures[0, 0] == pytest.approx(-1 / 45)


@pytest.mark.parametrize("band", SPEEDS)
def test_bands_are_cut_where_names_change(band):
    """At every speed of a band each candidate on a straight road is called as at the speed that stands for the band."""
    low, high = BAND_TENTHS[band]
    for tenths in {low, low + 1, (low + high) // 2, high - 1, high} & set(range(low, high + 1)):
        for speed, acceleration in ACCELERATIONS.items():
            profile = speed_profile(tenths / 10, acceleration)
            assert label(profile, np.zeros(31), 0.0, Decision(speed, "STRAIGHT")) == roll_out(
                band, "straight").labels[number(f"{speed}, STRAIGHT")], tenths
    assert speed_band(low / 10) == speed_band(high / 10) == speed_band(SPEEDS[band]) == band and len(TIMES) == 31


# ---------------------------------------------------------------- gates: each open for one scene, closed for another

def gate(name, plan, **changes):
    scene = replace(OPEN_ROAD, **changes)
    return gates(scene, roll_out(speed_band(scene.speed), scene.road))[name][number(plan)]


def test_drivable():
    assert gate("drivable", "KEEP, LEFT_CHANGE", left_lane="free") == 1
    assert gate("drivable", "KEEP, LEFT_CHANGE", left_lane="occupied") == 0
    assert gate("drivable", "KEEP, LEFT_CHANGE", right_lane="free") == 0
    assert gate("drivable", "KEEP, LEFT_CHANGE", left_lane="free", road="junction_near") == 0
    assert gate("drivable", "STOP, LEFT_CHANGE", left_lane="free") == 0                   # stands between two lanes
    assert gate("drivable", "KEEP, LEFT_TURN", road="junction_near") == 1
    assert gate("drivable", "KEEP, LEFT_TURN") == 0
    closed = {"road": "junction_near", "event": "blocked_turn", "turn_100": "left"}
    assert gate("drivable", "KEEP, LEFT_TURN", **closed) == 0 and gate("drivable", "KEEP, RIGHT_TURN", **closed) == 1
    assert gate("drivable", "KEEP, RIGHT_CHANGE", right_lane="free", event="wrong_way") == 1
    assert gate("drivable", "KEEP, LEFT_CHANGE", left_lane="free", event="wrong_way") == 0


def test_collision():
    # cones 16 m ahead: 9.1 m to a stop; 17.25 m of slowing down are too far; 24 m beside them are not
    blocked = {"blockage": "cones", "left_lane": "free"}
    assert gate("collision", "STOP, STRAIGHT", **blocked) == 1
    assert gate("collision", "DECELERATE, STRAIGHT", **blocked) == 0
    assert gate("collision", "KEEP, LEFT_CHANGE", **blocked) == 1
    # a car 8 m ahead at 8 m/s: 24 < 32. If it slows by 2 m/s2 it is at 8 + 24 - 9 = 23 m
    assert gate("collision", "KEEP, STRAIGHT", lead="near") == 1
    assert gate("collision", "KEEP, STRAIGHT", lead="near", braking=True) == 0
    assert gate("collision", "DECELERATE, STRAIGHT", lead="near", braking=True) == 1


def test_collision_after_the_three_seconds():
    # a red line 40 m ahead. KEEP: 24 + 8^2 / 5 = 36.8, 3.2 m left; ACCELERATE: 29.4 + 11.6^2 / 5 = 56.3
    far = {"road": "junction_far", "light": "red"}
    assert gate("collision", "KEEP, STRAIGHT", **far) == 1 and gate("collision", "ACCELERATE, STRAIGHT", **far) == 0


def test_stop_line():
    near = {"road": "junction_near"}                                # its line is 10.5 m ahead
    assert gate("collision", "STOP, STRAIGHT", **near, light="red") == 1
    assert gate("collision", "DECELERATE, STRAIGHT", **near, light="red") == 0
    assert gate("collision", "KEEP, STRAIGHT", **near, light="green") == 1
    assert gate("collision", "KEEP, STRAIGHT", **near, light="red", event="waved_through") == 1
    assert gate("collision", "KEEP, STRAIGHT", **near, light="green", event="ambulance") == 0
    # yellow: 8^2 / 5 + .5 = 13.3 m > 10.5 is too late to stop gently; 3^2 / 5 + .5 = 2.3 m < 2.5 is not
    assert gate("collision", "KEEP, STRAIGHT", **near, light="yellow") == 1
    assert gate("collision", "KEEP, STRAIGHT", **near, light="yellow", speed=3.0) == 0


def test_grip_and_limit():
    # 13^2 / 12 = 14.1 m/s2 in a left turn; slowing down from 8 m/s, 8^2 - 3 * 10.5 = 32.5 at the line: 32.5 / 12 = 2.7
    assert gate("grip", "KEEP, LEFT_TURN", road="junction_near", speed=13.0) == 0
    assert gate("grip", "DECELERATE, LEFT_TURN", road="junction_near") == 1
    assert gate("limit", "ACCELERATE, STRAIGHT", speed=13.0) == 0                         # 16.6 > 1.1 * 13.9
    assert gate("limit", "ACCELERATE, STRAIGHT") == 1                                     # 11.6


# ---------------------------------------------------------------- terms and scores

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


# ---------------------------------------------------------------- style and noise

def test_odds_of_two_plans():
    # ACCELERATE 1 and KEEP .94752, apart by .05248; ACCELERATE gains -.08, 0 and .08 with the style; over T = .05:
    #   cautious -.5504 -> .3658    normal 1.0496 -> .7407    assertive 2.6496 -> .9340     (1 / (1 + exp(-d)))
    # .3 * .3658 + .5 * .7407 + .2 * .9340 = .6669
    odds = plan_odds(OPEN_ROAD)
    fast, same = Decision("ACCELERATE", "STRAIGHT"), Decision("KEEP", "STRAIGHT")
    assert odds == pytest.approx({fast: .6669, same: .3331}, abs=1e-4) and list(odds) == [fast, same]
    # each is the other's neighbour in speed: ACCELERATE .95 * .6669 + .04 * .5 * .3331 + .0005 = .6407, KEEP .3303;
    # changes: .04 * .5 * .5 * .6669 + .0005 = .00717 beside ACCELERATE, .00383 beside KEEP; all else .01 / 20
    q = label_distribution(OPEN_ROAD)
    assert (q[fast], q[same]) == (pytest.approx(.6407, abs=1e-4), pytest.approx(.3303, abs=1e-4))
    assert q[Decision("ACCELERATE", "LEFT_CHANGE")] == pytest.approx(.00717, abs=1e-5)
    assert q[Decision("KEEP", "RIGHT_CHANGE")] == pytest.approx(.00383, abs=1e-5)
    assert q[Decision("STOP", "STRAIGHT")] == q[Decision("KEEP", "LEFT_TURN")] == pytest.approx(.0005)
    assert sum(share for share, _ in STYLES.values()) == pytest.approx(1.0)


def test_neighbours():
    assert neighbours(Decision("STOP", "LEFT_CHANGE")) == {Decision("DECELERATE", "LEFT_CHANGE"): .5,
                                                           Decision("STOP", "STRAIGHT"): .5}
    assert neighbours(Decision("KEEP", "LEFT_TURN")) == {Decision("ACCELERATE", "LEFT_TURN"): 1.0}


# ---------------------------------------------------------------- causes

RED = {"road": "junction_near", "light": "red"}


def test_a_cause_is_what_changes_the_plan():
    assert causes(replace(OPEN_ROAD, **RED)) == ["light"]
    assert causes(replace(OPEN_ROAD, lead="far")) == []                        # ACCELERATE with it and without it
    assert causes(replace(OPEN_ROAD, blockage="cones", left_lane="free")) == ["blockage", "left_lane"]
    assert causes(replace(OPEN_ROAD, **RED, event="waved_through")) == ["event"]
    assert causes(replace(OPEN_ROAD, turn_100="left", road="junction_near")) == ["route"]


def test_two_things_that_ask_for_the_same():
    # neither is a cause by itself; the more urgent one suffices
    scene = replace(OPEN_ROAD, **RED, pedestrian="crossing")
    assert causes(scene) == [] and explanation(scene, Decision("STOP", "STRAIGHT")) == ["pedestrian"]
    assert acceptable_plans(only(scene, ["light"])) == (Decision("STOP", "STRAIGHT"),)


def test_a_plan_from_noise_gets_no_support():
    scene = replace(OPEN_ROAD, **RED, left_lane="free")
    assert reason(scene, Decision("KEEP", "LEFT_CHANGE")) in {
        f"{opening} and my speed is moderate, {joint} I keep my speed and change left."
        for opening in ("The light is red", "A red light is right ahead", "I see a red light", "The near light is red")
        for joint in ("so", "hence")}


@pytest.mark.parametrize("scene, plan, facts", [
    (replace(OPEN_ROAD, blockage="cones", left_lane="free", speed=3.0), "KEEP, LEFT_CHANGE",
     "I am slow and the left lane is free, "),
    (replace(OPEN_ROAD, blockage="cones"), "STOP, STRAIGHT", "my speed is moderate and no other lane is free, "),
    (replace(OPEN_ROAD, road="junction_far", turn_100="left", left_lane="occupied", speed=13.0), "KEEP, STRAIGHT",
     "I am fast and no left lane is free, "),
    (replace(OPEN_ROAD, road="junction_near", turn_100="right"), "DECELERATE, RIGHT_TURN",
     "my speed is moderate and the route turns right, "),
    (replace(OPEN_ROAD, road="junction_far", turn_100="right", right_lane="free", speed=13.0), "KEEP, RIGHT_CHANGE",
     "I am fast and the right lane I need is free, "),
    (replace(OPEN_ROAD, turn_200="right", right_lane="free", speed=13.0), "KEEP, RIGHT_CHANGE",
     "I am fast and the right lane I want is free, ")])
def test_what_a_path_rests_on(scene, plan, facts):
    assert facts in reason(scene, Decision(*plan.split(", ")))


@pytest.mark.parametrize("fact", [{"night": True}, {"weather": "fog"}, {"seed": 9}])
def test_what_has_no_influence(fact):
    assert drivable(OPEN_ROAD, roll_out("medium", "straight"))[0] == 1
    assert label_distribution(replace(OPEN_ROAD, **fact)) == label_distribution(OPEN_ROAD)
