"""Every factor of the score on a drawn case."""

import math

import pytest
import torch

from trajectory.field import Field
from trajectory.kinematics import Motion, drive
from trajectory.score import (
    comfort,
    no_collision,
    on_road,
    progress,
    route_way,
    score,
    time_to_collision,
    violations,
)


def wall(at, odds=1.0):
    """A wall across all lanes whose near side is `at` metres ahead of the bumper (3.7 m ahead of the rear axle)."""
    return (at + 3.7, 20.0, -20.0, 0.0, 0.0, 0.5, odds)


def value(part):
    return part[0, 0].item()


def placed(motion, **changes):
    """The motion with other parts, constant over time."""
    return Motion(**{**vars(motion), **{name: torch.full_like(getattr(motion, name), number)
                                        for name, number in changes.items()}})


def mirrored(motion, scene):
    """Left and right exchanged: y, headings and curvatures change their sign."""
    near, left, right, *others = scene.boxes.unbind(-1)
    turned = {"road": -scene.road, "left": scene.right, "right": scene.left, "closed_left": scene.closed_right,
              "closed_right": scene.closed_left, "boxes": torch.stack([near, -right, -left, *others], dim=-1)}
    signs = {name: -getattr(motion, name) for name in ("y", "heading", "curvature")}
    return Motion(**{**vars(motion), **signs}), Field(**{**vars(scene), **turned})


def test_a_wall_is_hit_or_not(field, constant):
    # at 8 m/s a wall 12 m ahead is met after 1.5 s; stopping at -4 m/s2 takes 8 m
    scene = field(boxes=[wall(12.0)])
    assert value(no_collision(drive(constant(0.0), scene), scene)) == 0.0
    assert value(no_collision(drive(constant(-4.0), scene), scene)) == 1.0
    assert value(time_to_collision(drive(constant(-4.0), scene), scene)) == 1.0


def test_odds_are_what_a_hit_costs(field, constant):
    scene = field(boxes=[wall(12.0, odds=0.8)])
    assert value(no_collision(drive(constant(0.0), scene), scene)) == pytest.approx(0.2)
    two = field(boxes=[wall(12.0, odds=0.8), wall(20.0, odds=0.5)])             # the worse of the two
    assert value(no_collision(drive(constant(0.0), two), two)) == pytest.approx(0.2)
    soon = field(boxes=[wall(38.0, odds=0.8), wall(38.5, odds=0.5)])            # both 7.2 m or less from the bumper
    assert value(time_to_collision(drive(constant(0.0), soon), soon)) == pytest.approx(0.2)


def test_a_car_ahead_that_drives_as_fast_is_not_met(field, constant):
    ahead = (3.7 + 8.0, 0.95, -0.95, 8.0, 0.0, 4.6, 1.0)
    scene = field(boxes=[ahead])
    motion = drive(constant(0.0), scene)
    assert value(no_collision(motion, scene)) == 1.0 and value(time_to_collision(motion, scene)) == 1.0
    # if it brakes at 2 m/s2 it stops 16 m on, 24 m ahead of the bumper, and is met after 3 s
    braking = field(boxes=[(3.7 + 8.0, 0.95, -0.95, 8.0, 2.0, 4.6, 1.0)])
    assert value(no_collision(drive(constant(0.0), braking), braking)) == 0.0


def test_a_box_beside_the_lane_is_passed(field, constant):
    scene = field(boxes=[(10.0, 3.0, 1.0, 0.0, 0.0, 4.6, 1.0)])                 # its right side is 1 m from the middle
    assert value(no_collision(drive(constant(0.0), scene), scene)) == 1.0
    closer = field(boxes=[(10.0, 3.0, 0.9, 0.0, 0.0, 4.6, 1.0)])                # the car's half width is 0.95 m
    assert value(no_collision(drive(constant(0.0), closer), closer)) == 0.0


