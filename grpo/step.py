"""Stage 2, one step of reinforcement learning.

    sample answers per scene -> score them -> compare within the group -> raise the better ones

Source: DeepSeekMath (arXiv 2402.03300), Algorithm 1; AlphaDrive (arXiv 2503.07608), sec. 3.2.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.config import GRPOConfig
from grpo.credit import Credit, assign_credit
from grpo.groups import PromptBatch, RewardFn, ScoredBatch, sample_groups
from grpo.logprobs import PLAIN, Kernels, completion_logprobs
from grpo.objective import (
    Auxiliary,
    Forward,
    MicroBatch,
    completion_values,
    denominators,
    objective,
    text_pass,
)
from grpo.packing import PackedRows, pack_groups
from grpo.sampling import PlainSampler, Rollout
from models.precision import autocast
from models.qwen2_vl import Qwen2VL
from models.value import ValueNetwork

Expert = tuple[Tensor, int]     # ids of an expert's answer; where the supervised tokens begin


@dataclass(frozen=True)
class Learner:
    """The models and the optimizer of a run, and hooks of an engine that shares a step."""

    policy: Qwen2VL
    reference: Qwen2VL | None         # the frozen starting model
    value: ValueNetwork | None
    sampler: PlainSampler
    optimizer: Optimizer
    scheduler: LRScheduler
    auxiliary: Mapping[str, tuple[float, Auxiliary]] = field(default_factory=dict)
    experts: Callable[[ScoredBatch], list[Expert]] | None = None        # for behaviour cloning
    kernels: Kernels = PLAIN
    forward: Forward = text_pass
    each: Callable = map              # calls the reward function for every group, as map does
    total: Callable[[Mapping[str, float]], dict[str, float]] = dict     # sums of named numbers
    even: Callable[[list[PackedRows]], list[PackedRows]] = list         # may append idle rows


def grpo_step(learner: Learner, draw: Callable[[int], PromptBatch], reward_fn: RewardFn,
              config: GRPOConfig, step: int,
              progress: float = 0.0) -> tuple[dict[str, float], ScoredBatch, Credit]:
    """One step: sample, score, compare, improve. -> metrics of the update, groups, their credit.

    draw(0) gives the step's prompts, draw(1), draw(2) ... spare ones for dynamic sampling.
    progress in [0, 1] sets the annealed coefficients."""
    with learner.sampler as sampler:
        scored = sample_groups(sampler, draw, reward_fn, config, step, learner.each)
    experts = learner.experts(scored) if config.uses("bc_coef") else []
    packed = learner.even(pack_branches(scored, experts, config))
    fixed = fixed_values(learner, packed, scored.rollout, config)
    credit = assign_credit(scored.components, scored.rollout, fixed["ref_logprobs"],
                           fixed["old_values"], config, learner.total)
    batch = [micro_batch(rows, scored.rollout, fixed, credit, experts, config) for rows in packed]
    return update_policy(learner, batch, config, progress), scored, credit


def pack_branches(scored: ScoredBatch, experts: Sequence[Expert],
                  config: GRPOConfig) -> list[PackedRows]:
    """The groups in micro-batches: prompt, samples and, if there is one, the expert's branch."""
    ids, size = scored.rollout.completions(), config.group_size
    branches = [ids[i * size:(i + 1) * size] + [expert for expert, _ in experts[i:i + 1]]
                for i in range(len(scored.prompts))]
    return pack_groups(scored.prompts, branches, config.micro_batch_tokens)


@torch.no_grad()
def fixed_values(learner: Learner, packed: Sequence[PackedRows], rollout: Rollout,
                 config: GRPOConfig) -> dict[str, Tensor | None]:
    """Old and reference log-probabilities and old values of the rollout, before any update.

    With one update per batch the ratio is 1 by definition. With several, old log-probabilities come
    from a pass of the policy, so that the ratio excludes rounding differences between sampler and
    trainer, which can exceed a narrow clip. Shapes: -> (P * G, N) each, or None."""
    policy, reference, value = learner.policy, learner.reference, learner.value

    def logprobs_of(model: Qwen2VL) -> Tensor:
        return over_rollout(lambda rows: completion_logprobs(
            model, rows, config.temperature, model.config.suppressed_token_ids,
            kernels=learner.kernels)[0])

    def over_rollout(score: Callable[[PackedRows], Tensor]) -> Tensor:
        parts, longest = [], rollout.logprobs.shape[1]                          # N
        for rows in packed:
            with autocast(policy, config.precision):
                values = score(rows.to(policy.head_weight.device))              # (B, <= N)
            values = values.unflatten(0, (len(rows.lengths), -1))[:, :config.group_size, :longest]
            parts.append(F.pad(values, (0, longest - values.shape[-1])).flatten(0, 1))
        return torch.cat(parts)[:len(rollout.texts)].cpu()                      # idle rows last

    return {"old_logprobs": logprobs_of(policy) if config.updates_per_rollout > 1 else None,
            "ref_logprobs": None if reference is None else logprobs_of(reference),
            "old_values": None if value is None else over_rollout(
                lambda rows: completion_values(value, policy, rows, learner.kernels))}


