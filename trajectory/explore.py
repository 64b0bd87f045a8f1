"""Exploration beyond plain noise: adaptive scale, rejection before the rewards, guidance inside the chain.

Each is optional and none is needed: docs/trajectories.md shows what it gives at equal samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from data.scenes.geometry import CAR_LENGTH, CAR_WIDTH, LANE_WIDTH
from trajectory.chain import STEPS, Chain, Guide, sample
from trajectory.denoiser import Decoder
from trajectory.field import BUMPER, Field
from trajectory.kinematics import COUNT, STEP, Motion, drive, from_policy
from trajectory.scenes import Scenes
from trajectory.score import JUNCTION, box_places

FEASIBLE = 0.5              # `feasible` is 1 for a trajectory without collision that stays on the road, else 0
NEAR = 30.0                 # m: obstacles that make a scene complex
GUIDED = 2                  # last steps of the chain that guidance acts on
PULL = 0.1                  # longest pull, in standard deviations of the demonstrations
MARGINS = (0.2, 1.0)        # m: to edges and lanes, to obstacles


def draw(decoder: Decoder, scenes: Scenes, noise: Tensor, sigmas: Tensor, pulls: int = 0,
         reduce: str = "sum") -> Chain:
    """Chains of these scenes from given noise (P, G, S + 1, d), with `pulls` of guidance. sigmas: (P, S)."""
    device = scenes.speed.device
    condition = decoder.condition(scenes.features, scenes.speed, scenes.plan)
    return sample(decoder, condition, noise.to(device), sigmas.to(device),
                  guide_for(decoder, scenes, pulls) if pulls else None, reduce)


def noise_scale(adapt: str, scenes: Scenes, feasible: Tensor | None) -> Tensor:
    """What multiplies every sigma of a scene: (P,).

        complexity   0.5 + 0.4 min(near obstacles, 3) / 3 + 0.3 [junction] + 0.3 [several plans are acceptable]
        validity     exp(feasible share of a first draw - 0.7), in [0.5, 1.35]: less noise where it only breaks things

    The second is stateless on purpose: a controller that carries its scale from step to step would make a step's
    samples depend on earlier steps. feasible (P, G): of that first draw, with validity."""
    if adapt == "complexity":
        near = ((scenes.field.boxes[:, :, 0] < NEAR) & (scenes.field.boxes[:, :, 6] > 0)).sum(1).clamp(max=3)
        several = scenes.acceptable.flatten(1).sum(1) > 1
        return 0.5 + 0.4 * near / 3 + 0.3 * scenes.field.entry.isfinite() + 0.3 * several
    if adapt == "validity":
        return (feasible.mean(1) - 0.7).exp().clamp(min=0.5)
    return torch.ones(len(scenes))


def choose_feasible(feasible: Tensor, group_size: int, reject: str) -> Tensor:
    """Places of the chains to keep, (P, M) -> (P, G).

        drop       the first G feasible of 2 G; infeasible ones fill up
        resample   place g keeps the first feasible of its 4 draws, else the last

    Both are biased: E[R | feasible] is maximised, and the policy never learns from what it hits."""
    good = feasible >= FEASIBLE                                                 # (P, M)
    if reject == "drop":
        return torch.sort((~good).int(), dim=1, stable=True).indices[:, :group_size]
    tries = good.view(len(good), -1, group_size)                                # (P, 4, G)
    last = torch.full_like(tries[:, 0], len(tries[0]) - 1, dtype=torch.long)
    first = torch.where(tries.any(1), tries.int().argmax(1), last)              # (P, G)
    return first * group_size + torch.arange(group_size, device=first.device)


# ---------------------------------------------------------------- guidance

def guide_for(decoder: Decoder, scenes: Scenes, pulls: int) -> Guide:
    """A guide that pulls an estimate down the gradient of `constraint_cost`, at nominal metres, in the last two steps.

    A pull is min(0.1, J / |grad J|) long: a fixed one would overshoot and leave the road on the other side.
    It knows the scene's facts: as an inference option it is privileged. Source: FeaXDrive's signed distances and
    classifier guidance (arXiv 2105.05233), in the latent space."""
    def guide(estimate: Tensor, step: int) -> Tensor:
        if step < STEPS - GUIDED:
            return torch.zeros_like(estimate)
        z = estimate.detach()
        for _ in range(pulls):
            with torch.enable_grad():
                z = z.requires_grad_(True)
                motion = drive(from_policy(decoder.latent.decode(z), scenes.nominal), scenes.nominal)
                cost = constraint_cost(motion, scenes.nominal)                  # (P, G)
                slope, = torch.autograd.grad(cost.sum(), z)
            steep = slope.norm(dim=-1, keepdim=True).clamp(min=1e-9)
            length = (cost[..., None] / steep).clamp(max=PULL)
            z = (z - length * slope / steep).detach()
        return z - estimate

    return guide


def constraint_cost(motion: Motion, field: Field) -> Tensor:
    """Metres by which the car is too near to edges, occupied lanes and obstacles, soft and summed over time: (P, G)."""
    half, x, y = CAR_WIDTH / 2 + MARGINS[0], motion.x, motion.y                 # (P, G, 41)
    border = LANE_WIDTH - CAR_WIDTH / 2
    left, right = (torch.where(closed, edge.clamp(max=border), edge)[:, None, None] for closed, edge in (
        (field.closed_left, field.left), (field.closed_right, field.right)))
    start = field.entry[:, None, None]
    bound = ~((x > start + JUNCTION[0]) & (x < start + JUNCTION[1]))
    aside = (soft(y + half - left) + soft(half - y - right)) * bound
    near = box_places(field, torch.arange(COUNT + 1) * STEP)[:, None]           # (P, 1, 5, 41)
    boxes = field.boxes[:, None, :, :, None]                                    # (P, 1, 5, 7, 1)
    x, y = x[:, :, None], y[:, :, None]
    along = torch.minimum(x + BUMPER + MARGINS[1] - near, near + boxes[..., 5, :] - (x + BUMPER - CAR_LENGTH))
    across = torch.minimum(y + half - boxes[..., 2, :], boxes[..., 1, :] - (y - half))
    depth = soft(torch.minimum(along, across)) * boxes[..., 6, :]               # (P, G, 5, 41)
    return (aside + depth.sum(2)).mean(-1)


def soft(metres: Tensor) -> Tensor:
    """max(metres, 0), smooth near 0."""
    return F.softplus(10 * metres) / 10
