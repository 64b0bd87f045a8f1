"""The trajectory decoder: from noise, a noise level and what is known of the scene to an estimate of the clean latent.

    z0_hat = f(z_t, t, condition)         condition = features of the scene, speed, the plan if one is named

Features are the planner's hidden states, or the scene's facts. Half of the training examples name no plan, so that one
network drives with a plan and without. No dropout and no batch norm: the ratio of an unchanged policy is exactly 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.scenes.rollout import DRIVEN_PATHS, DRIVEN_SPEEDS
from trajectory.latent import Latent

LATENT = 10                 # of the 16 controls' directions: over 99.9 % of the demonstrations' variance
WIDTH, CONTEXT, BLOCKS = 256, 128, 3
TIMES = 16                  # sines and cosines of the noise level
PLAN = len(DRIVEN_SPEEDS) + len(DRIVEN_PATHS) + 1     # one-hot speed and path, and whether a plan is named


class Block(nn.Module):
    """A residual block of width 256."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.up(self.norm(x))))


class Denoiser(nn.Module):
    """An MLP over (noisy latent, noise level, condition); about 0.5 million parameters.

    P scenes with G trajectories each, d latent numbers, S noise levels. The last layer starts at 0."""

    def __init__(self, features: int, outputs: int = LATENT) -> None:
        super().__init__()
        self.context = nn.Sequential(nn.Linear(features + 3 + PLAN, CONTEXT), nn.SiLU(), nn.Linear(CONTEXT, CONTEXT))
        self.stem = nn.Linear(LATENT + TIMES + CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, outputs)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, z: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """z (P, ..., d), level (P, ...) in [0, 1], condition (P, C) -> (P, ..., outputs)."""
        context = self.context(condition)                                       # (P, 128), once per scene
        context = context.view(len(z), *[1] * (z.ndim - 2), CONTEXT).expand(*z.shape[:-1], CONTEXT)
        x = self.stem(torch.cat([z, level_waves(level), context], dim=-1))      # (P, ..., 256)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Decoder(nn.Module):
    """What drives: the denoiser, its latent space, and the scale of its features."""

    def __init__(self, features: int, controls: int = 16) -> None:
        super().__init__()
        self.latent = Latent(controls, LATENT)
        self.denoiser = Denoiser(features)
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_scale", torch.ones(features))

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the last layer, whose device is that of the decoder."""
        return self.denoiser.head.weight

    def condition(self, features: Tensor, speed: Tensor, plan: Tensor) -> Tensor:
        """What the denoiser knows of P scenes.

        Shapes: features (P, F), speed (P,) in m/s, plan (P, 2) ids of speed and path, -1 where none is named ->
        (P, C)."""
        standard = (features - self.feature_mean) / self.feature_scale          # (P, F)
        motion = torch.stack([speed / 8, (speed / 8) ** 2, (speed == 0).float()], dim=1)
        return torch.cat([standard, motion, plan_code(plan)], dim=1)


def plan_code(plan: Tensor) -> Tensor:
    """One-hot speed, one-hot path, 1; all 0 where no plan is named. Shapes: (P, 2) -> (P, 10)."""
    named = (plan[:, :1] >= 0).float()
    sizes = (len(DRIVEN_SPEEDS), len(DRIVEN_PATHS))
    parts = [F.one_hot(plan[:, i].clamp(min=0), size).float() for i, size in enumerate(sizes)]
    return torch.cat([*parts, torch.ones_like(named)], dim=1) * named


def level_waves(level: Tensor) -> Tensor:
    """Sines and cosines of a noise level in [0, 1]. Shapes: (...) -> (..., 16)."""
    rates = math.pi * 2.0 ** torch.arange(TIMES // 2, device=level.device)      # half a turn to 64 turns
    angles = level[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def new_decoder(features: int, latent: Latent, feature_values: Tensor, seed: int) -> Decoder:
    """An untrained decoder. feature_values (N, F): those of the training scenes, which set mean and scale."""
    decoder = Decoder(features, latent.basis.shape[1])
    initialise(decoder.denoiser, seed)
    decoder.latent.load_state_dict(latent.state_dict())
    decoder.feature_mean.copy_(feature_values.mean(0))
    spread = feature_values.std(0)
    decoder.feature_scale.copy_(torch.where(spread > 1e-4, spread, torch.ones_like(spread)))
    return decoder


def initialise(network: nn.Module, seed: int) -> None:
    """Weights of the linear layers from a seed: uniform in +-1 / sqrt(inputs), but 0 in the head."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear) and not name.endswith("head"):
            bound = layer.in_features ** -0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
