"""RMSNorm, SwiGLU, QuickGELU and rotation with fewer passes over memory, saving only their inputs for backward.

Autograd saves every intermediate tensor of the plain formulas in models/text.py and models/vision.py, a third of a
layer's activations. Each of their operations reads and writes whole tensors, which takes longer than the arithmetic.
`use_recomputed(model)` replaces those formulas in a model. Values and gradients are equal up to rounding.

Matrix products save their inputs too. Where an input is the result of such a formula, a function wrapped in
`keeping_formulas` keeps the formula in its place, and backward computes the same numbers again.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from models.text import MLP, Attention, DecoderLayer, RMSNorm, compute_type
from models.vision import VisionAttention, VisionMLP

SLOPE = 1.702                                               # of quick_gelu


class RMSNormalised(torch.autograd.Function):
    """`rms_norm`:   y = w x r,   r = 1 / sqrt(mean(x^2) + eps).

        dw = sum over tokens of dy x r,   dx = r w dy - x r^3 mean(w dy x)

    Saves x, w and r, which is one number per token. Shapes: x (..., D), weight (D,) -> (..., D).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(x, eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).to(x.dtype) * weight

    @staticmethod
    def backward(ctx: FunctionCtx, for_y: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        for_y, wide, w = (tensor.to(scale.dtype) for tensor in (for_y, x, weight))
        products = for_y * wide
        rows = products.flatten(0, -2)                                          # (tokens, D)
        for_weight = torch.mv(rows.T, scale.flatten()) if ctx.needs_input_grad[1] else None
        mean = torch.mv(rows, w).view_as(scale) / x.shape[-1]                   # (..., 1)
        for_x = torch.mul(for_y, w, out=products).mul_(scale).addcmul_(wide, mean * scale**3, value=-1)
        return for_x.to(x.dtype), None if for_weight is None else for_weight.to(weight.dtype), None


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), in float32 or wider. Shapes: x (..., D) -> (..., 1)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)      # sqrt(sum(x^2))
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def fast_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`rms_norm` where no gradient is needed."""
    return (x * inverse_rms(x, eps)).to(x.dtype).mul_(weight)


class GatedSiLU(torch.autograd.Function):
    """`gated_silu` without saving silu(gate). Shapes: gate (..., I), up (..., I) -> (..., I)."""

    @staticmethod
    def value(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate).mul_(up)

    @staticmethod
    def forward(ctx: FunctionCtx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return GatedSiLU.value(gate, up)

    @staticmethod
    def backward(ctx: FunctionCtx, for_y: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(for_y * up, gate), GatedSiLU.value(gate, for_y)


class QuickGELU(torch.autograd.Function):
    """`quick_gelu`: x sigmoid(s x) = silu(s x) / s, whose derivative is silu'(s x). Shapes: x (...) -> (...)."""

    @staticmethod
    def value(x: Tensor) -> Tensor:
        return F.silu(SLOPE * x, inplace=True).div_(SLOPE)

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return QuickGELU.value(x)

    @staticmethod
    def backward(ctx: FunctionCtx, for_y: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(for_y, SLOPE * ctx.saved_tensors[0])


class Rotated(torch.autograd.Function):
    """`rotate`: (first, second) -> (first cos - second sin, second cos + first sin), in place after one product.

    Its backward pass rotates by the opposite angle. Shapes: x (..., E); cos and sin broadcast against it.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, for_y: Tensor) -> tuple[Tensor, None, None]:
        return turn(for_y, *ctx.saved_tensors, -1), None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """Rotate each pair (x[j], x[j + E/2]) by its angle, or by the opposite one (direction -1)."""
    (first, second), (sin_first, sin_second) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    y = x * cos
    above, below = y.chunk(2, dim=-1)
    above.addcmul_(second, sin_first, value=-direction)
    below.addcmul_(first, sin_second, value=direction)
    return y.to(x.dtype)                                    # the cast has an effect only if autocast mixes dtypes


# ---------------------------------------------------------------- inputs of products

def with_formula(y: Tensor, formula: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Attach to y how it is computed from these inputs, which are saved anyway for y's own backward pass."""
    if torch.is_grad_enabled():
        y.formula = partial(formula, *(tensor.detach() for tensor in inputs))
    return y


def normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm before a layer's products, in their type."""
    y = compute_type(RMSNormalised.apply(x, weight, eps))
    dtype = y.dtype
    return with_formula(y, lambda x, weight: fast_norm(x, weight, eps).to(dtype), x, weight)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """`gated_silu` before the product that reads it."""
    return with_formula(GatedSiLU.apply(gate, up), GatedSiLU.value, gate, up)


def gelu(x: Tensor) -> Tensor:
    """`quick_gelu` before the product that reads it."""
    return with_formula(QuickGELU.apply(x), QuickGELU.value, x)


def remember(norm: nn.LayerNorm, inputs: tuple[Tensor], y: Tensor) -> Tensor:
    """Forward hook of a LayerNorm: attach its formula to its result."""
    return with_formula(y, lambda x, w, b: F.layer_norm(x, norm.normalized_shape, w, b, norm.eps), inputs[0],
                        norm.weight, norm.bias)


def keep(saved: Tensor) -> Tensor | tuple:
    """What autograd keeps of a tensor: formula and layout if it, or what it is a view of, has one; else itself."""
    whole = saved if saved._base is None else saved._base
    if not hasattr(whole, "formula"):
        return saved.detach()
    return whole.formula, saved.shape, saved.stride(), saved.storage_offset()


@torch.no_grad()
def restore(kept: Tensor | tuple) -> Tensor:
    """The tensor that was to be saved."""
    if isinstance(kept, Tensor):
        return kept
    formula, *layout = kept
    return formula().as_strided(*layout)


def keeping_formulas(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wrap a function so that its operations save the formula of a tensor, if it has one, in place of the tensor."""
    @wraps(function)
    def kept(*arguments: Any, **named: Any) -> Tensor:  # noqa: ANN401
        with torch.autograd.graph.saved_tensors_hooks(keep, restore):
            return function(*arguments, **named)
    return kept


def use_recomputed(model: nn.Module) -> None:
    """Make every part of the model compute these forms, in place. Parameters stay the same."""
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.normalise = RMSNormalised.apply
        elif isinstance(module, nn.LayerNorm):
            module.register_forward_hook(remember)
        elif isinstance(module, MLP):
            module.activation = gated
        elif isinstance(module, VisionMLP):
            module.activation = gelu
        elif isinstance(module, Attention | VisionAttention):
            module.rotate = Rotated.apply
    for layer in (module for module in model.modules() if isinstance(module, DecoderLayer)):
        layer.input_layernorm.normalise = layer.post_attention_layernorm.normalise = normalised
