"""From rewards to advantages: how much credit each token of each answer gets.

    components -> one reward per answer -> group | leave-one-out | raw return | GAE over tokens
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.config import GRPOConfig
from grpo.losses import (
    Total,
    flat_groups,
    gae,
    group_advantages,
    kl_penalty,
    leave_one_out_advantages,
    mean_and_std,
)
from grpo.sampling import Rollout


@dataclass(frozen=True)
class Credit:
    """What the losses read. B = prompts x group_size answers of at most N tokens."""

    rewards: Tensor                   # (P, G) one number per answer, before any baseline
    flat: Tensor                      # (P,) bool, groups whose answers earn the same
    advantages: Tensor                # (B,), or (B, N) with GAE
    returns: Tensor | None            # (B, N) targets of the value network, with GAE


def weighted_sum(components: Mapping[str, Tensor], config: GRPOConfig) -> Tensor:
    """The reward of every answer. Shapes: name: (P, G) -> (P, G)."""
    return sum(weight * components[name] for name, weight in config.paid(components).items())


def compared_rewards(components: Mapping[str, Tensor], config: GRPOConfig) -> Tensor:
    """The rewards that are compared within a group; a group of equal ones is flat.

    normalise_rewards centres and scales every component in its group, so that all spreads count
    alike (GDPO, arXiv:2601.05242). Shapes: name: (P, G) -> (P, G)."""
    if config.normalise_rewards:
        components = {name: group_advantages(components[name]) for name in config.paid(components)}
    return weighted_sum(components, config)


def length_penalty(lengths: Tensor, limit: int, margin: int) -> Tensor:
    """Soft overlong punishment: 0 up to limit - margin tokens, then linear down to -1 at the limit.

    Shapes: lengths (G,) in tokens -> (G,). Source: DAPO, arXiv:2503.14476, eq. 13."""
    return -((lengths - (limit - margin)) / margin).clamp(0, 1)


def assign_credit(components: Mapping[str, Tensor], rollout: Rollout,
                  reference_logprobs: Tensor | None, values: Tensor | None,
                  config: GRPOConfig, total: Total = dict) -> Credit:
    """Rewards and advantages of a rollout, by `config.advantage`.

        group          (r - mean) / (std + 1e-4)      leave_one_out   r - mean of the OTHER answers
        return         r itself: plain REINFORCE      gae             GAE over the tokens' rewards

    reward_kl subtracts reward_kl * log(pi / pi_ref): from each token's reward with gae, from the
    answer's reward otherwise. whiten_advantages applies to gae, scale_rewards to group.
    Shapes: components name: (P, G); reference_logprobs, values (B, N) or None. total: see Total.
    Source: group 2402.03300, sec. 4.1.2; leave_one_out 2402.14740; gae 1506.02438."""
    mask, rewards = rollout.completion_mask, weighted_sum(components, config)   # (B, N), (P, G)
    scored = compared_rewards(components, config)                               # (P, G)
    flat = flat_groups(scored)                                                  # (P,)
    token_kl = torch.zeros_like(rollout.logprobs)                               # (B, N)
    if config.reward_kl > 0:
        gap = kl_penalty(rollout.logprobs, reference_logprobs, "k1")
        token_kl = config.reward_kl * gap.masked_fill(~mask, 0.0)
    if config.advantage == "gae":
        token_rewards = last_token_rewards(scored.flatten(), mask) - token_kl
        advantages, returns = gae(token_rewards, values, mask, config.gamma, config.gae_lambda)
        if config.whiten_advantages:
            advantages = whiten(advantages, mask, total)
        return Credit(rewards, flat, advantages, returns)
    scored = scored - token_kl.sum(1).view_as(rewards)
    if config.advantage == "leave_one_out":
        advantages = leave_one_out_advantages(scored)
    elif config.advantage == "group":
        advantages = group_advantages(scored, config.scale_rewards, total=total)
    else:
        advantages = scored
    return Credit(rewards, flat, advantages.flatten(), None)


def whiten(values: Tensor, mask: Tensor, total: Total = dict) -> Tensor:
    """(v - mean) / (std + 1e-4) over all tokens of the mask (B, N), ddof 1; 0 elsewhere."""
    mean, std = mean_and_std(values[mask], total)
    return ((values - mean) / (std + 1e-4)).masked_fill(~mask, 0.0)


def last_token_rewards(rewards: Tensor, mask: Tensor) -> Tensor:
    """The answer's reward on its last token, 0 before. Shapes: (B,), (B, N) -> (B, N)."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)         # True on the last True of a row
    return rewards[:, None] * last
