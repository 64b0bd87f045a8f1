"""Advantages, KL estimates and policy losses, written as in the papers.

B completions (rows of a (B, T) tensor), T token positions, P prompts, G completions of one prompt.
`mask` is True on the completion's tokens, including its end token. Log-probabilities and KL are in
nats. Losses are to be minimised. Masked log-probabilities are replaced before any arithmetic: not
even a NaN in the padding reaches a gradient (`kl_penalty` has no mask: give it finite padding).
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Total = Callable[[Mapping[str, float]], dict[str, float]]   # sums of named numbers over processes
MAX_LOG_RATIO = 20.0  # exp(20) = 4.9e8: far outside every clip range, still finite in float32

# How each variant weighs tokens (see `aggregate`). REINFORCE sums over tokens; token_mean is that
# sum up to one constant of the batch, while sequence_mean would favour short answers.
AGGREGATION = {"reinforce": "token_mean", "ppo": "token_mean", "grpo": "sequence_mean",
               "dapo": "token_mean", "dr_grpo": "fixed_length", "gspo": "sequence_mean",
               "cispo": "token_mean", "sequence": "sequence_mean"}


def group_advantages(rewards: Tensor | Sequence[Sequence[float]], scale: str = "group",
                     eps: float = 1e-4, total: Total = dict) -> Tensor:
    """How much better each completion is than its group's average: A = (r - mean) / (std + eps).

    scale: "group" divides by the group's standard deviation (ddof 1), "batch" by that of all P * G
    rewards of all processes, "none" by nothing. A group of equal rewards gets exactly 0. With G = 2
    and "group", A is +-0.7071 for every gap far above eps. Computed in float64, returned as given.
    Shapes: (P, G) -> (P, G).
    Raises: ValueError for a missing or non-finite reward (named by index), or a group of 1.
    Source: DeepSeekMath, arXiv:2402.03300, sec. 4.1.2; none: Dr. GRPO, arXiv:2503.20783."""
    rewards = _checked_rewards(rewards)
    if scale not in ("group", "batch", "none"):
        raise ValueError(f"unknown scale {scale!r}: use group, batch or none")
    if scale == "group" and rewards.shape[1] < 2:
        raise ValueError("a group of 1 has no standard deviation: sample 2 or more per prompt")
    exact = rewards.double()
    centred = exact - exact.mean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (exact.std(dim=1, keepdim=True) + eps)          # (P, 1), ddof 1
    elif scale == "batch":
        centred = centred / (mean_and_std(exact, total)[1] + eps)
    flat = flat_groups(rewards)[:, None]                                    # (P, 1)
    return centred.masked_fill(flat, 0.0).to(rewards.dtype)     # rounding must not become a signal


def mean_and_std(values: Tensor, total: Total = dict) -> tuple[float, float]:
    """Mean and standard deviation (ddof 1; 0 for one value) of the values of all processes."""
    exact = values.double()
    sums = total({"count": exact.numel(), "values": exact.sum().item(),
                  "squares": exact.square().sum().item()})
    mean = sums["values"] / max(1, sums["count"])
    variance = (sums["squares"] - sums["count"] * mean**2) / max(1, sums["count"] - 1)
    return mean, math.sqrt(max(0.0, variance))


def leave_one_out_advantages(rewards: Tensor | Sequence[Sequence[float]]) -> Tensor:
    """Each reward minus the mean of the other G - 1 of its group: A = r - (sum - r) / (G - 1).

    Shapes: (P, G) -> (P, G). No scaling. A group of equal rewards gets exactly 0.
    Raises: ValueError as `group_advantages`. Source: RLOO, arXiv:2402.14740."""
    rewards = _checked_rewards(rewards)
    group_size = rewards.shape[1]
    if group_size < 2:
        raise ValueError("leave-one-out needs at least 2 completions per prompt, got a group of 1")
    exact = rewards.double()
    others = (exact.sum(dim=1, keepdim=True) - exact) / (group_size - 1)    # (P, G)
    return (exact - others).masked_fill(flat_groups(rewards)[:, None], 0.0).to(rewards.dtype)


def flat_groups(rewards: Tensor) -> Tensor:
    """Groups of equal rewards: their group-relative advantage is 0. Shapes: (P, G) -> (P,) bool."""
    return (rewards == rewards[:, :1]).all(dim=1)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float,
        lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation along the masked tokens, not whitened, detached.

        delta[t] = r[t] + gamma * V[t+1] - V[t]
        A[t]     = delta[t] + gamma * lam * A[t+1];     returns = A + V

    The completion ends the episode: V and A after its last token are 0. This holds for truncated
    answers too: the limit is part of the task and the same in evaluation, so no value is
    bootstrapped after it (Pardo et al. 2018, arXiv:1712.00378, sec. 2). Padding gets 0.
    Shapes: rewards, values, mask (B, T) -> advantages, returns (B, T).
    Source: GAE, arXiv:1506.02438, eq. 16; PPO, arXiv:1707.06347, eq. 11-12."""
    mask = _checked_mask(mask, values, rewards=rewards)
    values = values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)                                   # (B, T)
    next_value = next_advantage = torch.zeros_like(values[:, 0])            # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]           # (B,)
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = advantage.masked_fill(~mask[:, t], 0.0)
    return advantages, advantages + values


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k3",
               ratio: Tensor | None = None) -> Tensor:
    """One-sample estimates of KL(policy || reference), with d = ref_logprob - logprob.

        k1 = -d;   k2 = d^2 / 2;   k3 = exp(d) - d - 1, never negative;   with ratio: ratio * k

    As a loss term only the expected gradient matters: that of k1 is 0, that of k2 is the gradient
    of KL(policy || reference), that of k3 is the gradient of KL(reference || policy), and k3 times
    ratio = exp(logprob - old_logprob) gives that of KL(policy || reference) again. k3 is flat
    beyond d = 20, where exp would overflow. Shapes: (B, T) -> (B, T).
    Source: Schulman, "Approximating KL divergence" (2020); k3: arXiv:2402.03300, eq. 4."""
    gap = ref_logprobs.detach() - logprobs                                  # (B, T)
    if estimator == "k1":
        kl = -gap
    elif estimator == "k2":
        kl = gap.square() / 2
    elif estimator == "k3":
        gap = gap.clamp(max=MAX_LOG_RATIO)
        kl = gap.exp() - gap - 1
    else:
        raise ValueError(f"unknown KL estimator {estimator!r}: use k1, k2 or k3")
    return kl if ratio is None else ratio * kl


