"""Scenes in metres: interpolated words, jitter by the scene's seed, boxes and edges."""

import dataclasses
import math

import pytest
import torch

from data.scenes import sample_scene, scene_examples
from rewards import Decision
from trajectory.demonstrations import CALM, follow, standing_place
from trajectory.field import BUMPER, Field, distance, make_field, scene_row
from trajectory.kinematics import plan_ids
from trajectory.score import no_collision


def plain_scene(**facts):
    """A free straight road at 8 m/s, with these facts."""
    free = dict(road="straight", light="none", lead="none", braking=False, pedestrian="none", blockage="none",
                left_lane="none", right_lane="none", speed=8.0, turn_100="straight", turn_200="straight",
                event="none", lead_kind="car", prior="balanced")
    return dataclasses.replace(sample_scene(1), **{**free, **facts})


def row(scene, noise=0.0):
    """A scene as a field of one."""
    return Field(*(torch.tensor(part)[None] for part in scene_row(scene, noise)))


def test_words_between_two_speeds():
    # "near" is 6 m at 3 m/s and 8 m at 8 m/s, so 7 m at 5.5 m/s; 11 m at 13 m/s, so 3 / 5 m more per m/s beyond
    assert distance("near", 5.5) == pytest.approx(7.0)
    assert distance("near", 15.0) == pytest.approx(11 + 2 * 3 / 5)


def test_a_lead_is_a_box_ahead_of_the_bumper():
    field = row(plain_scene(lead="near", braking=True))
    near, left, right, speed, braking, length, odds = field.boxes[0, 0].tolist()
    assert near == pytest.approx(8.0 + BUMPER) and (left, right) == pytest.approx((0.95, -0.95))
    assert (speed, braking, length, odds) == pytest.approx((8.0, 2.0, 4.6, 1.0))
    assert not field.is_line.any() and (field.boxes[0, 1:] == 0).all()


def test_a_red_light_is_a_line_and_an_entry():
    field = row(plain_scene(road="junction_near", light="red", turn_100="left"))
    assert field.entry.item() == pytest.approx(10.5 + BUMPER) == field.boxes[0, 0, 0].item()
    assert field.is_line[0].tolist() == [True, False, False, False, False]
    assert field.turn.item() == 1.0
    assert row(plain_scene(road="junction_far", light="red", turn_100="left")).entry.item() == math.inf


def test_a_closed_turn_is_not_the_route_and_cannot_be_driven_into():
    """An arm of 15 m behind the stop line, 14.2 m ahead of the rear axle at 8 m/s; a free lane lies between."""
    field = row(plain_scene(road="junction_near", light="green", turn_100="right", right_lane="free",
                            event="blocked_turn"))
    assert field.turn.item() == 0 and not field.is_line.any()
    assert field.boxes[0, 0].tolist() == pytest.approx([14.2, -5.25, -20.0, 0, 0, 15.0, 1.0])
    calm = {name: torch.ones(1, 1) for name in CALM} | {"shift": torch.zeros(1, 1), "delay": torch.zeros(1, 1)}
    plans = [Decision("KEEP", "RIGHT_TURN"), Decision("KEEP", "STRAIGHT"), Decision("KEEP", "LEFT_TURN")]
    motion = follow(torch.tensor([[plan_ids(plan) for plan in plans]]), field, calm)
    assert no_collision(motion, field).tolist() == [[0.0, 1.0, 1.0]]
    assert standing_place(torch.tensor([[plan_ids(plans[1])]]), field).item() == math.inf       # nobody brakes for it


def test_edges_and_occupied_lanes():
    field = row(plain_scene(left_lane="free", right_lane="occupied", road="curve_right"))
    assert (field.left.item(), field.right.item()) == (5.25, 5.25)
    assert (field.closed_left.item(), field.closed_right.item()) == (False, True)
    assert field.road.item() == pytest.approx(-1 / 45)
    assert row(plain_scene()).left.item() == 1.75


def test_jitter_is_at_most_its_share_and_fixed_by_the_seed():
    scene = plain_scene(blockage="cones")
    found = {row(dataclasses.replace(scene, seed=seed), 0.12).boxes[0, 0, 0].item() - BUMPER for seed in range(40)}
    assert min(found) >= 16 * 0.88 and max(found) <= 16 * 1.12 and max(found) - min(found) > 2
    assert row(scene, 0.12).boxes.equal(row(scene, 0.12).boxes)


def test_a_lead_brakes_at_1_5_to_2_5():
    scene = plain_scene(lead="near", braking=True)
    found = [row(dataclasses.replace(scene, seed=seed), 0.12).boxes[0, 0, 4].item() for seed in range(100)]
    assert 1.5 <= min(found) < 1.55 and 2.45 < max(found) <= 2.5
    assert row(scene).boxes[0, 0, 4].item() == 2.0          # without jitter


def test_the_labels_metres_are_untouched():
    """The expert still sees the metres of four speeds: a test of geometry's default."""
    from data.scenes.geometry import obstacles
    assert obstacles(plain_scene(blockage="cones", speed=6.0))[0].gap == 16.0


def test_logs_get_an_empty_road():
    example = dataclasses.replace(scene_examples("val", 1)[0], scene=None, speed=7.5)
    field = make_field([example])
    assert field.speed.item() == 7.5 and (field.boxes == 0).all() and field.left.item() == math.inf


def test_parts_of_a_field():
    field = make_field(scene_examples("val", 6))
    part = field.at(torch.tensor([4, 1]))
    assert len(part) == 2 and part.speed.tolist() == [field.speed[4].item(), field.speed[1].item()]
