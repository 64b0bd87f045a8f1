"""The label rule on motions whose speeds, lengths and angles are worked out by hand."""
import math

import numpy as np
import pytest

from data.meta_action import (
    current_speed,
    lane_changes,
    make_track,
    meta_action,
    navigation,
    noisy_turns,
    route_length,
    speeds_at,
    turns_ahead,
)


def straight(speed, acceleration=0.0, begin=0.0, end=3.0, rate=100):
    """Along x; the acceleration acts from t = 0 on and ends at standstill."""
    times = np.arange(round(begin * rate), round(end * rate) + 1) / rate
    driving = np.maximum(times, 0.0)
    if acceleration < 0:
        driving = np.minimum(driving, -speed / acceleration)
    x = speed * np.where(times < 0, times, driving) + acceleration * driving ** 2 / 2
    return make_track(times, np.stack([x, 0 * x], -1), 0 * x)


def arc(speed, radius, end=3.0, rate=100):
    """A circle from the origin, first along x; a positive radius bends to the left."""
    times = np.arange(round(end * rate) + 1) / rate
    angles = speed * times / radius
    return make_track(times, radius * np.stack([np.sin(angles), 1 - np.cos(angles)], -1), angles)


def label(track, **options):
    return str(meta_action(track, **options).decision)


# ---------------------------------------------------------------- speed

@pytest.mark.parametrize("speed, acceleration, expected", [
    (10, 0, "KEEP"),
    (5, 0.30, "KEEP"),              # + 0.9 m/s, the limit is 1.0
    (5, 0.40, "ACCELERATE"),        # + 1.2 m/s
    (12, 0.55, "KEEP"),             # + 1.65 m/s, the limit is 0.15 * 12 = 1.8
    (12, 0.65, "ACCELERATE"),       # + 1.95 m/s
    (12, -0.65, "DECELERATE"),
    (5, -0.40, "DECELERATE"),
    (0, 1.0, "ACCELERATE"),         # 0 to 3 m/s
    (5.1, -1.5, "DECELERATE"),      # 5.1 - 4.5 = 0.6 m/s are left
    (4.9, -1.5, "STOP"),            # 0.4 m/s are left
    (8, -3.5, "STOP"),
    (0, 0, "STOP"),
    (0.9, 0, "STOP"),               # never as fast as 1.0 m/s
    (1.1, 0, "KEEP"),
    (0, 0.3, "STOP"),               # 0 to 0.9 m/s: still waiting
])
def test_speed_action(speed, acceleration, expected):
    assert label(straight(speed, acceleration)) == f"{expected}, STRAIGHT"
    assert label(straight(speed, acceleration, begin=-2, end=5)) == f"{expected}, STRAIGHT"   # more is recorded


def test_statistics_of_constant_acceleration():
    # 5 + 1.2 t: 8.6 m/s after 3 s; 5 * 3 + 1.2 * 9 / 2 = 20.4 m; limit max(1, .15 * 5) = 1
    facts = meta_action(straight(5, 1.2)).statistics
    assert facts == pytest.approx({"speed_start": 5, "speed_end": 8.6, "speed_top": 8.6, "speed_change": 3.6,
                                   "change_limit": 1, "length": 20.4, "heading_change": 0, "curvature": 0}, abs=2e-3)


def test_keyframes_alone_give_the_same_labels():
    # 2 Hz instead of 12 Hz: the labels stay, also with the origin's own speed in the comparison
    for speed, acceleration, expected in ((10, 0, "KEEP"), (5, 1.2, "ACCELERATE"), (10, -1.5, "DECELERATE"),
                                          (8, -3.5, "STOP")):
        assert label(straight(speed, acceleration, begin=-1, end=4, rate=2)) == f"{expected}, STRAIGHT"


