"""Two formulas of a decoder layer that keep only their inputs for the backward pass and make the rest again.

Plain operations would keep every step between: a third of what a layer holds until its gradient is due. Values are
those of the plain operations; `tests/models/fast/test_recomputed.py` holds values and gradients against them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


class RMSNormalised(torch.autograd.Function):
    """y = w n,   n = x r,   r = 1 / sqrt(mean(x^2) + eps), n in float32 or wider, then cast to x's dtype.

        dw = sum over tokens of dy n,   dx = r (u - n mean(u n)),   u = w dy

    Keeps x, w and r, one number a token. Shapes: x (..., D), weight (D,) -> (..., D).
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
        normalised = x * scale                                                  # as wide as the scale
        through = for_y * weight.to(scale.dtype)
        for_x = (through - normalised * (through * normalised).mean(-1, keepdim=True)) * scale
        for_weight = (for_y * normalised).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return for_x.to(x.dtype), None if for_weight is None else for_weight.to(weight.dtype), None


class GatedSiLU(torch.autograd.Function):
    """y = silu(gate) up, of which silu(gate) is not kept. Shapes: gate (..., I), up (..., I) -> (..., I)."""

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: FunctionCtx, for_y: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(for_y * up, gate), for_y * F.silu(gate)
