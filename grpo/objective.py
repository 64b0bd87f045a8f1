"""The unified objective, one micro-batch at a time.

    L = pg L_policy + beta L_KL + vf L_value - ent H + bc L_BC (+ the user's own terms)

Every term divides by counts of the WHOLE batch, so the gradients of micro-batches add up to the batch's exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from grpo.config import GRPOConfig
from grpo.fixed import FixedRows, completion_values
from grpo.logprobs import completion_logprobs, completion_states
from grpo.losses import AGGREGATION, MAX_LOG_RATIO, aggregate, kl_penalty, policy_loss, value_loss
from models.qwen2_vl import Qwen2VL
from models.value import ValueNetwork


@dataclass(frozen=True)
class Counts:
    """Denominators of the whole batch."""

    policy: float                     # rows, tokens or rows * max_new_tokens, as the variant aggregates
    tokens: float                     # tokens of the policy mask, for the value loss
    expert: float                     # tokens of the expert mask


Auxiliary = Callable[[Tensor, Tensor, FixedRows], Tensor]   # (logprobs, entropy, rows) -> this micro-batch's share
TERMS = {"policy_loss": "pg_coef", "kl": "beta", "value_loss": "vf_coef", "entropy": "ent_coef", "bc_loss": "bc_coef"}


def term_weights(config: GRPOConfig, progress: float,
                 auxiliary: Mapping[str, tuple[float, Auxiliary]]) -> dict[str, float]:
    """Weight of every term when `progress` (0 to 1) of the run is done; entropy's is negative, it is to grow.

    Raises: ValueError if a term of the user's has the name of one of ours.
    """
    taken = TERMS.keys() & auxiliary.keys()
    if taken:
        raise ValueError(f"auxiliary term {sorted(taken)[0]!r} has the name of a built-in one; call it something else")
    weights = {term: config.coefficient(name, progress) for term, name in TERMS.items()}
    return {**weights, "entropy": -weights["entropy"], **{name: weight for name, (weight, _) in auxiliary.items()}}


def count(batch: Sequence[FixedRows], config: GRPOConfig) -> Counts:
    """What the terms of all micro-batches are divided by."""
    tokens = sum(int(part.policy_mask.sum()) for part in batch)
    rows = sum(int(part.policy_mask.any(1).sum()) for part in batch)
    policy = {"sequence_mean": rows, "token_mean": tokens, "fixed_length": rows * config.max_new_tokens}
    return Counts(policy[AGGREGATION[config.variant]], tokens, sum(int(part.expert_mask.sum()) for part in batch))


def objective(policy: Qwen2VL, value: ValueNetwork | None, part: FixedRows, counts: Counts,
              weights: Mapping[str, float], config: GRPOConfig,
              auxiliary: Mapping[str, tuple[float, Auxiliary]]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """This micro-batch's share of the loss and of every metric, and the logprobs.

    Metrics are reduced as the loss is, except where it divides by empty slots (dr_grpo): there they are token means.
    """
    def mean(values: Tensor, mask: Tensor) -> Tensor:
        return aggregate(values, mask, AGGREGATION[config.variant], config.max_new_tokens, counts.policy)

    states = completion_states(policy, part.rows)                               # (C, D)
    logprobs, entropy = completion_logprobs(policy, part.rows, config.temperature,
                                            policy.config.suppressed_token_ids, states)
    loss, metrics = policy_loss(logprobs, part.old_logprobs, corrected_advantages(part, config), part.policy_mask,
                                config.variant, config.clip_low, config.clip_high, config.delta or None,
                                config.max_new_tokens, counts.policy)
    terms = {"policy_loss": loss, "entropy": mean(entropy, part.policy_mask)}
    if part.ref_logprobs is not None:
        ratio = probability_ratio(logprobs, part.old_logprobs) if config.kl_ratio else None
        terms["kl"] = mean(kl_penalty(logprobs, part.ref_logprobs, config.kl_estimator, ratio), part.kl_mask)
    if value is not None:
        values = completion_values(value, policy, part.rows, states)
        terms["value_loss"] = value_loss(values, part.old_values, part.returns, part.policy_mask,
                                         config.clip_value or None, counts.tokens)
    if counts.expert:
        terms["bc_loss"] = aggregate(-logprobs, part.expert_mask, "token_mean", denominator=counts.expert)
    terms |= {name: term(logprobs, entropy, part) for name, (_, term) in auxiliary.items()}
    total = sum(weights[name] * term for name, term in terms.items())
    if AGGREGATION[config.variant] == "fixed_length":                           # only the loss counts empty slots:
        filled = counts.policy / max(1, counts.tokens)                          # what is read is a mean over tokens
        metrics = {name: metric * filled for name, metric in metrics.items()}
        terms["entropy"] = terms["entropy"] * filled
    return total, {**metrics, "loss": total, **terms}, logprobs.detach()


def corrected_advantages(part: FixedRows, config: GRPOConfig) -> Tensor:
    """Advantages, times min(trainer / sampler probability, cap) per token if the sampler is to be corrected for.

    Shapes: -> (B, N); (B,) for the variants with one ratio per answer. Source: truncated importance sampling, as in
    Yao et al. (2025), "Your efficient RL framework secretly brings you off-policy RL training".
    """
    if config.variant in ("gspo", "sequence"):
        return part.advantages[:, 0]
    if not config.importance_cap:
        return part.advantages
    weight = probability_ratio(part.old_logprobs, part.sampler_logprobs).clamp(max=config.importance_cap)  # (B, N)
    return part.advantages * weight


def probability_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """exp(logprobs - old_logprobs), the gap cut at +-20 so that it stays finite. Shapes: (B, N) -> (B, N)."""
    return (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