def test_jitter_of_a_standing_car_is_no_motion():
    # 1 cm to and fro at 12 Hz is a path of 0.12 m/s; as a chord over half a second it is next to nothing
    times = np.arange(61) / 12
    jitter = 0.01 * (-1.0) ** np.arange(61)
    track = make_track(times, np.stack([jitter, jitter], -1), 0 * times)
    assert meta_action(track, 1.0).statistics["length"] < 0.2
    assert label(track, start=1.0) == "STOP, STRAIGHT"


def test_speed_is_exact_at_both_ends_of_a_record():
    # v = 2 + t on [0, 3]
    assert speeds_at(straight(2, 1), np.array([0.0, 0.1, 1.5, 3.0])) == pytest.approx([2, 2.1, 3.5, 5], abs=1e-6)


def test_current_speed_does_not_look_ahead():
    # 6 m/s up to now, then a hard brake: the box around now has (6 + 5.5) / 2 of it, the past alone has 6
    braking = straight(6, -4, begin=-2, end=3)
    assert current_speed(braking, 0.0) == pytest.approx(6.0, abs=1e-6)
    assert speeds_at(braking, np.array([0.0]))[0] == pytest.approx(5.75, abs=0.01)
    assert current_speed(straight(6, -4), 0.0) == pytest.approx(6.0, abs=1e-6)         # no past: carried back


# ---------------------------------------------------------------- path

@pytest.mark.parametrize("speed, radius, expected", [
    (5, 12, "LEFT_TURN"),           # 15 m / 12 m = 71.6 degrees
    (4, -8, "RIGHT_TURN"),          # 12 m / 8 m = 85.9 degrees
    (10, 100, "STRAIGHT"),          # 30 / 100 = 17.2 degrees, R 100
    (10, 50, "STRAIGHT"),           # 34.4 degrees, but R 50 is wider than 40
    (10, 38, "LEFT_TURN"),          # 45.2 degrees, R 38
    (3, 30, "STRAIGHT"),            # tight, but only 9 / 30 = 17.2 degrees
    (3, -24, "RIGHT_TURN"),         # 21.5 degrees
])
def test_turns(speed, radius, expected):
    assert label(arc(speed, radius)) == f"KEEP, {expected}"


def test_stop_within_two_metres_does_not_turn():
    # 0.9 m/s for 3 s are 2.7 m on a 4 m circle, 38.7 degrees; 0.62 m/s are 1.86 m, 26.6 degrees
    assert label(arc(0.9, 4)) == "STOP, LEFT_TURN"
    assert label(arc(0.62, 4)) == "STOP, STRAIGHT"


def test_short_way_with_a_start_may_turn():
    # from rest to 1.3 m/s: 1.95 m on a 4 m circle, 27.9 degrees; no STOP, so the 2 m neither forbid nor are near
    times = np.arange(301) / 100
    angles = 1.3 / 3 * times ** 2 / 2 / 4
    action = meta_action(make_track(times, 4 * np.stack([np.sin(angles), 1 - np.cos(angles)], -1), angles))
    assert str(action.decision) == "ACCELERATE, LEFT_TURN" and action.ambiguous is False


def test_frame_does_not_matter_but_its_hand_does():
    track = arc(5, 12)
    spin = np.array([[math.cos(2), math.sin(2)], [-math.sin(2), math.cos(2)]])
    turned = make_track(track.times + 7, track.positions @ spin + [400, 1200], track.headings + 2)
    assert label(turned, start=7.0) == "KEEP, LEFT_TURN"
    mirrored = make_track(track.times, track.positions * [1, -1], -track.headings)
    assert label(mirrored) == "KEEP, RIGHT_TURN"


def test_headings_may_jump_by_a_whole_turn():
    track = arc(5, 12)
    wrapped = (track.headings + 3.0 + math.pi) % (2 * math.pi) - math.pi
    assert label(make_track(track.times, track.positions, wrapped)) == "KEEP, LEFT_TURN"


# ---------------------------------------------------------------- ambiguity

