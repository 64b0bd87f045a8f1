"""What surrounds the policy in training: AdamW, the learning-rate schedule, the frozen reference."""

import math

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from grpo.config import MethodConfig
from models.lora import base_model, lora_layers
from models.qwen2_vl import Qwen2VL, frozen_model


def make_optimizer(model: nn.Module, config: MethodConfig, value: nn.Module | None = None) -> AdamW:
    """AdamW over float32 weights; decay on matrices only, not on norms, biases or embeddings.

    A value network has its own learning rate, `value_learning_rate`."""
    def decays(name: str, parameter: Tensor) -> bool:
        return parameter.ndim > 1 and "embed_tokens" not in name and "lm_head" not in name

    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for name, p in named if decays(name, p)], "weight_decay": config.weight_decay},
              {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0}]
    if value is not None:
        groups.append({"params": list(value.parameters()), "weight_decay": 0.0, "lr": config.value_learning_rate})
    # one kernel for all parameters: nine times as fast as torch's default on a CPU
    return AdamW(groups, lr=config.learning_rate, betas=(0.9, config.adam_beta2), fused=True)


def make_scheduler(optimizer: Optimizer, config: MethodConfig, updates: int) -> LambdaLR:
    """Linear warm-up, a constant part, then cosine or linear decay over the last `decay_share` of the updates."""
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


def freeze_copy(policy: Qwen2VL, dtype: torch.dtype | None = None) -> Qwen2VL:
    """The reference model: a frozen copy of the policy as it is now, in its own type or another.

    With adapters it is the policy's base model, which never changes, so it shares its memory."""
    if lora_layers(policy):
        return base_model(policy)
    return frozen_model(policy.config, {name: tensor.detach().to(dtype or tensor.dtype, copy=True)
                                        for name, tensor in policy.state_dict().items()})
