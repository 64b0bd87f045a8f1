"""Adaptive noise, rejection and guidance."""

import pytest
import torch

from data.scenes import scene_examples
from trajectory.chain import STEPS
from trajectory.denoiser import LATENT, new_decoder
from trajectory.explore import choose_feasible, constraint_cost, guide_for, noise_scale
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
    scale = noise_scale("complexity", scenes, None)
    for i in range(len(scenes)):
        boxes = scenes.field.boxes[i]
        near = min(3, sum(box[6] > 0 and box[0] < 30 for box in boxes.tolist()))
        several = scenes.acceptable[i].sum() > 1
        wanted = 0.5 + 0.4 * near / 3 + 0.3 * (scenes.field.entry[i].item() < 1e9) + 0.3 * bool(several)
        assert scale[i].item() == pytest.approx(wanted)
    assert 0.5 <= scale.min() and scale.max() <= 1.5


def test_validity_lowers_the_noise_where_it_breaks_things(scenes):
    feasible = torch.zeros(len(scenes), 4)
    feasible[0], feasible[1, :2] = 1.0, 1.0
    scale = noise_scale("validity", scenes, feasible)
    # e^.3, e^-.2, and e^-.7 = .4966, which is bounded by .5
    assert scale[:3].tolist() == pytest.approx([1.349859, 0.818731, 0.5], abs=1e-5)


def test_no_adaptation(scenes):
    assert noise_scale("none", scenes, None).tolist() == [1.0] * len(scenes)


def test_constraint_cost_on_drawn_cases(field, constant):
    free = field()
    assert constraint_cost(drive(constant(), free), free).item() < 0.05
    blocked = field(boxes=[(12.0, 20.0, -20.0, 0.0, 0.0, 0.5, 1.0)])
    assert constraint_cost(drive(constant(), blocked), blocked).item() > 0.1
    far = field(boxes=[(90.0, 20.0, -20.0, 0.0, 0.0, 0.5, 1.0)])
    assert constraint_cost(drive(constant(), far), far).item() < 0.05


def test_guidance_lowers_the_cost_in_the_last_two_steps_alone(decoder, scenes):
    guide = guide_for(decoder, scenes, pulls=4)
    z = torch.randn(len(scenes), 3, LATENT, generator=torch.Generator().manual_seed(0))
    assert not guide(z, STEPS - 3).any()
    shift = guide(z, STEPS - 1)
    costs = [constraint_cost(driven(decoder, part, scenes.nominal), scenes.nominal) for part in (z, z + shift)]
    assert costs[1].mean() < 0.9 * costs[0].mean()
    assert shift.norm(dim=-1).max() <= 4 * 0.1 + 1e-5       # four pulls of at most .1