def test_time_to_collision_sees_the_wall_before_it_is_met(field, constant):
    # at 8 m/s for 4 s the bumper is 32 m on; a wall at 38 m is 6 m away, which 0.9 s * 8 m/s = 7.2 m reaches
    scene = field(boxes=[wall(38.0)])
    motion = drive(constant(0.0), scene)
    assert value(no_collision(motion, scene)) == 1.0 and value(time_to_collision(motion, scene)) == 0.0
    far = field(boxes=[wall(39.5)])
    assert value(time_to_collision(drive(constant(0.0), far), far)) == 1.0
    line = field(lines=[wall(38.0)])                        # stopping at a line is normal: it is no partner
    assert value(time_to_collision(drive(constant(0.0), line), line)) == 1.0


@pytest.mark.parametrize(("start", "gap", "speed", "braking", "left"), [
    (8.0, 5.0, 8.0, 0.0, 1.0), (8.0, 30.0, 2.0, 0.0, 1.0),  # 5 m ahead all along; at last 6 m ahead, 5.4 m in 0.9 s
    (8.0, 29.0, 2.0, 0.0, 0.0),                             # 5 m ahead
    (8.0, 23.5, 8.0, 2.0, 1.0), (8.0, 23.0, 8.0, 2.0, 0.0),             # stands after 16 m: 7.5 or 7 m ahead, 7.2 m
    (8.0, 31.5, 8.0, 4.0, 1.0), (8.0, 31.0, 8.0, 4.0, 0.0),             # stands after 8 m and does not come back
    (0.0, 9.0, -2.0, 0.0, 1.0), (0.1, 9.0, -2.0, 0.0, 0.0)])            # 1 m off, 1.8 m: not met by who stands
def test_time_to_collision_counts_on_the_other_cars_speed(field, constant, start, gap, speed, braking, left):
    scene = field(speed=start, boxes=[(gap + 3.7, 0.95, -0.95, speed, braking, 4.6, 1.0)])
    motion = drive(constant(0.0), scene)
    assert value(no_collision(motion, scene)) == 1.0 and value(time_to_collision(motion, scene)) == left


def test_an_occupied_lane_must_not_be_entered(field, constant):
    change = torch.zeros(1, 1, 8, 2)
    change[..., :4, 1], change[..., 4:, 1] = 0.01, -0.01    # 8 m/s: about 2.3 m to the left within 4 s
    free = field(left=5.25)
    assert value(no_collision(drive(change, free), free)) == 1.0
    occupied = field(left=5.25, closed_left=True)
    assert value(no_collision(drive(change, occupied), occupied)) == 0.0
    other_side = field(left=5.25, closed_right=True)
    assert value(no_collision(drive(change, other_side), other_side)) == 1.0


def test_edges(field, constant):
    # 3.5 m to the left of the middle: the left corners are at 4.45 m
    motion = drive(constant(0.0), field())
    aside = motion.__class__(**{**vars(motion), "y": torch.full_like(motion.y, 3.5)})
    assert value(on_road(aside, field())) == 0.0            # a lane of its own ends at 1.75 m
    assert value(on_road(aside, field(left=5.25))) == 1.0
    assert value(on_road(aside, field(left=4.4))) == 0.0
    assert value(on_road(motion, field())) == 1.0


@pytest.mark.parametrize(("x", "inside"), [(9.85, 0.0), (9.95, 1.0), (21.25, 1.0), (21.35, 0.0)])
def test_no_edge_holds_inside_a_junction(field, constant, x, inside):
    # line at 10 m: free from 9 to 25 m. The car reaches from 0.9 m behind the axle to 3.7 m before it
    scene = field(speed=0.0, entry=10.0)
    assert value(on_road(placed(drive(constant(), scene), x=x, y=5.0), scene)) == inside


@pytest.mark.parametrize(("x", "free"), [(9.85, 0.0), (9.95, 1.0)])
def test_an_occupied_lane_ends_at_the_junction(field, constant, x, free):
    scene = field(speed=0.0, entry=10.0, left=5.25, closed_left=True)
    assert value(no_collision(placed(drive(constant(), scene), x=x, y=2.0), scene)) == free


