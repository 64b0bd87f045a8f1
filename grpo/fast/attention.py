"""Attention on packed rows without wasted work.

    [ prompt | completion 1 | ... | completion G ]     prompt x prompt once; each completion x (prompt, itself)

No product between siblings is computed. `PackedRows.attention` defines the same attention as one dense mask; a test
compares the two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from grpo.packing import PackedRows
from models.text import Attend, masked_attention


def branch_attention(rows: PackedRows) -> Attend:
    """The attention of packed rows: R rows of T tokens, prompts of up to S, G branches of up to N tokens each.

    Rows of one branch are plain causal sequences. On a CPU in bf16 plain products beat the fused kernel (1.4 to 1.7
    times on 64-token branches), elsewhere the fused kernel is faster and keeps no scores.
    """
    if max(map(len, rows.lengths)) <= 2:
        return masked_attention(None)                       # padding comes last: no real token attends to it
    prompt_mask, slots, sources = (x.to(rows.input_ids.device, non_blocking=True) for x in places(rows))
    size = prompt_mask.shape[1]                                                 # S
    own = torch.ones(slots.shape[2:] * 2, dtype=torch.bool, device=slots.device).tril()     # (N, N)
    to_prompt = prompt_mask[:, None].expand(-1, len(own), -1)                   # (R, N, S)
    visible = torch.cat([to_prompt, own.expand(len(to_prompt), -1, -1)], dim=2)  # (R, N, S + N)

    def attend(_layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        prompt_k, prompt_v = k[:, :, :size], v[:, :, :size]                     # (R, K, S, E)
        prompt = F.scaled_dot_product_attention(q[:, :, :size], prompt_k, prompt_v, is_causal=True, enable_gqa=True)
        branches = [take_branches(x, slots) for x in (q, k, v)]            # (R, G, N, heads, E) each
        plain = q.device.type == "cpu" and q.dtype == torch.bfloat16
        y = (plain_products if plain else fused_attention)(*branches, prompt_k, prompt_v, visible)
        y = torch.cat([prompt.transpose(1, 2), y.flatten(1, 2)], dim=1)         # (R, S + G * N, H, E)
        back = sources + y.shape[1] * torch.arange(len(y), device=y.device)[:, None]            # (R, T)
        y = y.flatten(2).flatten(0, 1).index_select(0, back.flatten())          # (R * T, H * E): back in row order
        return y.view(*q.shape[::2], *q.shape[1::2]).transpose(1, 2)            # (R, H, T, E)
    return attend


def places(rows: PackedRows) -> tuple[Tensor, Tensor, Tensor]:
    """Where prompt and branches stand in their rows, from the lengths alone.

    Shapes: prompt_mask (R, S) bool, True on the row's prompt; slots (R, G, N), index in the row of each branch's
    tokens, -1 for none; sources (R, T), index of the row's tokens in [prompt slots S | branch slots G * N]. In sources,
    prompt tokens map to themselves and padding to the last prompt slot.
    """
    length, width = rows.input_ids.shape[1], rows.completion_mask.shape[1]
    size, most = max(row[0] for row in rows.lengths), max(map(len, rows.lengths)) - 1
    prompt_mask, slots, sources = [], [], []
    for prompt, *branches in rows.lengths:
        starts = [prompt + sum(branches[:number]) for number in range(len(branches))]
        own = [torch.arange(start, start + n) for start, n in zip(starts, branches, strict=True)]
        own += [torch.arange(0)] * (most - len(branches))
        slots.append(torch.stack([F.pad(x, (0, width - len(x)), value=-1) for x in own]))       # (G, N)
        back = [torch.arange(size + number * width, size + number * width + n) for number, n in enumerate(branches)]
        back = torch.cat([torch.arange(prompt), *back])
        sources.append(F.pad(back, (0, length - len(back)), value=size - 1))                    # (T,)
        prompt_mask.append(torch.arange(size) < prompt)                                         # (S,)
    return torch.stack(prompt_mask), torch.stack(slots), torch.stack(sources)


def take_branches(x: Tensor, slots: Tensor) -> Tensor:
    """Every branch's part of a row: (R, heads, T, E) -> (R, G, N, heads, E); empty slots repeat the row's first."""
    rows, heads, length, size = x.shape
    places = slots.clamp(min=0) + length * torch.arange(rows, device=x.device)[:, None, None]
    return x.transpose(1, 2).reshape(rows * length, -1).index_select(0, places.flatten()).view(
        *slots.shape, heads, size)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, visible: Tensor) -> Tensor:
    """One call of torch's kernel with each branch's keys behind a view of its prompt's. -> (R, G, N, H, E).

    On a GPU no kernel but the one that keeps the scores takes a mask and fewer key heads than query heads: there keys
    and values are repeated."""
    rows, group = q.shape[:2]
    repeats = 1 if q.device.type == "cpu" else q.shape[3] // k.shape[3]

    def joined(prompt: Tensor, own: Tensor) -> Tensor:
        prompt = prompt.transpose(1, 2)[:, None].expand(-1, group, -1, -1, -1)  # (R, G, S, K, E)
        both = torch.cat([prompt, own], dim=2).flatten(0, 1).transpose(1, 2)    # (R * G, K, S + N, E)
        return both if repeats == 1 else both.repeat_interleave(repeats, dim=1)

    mask = visible[:, None].expand(-1, group, -1, -1).flatten(0, 1)[:, None]    # (R * G, 1, N, S + N)
    y = F.scaled_dot_product_attention(q.flatten(0, 1).transpose(1, 2), joined(prompt_k, k), joined(prompt_v, v),
                                       attn_mask=mask, enable_gqa=repeats == 1)     # (R * G, H, N, E)
    return y.transpose(1, 2).unflatten(0, (rows, group))


def plain_products(q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, visible: Tensor) -> Tensor:
    """All branches against their prompt in one product per key/value head, then against themselves.

    -> (R, G, N, H, E). Scores and weights are rounded to q's dtype, the softmax between them is computed in float32."""
    rows, group, length, _, size = q.shape
    heads, prompt = prompt_k.shape[1:3]
    q = q.view(rows, group, length, heads, -1, size) * size**-0.5
    q = q.permute(0, 3, 1, 2, 4, 5).reshape(rows, heads, group, -1, size)       # (R, K, G, N * H/K, E)
    k, v = k.permute(0, 3, 1, 2, 4), v.permute(0, 3, 1, 2, 4)                   # (R, K, G, N, E)
    to_prompt = (q.flatten(2, 3) @ prompt_k.transpose(2, 3)).view(*q.shape[:4], -1)
    scores = torch.cat([to_prompt, q @ k.transpose(3, 4)], dim=-1)              # (R, K, G, N * H/K, S + N)
    hidden = ~visible.repeat_interleave(q.shape[3] // length, dim=1)[:, None, None]
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    y = (weights[..., :prompt].flatten(2, 3) @ prompt_v).view_as(q) + weights[..., prompt:] @ v
    return y.view(rows, heads, group, length, -1, size).permute(0, 2, 3, 1, 4, 5).flatten(3, 4)
