"""The denoising chain: five Gaussian steps from noise to a latent trajectory, with exact log densities.

    z_T ~ N(0, I);     z_{t-1} ~ N(mu_t, sigma_t^2 I),     mu_t from the denoiser's estimate of z_0 (DDIM)

Each step is an action of the policy, as a token is in an answer, so reinforcement learning treats a chain as an answer
of five tokens. The sigma that samples a step also scores it; nothing is clamped. Both are common faults: with another
sigma, or with clamped densities, the ratio of two policies is that of no density.

P scenes, G trajectories per scene, S steps, d latent numbers. Source: DDIM, arXiv:2010.02502, eq. 12 and 16; as a
policy: DDPO, arXiv:2305.13301, sec. 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trajectory.denoiser import Decoder

STEPS = 5
# (estimate of z_0 (P, G, d), number of the step) -> its shift (P, G, d)
Guide = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Chain:
    """P x G sampled chains. Rows of logprobs and completion_mask are chains, columns are steps, as of an answer."""

    states: Tensor                    # (P, G, S + 1, d): noise first, the trajectory's latent last
    sigmas: Tensor                    # (P, S)
    shifts: Tensor | None             # (P, G, S, d): what guidance added to the means
    logprobs: Tensor                  # (P * G, S)
    completion_mask: Tensor           # (P * G, S) bool, all True

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Chain":
        """The same on another device, without a wait for its work."""
        return Chain(**{name: None if value is None else value.to(device, non_blocking=non_blocking)
                        for name, value in vars(self).items()})

    @property
    def latents(self) -> Tensor:
        """The latents of the trajectories, (P, G, d)."""
        return self.states[:, :, -1]


def signal_share(level: Tensor) -> Tensor:
    """abar: share of the variance that is signal at a noise level in [0, 1]; cosine schedule."""
    return torch.cos(0.98 * math.pi / 2 * level) ** 2


def step_shares(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """abar before and after each step, (S,) each; 1 after the last."""
    shares = signal_share(1 - torch.arange(STEPS + 1, device=device) / STEPS)
    return shares[:-1], shares[1:]


def before_steps(states: Tensor) -> tuple[Tensor, Tensor]:
    """The states that the steps start from, and their noise levels: (P, G, S, d), (P, G, S)."""
    before = states[:, :, :-1]
    levels = 1 - torch.arange(STEPS, device=states.device) / STEPS              # (S,)
    return before, levels.expand(before.shape[:-1])


def ddim_sigma(now: Tensor, then: Tensor) -> Tensor:
    """The sigma with which DDIM's step is DDPM's posterior: sqrt((1 - abar') / (1 - abar) (1 - abar / abar'))."""
    return ((1 - then) / (1 - now) * (1 - now / then)).sqrt()


def step_sigmas(eta: float, floor: float, scale: Tensor) -> Tensor:
    """sigma of each step: max(eta * DDIM's, floor), times the scene's scale.

    eta 1 with floor 0 is DDPM's posterior, whose last step is deterministic; eta 0 with floor 0 is DDIM's
    deterministic sampler. Shapes: scale (P,) -> (P, S). Units: standard deviations of the demonstrations."""
    return scale[:, None] * (eta * ddim_sigma(*step_shares(scale.device))).clamp(min=floor)


def step_mean(z: Tensor, estimate: Tensor, now: Tensor, then: Tensor, sigma: Tensor) -> Tensor:
    """mu = sqrt(abar') z0 + sqrt(max(1 - abar' - sigma^2, 0)) eps, with eps = (z - sqrt(abar) z0) / sqrt(1 - abar).

    The last step has abar' = 1: mu is the estimate z0 itself. Shapes: broadcast."""
    noise = (z - now.sqrt() * estimate) / (1 - now).sqrt()
    return then.sqrt() * estimate + (1 - then - sigma ** 2).clamp(min=0).sqrt() * noise


def log_density(values: Tensor, means: Tensor, sigmas: Tensor, reduce: str = "sum") -> Tensor:
    """log N(value; mean, sigma^2 I), summed over the d numbers.

    `mean` divides it by d: a tempered ratio, as DDPO and DPPO use where d is in the thousands.
    Shapes: (P, G, S, d), sigmas (P, S) -> (P * G, S)."""
    sigma = sigmas[:, None, :, None]
    density = -((values - means) / sigma) ** 2 / 2 - sigma.log() - math.log(2 * math.pi) / 2
    return (density.sum(-1) if reduce == "sum" else density.mean(-1)).flatten(0, 1)


