"""Written way-points: the two frames, driving them, their score, and those of demonstrations."""

import math

import pytest
import torch

from data.scenes import scene_examples
from rewards import Decision
from rewards.waypoints import write_waypoints
from trajectory.field import make_field
from trajectory.kinematics import drive, estimate, waypoints
from trajectory.score import score
from trajectory.written import demonstrated, drive_written, judge_written, reach, to_car, to_lane, written_pdms


def answer(points, plan="KEEP, STRAIGHT"):
    return f"<answer> {plan} </answer> {write_waypoints(points)}"


def test_frames_by_hand(field):
    # a left bend of radius 50 m: after a quarter of the circle the car is 50 m ahead and 50 m left, heading left;
    # 2 m left of the lane is 48 m ahead then, and 2 m left at the start
    quarter = 25 * math.pi
    points = torch.tensor([[[[quarter, 0.0], [quarter, 2.0], [0.0, 2.0]]]])
    left, right, straight = (field(road=road) for road in (0.02, -0.02, 0.0))
    expected = torch.tensor([[[[50.0, 50.0], [48.0, 50.0], [0.0, 2.0]]]])
    assert torch.allclose(to_car(points, left), expected, atol=1e-4)
    mirror = torch.tensor([1.0, -1.0])
    assert torch.allclose(to_car(points * mirror, right), expected * mirror, atol=1e-4)
    assert torch.equal(to_car(points, straight), points) and torch.equal(to_lane(points, straight), points)


@pytest.mark.parametrize("road", [0.02, -0.02, 0.0])
def test_frames_are_each_other_s_inverse(field, road):
    points = torch.rand(1, 5, 8, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([60.0, 12.0]) - 3
    assert torch.allclose(to_lane(to_car(points, field(road=road)), field(road=road)), points, atol=1e-4)


def test_estimate_by_hand(field):
    # 8 m/s, braking at 2 m/s2: v at 0.25, 0.75 ... is 7.5, 6.5 ...; every difference says -2
    braking = torch.tensor([[[[8 * t - t * t, 0.0] for t in (0.5 * k for k in range(1, 9))]]])
    controls = estimate(braking, field(speed=8.0))
    assert torch.allclose(controls[..., 0], torch.tensor(-2.0), atol=1e-4) and not controls[..., 1].any()
    # standing way-points at 8 m/s: all speed is lost in the first quarter second, beyond what the car can
    assert estimate(torch.zeros(1, 1, 8, 2), field(speed=8.0))[0, 0, 0, 0] == -8.0


def test_way_points_are_driven_as_closely_as_the_car_can(field):
    scene = field(speed=8.0, road=0.0125)
    turning = torch.tensor([0.5, 0.02]).expand(1, 1, 8, 2)
    goal = waypoints(drive(turning, scene))
    motion, missed = drive_written((to_car(goal, scene) * 10).round() / 10, scene)
    assert missed.item() < 0.04 and (waypoints(motion) - goal).norm(dim=-1).max() < 0.1
    aside = goal + torch.tensor([0.0, 10.0])                # 10 m to the left within half a second
    assert drive_written(to_car(aside, scene), scene)[1].item() > 2


def test_anything_that_can_be_read_can_be_driven():
    examples = scene_examples("test", 4)
    wild = [[((9999.9, -9999.9),) * 8, ((0.0, 0.0),) * 8, tuple((-5.0 * k, 0.0) for k in range(8)),
             tuple((0.0, 90.0 * (-1) ** k) for k in range(8))] for _ in examples]
    judged = judge_written(examples, wild, [[None] * 4 for _ in examples])
    for values in judged.values():
        assert ((values >= 0) & (values <= 1)).all()
    assert not judged["pdms"][:, [0, 2, 3]].any()           # no car does that


def test_scores_of_what_is_written():
    """One decimal and the fit cost little: demonstrations score as when driven exactly."""
    examples = scene_examples("test", 60)
    ways = demonstrated(examples)
    field = make_field(examples)
    motion = drive_written(torch.tensor(ways)[:, None], field)[0]
    exact = score(motion, field, reach(field)).pdms.mean().item()
    written = [[tuple((round(x, 1), round(y, 1)) for x, y in way)] for way in ways]
    judged = judge_written(examples, written, [[example.decision] for example in examples])
    assert judged["pdms"].shape == (60, 1) and judged["pdms"].mean() == pytest.approx(exact, abs=0.02)
    assert 0.6 < exact < 0.95 and judged["agreement"].mean() > 0.75


def test_what_cannot_be_read_or_driven_earns_nothing():
    example = next(one for one in scene_examples("test", 20) if one.decision == Decision("KEEP", "STRAIGHT"))
    (way,) = demonstrated([example])
    jumping = [(x, 20.0 * (k % 2)) for k, (x, _) in enumerate(way)]
    good, bad, unread = written_pdms(example, [answer(way), answer(jumping), "<answer> KEEP, STRAIGHT </answer>"])
    assert good > 0.5 and bad == unread == 0.0
    judged = judge_written([example], [[way, way, way, None]],
                           [[example.decision, Decision("STOP", "STRAIGHT"), None, example.decision]])
    assert judged["agreement"].tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert judged["comfort"][0, 3] == 0.0


def test_a_scene_has_the_same_demonstration_in_every_company():
    examples = scene_examples("sft", 12)
    ways = demonstrated(examples)
    assert torch.allclose(torch.tensor(ways[3]), torch.tensor(demonstrated(examples[3:4])[0]), atol=2e-3)
    assert all(len(way) == 8 and all(abs(value) < 100 for point in way for value in point) for way in ways)


def test_a_demonstration_follows_the_plan_of_its_example():
    examples = scene_examples("test", 60)
    plans = [[example.decision] for example in examples]
    ways = [[way] for way in demonstrated(examples)]
    own, others = (judge_written(examples, ways, named)["agreement"].mean() for named in (plans, plans[::-1]))
    assert own > others + 0.3