def test_left_and_right_are_alike(field):
    """A scene and its mirror image, which differ in edges, occupied lanes, boxes, bend and named plan."""
    scene = field(road=0.01, left=5.25, closed_left=True, boxes=[(15.0, 4.0, 1.5, 0.0, 0.0, 4.6, 0.4)])
    controls = torch.randn(1, 200, 8, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.02])
    motion = drive(controls, scene)
    one = score(motion, scene, torch.tensor([30.0]), torch.tensor([[0, 2]]))                # KEEP, LEFT_CHANGE
    two = score(*mirrored(motion, scene), torch.tensor([30.0]), torch.tensor([[0, 1]]))           # RIGHT_CHANGE
    for name, part in vars(one).items():
        assert torch.equal(part, getattr(two, name)), name
        assert part.min() < part.max(), name                # each side and each fault occurs


def test_progress_is_a_share_of_the_reach(field, constant):
    scene = field()
    motion = drive(constant(0.0), scene)                    # 32 m
    assert value(progress(motion, scene, torch.tensor([40.0]))) == pytest.approx(0.8)
    assert value(progress(motion, scene, torch.tensor([20.0]))) == 1.0
    standing = drive(constant(-8.0), field(speed=0.0))
    assert value(progress(standing, scene, torch.tensor([1.5]))) == 1.0         # no more is possible
    assert value(progress(standing, scene, torch.tensor([2.5]))) == 0.0


@pytest.mark.parametrize(("side", "radius", "along", "behind", "straight_on"), [
    (1.0, 12.0, 11.0, 26.850, 12.056),                      # 5 + 12 / 2; 5 + 12 * 1.5708 + 3; 5 + 12 atan(8 / 12)
    (-1.0, 8.0, 9.0, 20.566, 10.459)])                      # 5 + 8 / 2; 5 + 8 * 1.5708 + 3; 5 + 8 atan(6.5 / 8)
def test_progress_of_a_turn_is_the_arc(field, constant, side, radius, along, behind, straight_on):
    # the bumper is 3.7 m ahead: with the line at 8.7 m the arc begins at 5 m; 28.6 degrees on, then 3 m behind it
    scene = field(speed=5.0, entry=8.7, turn=side)
    motion = drive(constant(0.0), scene)
    on = placed(motion, x=5 + radius * math.sin(0.5), y=side * radius * (1 - math.cos(0.5)))
    assert value(route_way(on, scene)) == pytest.approx(along, abs=1e-3)
    beyond = placed(motion, x=5 + radius, y=side * (radius + 3))
    assert value(route_way(beyond, scene)) == pytest.approx(behind, abs=1e-3)
    # straight on, half a metre each step: the last place within 2.5 m of the arc counts, sqrt(12^2 + 8^2) - 12 = 2.42
    # (at 8.5 m 2.71) and sqrt(8^2 + 6.5^2) - 8 = 2.31 (at 7 m 2.63)
    assert value(route_way(motion, scene)) == pytest.approx(straight_on, abs=2e-3)


# speed, then a step of acceleration and of curvature half-way, just inside the limit and just outside
LIMITS = [
    ("acceleration", 0.0, (2.39, 2.39, 0, 0), (2.41, 2.41, 0, 0)),
    ("acceleration", 0.0, (-4.04, -4.04, 0, 0), (-4.06, -4.06, 0, 0)),
    ("lateral", 10.0, (0, 0, 0.0488, 0.0488), (0, 0, 0.0490, 0.0490)),          # 100 * .0489 = 4.89
    ("jerk_along", 0.0, (-1.65, 1.65, 0, 0), (-1.66, 1.66, 0, 0)),              # 3.304 / .8 = 4.13
    ("jerk_along", 0.0, (1.65, -1.65, 0, 0), (1.66, -1.66, 0, 0)),
    ("jerk", 10.0, (0, 0, -0.0334, 0.0334), (0, 0, -0.0335, 0.0335)),           # 100 * .06696 / .8 = 8.37
    ("jerk", 10.0, (-1.6, 1.6, -0.02936, 0.02936), (-1.6, 1.6, -0.02944, 0.02944)),     # 4 and 7.34, 7.36: 8.36, 8.38
    ("yaw_rate", 4.0, (0, 0, 0.237, 0.237), (0, 0, 0.238, 0.238)),              # 4 * .2375 = .95
    ("yaw_acceleration", 2.0, (0, 0, -0.385, 0.385), (0, 0, -0.388, 0.388))]    # 2 * .772 / .8 = 1.93


