"""Stage 2, one GRPO step, and what both stages share: optimizer, schedule, guarded update, micro-batches.

    sample a group of answers per scene -> score them -> compare within the group -> raise the better ones

Source: DeepSeekMath (arXiv 2402.03300), Algorithm 1; AlphaDrive (arXiv 2503.07608), sec. 3.2.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from data.schema import Example, prompt_text
from grpo.batch import PackedRows, Prompt, pack
from grpo.config import GRPOConfig, TrainConfig
from grpo.logprobs import completion_logprobs
from grpo.losses import AGGREGATION, aggregate, group_advantages, kl_penalty, policy_loss
from grpo.rollout import Rollout, Sampler, uniform_table
from models.qwen2_vl import Qwen2VL

RewardFn = Callable[[Example, list[str]], list[dict[str, float]]]


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW over float32 masters; decay on matrices only, never on norms, biases or embeddings."""
    def decays(name: str, parameter: Tensor) -> bool:
        return parameter.ndim > 1 and "embed_tokens" not in name and "lm_head" not in name

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
              {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0}]
    return AdamW(groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2))


def make_scheduler(optimizer: Optimizer, config: TrainConfig, updates: int) -> LambdaLR:
    """Linear warm-up, a constant stretch, then a cosine or linear fall over the last `decay_share` of the updates."""
    warmup = config.warmup_steps if config.warmup_steps >= 0 else math.ceil(updates / 10)
    fall_from = max(warmup, round(updates * (1 - config.decay_share)))

    def factor(done: int) -> float:
        if done < warmup:
            return (done + 1) / (warmup + 1)
        if config.lr_schedule == "constant" or done < fall_from:
            return 1.0
        progress = min(1.0, (done - fall_from) / max(1, updates - fall_from))
        shape = 1 - progress if config.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * shape

    return LambdaLR(optimizer, factor)


def autocast(model: Qwen2VL, precision: str) -> torch.autocast:
    """bf16 compute over float32 masters when asked for (`auto`: on cuda)."""
    device = model.head_weight.device.type
    enabled = precision == "bf16" or (precision == "auto" and device == "cuda")
    return torch.autocast(device, torch.bfloat16, enabled=enabled)


def micro_batches(count: int, size: int) -> Iterator[slice]:
    """Slices that cover range(count), `size` at a time."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def update(model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, max_grad_norm: float) -> dict[str, float]:
    """Clip the accumulated gradient and step; a non-finite gradient skips optimizer AND schedule, and is counted."""
    learning_rate = optimizer.param_groups[0]["lr"]
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
    skipped = not bool(torch.isfinite(grad_norm))
    if not skipped:
        optimizer.step()
        scheduler.step()
    optimizer.zero_grad(set_to_none=True)
    return {"grad_norm": grad_norm.item(), "lr": learning_rate, "skipped": float(skipped)}


def freeze_copy(policy: Qwen2VL) -> Qwen2VL:
    """The reference model: the policy as it is now, for good."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


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


def grpo_step(policy: Qwen2VL, reference: Qwen2VL | None, sampler: Sampler, optimizer: Optimizer,
              scheduler: LRScheduler, examples: Sequence[Example], prompts: Sequence[Prompt],
              prompt_numbers: Sequence[int], reward_fn: RewardFn, config: GRPOConfig,
              step: int) -> tuple[dict[str, float], list[dict]]:
    """One step: sample, score, compare within the group, improve. -> metrics, and the groups as records.

    prompt_numbers are the prompts' places in the data stream: with seed and step they fix the random numbers.
    """
    uniforms = uniform_table(config.seed, step, prompt_numbers, config.group_size, config.max_new_tokens)
    with autocast(policy, config.precision):
        rollout = sampler.sample(prompts, uniforms)                             # P * G completions
    components = score_groups(examples, rollout.texts, config.group_size, reward_fn)
    rewards = sum(weight * components[name] for name, weight in config.component_weights.items())  # (P, G)
    advantages = group_advantages(rewards, config.scale_rewards).flatten()      # (B,)

    groups = [slice(i * config.group_size, (i + 1) * config.group_size) for i in range(len(prompts))]
    ids = rollout.completions()
    packed = [pack(prompts[rows], [ids[g] for g in groups[rows]])
              for rows in micro_batches(len(prompts), config.micro_batch)]
    old, ref = fixed_logprobs(policy, reference, packed, rollout, config)
    metrics, updates, skipped = {}, 0, 0.0
    for _ in range(config.updates_per_rollout):
        parts = accumulate(policy, packed, old, ref, advantages, rollout, config)
        if updates and 0 < config.target_kl < parts["approx_kl"]:
            optimizer.zero_grad(set_to_none=True)                               # the policy has moved far enough
            break
        metrics = {**parts, **update(policy, optimizer, scheduler, config.max_grad_norm)}
        updates, skipped = updates + 1, skipped + metrics["skipped"]
    metrics = {"kl": None, **metrics, "updates": updates, "skipped": skipped}  # beta 0 measures no KL
    return ({**metrics, **rollout_metrics(rollout, rewards, components, prompts)},
            group_records(examples, rollout, components, rewards, advantages, config))


