"""The language model: a Qwen2 decoder whose rotary positions have three axes (arXiv 2409.12191, section 2.1, M-RoPE).

Each layer adds two terms to the hidden state of a token: attention over the other tokens, and a gated MLP of the token
itself. An image token has a position on three axes (time, height, width); a text token has the same position on all
three.

The caller chooses the attention: every layer calls `attend(layer_index, q, k, v)`. `masked_attention` below is the
plain function; packed training rows and key/value caches pass their own.
Parameter names equal those of the released checkpoints, so loading needs no rename table.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import TextConfig

# attend(layer_index, q (B, H, T, E), k (B, K, T, E), v (B, K, T, E)) -> y (B, H, T, E); q and k are already rotated.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) in float32, cast back to x's dtype, then multiplied by the weight.

    The order matters in bfloat16: the released model was trained with the product in the lower precision.
    Shapes: x (..., D), weight (D,) -> (..., D)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))                    # float64 stays float64
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)             # (..., 1)
    return (wide * scale).to(x.dtype) * weight


def gated_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, the activation of SwiGLU. Shapes: gate (..., I), up (..., I) -> (..., I)."""
    return F.silu(gate) * up


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.normalise = rms_norm                           # models/fast/recomputed.py can replace it

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), no biases."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = gated_silu                        # models/fast/recomputed.py can replace it

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x), self.up_proj(x)))


def rotary(position_ids: Tensor, config: TextConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotation angles of every token.

        angle[b, t, j] = position_ids[axis(j), b, t] * rope_theta^(-2 j / E),   j = 0 .. E/2 - 1, then repeated

    The first mrope_section[0] frequencies (the fastest) use the time axis, the next the height, the last the width.
    Shapes: position_ids (3, B, T) -> cos, sin (B, T, E). Computed in float32, because bfloat16 cannot tell neighbouring
    positions apart.
    Source: arXiv 2409.12191, section 2.1.
    """
    size = config.head_dim
    steps = torch.arange(0, size, 2, device=position_ids.device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-steps / size)                          # (E/2,)
    angles = position_ids[..., None].float() * frequencies                      # (3, B, T, E/2)
    parts = angles.split(config.mrope_section, dim=-1)
    angles = torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1)  # (B, T, E/2)
    angles = torch.cat([angles, angles], dim=-1)                                # (B, T, E)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[j], x[j + E/2]) by its angle; cos and sin broadcast against x (..., E)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)             # the cast has an effect only if autocast mixes dtypes


def causal_mask(attention_mask: Tensor) -> Tensor:
    """(B, T) of 1 = token, 0 = padding -> (B, 1, T, T) bool, True where query (row) may attend to key (column).

    A padding query attends to itself, because a softmax over no key is NaN."""
    length = attention_mask.shape[1]
    square = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device)
    visible = square.tril() & attention_mask.bool()[:, None, :]                 # (B, T, T)
    return (visible | torch.eye(length, dtype=torch.bool, device=square.device))[:, None]


def masked_attention(mask: Tensor | None) -> Attend:
    """Scaled dot-product attention under a mask (B, 1, T, T), True = may attend; None = causal without padding.

    Grouped queries: query head i uses key/value head i // (H / K)."""
    def attend(_layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return attend


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; biases on q, k and v only.

    B rows, T tokens, D hidden, H query heads, K key/value heads, E head dim."""

    def __init__(self, config: TextConfig, layer_index: int) -> None:
        super().__init__()
        self.layer_index, self.head_dim = layer_index, config.head_dim
        self.rotate = rotate                                # models/fast/recomputed.py can replace it
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries)
        self.k_proj = nn.Linear(config.hidden_size, keys)
        self.v_proj = nn.Linear(config.hidden_size, keys)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        heads = (*x.shape[:2], -1, self.head_dim)
        q = self.q_proj(x).view(heads).transpose(1, 2)                          # (B, H, T, E)
        k = self.k_proj(x).view(heads).transpose(1, 2)                          # (B, K, T, E)
        v = self.v_proj(x).view(heads).transpose(1, 2)                          # (B, K, T, E)
        cos, sin = cos[:, None], sin[:, None]                                   # (B, 1, T, E), the same for all heads
        y = attend(self.layer_index, self.rotate(q, cos, sin), self.rotate(k, cos, sin), v)     # (B, H, T, E)
        return self.o_proj(y.transpose(1, 2).flatten(2))                        # (B, T, D)


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    wanted (C,): flat indices of the only tokens whose result is needed; the MLP computes these. -> (C, D)"""

    def __init__(self, config: TextConfig, layer_index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(compute_type(self.input_layernorm(x)), cos, sin, attend)
        if wanted is not None:
            x = x.flatten(0, 1).index_select(0, wanted)                         # (C, D)
        return x + self.mlp(compute_type(self.post_attention_layernorm(x)))


def compute_type(x: Tensor) -> Tensor:
    """x in autocast's dtype: cast once here, instead of once in every linear layer that reads it."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


class TextModel(nn.Module):
    """Embeddings in, hidden states out: embeds (B, T, D), position_ids (3, B, T) -> (B, T, D), after the final norm.

    wanted (C,): flat indices of the only tokens whose states are needed -> (C, D). No other token reads what the last
    layer's MLP computes, so there it skips the rest.
    `gradient_checkpointing` recomputes the activations of each layer in the backward pass instead of storing them."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        # nn.Embedding's constructor draws random numbers, which on the meta device imports torch's compiler (a second).
        table = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, embeds: Tensor, position_ids: Tensor, attend: Attend, wanted: Tensor | None = None) -> Tensor:
        x = embeds.to(self.norm.weight.dtype)               # a sampling copy has bf16 layers and float32 embeddings
        cos, sin = rotary(position_ids, self.config, x.dtype)                   # (B, T, E)
        for index, layer in enumerate(self.layers):
            chosen = wanted if index == len(self.layers) - 1 else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, attend, chosen, use_reentrant=False)
            else:
                x = layer(x, cos, sin, attend, chosen)
        if wanted is not None and not self.layers:
            x = x.flatten(0, 1).index_select(0, wanted)
        return self.norm(x)
