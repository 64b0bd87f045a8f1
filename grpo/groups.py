"""A batch of groups: who is asked, what was answered, what each part of the reward says."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data.example import Example
from grpo.batch import Prompt, PromptSettings, expert_branch, request_text
from grpo.config import GRPOConfig
from grpo.credit import Credit, flat_groups, weighted_sum
from grpo.rollout import Rollout, Sampler, uniform_table
from models.processor import Processor

RewardFn = Callable[[Example, list[str]], list[dict[str, float]]]


@dataclass(frozen=True)
class PromptBatch:
    """Scenes to answer. `numbers` are their places in the data stream: with seed and step they fix the randomness."""

    numbers: Sequence[int]
    examples: list[Example]
    prompts: list[Prompt]


def sample_groups(sampler: Sampler, draw: Callable[[int], PromptBatch], reward_fn: RewardFn, config: GRPOConfig,
                  step: int) -> tuple[PromptBatch, Rollout, dict[str, Tensor], int]:
    """A batch of groups with their reward components; with dynamic sampling, flat groups give way to fresh ones.

    Fresh batches are drawn until enough groups have unequal rewards or the budget is spent; flat groups of the first
    batches fill what is then still missing. Source: DAPO, arXiv:2503.14476, sec. 3.2.
    """
    size, asked, rollouts, scores = config.group_size, [], [], []
    for attempt in range(config.dynamic_sampling + 1):
        batch = draw(attempt)
        uniforms = uniform_table(config.seed, step, batch.numbers, size, config.max_new_tokens)
        rollout = sampler.sample(batch.prompts, uniforms)                       # P * G completions
        asked += zip(batch.numbers, batch.examples, batch.prompts, strict=True)
        rollouts += [rollout.rows(i, i + size) for i in range(0, len(rollout.texts), size)]
        scores.append(score_groups(batch.examples, rollout.texts, size, reward_fn))
        components = {name: torch.cat([part[name] for part in scores]) for name in scores[0]}  # (drawn so far, G)
        flat = flat_groups(weighted_sum(components, config))
        if int((~flat).sum()) >= len(batch.prompts):
            break
    keep = choose_groups(flat, len(batch.prompts))
    return (PromptBatch(*map(list, zip(*(asked[i] for i in keep), strict=True))),
            merge_rollouts([rollouts[i] for i in keep]),
            {name: values[keep] for name, values in components.items()}, len(asked) - len(keep))


def order_by_length(batch: PromptBatch, rollout: Rollout,
                    components: dict[str, Tensor]) -> tuple[PromptBatch, Rollout, dict[str, Tensor]]:
    """The groups from the shortest packed row to the longest, so that neighbours waste little padding."""
    size = len(rollout.texts) // len(batch.prompts)
    lengths = rollout.completion_mask.view(len(batch.prompts), -1).sum(1) \
        + torch.tensor([len(prompt.input_ids) for prompt in batch.prompts])
    order = lengths.argsort(stable=True).tolist()
    return (PromptBatch(*([values[i] for i in order] for values in (batch.numbers, batch.examples, batch.prompts))),
            merge_rollouts([rollout.rows(i * size, (i + 1) * size) for i in order]),
            {name: values[order] for name, values in components.items()})


def choose_groups(flat: Tensor, count: int) -> list[int]:
    """The first `count` groups, those with unequal rewards before flat ones; in the order they were drawn.

    Shapes: flat (groups,) bool."""
    return sorted(sorted(range(len(flat)), key=lambda i: bool(flat[i]))[:count])    # sorting keeps the order of equals


def score_groups(examples: Sequence[Example], texts: Sequence[str], group_size: int,
                 reward_fn: RewardFn) -> dict[str, Tensor]:
    """Every reward component of every completion. -> name: (P, G).

    Raises: ValueError if a component is not a finite number, naming example, component and completion.
    """
    rows = []
    for i, example in enumerate(examples):
        group = list(texts[i * group_size:(i + 1) * group_size])
        scored = reward_fn(example, group)
        for text, parts in zip(group, scored, strict=True):
            for name, value in parts.items():
                if not math.isfinite(value):
                    raise ValueError(f"reward {name!r} of example {example.id} is {value} for completion {text!r}")
        rows.append(scored)
    return {name: torch.tensor([[parts[name] for parts in group] for group in rows]) for name in rows[0][0]}


def merge_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts of different batches one below the other, padded to the longest."""
    longest = max(part.completion_ids.shape[1] for part in parts)

    def stack(name: str) -> Tensor:
        return torch.cat([F.pad(getattr(part, name), (0, longest - part.completion_ids.shape[1]))
                          for part in parts])

    return Rollout(stack("completion_ids"), stack("completion_mask"), stack("logprobs"),
                   [text for part in parts for text in part.texts], torch.cat([part.truncated for part in parts]))


def expert_branches(batch: PromptBatch, rollout: Rollout, processor: Processor,
                    config: GRPOConfig) -> list[tuple[Tensor, int]]:
    """The expert's branch of every group, when behaviour cloning has a weight; else nothing."""
    if not config.uses("bc_coef"):
        return []
    ids, size = rollout.completions(), config.group_size
    return [expert_branch(example, ids[i * size:(i + 1) * size], processor, config.reasoning)
            for i, example in enumerate(batch.examples)]


def rollout_metrics(rollout: Rollout, rewards: Tensor, components: dict[str, Tensor],
                    prompts: Sequence[Prompt]) -> dict[str, float]:
    """What the samples say: mean reward and its parts, groups without a signal, length, truncation, tokens."""
    completion_tokens = int(rollout.completion_mask.sum())
    spread = rewards.std(dim=1, correction=min(1, rewards.shape[1] - 1)).mean()  # a group of 1 has none: 0
    return {"reward": rewards.mean().item(), "reward_std": spread.item(),
            **{f"reward_{name}": values.mean().item() for name, values in components.items()},
            "flat_groups": flat_groups(rewards).float().mean().item(),
            "completion_length": completion_tokens / len(rollout.texts),
            "truncated": rollout.truncated.float().mean().item(),
            "tokens": completion_tokens + sum(len(p.input_ids) for p in prompts)}


def group_records(examples: Sequence[Example], rollout: Rollout, components: dict[str, Tensor], credit: Credit,
                  config: GRPOConfig) -> list[dict]:
    """One plain record per group for samples.jsonl: what was asked and written, what each part earned, what was
    reinforced."""
    size, settings = config.group_size, PromptSettings(config.prompt_style, config.reasoning, config.hide)
    return [{"id": example.id, "scene": example.scene, **({"image": str(example.image)} if example.image else {}),
             "prompt": request_text(example, settings), "truth": str(example.decision),
             "texts": rollout.texts[i * size:(i + 1) * size],
             "rewards": credit.rewards[i].tolist(),
             "components": {name: values[i].tolist() for name, values in components.items()},
             "advantages": credit.advantages[i * size:(i + 1) * size].tolist()} for i, example in enumerate(examples)]
