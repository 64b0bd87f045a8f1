"""Rewards of latents: what is feasible, and closeness to a logged drive."""

from dataclasses import replace

import pytest
import torch

from data.scenes import scene_examples
from trajectory.denoiser import LATENT, Decoder
from trajectory.field import Field
from trajectory.kinematics import KNOTS
from trajectory.reward import expert_reward, pdms_reward
from trajectory.scenes import make_scenes, safe_places

WALL = (15.0, 20.0, -20.0, 0.0, 0.0, 0.5)


def world(*fields, numbers):
    """Scenes with these fields, one each, and with demonstrations of these controls (P, <= 16)."""
    scenes = make_scenes(scene_examples("sft", len(fields)), torch.zeros(len(fields), 1), 0.0, 0, demonstrated=False)
    joined = Field(**{name: torch.cat([vars(field)[name] for field in fields]) for name in vars(fields[0])})
    return replace(scenes, field=joined, controls=torch.nn.functional.pad(numbers, (0, 16 - numbers.shape[1])))


def test_feasible_is_without_collision_and_on_the_road(field):
    """Straight on; off a lane of 3.5 m; into a wall that is there; into one that is there with odds of .4 and .6."""
    numbers = torch.zeros(5, LATENT)                        # the decoder's latent: 8 accelerations, 2 curvatures
    numbers[1, KNOTS:] = 4.0
    walls = [field(boxes=[(*WALL, odds)]) for odds in (1.0, 0.4, 0.6)]
    scenes = world(field(), field(), *walls, numbers=numbers)
    found = pdms_reward(Decoder(1), numbers[:, None], scenes)
    assert found["feasible"].flatten().tolist() == [1, 0, 0, 1, 0]
    assert found["no_collision"].flatten().tolist() == pytest.approx([1, 1, 0, 0.6, 0.4])
    assert safe_places(scenes).tolist() == [0]              # a demonstration must not collide at all


def test_expert_reward_by_hand(field):
    # the expert stands. a t^2 / 2 at .5, 1 ... 4 s is 3.1875 a on average: 2 m for a = .627451, and exp(-2 / 2) is
    # paid; 2.5 m/s2 is 7.96875 m off and above the limit of 2.4
    latents = torch.zeros(1, 2, LATENT)
    latents[0, 0, :KNOTS], latents[0, 1, :KNOTS] = 0.627451, 2.5
    found = expert_reward(Decoder(1), latents, world(field(speed=0.0), numbers=torch.zeros(1, 16)))
    assert found["distance"][0].tolist() == pytest.approx([2.0, 7.96875], abs=1e-5)
    assert found["score"][0].tolist() == pytest.approx([0.367879, 0.0], abs=1e-6)
    assert found["comfort"][0].tolist() == found["feasible"][0].tolist() == [1, 0]
