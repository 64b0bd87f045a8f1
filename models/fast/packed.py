"""Decoder layers for inference on a CPU: weights in oneDNN's blocked layout, and fewer, larger operations.

Decoding multiplies 8 to 128 rows by every weight of the model. With the default layout oneDNN and MKL rearrange the
weights in each call. Here q, k, v are one product, and activation, gate and residual sums are part of the products.
The operators belong to torch but are private: `can_pack` checks that they exist.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fast.recomputed import fast_norm, turn
from models.lora import merged_weight
from models.text import Attend, DecoderLayer

ROWS = 16                   # the number of rows the layout is optimised for; it is fast for 8 to 128
BLOCKED_FROM = 2**18        # numbers in a float32 matrix; for smaller ones a call of oneDNN's costs more than it saves


class Packed:
    """y = W x + b for inference, in one type. W is stored in the blocked layout only, unless it is small.

    The layers may be several that read the same input; their outputs are then concatenated."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.weight, self.bias = dtype, None, None

    def pack(self, layers: Sequence[nn.Module]) -> None:
        """Copy the layers' weights, adapters merged."""
        weights, biases = [merged_weight(layer) for layer in layers], [layer.bias for layer in layers]
        weight = torch.cat([weight.detach().to(self.dtype) for weight in weights])
        self.blocked = self.dtype == torch.bfloat16 or weight.numel() >= BLOCKED_FROM
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS) if self.blocked else weight
        self.bias = None if biases[0] is None else torch.cat([bias.detach().to(self.dtype) for bias in biases])

    def __call__(self, x: Tensor) -> Tensor:
        if not self.blocked:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def activated(self, x: Tensor) -> Tensor:
        """silu(y)."""
        if not self.blocked:
            return F.silu(self(x), inplace=True)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], "")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """y + other."""
        if not self.blocked:
            return self(x).add_(other)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "add")

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """y * other."""
        if not self.blocked:
            return self(x).mul_(other)
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")


class PackedLinear(nn.Module):
    """A linear layer for inference."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.product = Packed(dtype)

    def pack(self, source: nn.Module) -> None:
        self.product.pack([source])

    def release(self) -> None:
        """Free the weight until the next `pack`."""
        self.product.weight = None

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x)


class PackedLayer(nn.Module):
    """`DecoderLayer` for inference. It keeps the norms of the layer that it replaces."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm
        self.layer_index, self.head_dim = layer.self_attn.layer_index, layer.self_attn.head_dim
        self.heads = [part.out_features // self.head_dim for part in (layer.self_attn.q_proj, layer.self_attn.k_proj)]
        self.qkv, self.out, self.gate, self.up, self.down = (Packed(dtype) for _ in range(5))

    def pack(self, source: DecoderLayer) -> None:
        """Copy the weights of a layer, adapters merged."""
        attention, mlp = source.self_attn, source.mlp
        for product, layers in ((self.qkv, (attention.q_proj, attention.k_proj, attention.v_proj)),
                                (self.out, (attention.o_proj,)), (self.gate, (mlp.gate_proj,)),
                                (self.up, (mlp.up_proj,)), (self.down, (mlp.down_proj,))):
            product.pack(layers)

    def release(self) -> None:
        """Free the weights until the next `pack`."""
        for product in (self.qkv, self.out, self.gate, self.up, self.down):
            product.weight = None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        queries, keys = self.heads
        qkv = self.qkv(self.input_layernorm(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H + 2 K, T, E)
        rotated = turn(qkv[:, :queries + keys], cos[:, None], sin[:, None], 1)
        y = attend(self.layer_index, rotated[:, :queries], rotated[:, queries:], qkv[:, queries + keys:])
        x = self.out.plus(y.transpose(1, 2).flatten(2), x)                 # (B, T, D)
        if wanted is not None:
            x = x.flatten(0, 1).index_select(0, wanted)                         # (C, D)
        normalised = self.post_attention_layernorm(x)
        return self.down.plus(self.up.times(normalised, self.gate.activated(normalised)), x)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operators, and the CPU has instructions for the type."""
    return (device.type == "cpu" and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())))


def pack_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every decoder layer below the module, in place. The new ones have no weights before `pack`."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, DecoderLayer):
                layer.input_layernorm.normalise = layer.post_attention_layernorm.normalise = fast_norm
                setattr(parent, name, PackedLayer(layer, dtype))


def pack_linears(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every linear layer below the module in the same way."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, PackedLinear(dtype))
