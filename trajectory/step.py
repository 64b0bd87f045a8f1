"""One step of each trajectory stage.

    cloning_step      noise a demonstration, estimate it back
    trajectory_step   sample chains per scene -> drive and score them -> compare within the group -> improve

The second is `grpo.step` with another policy: credit, objective and updates are those of the text stages.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.credit import Credit, assign_credit
from grpo.objective import MicroBatch, Pass
from grpo.sampling import uniform_table
from grpo.step import Learner, update, update_policy
from trajectory.chain import (
    STEPS,
    Chain,
    before_steps,
    chain_means,
    denoising_loss,
    gaussian_entropy,
    gaussian_kl,
    log_density,
    step_sigmas,
)
from trajectory.config import CloningConfig, TrajectoryConfig
from trajectory.denoiser import LATENT, Decoder, Denoiser
from trajectory.explore import FEASIBLE, choose_feasible, noise_scale
from trajectory.scenes import Scenes

# (latents (P, G, d), scenes) -> named numbers (P, G): `score`, which is paid, its factors, and `feasible`
ScoreFn = Callable[[Tensor, Scenes], dict[str, Tensor]]


# ---------------------------------------------------------------- behaviour cloning

def cloning_step(decoder: Decoder, optimizer: Optimizer, scheduler: LRScheduler, scenes: Scenes, config: CloningConfig,
                 draws: Mapping[str, Tensor],
                 total: Callable[[Mapping[str, float]], dict[str, float]] = dict) -> dict[str, float]:
    """One update on the demonstrations of these scenes. draws: their `level` and `noise`."""
    count = total({"scenes": len(scenes)})["scenes"]
    condition = decoder.condition(scenes.features, scenes.speed, scenes.plan)
    losses = denoising_loss(decoder, condition, scenes.latents(decoder), draws["level"], draws["noise"])   # (P,)
    loss = losses.sum() / count
    loss.backward()
    totals = total({"loss": loss.item()})
    return {**totals, **update([decoder], optimizer, scheduler, config.max_grad_norm, totals["loss"]),
            "tokens": count}


# ---------------------------------------------------------------- GRPO on the chain

@dataclass(frozen=True)
class ChainRows:
    """What a pass over stored chains reads."""

    chain: Chain
    condition: Tensor                 # (P, C)
    reference_means: Tensor | None    # (P, G, S, d)
    expert: Tensor | None             # (P, d) latents of demonstrations
    level: Tensor                     # (P,) their noise level
    noise: Tensor                     # (P, d)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "ChainRows":
        """The same on another device, without a wait for its work."""
        return ChainRows(**{name: None if value is None else value.to(device, non_blocking=non_blocking)
                            for name, value in vars(self).items()})


class ChainValue(Denoiser):
    """The value network: the score still to come from a noisy latent, its level and the condition.

    Shapes: as the denoiser's, without the last dimension."""

    def __init__(self, features: int) -> None:
        super().__init__(features, outputs=1)

    def values(self, chain: Chain, condition: Tensor) -> Tensor:
        """V before every step of the chains: (P * G, S)."""
        return self(*before_steps(chain.states), condition)[..., 0].flatten(0, 1)


def trajectory_step(learner: Learner, scenes: Scenes, numbers: Sequence[int], score_fn: ScoreFn,
                    config: TrajectoryConfig, step: int, progress: float = 0.0
                    ) -> tuple[dict[str, float], Chain, dict[str, Tensor], Credit]:
    """One step: sample, drive, score, compare, improve. -> metrics of the update, chains, components, credit.

    numbers: places of the scenes in the data stream, from which their random numbers follow."""
    chain, components, accepted = explore(learner, scenes, numbers, score_fn, config, step, progress)
    condition = learner.policy.condition(scenes.features, scenes.speed, scenes.plan)
    rows = chain_rows(learner, chain, condition, scenes, numbers, config, step)
    fixed = fixed_values(learner, rows, config)
    credit = assign_credit(components, chain, fixed["ref_logprobs"], fixed["old_values"], config,
                           learner.total)
    if config.reject == "penalise":
        credit = replace(credit, advantages=penalised(credit.advantages, components["feasible"]))
    metrics = update_policy(learner, [micro_batch(rows, credit, fixed, config)], config, progress)
    return {**metrics, "accepted": accepted}, chain, components, credit


def explore(learner: Learner, scenes: Scenes, numbers: Sequence[int], score_fn: ScoreFn, config: TrajectoryConfig,
            step: int, progress: float) -> tuple[Chain, dict[str, Tensor], float]:
    """Sample and score G chains per scene. -> chains, components, the share of all draws that is feasible."""
    draws = config.group_size * {"drop": 2, "resample": 4}.get(config.reject, 1)
    floor = config.coefficient("noise_floor", progress)

    def drawn(count: int, scale: Tensor, stream: int) -> tuple[Chain, dict[str, Tensor]]:
        chain = learner.sampler(scenes, chain_noise(config.seed, step, numbers, count, stream),
                                step_sigmas(config.eta, floor, scale))
        return chain, score_fn(chain.latents, scenes)

    ones = torch.ones(len(scenes))
    pilot = drawn(config.group_size, ones, 1)[1]["feasible"] if config.noise_adapt == "validity" else None
    chain, components = drawn(draws, noise_scale(config.noise_adapt, scenes, pilot), 0)
    accepted = components["feasible"].mean().item()
    if draws > config.group_size:
        keep = choose_feasible(components["feasible"], config.group_size, config.reject)       # (P, G)
        chain = chosen_chains(chain, keep)
        components = {name: values.gather(1, keep) for name, values in components.items()}
    return chain, components, accepted


