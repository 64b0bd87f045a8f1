"""Stage 1, supervised warm-up on the expert's reasoning and answer (arXiv 2503.07608, sec. 3.4)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.config import SFTConfig
from grpo.logprobs import PLAIN, Kernels, completion_logprobs
from grpo.losses import Total, aggregate
from grpo.packing import PackedRows, pack_groups
from grpo.step import update
from models.precision import autocast
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL


def sft_step(policy: Qwen2VL, optimizer: Optimizer, scheduler: LRScheduler,
             prompts: Sequence[Prompt], targets: Sequence[Tensor], config: SFTConfig,
             kernels: Kernels = PLAIN, total: Total = dict,
             even: Callable[[list[PackedRows]], list[PackedRows]] = list) -> dict[str, float]:
    """One update: loss = - mean over ALL supervised tokens of the batch of log pi(token | before).

    Only the completion and its <|im_end|> are supervised, never the prompt. Each micro-batch
    divides by the whole batch's token count. total, even: hooks, as in `grpo.step.Learner`.
    Shapes: targets are (N,) id tensors. Units: loss and entropy in nats per token."""
    counts = total({"rows": len(targets), "targets": sum(map(len, targets)),
                    "prompts": sum(len(prompt.input_ids) for prompt in prompts)})
    sums = 0.0                          # on the device: the host does not wait
    pairs = sorted(zip(prompts, targets, strict=True),          # equal lengths share a micro-batch
                   key=lambda pair: len(pair[0].input_ids) + len(pair[1]))
    packed = pack_groups([prompt for prompt, _ in pairs], [[target] for _, target in pairs],
                         config.micro_batch_tokens)
    for rows in even(packed):
        rows = rows.to(policy.head_weight.device)
        with autocast(policy, config.precision):
            logprobs, entropy = completion_logprobs(policy, rows, kernels=kernels)  # (rows, N)
        mask = rows.completion_mask & (not rows.idle)
        loss = aggregate(-logprobs, mask, "token_mean", denominator=counts["targets"])
        loss.backward()
        entropy = aggregate(entropy.detach(), mask, "token_mean", denominator=counts["targets"])
        sums = sums + torch.stack([loss.detach(), entropy]).double()
    totals = total(dict(zip(("loss", "entropy"), sums.tolist(), strict=True)))  # the only wait
    return {**totals,
            **update([policy], optimizer, scheduler, config.max_grad_norm, totals["loss"]),
            "tokens": counts["targets"] + counts["prompts"],
            "target_length": counts["targets"] / counts["rows"]}
