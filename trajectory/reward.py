"""From a latent to a score: decode it, drive it, judge it.

    pdms_reward     the PDMS-like score on the boxes, edges and lines of a built-in scene
    expert_reward   exp(-ADE / 2 m) to the way-points of the log, times comfort, where no boxes are known
"""

import torch
from torch import Tensor

from trajectory.denoiser import Decoder
from trajectory.field import Field
from trajectory.kinematics import Motion, drive, from_policy, waypoints
from trajectory.scenes import Scenes, demonstration
from trajectory.score import FACTORS, comfort, score


def driven(decoder: Decoder, latents: Tensor, field: Field) -> Motion:
    """The motion of latents (P, G, d)."""
    return drive(from_policy(decoder.latent.decode(latents), field), field)


@torch.no_grad()
def pdms_reward(decoder: Decoder, latents: Tensor, scenes: Scenes) -> dict[str, Tensor]:
    """Score, its factors and feasibility, (P, G) each. The named plan counts where there is one."""
    found = score(driven(decoder, latents, scenes.field), scenes.field, scenes.reach, scenes.plan)
    return {"score": found.reward, **{name: getattr(found, name) for name in FACTORS},
            "feasible": (found.no_collision * found.on_road > 0.5).float()}


@torch.no_grad()
def expert_reward(decoder: Decoder, latents: Tensor, scenes: Scenes) -> dict[str, Tensor]:
    """Closeness to the expert's way-points times comfort, (P, G) each. Nothing is known that could be hit."""
    motion = driven(decoder, latents, scenes.field)
    expert = waypoints(demonstration(scenes))                                   # (P, 1, 8, 2)
    distance = (waypoints(motion) - expert).norm(dim=-1).mean(-1)               # (P, G) ADE, m
    smooth = comfort(motion)
    return {"score": (-distance / 2).exp() * smooth, "distance": distance, "comfort": smooth,
            "feasible": smooth}
