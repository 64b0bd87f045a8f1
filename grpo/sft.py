"""Stage 1, supervised warm-up: next-token loss on the expert's reasoning and answer (AlphaDrive, sec. 3.3)."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.batch import Prompt, micro_batches, pack
from grpo.config import SFTConfig
from grpo.engine.distributed import SINGLE, Distributed
from grpo.logprobs import autocast, completion_logprobs
from grpo.losses import aggregate
from grpo.trainer import update
from models.qwen2_vl import Qwen2VL


def sft_step(policy: Qwen2VL, optimizer: Optimizer, scheduler: LRScheduler, prompts: Sequence[Prompt],
             targets: Sequence[Tensor], config: SFTConfig, world: Distributed = SINGLE) -> dict[str, float]:
    """One update on a batch: loss = - mean over ALL supervised tokens of the batch of log pi(token | before it).

    Only the completion and its <|im_end|> are supervised, never the prompt. Each micro-batch divides by the whole
    batch's token count, so their gradients add up to the full batch's. With several processes prompts and targets are
    this one's, and all else is said of all of them.
    Shapes: targets are (N,) id tensors. Units: loss and entropy in nats per token.
    """
    counts = world.total({"rows": len(targets), "targets": sum(map(len, targets)),
                          "prompts": sum(len(prompt.input_ids) for prompt in prompts)})
    metrics: Counter[str] = Counter()
    pairs = sorted(zip(prompts, targets, strict=True), key=row_length)          # rows of a length share a micro-batch
    own = micro_batches([row_length(pair) for pair in pairs], config.micro_batch_tokens)
    for number, rows in enumerate(world.padded(own)):
        packed = pack([prompt for prompt, _ in pairs[rows]], [[target] for _, target in pairs[rows]])
        packed = packed.to(policy.head_weight.device)
        with autocast(policy, config.precision):
            logprobs, entropy = world.with_policy(completion_logprobs, policy, packed)      # (rows, N) each
        mask = packed.completion_mask & (number < len(own))                    # what was repeated does not count
        loss = aggregate(-logprobs, mask, "token_mean", denominator=counts["targets"])
        (loss * world.size).backward()                                         # several processes: FSDP averages
        with torch.no_grad():
            mean_entropy = aggregate(entropy, mask, "token_mean", denominator=counts["targets"])
        metrics.update(loss=loss.item(), entropy=mean_entropy.item())          # Counter.update adds
    totals = world.total(metrics)
    return {**totals, **update([policy], optimizer, scheduler, config.max_grad_norm, totals["loss"]),
            "tokens": counts["targets"] + counts["prompts"], "target_length": counts["targets"] / counts["rows"]}


def row_length(pair: tuple[Prompt, Tensor]) -> int:
    """Tokens of a prompt and its target."""
    prompt, target = pair
    return len(prompt.input_ids) + len(target)
