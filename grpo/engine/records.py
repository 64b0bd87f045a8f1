"""What a GRPO step leaves in the logs: metrics of the sampled groups, and the groups themselves as records."""

from torch import Tensor

from data.example import views_record
from grpo.credit import Credit
from grpo.engine.prompts import PromptSettings, request_text
from grpo.groups import ScoredBatch


def mean_spread(rewards: Tensor) -> float:
    """Mean over the groups of the rewards' standard deviation, 0 for groups of one. Shapes: (P, G)."""
    return rewards.std(dim=1, correction=min(1, rewards.shape[1] - 1)).mean().item()


def rollout_metrics(scored: ScoredBatch, credit: Credit) -> dict[str, float]:
    """Mean reward and its parts, groups without a signal, length, truncation, tokens."""
    rollout, rewards = scored.rollout, credit.rewards
    completion_tokens = int(rollout.completion_mask.sum())
    return {"reward": rewards.mean().item(), "reward_std": mean_spread(rewards),
            **{f"reward_{name}": values.mean().item() for name, values in scored.components.items()},
            "flat_groups": credit.flat.float().mean().item(),
            "completion_length": completion_tokens / len(rollout.texts),
            "truncated": rollout.truncated.float().mean().item(),
            "tokens": completion_tokens + sum(len(prompt.input_ids) for prompt in scored.prompts)}


def group_records(scored: ScoredBatch, credit: Credit, settings: PromptSettings) -> list[dict]:
    """One record per group for samples.jsonl: the question, the answers, their rewards and advantages."""
    size = len(scored.rollout.texts) // len(scored.examples)
    return [{"id": example.id, "scene": example.scene, **({"image": str(example.image)} if example.image else {}),
             **views_record(example),
             "prompt": request_text(example, settings), "truth": str(example.decision),
             "texts": scored.rollout.texts[i * size:(i + 1) * size],
             "rewards": credit.rewards[i].tolist(),
             "components": {name: values[i].tolist() for name, values in scored.components.items()},
             "advantages": credit.advantages[i * size:(i + 1) * size].tolist()}
            for i, example in enumerate(scored.examples)]