@pytest.mark.parametrize("track, expected", [
    (straight(10), False),
    (straight(10, 0.45), True),     # + 1.35 of 1.5 m/s: 90 %
    (straight(10, 0.40), False),    # + 1.2: 80 %
    (straight(10, 0.55), True),     # + 1.65: 110 %
    (straight(10, 0.60), False),    # + 1.8: 120 %
    (straight(5.05, -1.5), True),   # 0.55 of 0.5 m/s
    (straight(1.1), True),          # 1.1 of 1.0 m/s
    (straight(1.2), False),
    (arc(6, 50), True),             # 18 / 50 = 20.6 of 20 degrees
    (arc(10, 38), True),            # 0.0263 of 0.025 1/m
    (arc(5, 12), False),
])
def test_ambiguous_near_a_threshold(track, expected):
    assert meta_action(track).ambiguous is expected


# ---------------------------------------------------------------- lane changes

def shifted(speed, seconds, metres=3.5, begin=5.0, end=15.0):
    """Straight on, then a smooth shift of `metres` from `begin` on."""
    times = np.arange(round(end * 12) + 1) / 12
    u = np.clip((times - begin) / seconds, 0, 1)
    positions = np.stack([speed * times, metres * (10 * u ** 3 - 15 * u ** 4 + 6 * u ** 5)], -1)
    return make_track(times, positions, np.arctan(30 * metres / seconds * (u ** 2 - 2 * u ** 3 + u ** 4) / speed))


def test_lane_change_is_found_and_opt_in():
    for metres, name in ((3.5, "LEFT_CHANGE"), (-3.5, "RIGHT_CHANGE")):
        track = shifted(10, 4, metres)
        events = lane_changes(track)
        assert len(events) == 1 and 5 <= events[0].start and events[0].end <= 9.01
        assert label(track, start=5.0) == "KEEP, STRAIGHT"
        assert label(track, start=5.0, changes=events) == f"KEEP, {name}"
        assert label(track, start=1.0, changes=events) == "KEEP, STRAIGHT"      # begins after these 3 s
        assert label(track, start=8.0, changes=events) == "KEEP, STRAIGHT"      # u = .75: 0.36 m of it are left
        assert label(track, start=9.0, changes=events) == "KEEP, STRAIGHT"      # is over


def test_no_lane_change_on_straights_curves_and_turns():
    turn = arc(5, 12, end=3.77)                                                 # a right angle: 18.85 m
    there = [math.pi / 2] * 60
    corner = make_track(np.arange(len(turn.times) + 60) / 100,
                        np.concatenate([turn.positions, turn.positions[-1] + [[0, 0.05 * i] for i in range(1, 61)]]),
                        np.concatenate([turn.headings, there]))
    for track in (straight(10, end=15), arc(12, 100, end=15), arc(15, -330, end=15), corner,
                  shifted(10, 4, metres=1.0)):
        assert lane_changes(track) == ()


def test_sharp_shift_is_no_lane_change():
    # steepest slope 15 / 8 * 3.5 m / (6 m/s * 4 s) = 0.273: 15.3 degrees, more than 12; at 8 m/s 11.6
    assert lane_changes(shifted(6, 4)) == ()
    assert len(lane_changes(shifted(8, 4))) == 1


def test_no_lane_change_is_seen_on_a_bend():
    # the same shift on R 100: 2.5 s at 10 m/s turn the car by 14 degrees; parallel lines may differ by 5
    straight_on = shifted(10, 4)
    headings = straight_on.headings + 0.1 * straight_on.times
    steps = 10 / 12 * np.stack([np.cos(headings), np.sin(headings)], -1)
    assert len(lane_changes(straight_on)) == 1
    assert lane_changes(make_track(straight_on.times, np.cumsum(steps, axis=0), headings)) == ()