def policy_loss(logprobs: Tensor, old_logprobs: Tensor | None, advantages: Tensor, mask: Tensor,
                variant: str = "grpo", clip_low: float = 0.2, clip_high: float = 0.2,
                delta: float | None = None, max_length: int | None = None,
                denominator: float | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy-gradient loss of a batch and its metrics, reduced as the variant says (AGGREGATION).

    w = exp(logprob - old_logprob) is 1 before the first update: a loss of w then starts near 0, its
    gradient does not. Per token the loss is -logprob * A (reinforce), `clipped_surrogate` of the
    token's w (ppo, grpo, dapo, dr_grpo) or of one w per row (gspo, sequence), or -sg(clip(w)) *
    logprob * A (cispo). old_logprobs None: w = 1. max_length, denominator: see `aggregate`.
    Metrics: ratio, clip_frac (terms that the clip changes), its two parts, approx_kl (k3 of old).
    Shapes: advantages (B,) or (B, T), the others (B, T); results are scalars.
    Source: PPO 1707.06347 eq. 7, DeepSeekMath 2402.03300 eq. 3, DAPO 2503.14476 eq. 8, Dr. GRPO
    2503.20783, GSPO 2507.18071 eq. 5, CISPO 2506.13585 eq. 4, AlphaDrive 2503.07608 eq. 1-2."""
    _check_policy_settings(variant, clip_low, clip_high, delta)
    one_ratio = variant in ("gspo", "sequence")                             # per row
    old_logprobs = logprobs.detach() if old_logprobs is None else old_logprobs.detach()
    mask = _checked_mask(mask, logprobs, old_logprobs=old_logprobs)
    advantages = _token_advantages(advantages, mask, per_row=one_ratio)     # (B, T)
    logprobs = logprobs.masked_fill(~mask, 0.0)
    old_logprobs = old_logprobs.masked_fill(~mask, 0.0)
    log_ratio = logprobs - old_logprobs                                     # (B, T), 0 on padding

    if one_ratio:
        ratio = sequence_ratio(log_ratio, mask, mean=variant == "gspo").expand_as(log_ratio)
    else:
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()        # (B, T)
    if variant == "reinforce":
        losses = -logprobs * advantages
        too_low = too_high = torch.zeros_like(mask)
    elif variant == "cispo":                                    # clipped tokens keep their gradient
        losses = -ratio.detach().clamp(1 - clip_low, 1 + clip_high) * logprobs * advantages
        too_low, too_high = ratio < 1 - clip_low, ratio > 1 + clip_high
    else:
        losses, too_low, too_high = clipped_surrogate(ratio, advantages, clip_low, clip_high, delta)

    terms = {"loss": losses, "ratio": ratio, "clip_frac": too_low | too_high,
             "clip_low_frac": too_low, "clip_high_frac": too_high,
             "approx_kl": kl_penalty(old_logprobs, logprobs, "k3")}
    means = {name: aggregate(term.to(losses.dtype), mask, AGGREGATION[variant], max_length,
                             denominator) for name, term in terms.items()}
    return means.pop("loss"), {name: mean.detach() for name, mean in means.items()}


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float,
                      delta: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """-min(w A, clip(w, 1 - clip_low, 1 + clip_high) A), and where either bound cuts the gradient.

    A better token gains nothing from w above 1 + clip_high, a worse one nothing from w below
    1 - clip_low. For A < 0 the first product is unbounded; delta (above 1 + clip_high) bounds its w
    and counts as an upper clip.
    Shapes: (B, T) -> loss, too_low, too_high (B, T).
    Source: PPO, arXiv:1707.06347, eq. 7; two bounds: DAPO, eq. 8; delta: INTELLECT-2,
    arXiv:2505.07291 (dual clip: arXiv:1912.09729)."""
    bounded = ratio if delta is None else ratio.clamp(max=delta)
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    too_low = (advantages < 0) & (ratio < 1 - clip_low)
    too_high = (advantages > 0) & (ratio > 1 + clip_high)
    if delta is not None:
        too_high = too_high | ((advantages < 0) & (ratio > delta))
    return -torch.minimum(bounded * advantages, clipped * advantages), too_low, too_high


def sequence_ratio(log_ratio: Tensor, mask: Tensor, mean: bool) -> Tensor:
    """One ratio per row: the product of its tokens' ratios (AlphaDrive eq. 1), or their geometric
    mean (GSPO eq. 7).

    100 tokens that moved by 0.01 nats each: the product is e = 2.72, which any clip cuts, the mean
    1.01. Shapes: (B, T) -> (B, 1). log_ratio is 0 where mask is False."""
    moved = log_ratio.sum(dim=1, keepdim=True)
    moved = moved / mask.sum(dim=1, keepdim=True).clamp(min=1) if mean else moved
    return moved.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def aggregate(values: Tensor, mask: Tensor, how: str, max_length: int | None = None,
              denominator: Tensor | float | None = None) -> Tensor:
    """Mean of the masked values. Rows without a token give 0 and do not count.

        sequence_mean  sum_i (mean_t v[i,t]) / rows           every answer has the same weight
        token_mean     sum_it v[i,t] / tokens                 every token has the same weight
        fixed_length   sum_it v[i,t] / (rows * max_length)    no weight depends on a length

    denominator replaces rows, tokens or rows * max_length by the whole batch's, so that the results
    of micro-batches add up to the batch's mean exactly (a mean of means would not).
    Shapes: (B, T) -> scalar.
    Source: GRPO eq. 3; DAPO 2503.14476, eq. 8; Dr. GRPO 2503.20783, sec. 3."""
    mask = _checked_mask(mask, values)
    values, lengths = values.masked_fill(~mask, 0.0), mask.sum(dim=1)       # (B, T), (B,)
    rows, tokens = (lengths > 0).sum(), lengths.sum()
    if how == "sequence_mean":
        summed, own = (values.sum(dim=1) / lengths.clamp(min=1)).sum(), rows
    elif how == "token_mean":
        summed, own = values.sum(), tokens
    elif how == "fixed_length":
        if not max_length and denominator is None:
            raise ValueError("fixed_length needs max_length, the longest completion, in tokens")
        summed, own = values.sum(), rows * (max_length or 0)
    else:
        raise ValueError(f"unknown aggregation {how!r}: sequence_mean, token_mean or fixed_length")
    divisor = torch.as_tensor(own if denominator is None else denominator)      # on its own device
    return summed / divisor.masked_fill(divisor == 0, 1)        # nothing to average: the sum is 0


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor,
               clip: float | None, denominator: Tensor | float | None = None) -> Tensor:
    """0.5 * token mean of max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2).

    clip None: the first square alone. denominator: tokens of the whole batch, as in `aggregate`.
    Shapes: (B, T) each -> scalar. Units: squared rewards.
    Source: Huang et al., "The 37 implementation details of PPO" (2022), detail 9."""
    mask = _checked_mask(mask, values, old_values=old_values, returns=returns)
    values = values.masked_fill(~mask, 0.0)
    old_values = old_values.detach().masked_fill(~mask, 0.0)
    returns = returns.detach().masked_fill(~mask, 0.0)
    errors = (values - returns).square()                                    # (B, T)
    if clip is not None:
        near_old = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (near_old - returns).square())
    return 0.5 * aggregate(errors, mask, "token_mean", denominator=denominator)


def _checked_rewards(rewards: Tensor | Sequence[Sequence[float]]) -> Tensor:
    if not isinstance(rewards, Tensor):
        rewards = torch.tensor([[float("nan") if reward is None else float(reward)
                                 for reward in group] for group in rewards])
    if rewards.ndim != 2 or rewards.shape[1] == 0:
        raise ValueError("rewards must be (prompts, group size) and no group empty, got shape "
                         f"{tuple(rewards.shape)}")
    bad = (~torch.isfinite(rewards)).nonzero()
    if len(bad):
        prompt, sample = bad[0].tolist()
        raise ValueError(f"reward of prompt {prompt}, completion {sample} is missing or not finite "
                         f"({rewards[prompt, sample].item()}): every completion needs a number")
    return rewards.detach() if rewards.is_floating_point() else rewards.float()


def _checked_mask(mask: Tensor, like: Tensor, **others: Tensor) -> Tensor:
    for name, tensor in {"mask": mask, **others}.items():
        if tensor.shape != like.shape or like.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (rows, tokens) = "
                             f"{tuple(like.shape)}")
    return mask.bool()


def _token_advantages(advantages: Tensor, mask: Tensor, per_row: bool) -> Tensor:
    allowed = [mask.shape[:1]] if per_row else [mask.shape[:1], mask.shape]
    if advantages.shape not in allowed:
        raise ValueError(f"advantages have shape {tuple(advantages.shape)}, expected "
                         f"{' or '.join(str(tuple(shape)) for shape in allowed)} for this variant")
    advantages = advantages[:, None] if advantages.ndim == 1 else advantages
    return advantages.detach().expand(mask.shape)                           # (B, T)


def _check_policy_settings(variant: str, clip_low: float, clip_high: float,
                           delta: float | None) -> None:
    if variant not in AGGREGATION:
        raise ValueError(f"unknown variant {variant!r}: use one of {', '.join(AGGREGATION)}")
    if clip_low < 0 or clip_high < 0:
        raise ValueError(f"clip_low {clip_low} and clip_high {clip_high} must not be negative")
    if delta is not None and delta <= 1 + clip_high:
        raise ValueError(f"delta {delta} must be above 1 + clip_high = {1 + clip_high}, or None")