def trim(values: Tensor, rows: PackedRows, first: int) -> Tensor:
    """The part of a (B, N) rollout tensor that belongs to a micro-batch, cut to its longest completion."""
    count, longest = rows.completion_mask.shape
    return values[first:first + count, :longest].to(rows.completion_mask.device)


@torch.no_grad()
def fixed_logprobs(policy: Qwen2VL, reference: Qwen2VL | None, packed: Sequence[PackedRows], rollout: Rollout,
                   config: GRPOConfig) -> tuple[list[Tensor], list[Tensor | None]]:
    """Old and reference log-probabilities per micro-batch; both stay fixed during the updates.

    With one update per batch the old ones are the sampler's own; with several they come from a pass of the policy,
    so that the ratio holds nothing but the policy's movement.
    """
    def score(model: Qwen2VL, rows: PackedRows) -> Tensor:
        device = model.head_weight.device
        with autocast(model, config.precision):
            return completion_logprobs(model, rows.to(device), config.temperature, model.config.suppressed_token_ids)[0]

    starts = first_rows(packed)
    if config.updates_per_rollout == 1:
        old = [trim(rollout.logprobs, rows, first) for rows, first in zip(packed, starts, strict=True)]
    else:
        old = [score(policy, rows) for rows in packed]
    return old, [None if reference is None else score(reference, rows) for rows in packed]


def first_rows(packed: Sequence[PackedRows]) -> list[int]:
    """Index, in the whole rollout, of the first completion of each micro-batch."""
    starts = [0]
    for rows in packed:
        starts.append(starts[-1] + len(rows.completion_mask))
    return starts[:-1]


def accumulate(policy: Qwen2VL, packed: Sequence[PackedRows], old: Sequence[Tensor], ref: Sequence[Tensor | None],
               advantages: Tensor, rollout: Rollout, config: GRPOConfig) -> dict[str, float]:
    """Gradient of the whole batch, a micro-batch at a time: loss = policy loss + beta * KL(policy || reference).

    Every micro-batch divides by the batch's own count of rows, tokens or slots, so the sum does not depend on their
    size. -> metrics, reduced exactly as the loss.
    """
    how = AGGREGATION[config.variant]
    denominator = {"sequence_mean": int(rollout.completion_mask.any(1).sum()),
                   "token_mean": int(rollout.completion_mask.sum()),
                   "fixed_length": len(advantages) * config.max_new_tokens}[how]
    metrics: Counter[str] = Counter()
    gap = 0.0
    for rows, old_logprobs, ref_logprobs, first in zip(packed, old, ref, first_rows(packed), strict=True):
        rows = rows.to(policy.head_weight.device)
        mask = rows.completion_mask
        with autocast(policy, config.precision):
            logprobs, entropy = completion_logprobs(policy, rows, config.temperature,
                                                    policy.config.suppressed_token_ids)
        row_advantages = advantages[first:first + len(mask)].to(mask.device)
        loss, parts = policy_loss(logprobs, old_logprobs.to(mask.device), row_advantages, mask, config.variant,
                                  config.clip_low, config.clip_high, config.delta or None, config.max_new_tokens,
                                  denominator)
        parts = {**parts, "policy_loss": loss, "entropy": aggregate(entropy, mask, how, config.max_new_tokens,
                                                                    denominator)}
        if ref_logprobs is not None:
            kl = aggregate(kl_penalty(logprobs, ref_logprobs, "k3"), mask, how, config.max_new_tokens, denominator)
            loss, parts["kl"] = loss + config.beta * kl, kl
        loss.backward()
        metrics.update({"loss": loss.item(), **{name: value.item() for name, value in parts.items()}})
        gap = max(gap, float((logprobs.detach() - trim(rollout.logprobs, rows, first)).abs()[mask].max()))
    return {**metrics, "logprob_gap": gap}


def rollout_metrics(rollout: Rollout, rewards: Tensor, components: dict[str, Tensor],
                    prompts: Sequence[Prompt]) -> dict[str, float]:
    """What the samples say: mean reward and its parts, groups without a signal, length, truncation, tokens."""
    completion_tokens = int(rollout.completion_mask.sum())
    return {"reward": rewards.mean().item(), "reward_std": rewards.std(dim=1).mean().item(),
            **{f"reward_{name}": values.mean().item() for name, values in components.items()},
            "flat_groups": (rewards == rewards[:, :1]).all(1).float().mean().item(),
            "completion_length": completion_tokens / len(rollout.texts),
            "truncated": rollout.truncated.float().mean().item(),
            "tokens": completion_tokens + sum(len(p.input_ids) for p in prompts)}


def group_records(examples: Sequence[Example], rollout: Rollout, components: dict[str, Tensor], rewards: Tensor,
                  advantages: Tensor, config: GRPOConfig) -> list[dict]:
    """One plain record per group for samples.jsonl: what was asked and written, what each part earned, what was
    reinforced."""
    size = rewards.shape[1]
    return [{"id": example.id, "prompt": prompt_text(example, config.prompt_style, config.reasoning),
             "truth": str(example.decision),
             "texts": rollout.texts[i * size:(i + 1) * size],
             "rewards": rewards[i].tolist(),
             "components": {name: values[i].tolist() for name, values in components.items()},
             "advantages": advantages[i * size:(i + 1) * size].tolist()} for i, example in enumerate(examples)]
