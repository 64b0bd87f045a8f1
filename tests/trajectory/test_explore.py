"""Adaptive noise, rejection and guidance."""

import math
from dataclasses import replace

import pytest
import torch

from data.scenes import scene_examples
from trajectory.chain import STEPS
from trajectory.denoiser import LATENT, new_decoder
from trajectory.explore import choose_feasible, constraint_cost, draw, guide_for, noise_scale
from trajectory.facts import COUNT, scene_facts
from trajectory.kinematics import drive
from trajectory.latent import fit_latent
from trajectory.reward import driven
from trajectory.scenes import make_scenes


@pytest.fixture(scope="module")
def scenes():
    examples = scene_examples("sft", 40)
    return make_scenes(examples, scene_facts(examples), 0.12, seed=0)


@pytest.fixture(scope="module")
def decoder(scenes):
    return new_decoder(COUNT, fit_latent(scenes.controls, LATENT), scenes.features, seed=0)


def test_drop_keeps_the_first_feasible_ones():
    feasible = torch.tensor([[0.0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]])
    assert choose_feasible(feasible, 3, "drop").tolist() == [[1, 3, 4], [5, 0, 1]]


def test_resample_keeps_the_first_feasible_try_of_each_place():
    # two places with four tries each: place 0 is tried as draws 0, 2, 4, 6, place 1 as 1, 3, 5, 7
    feasible = torch.tensor([[0.0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    assert choose_feasible(feasible, 2, "resample").tolist() == [[2, 1], [6, 7]]


def test_complexity_by_hand(scenes):
    boxes, several = torch.zeros(4, 5, 7), torch.zeros(4, 4, 5, dtype=torch.bool)
    boxes[1, :3, 0], boxes[1, :2, 6] = torch.tensor([29.0, 31.0, 5.0]), 1.0     # near, too far, not there
    boxes[2, :2, 0], boxes[2, :2, 6] = 10.0, 0.5
    boxes[3, :4, 0], boxes[3, :4, 6] = 10.0, 1.0
    several[:, 0, 0], several[3, 1, 0] = True, True
    part = scenes.at(torch.arange(4))
    entry = torch.tensor([math.inf, math.inf, 20.0, 20.0])
    part = replace(part, field=replace(part.field, boxes=boxes, entry=entry), acceptable=several)
    # .5;  .5 + .4 / 3;  .5 + .8 / 3 + .3;  .5 + .4 + .3 + .3, four boxes counting as three
    assert noise_scale("complexity", part, None).tolist() == pytest.approx([0.5, 0.633333, 1.066667, 1.5], abs=1e-6)


def test_validity_lowers_the_noise_where_it_breaks_things(scenes):
    feasible = torch.zeros(len(scenes), 4)
    feasible[0], feasible[1, :2] = 1.0, 1.0
    scale = noise_scale("validity", scenes, feasible)
    # e^.3, e^-.2, and e^-.7 = .4966, which is bounded by .5
    assert scale[:3].tolist() == pytest.approx([1.349859, 0.818731, 0.5], abs=1e-5)


def test_no_adaptation(scenes):
    assert noise_scale("none", scenes, None).tolist() == [1.0] * len(scenes)


CAR = (0.95, -0.95, 0.0, 0.0, 4.6)      # left, right, speed, braking, length


@pytest.mark.parametrize(("x", "y", "facts", "cost"), [
    # half the width and 0.2 m: 1.15 m. The edge is at 1.75 m, an occupied lane's cars begin at 2.55 m
    (0.0, 1.6, {"left": 1.75}, 1.0), (0.0, -1.6, {"right": 1.75}, 1.0), (0.0, 2.4, {}, 0.0),
    (0.0, 2.4, {"closed_left": True}, 1.0), (0.0, -2.4, {"closed_right": True}, 1.0),
    # 5 m aside is 4.4 m too far, but not from 9 to 25 m at a junction
    (8.9, 5.0, {"left": 1.75, "entry": 10.0}, 4.4), (9.1, 5.0, {"left": 1.75, "entry": 10.0}, 0.0),
    (24.9, 5.0, {"left": 1.75, "entry": 10.0}, 0.0), (25.1, 5.0, {"left": 1.75, "entry": 10.0}, 4.4),
    # the bumper and a metre reach 4.7 m, the rear is at -0.9 m; 0.5 m of overlap costs ln(1 + e^5) / 10 = .500672
    (0.0, 0.0, {"boxes": [(4.2, *CAR, 1.0)]}, 0.500672), (0.0, 0.0, {"boxes": [(4.2, *CAR, 0.5)]}, 0.250336),
    (0.0, 0.0, {"boxes": [(-5.0, *CAR, 1.0)]}, 0.500672),                       # its front is at -0.4 m
    (0.0, 0.0, {"boxes": [(-1.0, 2.0, 0.65, 0.0, 0.0, 4.6, 1.0)]}, 0.500672),   # beside the car
    (0.0, 0.0, {"boxes": [(-1.0, -0.65, -2.0, 0.0, 0.0, 4.6, 1.0)]}, 0.500672),
    (0.0, 0.0, {"boxes": [(4.2, *CAR, 1.0), (-5.0, *CAR, 1.0)]}, 1.001344),
    (0.0, 0.0, {"boxes": [(4.2, 0.95, -0.95, 100.0, 0.0, 4.6, 1.0)]}, 0.012211)])       # gone at the next of 41 moments
def test_constraint_cost_by_hand(field, x, y, facts, cost):
    scene = field(**{"speed": 0.0, "left": 9.0, "right": 9.0, **facts})
    motion = drive(torch.zeros(1, 1, 8, 2), scene)
    motion = replace(motion, x=motion.x + x, y=motion.y + y)
    assert constraint_cost(motion, scene).item() == pytest.approx(cost, abs=1e-5)


def test_guidance_knows_nominal_metres_alone(decoder, scenes):
    part, z = scenes.at(torch.arange(3)), torch.zeros(3, 1, LATENT)
    blocked = replace(part.nominal, boxes=torch.tensor([8.0, *CAR, 1.0]).expand(3, 5, 7), road=torch.ones(3) / 45)
    plain, driven_into, known = (guide_for(decoder, replace(part, **changes), pulls=1)(z, STEPS - 1)
                                 for changes in ({}, {"field": blocked}, {"nominal": blocked}))
    assert torch.equal(plain, driven_into) and not torch.equal(plain, known)


def test_a_draw_reduces_as_told(decoder, scenes):
    part, noise = scenes.at(torch.arange(2)), torch.ones(2, 1, STEPS + 1, LATENT)
    found = [draw(decoder, part, noise, torch.ones(2, STEPS), reduce=how).logprobs for how in ("sum", "mean")]
    # noise 1 everywhere: -1 / 2 - ln(2 pi) / 2 = -1.418939 for each of ten numbers
    assert found[0].flatten().tolist() == pytest.approx([-14.18939] * 10, abs=1e-4)
    assert found[1].flatten().tolist() == pytest.approx([-1.418939] * 10, abs=1e-5)


def test_guidance_lowers_the_cost_in_the_last_two_steps_alone(decoder, scenes):
    guide = guide_for(decoder, scenes, pulls=4)
    z = torch.randn(len(scenes), 3, LATENT, generator=torch.Generator().manual_seed(0))
    assert not guide(z, STEPS - 3).any()
    shift = guide(z, STEPS - 1)
    costs = [constraint_cost(driven(decoder, part, scenes.nominal), scenes.nominal) for part in (z, z + shift)]
    assert costs[1].mean() < 0.9 * costs[0].mean()
    assert shift.norm(dim=-1).max() <= 4 * 0.1 + 1e-5       # four pulls of at most .1
