"""RMSNorm and SwiGLU that save only their inputs for the backward pass and recompute the intermediate tensors.

Autograd saves every intermediate tensor of the plain formulas in models/text.py, a third of a layer's activations.
`use_recomputed(model)` replaces those formulas in a model: the values are equal to the bit, gradients up to rounding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from models.text import MLP, RMSNorm


class RMSNormalised(torch.autograd.Function):
    """`rms_norm`:   y = w n,   n = x r,   r = 1 / sqrt(mean(x^2) + eps).

        dw = sum over tokens of dy n,   dx = r (u - n mean(u n)),   u = w dy

    Saves x, w and r, which is one number per token. Shapes: x (..., D), weight (D,) -> (..., D).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)         # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: FunctionCtx, for_y: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normalised = x * scale                                                  # in the dtype of scale
        through = for_y * weight.to(scale.dtype)
        for_x = (through - normalised * (through * normalised).mean(-1, keepdim=True)) * scale
        for_weight = (for_y * normalised).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return for_x.to(x.dtype), None if for_weight is None else for_weight.to(weight.dtype), None


class GatedSiLU(torch.autograd.Function):
    """`gated_silu` without saving silu(gate). Shapes: gate (..., I), up (..., I) -> (..., I)."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: FunctionCtx, for_y: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(for_y * up, gate), for_y * F.silu(gate)


def use_recomputed(model: nn.Module) -> None:
    """Make every RMSNorm and MLP of the model compute these forms, in place. Parameters and values stay the same."""
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.normalise = RMSNormalised.apply
        elif isinstance(module, MLP):
            module.activation = GatedSiLU.apply
