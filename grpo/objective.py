"""The unified objective, one micro-batch at a time.

    loss = pg L_policy + beta L_KL + vf L_value - ent H + bc L_BC (+ the user's own terms)

Terms divide by counts of the WHOLE batch, so its micro-batches' gradients add up to its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.config import GRPOConfig
from grpo.logprobs import Kernels, completion_logprobs, per_completion
from grpo.losses import AGGREGATION, MAX_LOG_RATIO, aggregate, kl_penalty, policy_loss, value_loss
from grpo.packing import PackedRows
from models.qwen2_vl import Qwen2VL
from models.value import ValueNetwork


@dataclass(frozen=True)
class MicroBatch:
    """Packed rows and everything that stays fixed while they are trained on, (B, N) each.

    B branches: the samples, and maybe an expert's, which hold 0 where only samples have values."""

    rows: PackedRows
    policy_mask: Tensor               # bool: tokens of the policy, value and entropy terms
    kl_mask: Tensor                   # bool: tokens of the KL term
    expert_mask: Tensor               # bool: tokens that behaviour cloning imitates
    old_logprobs: Tensor | None       # None before a single update: the policy's own
    sampler_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    old_values: Tensor | None
    returns: Tensor | None

    def to(self, device: torch.device | str) -> "MicroBatch":
        """The same on another device."""
        return MicroBatch(**{name: None if value is None else value.to(device, non_blocking=True)
                             for name, value in vars(self).items()})


# The pass of a policy: (policy, value network, rows, config, kernels) -> Pass
Forward = Callable[..., "Pass"]
# A term of the user's own: (logprobs, entropy, micro-batch) -> its share of the term
Auxiliary = Callable[[Tensor, Tensor, MicroBatch], Tensor]


def denominators(batch: Sequence[MicroBatch], config: GRPOConfig) -> dict[str, float]:
    """Counts over all micro-batches: what the policy loss (rows, tokens or rows * max_new_tokens,
    as the variant says), the value loss (tokens) and the cloning loss (expert) are divided by."""
    tokens = sum(int(part.policy_mask.sum()) for part in batch)
    rows = sum(int(part.policy_mask.any(1).sum()) for part in batch)
    policy = {"sequence_mean": rows, "token_mean": tokens,
              "fixed_length": rows * config.max_new_tokens}[AGGREGATION[config.variant]]
    expert = sum(int(part.expert_mask.sum()) for part in batch)
    return {"policy": policy, "tokens": tokens, "expert": expert}


@dataclass(frozen=True)
class Pass:
    """What the loss reads of a policy's differentiable pass over a micro-batch, (B, N) each."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None
    expert_loss: Tensor               # -log pi of the expert's, read where expert_mask is True
    kl: Tensor | None = None          # exact, where it has a closed form; None: estimated


def text_pass(policy: Qwen2VL, value: ValueNetwork | None, rows: PackedRows, config: GRPOConfig,
              kernels: Kernels) -> Pass:
    """Log-probabilities of the tokens of sampled and expert answers."""
    states = kernels.states(policy, rows)                                       # (C, D)
    logprobs, entropy = completion_logprobs(policy, rows, config.temperature,
                                            policy.config.suppressed_token_ids, states, kernels)
    values = None if value is None else completion_values(value, policy, rows, kernels, states)
    return Pass(logprobs, entropy, values, expert_loss=-logprobs)


def objective(policy: Qwen2VL, value: ValueNetwork | None, part: MicroBatch,
              counts: Mapping[str, float], weights: Mapping[str, float], config: GRPOConfig,
              kernels: Kernels, auxiliary: Mapping[str, tuple[float, Auxiliary]],
              forward: Forward = text_pass) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """This micro-batch's share of the loss and of every metric, and its logprobs (B, N).

    counts: `denominators` of the whole batch. Metrics are reduced as the loss is, but with dr_grpo,
    which divides the loss by the padded length, they are rescaled to token means."""
    def mean(values: Tensor, mask: Tensor) -> Tensor:
        return aggregate(values, mask, AGGREGATION[config.variant], config.max_new_tokens,
                         counts["policy"])

    found = forward(policy, value, part.rows, config, kernels)
    logprobs = found.logprobs
    old_logprobs = logprobs.detach() if part.old_logprobs is None else part.old_logprobs
    loss, metrics = policy_loss(logprobs, old_logprobs,
                                corrected_advantages(part, old_logprobs, config),
                                part.policy_mask, config.variant, config.clip_low,
                                config.clip_high, config.delta or None, config.max_new_tokens,
                                counts["policy"])
    terms = {"policy_loss": loss, "entropy": mean(found.entropy, part.policy_mask)}
    if found.kl is not None:
        terms["kl"] = mean(found.kl, part.kl_mask)
    elif part.ref_logprobs is not None:
        ratio = probability_ratio(logprobs, old_logprobs) if config.kl_ratio else None
        kl = kl_penalty(logprobs, part.ref_logprobs, config.kl_estimator, ratio)
        terms["kl"] = mean(kl, part.kl_mask)
    if value is not None:
        terms["value_loss"] = value_loss(found.values, part.old_values, part.returns,
                                         part.policy_mask, config.clip_value or None,
                                         counts["tokens"])
    if counts["expert"]:
        terms["bc_loss"] = aggregate(found.expert_loss, part.expert_mask, "token_mean",
                                     denominator=counts["expert"])
    terms |= {name: term(logprobs, found.entropy, part) for name, (_, term) in auxiliary.items()}
    total = sum(weights[name] * term for name, term in terms.items())
    if AGGREGATION[config.variant] == "fixed_length":
        filled = counts["policy"] / max(1, counts["tokens"])
        metrics = {name: metric * filled for name, metric in metrics.items()}
        terms |= {name: terms[name] * filled for name in ("entropy", "kl") if name in terms}
    return total, {**metrics, "loss": total, **terms}, logprobs.detach()


def completion_values(value: ValueNetwork, policy: Qwen2VL, rows: PackedRows, kernels: Kernels,
                      states: Tensor | None = None) -> Tensor:
    """V (B, N) before every completion token, from the own trunk or the policy's states (C, D)."""
    if value.trunk is not None or states is None:
        states = kernels.states(value.trunk or policy, rows)
    return per_completion(value(states), rows)


def corrected_advantages(part: MicroBatch, old_logprobs: Tensor, config: GRPOConfig) -> Tensor:
    """Advantages, times min(trainer / sampler probability, importance_cap) per token if it is set.

    Shapes: -> (B, N); (B,) for the variants with one ratio per answer.
    Source: Yao et al. (2025), "Your efficient RL framework secretly brings you off-policy RL"."""
    if config.variant in ("gspo", "sequence"):
        return part.advantages[:, 0]
    if not config.importance_cap:
        return part.advantages
    weight = probability_ratio(old_logprobs, part.sampler_logprobs)             # (B, N)
    return part.advantages * weight.clamp(max=config.importance_cap)


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """exp(logprobs - old_logprobs), the gap clamped to +-20 to stay finite. Shapes: (B, N)."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