@pytest.mark.parametrize(("name", "speed", "inside", "outside"), LIMITS)
def test_comfort_limits(name, speed, inside, outside):
    acceleration, curvature = torch.zeros(2, 4, 40)
    for i, (before, after, bent, bends) in enumerate((inside, outside)):
        acceleration[2 * i:2 * i + 2, :20], acceleration[2 * i:2 * i + 2, 20:] = before, after
        curvature[2 * i:2 * i + 2] = torch.tensor([bent] * 20 + [bends] * 20)
    curvature[1::2] *= -1                                   # to the right as to the left
    still = torch.zeros(1, 4, 41)
    motion = Motion(still, still, still, still + speed, acceleration[None], curvature[None])
    broken = {kind: there[0].tolist() for kind, there in violations(motion).items() if there.any()}
    assert broken == {name: [False, False, True, True]} and comfort(motion)[0].tolist() == [1, 1, 0, 0]


def test_jerk_is_a_mean_over_eight_steps(field):
    # knots 0, 0, 0, 2, ...: 2 m/s2 within 0.5 s; over 0.8 s that is at most 2 / .8 = 2.5 m/s3
    controls = torch.zeros(1, 1, 8, 2)
    controls[..., 3:, 0] = -3.5
    motion = drive(controls, field(speed=14.0))
    assert value(comfort(motion)) == 0.0                    # 3.5 / .8 = 4.375 > 4.13
    controls[..., 3:, 0] = -3.2
    assert value(comfort(drive(controls, field(speed=14.0)))) == 1.0            # 4.0


def test_the_total_by_hand(field, constant):
    # free road, 32 of 40 m: (5 * .8 + 5 + 2) / 12 = 11 / 12; KEEP, STRAIGHT named and driven: (11 + 4) / 16
    scene = field()
    found = score(drive(constant(0.0), scene), scene, torch.tensor([40.0]), torch.tensor([[0, 0]]))
    assert value(found.pdms) == pytest.approx(11 / 12) and value(found.reward) == pytest.approx(15 / 16)
    # STOP, STRAIGHT named: half of the agreement
    other = score(drive(constant(0.0), scene), scene, torch.tensor([40.0]), torch.tensor([[3, 0]]))
    assert value(other.agreement) == 0.5 and value(other.reward) == pytest.approx(13 / 16)
    none = score(drive(constant(0.0), scene), scene, torch.tensor([40.0]), torch.tensor([[-1, -1]]))
    assert value(none.reward) == pytest.approx(11 / 12) == value(none.pdms)
    crash = field(boxes=[wall(12.0)])
    assert value(score(drive(constant(0.0), crash), crash, torch.tensor([40.0])).pdms) == 0.0


def test_permuting_motions_permutes_scores(field):
    controls = torch.randn(1, 12, 8, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.5, 0.03])
    scene = field(left=5.25, boxes=[wall(20.0, odds=0.6)])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    reach = torch.tensor([30.0])
    one, two = (score(drive(part, scene), scene, reach) for part in (controls, controls[:, order]))
    for name, part in vars(one).items():
        assert torch.allclose(part[:, order], getattr(two, name), atol=1e-5), name
        assert part.min() >= 0 and part.max() <= 1