def micro_batch(rows: PackedRows, rollout: Rollout, fixed: Mapping[str, Tensor | None],
                credit: Credit, experts: Sequence[Expert], config: GRPOConfig) -> MicroBatch:
    """Everything that training on these rows needs, on the CPU."""
    size, (branches, width) = config.group_size, rows.completion_mask.shape
    branches //= len(rows.lengths)                                              # of one group

    def own(values: Tensor | None) -> Tensor | None:
        """The part (P * G, N) -> (B, N) of these rows, zeros in the expert's branches."""
        if values is None:
            return None
        part = values.unflatten(0, (-1, size))[rows.groups, :, :width]          # (groups, G, <= N)
        return F.pad(part, (0, width - part.shape[-1], 0, branches - size)).flatten(0, 1)

    kept = rollout.completion_mask & ~(rollout.truncated[:, None] & config.mask_truncated)
    flat = credit.flat.repeat_interleave(size)[:, None]                         # (P * G, 1)
    with_kl = kept & ~(flat & (not config.flat_kl))
    expert_mask = torch.zeros_like(rows.completion_mask)
    for i, (ids, start) in enumerate(experts[rows.groups]):
        expert_mask[(i + 1) * branches - 1, start:len(ids)] = True
    policy_mask, kl_mask, expert_mask = (mask & (not rows.idle)
                                         for mask in (own(kept), own(with_kl), expert_mask))
    advantages = credit.advantages.view(len(kept), -1).expand_as(kept)          # (P * G, N)
    return MicroBatch(rows, policy_mask, kl_mask, expert_mask, own(fixed["old_logprobs"]),
                      own(rollout.logprobs),
                      own(fixed["ref_logprobs"]) if config.uses("beta") else None,
                      own(advantages), own(fixed["old_values"]), own(credit.returns))


def update_policy(learner: Learner, batch: Sequence[MicroBatch], config: GRPOConfig,
                  progress: float) -> dict[str, float]:
    """`updates_per_rollout` updates, fewer if KL(old || new) > target_kl. -> the last's metrics."""
    metrics: dict[str, float] = {"kl": None}                    # stays None where no KL is measured
    made, skipped, gap = 0, 0.0, None
    for done in range(config.updates_per_rollout):
        found = accumulate(learner, batch, config, progress)
        gap = found["logprob_gap"] if gap is None else gap      # before the first update
        if done and 0 < config.target_kl < found["approx_kl"]:
            learner.optimizer.zero_grad(set_to_none=True)
            for _ in range(done, config.updates_per_rollout):
                learner.scheduler.step()                        # it ends with the run all the same
            break
        metrics |= found | update([learner.policy, learner.value], learner.optimizer,
                                  learner.scheduler, config.max_grad_norm, found["loss"])
        made, skipped = made + (not metrics["skipped"]), skipped + metrics["skipped"]
    return {**metrics, "updates": made, "skipped": skipped, "logprob_gap": gap}


def accumulate(learner: Learner, batch: Sequence[MicroBatch], config: GRPOConfig,
               progress: float) -> dict[str, float]:
    """Gradient of the whole batch, a micro-batch at a time. -> metrics, reduced as the loss, and
    logprob_gap, the largest difference between sampler and trainer in nats."""
    counts = learner.total(denominators(batch, config))
    own = {name: weight for name, (weight, _) in learner.auxiliary.items()}
    weights = config.term_weights(progress, own)
    sums, gap = 0.0, torch.zeros(())    # on the device: the host does not wait between passes
    for part in batch:
        part = part.to(learner.policy.head_weight.device)
        with autocast(learner.policy, config.precision):
            loss, found, logprobs = objective(learner.policy, learner.value, part, counts, weights,
                                              config, learner.kernels, learner.auxiliary,
                                              learner.forward)
        loss.backward()
        sums = sums + torch.stack([*found.values()]).detach().double()
        gap = gap.fmax(((logprobs - part.sampler_logprobs).abs() * part.policy_mask).max())
    *sums, gap = torch.cat([sums, gap[None]]).tolist()
    return {**learner.total(dict(zip(found, sums, strict=True))), "logprob_gap": gap}


def update(modules: Sequence[nn.Module | None], optimizer: Optimizer, scheduler: LRScheduler,
           max_grad_norm: float, loss: float) -> dict[str, float]:
    """Clip each module's gradient, then step; skip if the loss or a norm is not finite, because the
    gradient of a loss beyond float32 can look sound. -> the first module's norm, lr, the skip."""
    learning_rate = optimizer.param_groups[0]["lr"]
    norms = [nn.utils.clip_grad_norm_(m.parameters(), max_grad_norm).item() for m in modules if m]
    skipped = not all(map(math.isfinite, [loss, *norms]))
    if not skipped:
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": norms[0], "lr": learning_rate, "skipped": float(skipped)}