def test_s_bend_is_taken_for_a_lane_change():
    # A limit, stated in docs/meta_actions.md: 2 s of R 150 each way at 10 m/s shift the car by 2 * 20^2 / 300 = 2.7 m
    times = np.arange(15 * 12 + 1) / 12
    headings = np.interp(times, [0, 5, 7, 9, 15], [0, 0, 20 / 150, 0, 0])
    steps = 10 / 12 * np.stack([np.cos(headings), np.sin(headings)], -1)
    assert len(lane_changes(make_track(times, np.cumsum(steps, axis=0), headings))) == 1


# ---------------------------------------------------------------- route

def corner_route(before, radius, after, side=1, speed=10.0):
    """Straight for `before` m, a right angle, straight for `after` m."""
    bend = radius * math.pi / 2
    times = np.arange(round((before + bend + after) / speed * 12) + 1) / 12
    headings = side * np.clip((speed * times - before) / radius, 0, math.pi / 2)
    steps = speed / 12 * np.stack([np.cos(headings), np.sin(headings)], -1)
    return make_track(times, np.cumsum(steps, axis=0), headings)


def test_turn_ahead_and_how_far_the_route_is_known():
    # 42 m straight; 5 degrees of R 12 are 1.05 m, so the turn is felt at 43 to 44 m; in all 42 + 18.8 + 60 = 120.8 m
    track = corner_route(42, 12, 60, side=-1)
    [(distance, side)] = turns_ahead(track)
    assert side == "right" and distance == pytest.approx(43.5, abs=1.0)
    assert route_length(track) == pytest.approx(120, abs=1)
    assert [round(distance) for distance, _ in turns_ahead(track, start=2.0)] == pytest.approx([23.5], abs=1)
    assert turns_ahead(track, start=7.0) == []                                  # 70 m: behind it
    assert turns_ahead(arc(10, 100, end=10)) == []                              # 17 degrees in 30 m
    assert turns_ahead(arc(10, 40, end=6))[0][1] == "left"                      # 43 degrees in 30 m


def test_navigation_command():
    assert navigation([], 250) == {"100m": "Straight", "200m": "Straight"}
    assert navigation([], 150) == {"100m": "Straight"}
    assert navigation([], 0) == {"100m": "Straight"}
    assert navigation([(40, "right"), (60, "left")], 120) == {"100m": "Turn right"}
    assert navigation([(100, "left")], 120) == {"100m": "Straight", "200m": "Turn left"}
    assert navigation([(99, "left"), (150, "right"), (250, "left")], 300) == {"100m": "Turn left",
                                                                             "200m": "Turn right"}


def test_noisy_turns():
    # 40 * .75 - 20 = +10 m; .5 >= .03 keeps the side. 40 * 0 - 20 = -20 m, not below 0; .01 < .03 exchanges it
    assert noisy_turns([(50, "left"), (12, "right")], iter([.75, .5, 0, .01])) == [(60.0, "left"), (0.0, "left")]


# ---------------------------------------------------------------- faults

def test_the_horizon_must_be_covered():
    with pytest.raises(ValueError, match="from 0.00 to 2.50 s and does not cover 3.0 s from 0.00 s on"):
        meta_action(straight(5, end=2.5))
    with pytest.raises(ValueError, match="leave this moment out"):
        meta_action(straight(5, end=9), start=-1.0)


@pytest.mark.parametrize("times, positions, headings, told", [
    ([0], [[0, 0]], [0], "N >= 2"),
    ([0, 1], [[0, 0, 0], [1, 0, 0]], [0, 0], r"got \(2,\), \(2, 3\) and \(2,\)"),
    ([0, 0], [[0, 0], [1, 0]], [0, 0], "drop repeated times"),
    ([0, 1], [[0, 0], [float("nan"), 0]], [0, 0], "finite numbers"),
    ([0, 1], [[0, 0], [1, 0]], [0], r"and \(1,\)"),
])
def test_malformed_tracks(times, positions, headings, told):
    with pytest.raises(ValueError, match=told):
        make_track(times, positions, headings)
