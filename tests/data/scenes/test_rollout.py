"""The candidate motions: where each ends and how the label rule names it, by hand."""

import numpy as np
import pytest

from data.scenes import Scene
from data.scenes.geometry import SPEEDS
from data.scenes.rollout import ACCELERATIONS, CANDIDATES, TIMES, label, roll_out, speed_profile
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
