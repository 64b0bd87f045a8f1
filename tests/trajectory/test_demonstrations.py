"""The imitated driver: figures that were fixed before any reinforcement learning, and single plans."""

import pytest
import torch

from data.scenes import scene_examples
from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS
from trajectory.demonstrations import CALM, demonstrate, follow, longitudinal, reach
from trajectory.field import make_field
from trajectory.kinematics import drive, names
from trajectory.score import score


def plan(speed, path):
    return torch.tensor([[[SPEED_ACTIONS.index(speed), PATH_ACTIONS.index(path)]]])


def calm(**changes):
    return {name: torch.full((1, 1), float(value)) for name, value in {**CALM, **changes}.items()}


def test_he_drives_well_and_now_and_then_collides():
    """On 1,000 test scenes: PDMS-like .819, no collision .898, on road .998, comfort .956; here on 300 of them."""
    examples = scene_examples("test", 300)
    field = make_field(examples)
    controls, driven = demonstrate(examples, field, seed=0)
    motion = drive(controls[:, None], field)
    found = score(motion, field, reach(field), driven)
    means = {name: part.mean().item() for name, part in vars(found).items()}
    assert means["pdms"] == pytest.approx(0.82, abs=0.03)
    assert 0.86 < means["no_collision"] < 0.92
    assert means["on_road"] > 0.98 and means["comfort"] > 0.93
    assert means["agreement"] == 1.0                        # the named plan is the one that is driven


def test_equal_seeds_give_equal_drives():
    examples = scene_examples("sft", 8)
    field = make_field(examples)
    one, two, other = (demonstrate(examples, field, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_stop_ends_before_the_wall(field):
    # the wall is 15 m ahead of the bumper, the gap 1 m: the bumper ends 14 m on, give or take the easing
    scene = field(speed=8.0, boxes=[(18.7, 20.0, -20.0, 0.0, 0.0, 0.5, 1.0)])
    motion = follow(plan("STOP", "STRAIGHT"), scene, calm())
    assert motion.x[0, 0, -1].item() == pytest.approx(14.0, abs=1.0)
    assert motion.speed[0, 0, -1] < 0.5


def test_he_stops_before_an_oncoming_car(field):
    # it is 24 m ahead of the bumper and comes on at 4 m/s: 8 m ahead after 4 s, of which a gap of 1 m is kept
    scene = field(speed=6.0, boxes=[(27.7, 0.95, -0.95, -4.0, 0.0, 4.5, 1.0)])
    motion = follow(plan("STOP", "STRAIGHT"), scene, calm())
    assert motion.x[0, 0, -1].item() == pytest.approx(7.0, abs=1.0)
    assert score(motion, scene, reach(scene)).no_collision.item() == 1
    assert reach(scene).item() > 3


def test_a_lane_change_ends_in_the_next_lane(field):
    scene = field(speed=10.0, left=5.25)
    motion = follow(plan("KEEP", "LEFT_CHANGE"), scene, calm())
    assert motion.y[0, 0, -1].item() == pytest.approx(3.5, abs=0.2)
    assert abs(motion.heading[0, 0, -1].item()) < 0.05


def test_a_turn_slows_down_and_turns(field):
    # at 8 m/s a radius of 8 m would need 8 m/s2 sideways; the driver accepts 4, so 5.7 m/s
    scene = field(speed=8.0, entry=3.7 + 12.0, turn=-1.0)
    motion = follow(plan("KEEP", "RIGHT_TURN"), scene, calm())
    assert motion.heading[0, 0, -1].item() < -1.2
    assert motion.speed[0, 0, 25:].max() < 6.2
    assert PATH_ACTIONS[names(motion, scene)[0, 0, 1]] == "RIGHT_TURN"


@pytest.mark.parametrize(("name", "speed", "acceleration"), [
    ("ACCELERATE", 14.9, 1.2), ("ACCELERATE", 15.1, 0.0),   # above 15 m/s he accelerates no further
    ("DECELERATE", 15.1, -1.5),
    ("STOP", 3.0, -3.5), ("STOP", 2.0, -3.25), ("STOP", 1.0, -1.65)])           # at most 1.6 v + .05
def test_how_hard_he_accelerates_and_brakes(field, name, speed, acceleration):
    x, v = torch.zeros(1, 1), torch.full((1, 1), speed)
    found = longitudinal(plan(name, "STRAIGHT"), x, v, field(speed=speed), calm())
    assert found.item() == pytest.approx(acceleration, abs=1e-6)


def test_reach(field):
    # a free lane at 8 m/s: ACCELERATE at 1.2 m/s2 gives 32 + 9.6 m; before a wall at 12 m the best safe way is shorter
    assert reach(field(speed=8.0)).item() == pytest.approx(41.6, abs=0.1)
    assert 9 < reach(field(speed=8.0, boxes=[(15.7, 20.0, -20.0, 0.0, 0.0, 0.5, 1.0)])).item() < 12.1