def chain_means(decoder: Decoder, condition: Tensor, states: Tensor, sigmas: Tensor,
                shifts: Tensor | None) -> Tensor:
    """The means of every step of stored chains under this decoder, differentiable.

    Shapes: condition (P, C), states (P, G, S + 1, d) -> (P, G, S, d)."""
    now, then = (share[:, None] for share in step_shares(states.device))        # (S, 1)
    before, levels = before_steps(states)
    means = step_mean(before, decoder.denoiser(before, levels, condition), now, then, sigmas[:, None, :, None])
    return means if shifts is None else means + shifts


@torch.no_grad()
def sample(decoder: Decoder, condition: Tensor, noise: Tensor, sigmas: Tensor, guide: Guide | None = None,
           reduce: str = "sum") -> Chain:
    """Denoise G trajectories for each of P scenes.

    A guide shifts the mean of a step by what its shift of the estimate changes; the shift is stored and belongs to the
    step for old and new policy alike. Shapes: condition (P, C), noise (P, G, S + 1, d) standard normal, the first for
    z_T; sigmas (P, S), 0 for a deterministic step."""
    states, means, shifts = [noise[:, :, 0]], [], []
    for step, (now, then) in enumerate(zip(*step_shares(noise.device), strict=True)):
        z, sigma = states[-1], sigmas[:, None, step, None]                      # (P, G, d), (P, 1, 1)
        level = torch.full(z.shape[:-1], 1 - step / STEPS, device=z.device)
        estimate = decoder.denoiser(z, level, condition)
        mean = step_mean(z, estimate, now, then, sigma)
        if guide is not None:
            guided = step_mean(z, estimate + guide(estimate, step), now, then, sigma)
            shifts.append(guided - mean)
            mean = guided
        means.append(mean)
        states.append(mean + sigma * noise[:, :, step + 1])
    states, means = torch.stack(states, dim=2), torch.stack(means, dim=2)
    logprobs = log_density(states[:, :, 1:], means, sigmas, reduce) if bool((sigmas > 0).all()) \
        else torch.full((len(z) * z.shape[1], STEPS), math.nan)                 # a deterministic step has no density
    return Chain(states, sigmas, torch.stack(shifts, dim=2) if shifts else None, logprobs,
                 torch.ones_like(logprobs, dtype=torch.bool))


def gaussian_kl(means: Tensor, reference_means: Tensor, sigmas: Tensor) -> Tensor:
    """KL between Gaussians of equal sigma, exact: |mu - mu_ref|^2 / (2 sigma^2) of each step, in nats.

    Shapes: (P, G, S, d), sigmas (P, S) -> (P * G, S)."""
    gap = (means - reference_means) / sigmas[:, None, :, None]
    return (gap ** 2).sum(-1).flatten(0, 1) / 2


def gaussian_entropy(sigmas: Tensor, group_size: int, size: int) -> Tensor:
    """d / 2 log(2 pi e sigma^2) of each step. It does not depend on the weights: a bonus for it would do nothing.

    Shapes: (P, S) -> (P * G, S)."""
    entropy = size / 2 * (math.log(2 * math.pi * math.e) + 2 * sigmas.log())
    return entropy.repeat_interleave(group_size, dim=0)


def denoising_loss(decoder: Decoder, condition: Tensor, z0: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """min(snr, 5) |z0_hat - z0|^2 / d at a noise level: the loss of behaviour cloning.

    Shapes: condition (P, C), z0, noise (P, d), level (P,) -> (P,).
    Source: DDPM, arXiv:2006.11239, with the min-SNR weight of arXiv:2303.09556, sec. 3.4 (for a prediction of z_0)."""
    share = signal_share(level)                                                 # (P,)
    noisy = share.sqrt()[:, None] * z0 + (1 - share).sqrt()[:, None] * noise    # (P, d)
    weight = (share / (1 - share)).clamp(max=5)
    return weight * ((decoder.denoiser(noisy, level, condition) - z0) ** 2).mean(1)
