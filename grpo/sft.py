"""Stage 1, supervised warm-up: next-token loss on the expert's reasoning and answer (AlphaDrive, sec. 3.3)."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.batch import Prompt, micro_batches, pack
from grpo.config import SFTConfig
from grpo.logprobs import autocast, completion_logprobs
from grpo.losses import aggregate
from grpo.trainer import update
from models.qwen2_vl import Qwen2VL


def sft_step(policy: Qwen2VL, optimizer: Optimizer, scheduler: LRScheduler, prompts: Sequence[Prompt],
             targets: Sequence[Tensor], config: SFTConfig) -> dict[str, float]:
    """One update on a batch: loss = - mean over ALL supervised tokens of the batch of log pi(token | before it).

    Only the completion and its <|im_end|> are supervised, never the prompt. Each micro-batch divides by the whole
    batch's token count, so their gradients add up to the full batch's.
    Shapes: targets are (N,) id tensors. Units: loss and entropy in nats per token.
    """
    total = sum(len(target) for target in targets)
    metrics: Counter[str] = Counter()
    pairs = sorted(zip(prompts, targets, strict=True), key=row_length)          # rows of a length share a micro-batch
    for rows in micro_batches([row_length(pair) for pair in pairs], config.micro_batch_tokens):
        packed = pack([prompt for prompt, _ in pairs[rows]], [[target] for _, target in pairs[rows]])
        packed = packed.to(policy.head_weight.device)
        with autocast(policy, config.precision):
            logprobs, entropy = completion_logprobs(policy, packed)            # (rows, N) each
        loss = aggregate(-logprobs, packed.completion_mask, "token_mean", denominator=total)
        loss.backward()
        with torch.no_grad():
            mean_entropy = aggregate(entropy, packed.completion_mask, "token_mean", denominator=total)
        metrics.update(loss=loss.item(), entropy=mean_entropy.item())          # Counter.update adds
    prompt_tokens = sum(len(prompt.input_ids) for prompt in prompts)
    return {**metrics, **update([policy], optimizer, scheduler, config.max_grad_norm),
            "tokens": total + prompt_tokens, "target_length": total / len(prompts)}


def row_length(pair: tuple[Prompt, Tensor]) -> int:
    """Tokens of a prompt and its target."""
    prompt, target = pair
    return len(prompt.input_ids) + len(target)
