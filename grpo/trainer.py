"""Stage 2, one step of reinforcement learning, and what both stages share: optimizer, schedule, guarded update.

    sample a group of answers per scene -> score them -> compare within the group -> raise the better ones

Source: DeepSeekMath (arXiv 2402.03300), Algorithm 1; AlphaDrive (arXiv 2503.07608), sec. 3.2.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.config import GRPOConfig
from grpo.credit import assign_credit
from grpo.engine.distributed import SINGLE, Distributed, full_tensor
from grpo.fixed import FixedRows, fix_rows, fixed_values, idle, pack_groups
from grpo.groups import (
    PromptBatch,
    RewardFn,
    expert_branches,
    group_records,
    order_by_length,
    rollout_metrics,
    sample_groups,
)
from grpo.logprobs import autocast
from grpo.objective import Auxiliary, Counts, count, objective, term_weights
from grpo.rollout import Sampler
from models.qwen2_vl import Qwen2VL
from models.value import ValueNetwork


def update(modules: Sequence[nn.Module], optimizer: Optimizer, scheduler: LRScheduler,
           max_grad_norm: float, loss: float) -> dict[str, float]:
    """Clip each module's accumulated gradient and step; where it or the loss is not finite, optimizer AND schedule skip
    this one, and it is counted: a loss beyond float32 can have a gradient that looks sound.

    The norm reported is the first module's, the policy's."""
    learning_rate = optimizer.param_groups[0]["lr"]
    norms = torch.stack([full_tensor(nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm))
                         for module in modules])
    skipped = not (math.isfinite(loss) and bool(torch.isfinite(norms).all()))
    if not skipped:
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norms[0].item(), "lr": learning_rate, "skipped": float(skipped)}


@dataclass(frozen=True)
class Learner:
    """The models and the optimizer of a run; everything in it but the policy and the value network stays as it is."""

    policy: Qwen2VL
    reference: Qwen2VL | None
    value: ValueNetwork | None
    sampler: Sampler
    optimizer: Optimizer
    scheduler: LRScheduler
    auxiliary: Mapping[str, tuple[float, Auxiliary]] = field(default_factory=dict)  # name: (coefficient, term)
    world: Distributed = SINGLE


def grpo_step(learner: Learner, draw: Callable[[int], PromptBatch], reward_fn: RewardFn, config: GRPOConfig, step: int,
              progress: float = 0.0) -> tuple[dict[str, float], list[dict]]:
    """One step: sample, score, compare, improve. -> metrics, and the groups as records.

    draw(0) gives the step's prompts, draw(1), draw(2) ... spare ones for dynamic sampling. progress in [0, 1] sets the
    annealed coefficients. With several processes each draws and trains on its own prompts.
    """
    world = learner.world
    batch, rollout, components, redrawn = sample_groups(learner.sampler, draw, reward_fn, config, step)
    learner.sampler.release()
    batch, rollout, components = order_by_length(batch, rollout, components)
    experts = expert_branches(batch, rollout, learner.sampler.processor, config)
    own = pack_groups(batch.prompts, rollout, experts, config)
    packed = world.padded(own)
    fixed = fixed_values(learner.policy, learner.reference, learner.value, packed, rollout, config, world)
    credit = assign_credit(components, rollout, fixed["ref_logprobs"], fixed["old_values"], config)
    parts = [fix_rows(groups, rows, rollout, fixed, credit, experts, config) for groups, rows in packed]
    parts = [*parts[:len(own)], *map(idle, parts[len(own):])]
    metrics = update_policy(learner, parts, config, progress)
    learner.sampler.refresh()
    sampled = rollout_metrics(rollout, credit.rewards, components, batch.prompts)
    return ({**metrics, "redrawn": redrawn, **world.mean(sampled, len(batch.prompts)),
             **world.total({"tokens": sampled["tokens"]})},
            group_records(batch.examples, rollout, components, credit, config))


def update_policy(learner: Learner, parts: Sequence[FixedRows], config: GRPOConfig,
                  progress: float) -> dict[str, float]:
    """`updates_per_rollout` updates on the whole batch, fewer if KL(old || new) passes target_kl. -> last metrics."""
    metrics: dict[str, float] = {"kl": None}                                    # stays None where no KL is measured
    updates, skipped, gap = 0, 0.0, None
    for _ in range(config.updates_per_rollout):
        found = accumulate(learner, parts, config, progress)
        gap = found["logprob_gap"] if gap is None else gap                      # sampler against trainer: same weights
        if updates and 0 < config.target_kl < found["approx_kl"]:
            learner.optimizer.zero_grad(set_to_none=True)                       # the policy has moved far enough
            break
        modules = [module for module in (learner.policy, learner.value) if module is not None]
        metrics = {**metrics, **found, **update(modules, learner.optimizer, learner.scheduler, config.max_grad_norm,
                                                found["loss"])}
        updates, skipped = updates + 1, skipped + metrics["skipped"]
    return {**metrics, "updates": updates, "skipped": skipped, "logprob_gap": gap}


def accumulate(learner: Learner, parts: Sequence[FixedRows], config: GRPOConfig, progress: float) -> dict[str, float]:
    """Gradient of the whole batch, a micro-batch at a time. -> metrics, reduced exactly as the loss."""
    counts = Counts(**learner.world.total(vars(count(parts, config))))
    weights = term_weights(config, progress, learner.auxiliary)
    metrics: Counter[str] = Counter()
    gap = 0.0
    for part in parts:
        part = part.to(learner.policy.head_weight.device)
        with autocast(learner.policy, config.precision):
            loss, found, logprobs = learner.world.with_policy(objective, learner.policy, learner.value, part, counts,
                                                              weights, config, learner.auxiliary)
        (loss * learner.world.size).backward()                                  # several processes: FSDP averages
        metrics.update({name: value.item() for name, value in found.items()})
        gap = max(gap, float(((logprobs - part.sampler_logprobs).abs() * part.policy_mask).max()))
    return {**learner.world.total(metrics), "logprob_gap": learner.world.largest(gap)}