def chain_noise(seed: int, step: int, numbers: Sequence[int], group_size: int, stream: int = 0) -> Tensor:
    """Standard normal numbers (P, G, S + 1, d), each a function of its place, seed, step and stream."""
    uniforms = uniform_table(seed, step, [2 * number + stream for number in numbers], group_size,
                             (STEPS + 1) * LATENT)
    return normal(uniforms).view(len(numbers), group_size, STEPS + 1, LATENT)


def normal(uniforms: Tensor) -> Tensor:
    """Standard normal numbers from uniform ones, which are multiples of 2^-24 in [0, 1)."""
    return torch.special.ndtri(uniforms.double() + 2.0 ** -25).float()


def chosen_chains(chain: Chain, keep: Tensor) -> Chain:
    """Some chains of every scene. keep (P, G): their places."""
    count = chain.states.shape[1]

    def rows(values: Tensor) -> Tensor:
        """(P * M, ...) -> (P * G, ...)."""
        places = (torch.arange(len(keep), device=keep.device)[:, None] * count + keep).flatten()
        return values[places]

    def groups(values: Tensor | None) -> Tensor | None:
        return None if values is None else rows(values.flatten(0, 1)).unflatten(0, keep.shape)

    return replace(chain, states=groups(chain.states), shifts=groups(chain.shifts), logprobs=rows(chain.logprobs),
                   completion_mask=rows(chain.completion_mask))


def penalised(advantages: Tensor, feasible: Tensor) -> Tensor:
    """The advantages, -1 for infeasible trajectories, as in DiffusionDriveV2. Shapes: (B,) or (B, S), (P, G)."""
    wrong = feasible.flatten() < FEASIBLE
    wrong = wrong if advantages.ndim == 1 else wrong[:, None]
    return torch.where(wrong, torch.full_like(advantages, -1.0), advantages)


@torch.no_grad()
def chain_rows(learner: Learner, chain: Chain, condition: Tensor, scenes: Scenes, numbers: Sequence[int],
               config: TrajectoryConfig, step: int) -> ChainRows:
    """The chains with everything that stays fixed while they are trained on."""
    free = config.group_size if config.noise_adapt == "validity" else 0         # rows that `explore` has used before
    draws = uniform_table(config.seed, step, [2 * number + 1 for number in numbers], free + 1, 1 + LATENT)[:, free]
    reference = None if learner.reference is None else chain_means(learner.reference, condition, chain.states,
                                                                   chain.sigmas, chain.shifts)
    expert = scenes.latents(learner.policy) if config.uses("bc_coef") else None
    return ChainRows(chain, condition, reference, expert, draws[:, 0], normal(draws[:, 1:]))


@torch.no_grad()
def fixed_values(learner: Learner, rows: ChainRows, config: TrajectoryConfig) -> dict[str, Tensor | None]:
    """Old and reference log-probabilities and old values, (P * G, S) each or None, before any update.

    With one update the ratio is 1 by definition, so no pass for old log-probabilities is needed."""
    chain, value = rows.chain, learner.value

    def density(means: Tensor) -> Tensor:
        return log_density(chain.states[:, :, 1:], means, chain.sigmas, config.ratio_reduce)

    several = config.updates_per_rollout > 1
    return {"old_logprobs": density(chain_means(learner.policy, rows.condition, chain.states, chain.sigmas,
                                                chain.shifts)) if several else None,
            "ref_logprobs": None if rows.reference_means is None else density(rows.reference_means),
            "old_values": None if value is None else value.values(chain, rows.condition)}


def micro_batch(rows: ChainRows, credit: Credit, fixed: Mapping[str, Tensor | None],
                config: TrajectoryConfig) -> MicroBatch:
    """The whole step as one micro-batch: a chain's steps are its tokens."""
    mask = rows.chain.completion_mask                                           # (P * G, S)
    flat = credit.flat.repeat_interleave(config.group_size)[:, None]
    expert_mask = torch.full((len(rows.condition), 1), rows.expert is not None)
    return MicroBatch(rows, mask, mask & ~(flat & (not config.flat_kl)), expert_mask, fixed["old_logprobs"],
                      rows.chain.logprobs, None, credit.advantages.view(len(mask), -1).expand_as(mask),
                      fixed["old_values"], credit.returns)


def chain_pass(decoder: Decoder, value: ChainValue | None, rows: ChainRows, config: TrajectoryConfig,
               kernels: object = None) -> Pass:
    """Score the steps of stored chains under the decoder, and its denoising loss on the demonstrations."""
    chain = rows.chain
    with torch.autocast(chain.states.device.type, enabled=False):   # a sigma of .03 leaves no room for bf16's rounding
        means = chain_means(decoder, rows.condition, chain.states, chain.sigmas, chain.shifts)
        logprobs = log_density(chain.states[:, :, 1:], means, chain.sigmas, config.ratio_reduce)
        kl = None if rows.reference_means is None else gaussian_kl(means, rows.reference_means, chain.sigmas)
        expert_loss = logprobs.new_zeros(len(rows.condition), 1) if rows.expert is None else \
            denoising_loss(decoder, rows.condition, rows.expert, rows.level, rows.noise)[:, None]
        values = None if value is None else value.values(chain, rows.condition)
    return Pass(logprobs, gaussian_entropy(chain.sigmas, chain.states.shape[1], LATENT), values, expert_loss, kl)


def clipped_share(logprobs: Tensor, entropy: Tensor, part: MicroBatch, step: int, config: TrajectoryConfig,
                  chains: int) -> Tensor:
    """Share of all chains whose ratio of one denoising step is outside the clip range: a term of weight 0.

    The last step has the smallest sigma, so its ratio moves first."""
    ratio = (logprobs[:, step] - part.old_logprobs[:, step]).detach().exp()
    outside = (ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)
    return outside.sum() / chains
