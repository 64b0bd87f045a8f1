"""A batch of groups: the questions, the sampled answers, and the rewards of each answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.example import Example
from grpo.config import GRPOConfig
from grpo.credit import compared_rewards, length_penalty
from grpo.losses import flat_groups
from grpo.sampling import PlainSampler, Rollout, merge_rollouts, uniform_table
from models.prompt import Prompt
from rewards.checked import check_paid, checked_rewards

RewardFn = Callable[[Example, list[str]], list[dict[str, float]]]


@dataclass(frozen=True)
class PromptBatch:
    """Examples to answer."""

    numbers: Sequence[int]            # places in the data stream, from which random numbers follow
    examples: list[Example]
    prompts: list[Prompt]


@dataclass(frozen=True)
class Group:
    """One example, its G sampled answers and their reward components."""

    example: Example
    prompt: Prompt
    rollout: Rollout                  # G rows
    components: dict[str, Tensor]     # name: (G,)
    tokens: int                       # of prompt and answers


@dataclass(frozen=True)
class ScoredBatch:
    """P groups as one batch."""

    examples: list[Example]
    prompts: list[Prompt]
    rollout: Rollout                  # P * G rows
    components: dict[str, Tensor]     # name: (P, G)
    redrawn: int                      # groups that dynamic sampling has dropped


def sample_groups(sampler: PlainSampler, draw: Callable[[int], PromptBatch], reward_fn: RewardFn,
                  config: GRPOConfig, step: int, each: Callable = map) -> ScoredBatch:
    """Sample and score a batch of groups; dynamic sampling replaces flat groups by fresh ones.

    draw(0) gives the step's prompts, draw(1), draw(2) ... spare ones. Batches are drawn until
    enough groups have unequal rewards or the budget is spent; then the first flat groups fill up.
    Source: DAPO, arXiv:2503.14476, sec. 3.2."""
    groups: list[Group] = []
    for attempt in range(config.dynamic_sampling + 1):
        batch = draw(attempt)
        noise = uniform_table(config.seed, step, batch.numbers, config.group_size,
                              config.max_new_tokens)
        groups += score_groups(batch, sampler.sample(batch.prompts, noise), reward_fn, config, each)
        components = {name: torch.stack([group.components[name] for group in groups])
                      for name in groups[0].components}                         # (groups, G)
        flat = flat_groups(compared_rewards(components, config))                # (groups,)
        if int((~flat).sum()) >= len(batch.prompts):
            break
    keep = choose_groups(flat, len(batch.prompts))
    keep.sort(key=lambda i: groups[i].tokens)       # neighbours of equal length: less padding
    chosen = [groups[i] for i in keep]
    return ScoredBatch([group.example for group in chosen], [group.prompt for group in chosen],
                       merge_rollouts([group.rollout for group in chosen]),
                       {name: values[keep] for name, values in components.items()},
                       redrawn=len(groups) - len(keep))


def choose_groups(flat: Tensor, count: int) -> list[int]:
    """The first `count` groups in the order drawn, those with unequal rewards before flat ones."""
    return sorted(sorted(range(len(flat)), key=lambda i: bool(flat[i]))[:count])


def score_groups(batch: PromptBatch, rollout: Rollout, reward_fn: RewardFn,
                 config: GRPOConfig, each: Callable = map) -> list[Group]:
    """Every reward component of every completion; `length` is one if length_margin is set."""
    groups, size = [], len(rollout.texts) // len(batch.prompts)
    rows = [rollout.rows(i, i + size) for i in range(0, len(rollout.texts), size)]
    for i, rewards in enumerate(each(reward_fn, batch.examples, [own.texts for own in rows])):
        example, prompt, own = batch.examples[i], batch.prompts[i], rows[i]
        scored = checked_rewards(reward_fn, example.id, own.texts, rewards)
        components = {name: torch.tensor([parts[name] for parts in scored]) for name in scored[0]}
        if config.length_margin:
            components["length"] = length_penalty(own.completion_mask.sum(1), config.max_new_tokens,
                                                  config.length_margin)
        check_paid(reward_fn, components, config.paid(components))
        tokens = len(prompt.input_ids) + int(own.completion_mask.sum())
        groups.append(Group(example, prompt, own, components, tokens))
    return groups
