"""Static key and value caches of a batch of groups, and the attention that reads them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import TextConfig
from models.text import Attend


class GroupCache:
    """Keys and values of a batch of groups in tensors that never move: each prompt's once, and each sample's own.

    P prompts, G samples each, S prompt tokens, N new tokens, K kv heads, R = H / K query heads a kv head.
    """

    def __init__(self, config: TextConfig, shape: tuple[int, int, int, int], dtype: torch.dtype,
                 device: torch.device) -> None:
        prompts, group_size, prompt_size, new_tokens = shape
        heads, size = config.num_key_value_heads, config.head_dim
        prompt, own = (prompts, heads, prompt_size, size), (prompts, heads, group_size, new_tokens, size)
        layers = range(config.num_hidden_layers)
        self.prompt_kv = [torch.zeros(2, *prompt, dtype=dtype, device=device) for _ in layers]
        self.own_kv = [torch.zeros(2, *own, dtype=dtype, device=device) for _ in layers]
        self.prompt_mask = torch.zeros(prompts, prompt_size, dtype=torch.bool, device=device)
        self.slots = torch.arange(new_tokens, device=device)

    def prefill(self, lengths: list[int]) -> Attend:
        """Prompts one behind the other, each attending to itself alone; their keys and values are kept."""
        tokens = torch.arange(self.prompt_mask.shape[1], device=self.slots.device)
        self.prompt_mask.copy_(tokens < torch.tensor(lengths)[:, None].to(tokens.device, non_blocking=True))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = []
            for prompt, (one_q, one_k, one_v) in enumerate(zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)):
                self.prompt_kv[layer][0, prompt, :, :lengths[prompt]] = one_k[0]
                self.prompt_kv[layer][1, prompt, :, :lengths[prompt]] = one_v[0]
                parts.append(F.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True, enable_gqa=True))
            return torch.cat(parts, dim=2)                                      # (1, H, sum of lengths, E)
        return attend

    def decode(self, slot: Tensor, width: int) -> Attend:
        """One token of every sample attends to its prompt and to its own past; its key and value go into `slot`.

        Shapes: slot (1,), on the device; q (P*G, H, 1, E) -> same. Only the first `width` own slots are read."""
        own_hidden = (self.slots[:width] > slot).expand(len(self.prompt_mask), -1)
        hidden = torch.cat([~self.prompt_mask, own_hidden], dim=1)[:, None, None, None]     # (P, 1, 1, 1, S + width)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            (prompt_k, prompt_v), (own_k, own_v) = self.prompt_kv[layer], self.own_kv[layer]
            P, K, G, _, E = own_k.shape
            own_k.index_copy_(3, slot, k.view(P, G, K, 1, E).transpose(1, 2))
            own_v.index_copy_(3, slot, v.view(P, G, K, 1, E).transpose(1, 2))
            own_k, own_v = own_k[:, :, :, :width], own_v[:, :, :, :width]
            q = (q.view(P, G, K, -1, E) * E**-0.5).transpose(1, 2).contiguous()  # (P, K, G, R, E)
            to_prompt = (q.flatten(2, 3) @ prompt_k.transpose(2, 3)).unflatten(2, (G, -1))  # (P, K, G, R, S)
            scores = torch.cat([to_prompt, q @ own_k.transpose(3, 4)], dim=-1)  # (P, K, G, R, S + width)
            weights = scores.masked_fill_(hidden, -torch.inf).softmax(-1)       # inside, torch computes in float32
            from_prompt, from_own = weights.split([prompt_k.shape[2], width], dim=-1)
            y = (from_prompt.flatten(2, 3) @ prompt_v).view_as(q) + from_own @ own_v
            return y.transpose(1, 2).reshape(P * G, -1, 1, E)
        return attend
