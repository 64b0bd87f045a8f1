"""Which type a pass computes in: bf16 over float32 weights where asked for, and always float32 at the head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.qwen2_vl import Qwen2VL


def compute_dtype(device: str, precision: str) -> torch.dtype | None:
    """bf16 when asked for, else None: the type of the weights. `auto` is bf16 on cuda; train.py replaces it before."""
    wanted = precision == "bf16" or (precision == "auto" and device == "cuda")
    return torch.bfloat16 if wanted else None


def autocast(model: Qwen2VL, precision: str) -> torch.autocast:
    """Autocast to bf16 if the precision asks for it; otherwise without effect."""
    device = model.head_weight.device.type
    return torch.autocast(device, torch.bfloat16, enabled=compute_dtype(device, precision) is not None)


def head_logits(hidden: Tensor, head_weight: Tensor) -> Tensor:
    """Scores of the vocabulary, always in float32. Shapes: (B, D), (V, D) -> (B, V).

    bf16 scores would set the sampler's log-probabilities 0.01 and more apart from the trainer's.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        differentiated = torch.is_grad_enabled() and (hidden.requires_grad or head_weight.requires_grad)
        if hidden.is_cuda and hidden.dtype == head_weight.dtype == torch.bfloat16 and not differentiated:
            # without a float32 copy of the head; torch has no derivative of it
            return torch.mm(hidden, head_weight.T, out_dtype=torch.float32)
        return F.linear(hidden.float(), head_weight.float())
