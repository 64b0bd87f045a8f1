"""Each gate open for one scene and closed for another."""
from dataclasses import replace

from data.scenes.gates import gates
from data.scenes.rollout import roll_out
from data.scenes.world import speed_band
from tests.data.scenes.test_rollout import OPEN_ROAD, number


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
