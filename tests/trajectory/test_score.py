"""Every factor of the score on a drawn case."""

import math

import pytest
import torch

from trajectory.kinematics import drive
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


def test_a_wall_is_hit_or_not(field, constant):
    # at 8 m/s a wall 12 m ahead is met after 1.5 s; stopping at -4 m/s2 takes 8 m
    scene = field(boxes=[wall(12.0)])
    assert value(no_collision(drive(constant(0.0), scene), scene)) == 0.0
    assert value(no_collision(drive(constant(-4.0), scene), scene)) == 1.0
    assert value(time_to_collision(drive(constant(-4.0), scene), scene)) == 1.0


def test_odds_are_what_a_hit_costs(field, constant):
    scene = field(boxes=[wall(12.0, odds=0.8)])
    assert value(no_collision(drive(constant(0.0), scene), scene)) == pytest.approx(0.2)


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


def test_no_edge_holds_inside_a_junction(field, constant):
    motion = drive(torch.zeros(1, 1, 8, 2), field(speed=0.0))
    crossing = motion.__class__(**{**vars(motion), "x": torch.full_like(motion.x, 12.0),
                                   "y": torch.full_like(motion.y, 5.0)})
    assert value(on_road(crossing, field(entry=10.0))) == 1.0          # corners between 9 and 25 m
    assert value(on_road(crossing, field(entry=14.0))) == 0.0          # the rear ones at 11.1 m are before 13 m


def test_progress_is_a_share_of_the_reach(field, constant):
    scene = field()
    motion = drive(constant(0.0), scene)                    # 32 m
    assert value(progress(motion, scene, torch.tensor([40.0]))) == pytest.approx(0.8)
    assert value(progress(motion, scene, torch.tensor([20.0]))) == 1.0
    standing = drive(constant(-8.0), field(speed=0.0))
    assert value(progress(standing, scene, torch.tensor([1.5]))) == 1.0         # no more is possible
    assert value(progress(standing, scene, torch.tensor([2.5]))) == 0.0


def test_progress_of_a_turn_is_the_arc(field, constant):
    # the bumper is 3.7 m ahead: with the line at 8.7 m the arc of 12 m begins at 5 m; a quarter of it is 18.85 m
    scene = field(speed=5.0, entry=8.7, turn=1.0)
    motion = drive(constant(0.0), scene)
    start = motion.__class__(**{**vars(motion), "x": motion.x * 0 + 5 + 12 * math.sin(0.5),
                                "y": motion.y * 0 + 12 * (1 - math.cos(0.5))})
    assert value(route_way(start, scene)) == pytest.approx(5 + 12 * 0.5, abs=1e-3)
    beyond = motion.__class__(**{**vars(motion), "x": motion.x * 0 + 17, "y": motion.y * 0 + 15})
    assert value(route_way(beyond, scene)) == pytest.approx(5 + 12 * math.pi / 2 + 3, abs=1e-3)
    # straight on for 20 m: 15 m behind the start of the arc it is 7.2 m off it; the last place within 2.5 m counts
    assert value(route_way(motion, scene)) < 5 + 12 * 0.7


def test_comfort_limits(field, constant):
    fast = field(speed=20.0)                                # still moving after 4 s, because coming to rest is a jerk
    assert value(comfort(drive(constant(-4.0), fast))) == 1.0
    assert value(comfort(drive(constant(-4.2), fast))) == 0.0           # -4.05 m/s2
    assert value(comfort(drive(constant(2.5), field()))) == 0.0         # 2.40
    assert value(comfort(drive(constant(0.0, 0.05), field(speed=10.0)))) == 0.0         # 100 * .05 = 5.0 > 4.89
    assert value(comfort(drive(constant(0.0, 0.048), field(speed=10.0)))) == 1.0        # 4.8
    broken = violations(drive(constant(-4.2), fast))
    assert [name for name, there in broken.items() if there.any()] == ["acceleration"]


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
