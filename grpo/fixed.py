"""What stays fixed while a rollout batch is trained on: packed rows, masks, old and reference values, credit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from grpo.batch import PackedRows, Prompt, micro_batches, pack
from grpo.config import GRPOConfig
from grpo.credit import Credit, flat_groups
from grpo.engine.distributed import SINGLE, Distributed
from grpo.logprobs import autocast, completion_logprobs, completion_states, per_completion
from grpo.rollout import Rollout
from models.qwen2_vl import Qwen2VL
from models.value import ValueNetwork


@dataclass(frozen=True)
class FixedRows:
    """A micro-batch and all that stays fixed during its updates. B branches: the samples, and maybe the expert's.

    (B, N) each unless said otherwise; the expert's branches hold zeros where only samples have values.
    """

    rows: PackedRows
    policy_mask: Tensor               # bool: tokens of the policy, value and entropy terms
    kl_mask: Tensor                   # bool: tokens of the KL term
    expert_mask: Tensor               # bool: tokens that behaviour cloning imitates
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    old_values: Tensor | None
    returns: Tensor | None

    def to(self, device: torch.device | str) -> "FixedRows":
        """The same on another device."""
        return FixedRows(**{name: None if value is None else value.to(device) for name, value in vars(self).items()})


def pack_groups(prompts: Sequence[Prompt], rollout: Rollout, experts: Sequence[tuple[Tensor, int]],
                config: GRPOConfig) -> list[tuple[slice, PackedRows]]:
    """The groups in micro-batches of packed rows: prompt, samples and, if there is one, the expert's branch."""
    ids, size = rollout.completions(), config.group_size
    groups = [ids[i * size:(i + 1) * size] + [branch for branch, _ in experts[i:i + 1]] for i in range(len(prompts))]
    lengths = [len(prompt.input_ids) + sum(map(len, group)) for prompt, group in zip(prompts, groups, strict=True)]
    return [(rows, pack(prompts[rows], groups[rows])) for rows in micro_batches(lengths, config.micro_batch_tokens)]


@torch.no_grad()
def fixed_values(policy: Qwen2VL, reference: Qwen2VL | None, value: ValueNetwork | None,
                 packed: Sequence[tuple[slice, PackedRows]], rollout: Rollout, config: GRPOConfig,
                 world: Distributed = SINGLE) -> dict[str, Tensor | None]:
    """Old and reference log-probabilities and old values of the whole rollout, (P * G, N) each, before any update.

    With one update per batch the old log-probabilities are the sampler's own; with several, or when the sampler is to
    be corrected for, they come from a pass of the policy, so that the ratio holds nothing but the policy's movement.
    """
    def logprobs_of(model: Qwen2VL, rows: PackedRows) -> Tensor:
        return completion_logprobs(model, rows, config.temperature, model.config.suppressed_token_ids)[0]

    def whole(run: Callable[..., Tensor], *score: Callable | Module) -> Tensor:
        parts = [samples_of(rows, partial(run, *score), rollout.logprobs.shape[1], policy, config)
                 for _, rows in packed]
        return torch.cat(parts)[:len(rollout.texts)]                            # without what `padded` repeated

    own_pass = config.updates_per_rollout > 1 or config.importance_cap > 0
    return {"old_logprobs": whole(world.with_policy, logprobs_of, policy) if own_pass else rollout.logprobs,
            "ref_logprobs": None if reference is None else whole(world.with_reference, logprobs_of, reference),
            "old_values": None if value is None else whole(world.with_policy, completion_values, value, policy)}


def samples_of(rows: PackedRows, score: Callable[[PackedRows], Tensor], length: int, policy: Qwen2VL,
               config: GRPOConfig) -> Tensor:
    """Score a micro-batch; the samples' rows alone, padded to the rollout's length, on the CPU. -> (P * G, length)."""
    with autocast(policy, config.precision):
        values = score(rows.to(policy.head_weight.device)).cpu()                # (branches, N)
    values = values.view(len(rows.input_ids), -1, values.shape[-1])[:, :config.group_size, :length]
    return F.pad(values, (0, length - values.shape[-1])).flatten(0, 1)


def completion_values(value: ValueNetwork, policy: Qwen2VL, rows: PackedRows, states: Tensor | None = None) -> Tensor:
    """V before every completion token, from the value network's own trunk or the policy's states. -> (B, N)."""
    if value.trunk is not None or states is None:
        states = completion_states(value.trunk or policy, rows)
    return per_completion(value(states), rows)


def fix_rows(groups: slice, rows: PackedRows, rollout: Rollout, fixed: Mapping[str, Tensor | None], credit: Credit,
             experts: Sequence[tuple[Tensor, int]], config: GRPOConfig) -> FixedRows:
    """Gather what a micro-batch needs, on the CPU."""
    branches, width = config.group_size + bool(experts), rows.completion_mask.shape[1]

    def own(values: Tensor | None) -> Tensor | None:
        return None if values is None else place(values, groups, config.group_size, branches, width)

    kept = rollout.completion_mask & ~(rollout.truncated[:, None] & config.mask_truncated)
    moving = kept & ~(flat_groups(credit.rewards).repeat_interleave(config.group_size)[:, None] & (not config.flat_kl))
    expert_mask = torch.zeros_like(rows.completion_mask)
    for i, (ids, start) in enumerate(experts[groups]):
        expert_mask[(i + 1) * branches - 1, start:len(ids)] = True
    advantages = credit.advantages.view(len(kept), -1).expand_as(kept)          # one per answer: each token has it
    return FixedRows(rows, own(kept), own(moving), expert_mask, own(fixed["old_logprobs"]), own(rollout.logprobs),
                     own(fixed["ref_logprobs"]) if config.uses("beta") else None, own(advantages),
                     own(fixed["old_values"]), own(credit.returns))


def idle(part: FixedRows) -> FixedRows:
    """The same rows without a token that counts: their losses, metrics and gradients are 0."""
    return replace(part, **{name: torch.zeros_like(getattr(part, name))
                            for name in ("policy_mask", "kl_mask", "expert_mask")})


def place(values: Tensor, rows: slice, size: int, branches: int, width: int) -> Tensor:
    """The part of a rollout tensor (P * G, N) that belongs to a micro-batch, zeros in the expert's branches.

    Shapes: -> (groups * branches, width).
    """
    own = values.unflatten(0, (-1, size))[rows, :, :width]                      # (groups, G, <= width)
    return F.pad(own, (0, width - own.shape[-1], 0, branches - size)).flatten(0, 1)
