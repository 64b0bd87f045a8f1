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
        self.padded = True                                  # whether prompts are shorter than their slots
        self.prompt_mask = torch.zeros(prompts, prompt_size, dtype=torch.bool, device=device)
        self.slots = torch.arange(new_tokens, device=device)

    def prefill(self, lengths: list[int]) -> Attend:
        """Prompts one behind the other, each attending to itself alone; their keys and values are kept."""
        tokens = torch.arange(self.prompt_mask.shape[1], device=self.slots.device)
        self.padded = min(lengths) < len(tokens)
        self.prompt_mask.copy_(tokens < torch.tensor(lengths)[:, None].to(tokens.device, non_blocking=True))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = []
            for prompt, (one_q, one_k, one_v) in enumerate(zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)):
                self.prompt_kv[layer][0, prompt, :, :lengths[prompt]] = one_k[0]
                self.prompt_kv[layer][1, prompt, :, :lengths[prompt]] = one_v[0]
                parts.append(F.scaled_dot_product_attention(one_q, one_k, one_v, is_causal=True, enable_gqa=True))
            return torch.cat(parts, dim=2)                                      # (1, H, sum of lengths, E)
        return attend

    def decode(self, slot: Tensor, written: int | None = None) -> Attend:
        """One token of every sample attends to its prompt and to its own past; its key and value go into `slot`.

        written: how many own slots are filled then, if the host counts them; only these are read. None, in a graph: all
        are read, the later ones masked. Shapes: slot (1,), on the device; q (P*G, H, 1, E) -> same."""
        width = written or len(self.slots)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            (prompt_k, prompt_v), (own_k, own_v) = self.prompt_kv[layer], self.own_kv[layer]
            P, K, G, _, E = own_k.shape
            own_k.index_copy_(3, slot, k.view(P, G, K, 1, E).transpose(1, 2))
            own_v.index_copy_(3, slot, v.view(P, G, K, 1, E).transpose(1, 2))
            own_k, own_v = own_k.flatten(0, 2)[:, :width], own_v.flatten(0, 2)[:, :width]   # (P K G, width, E)
            prompt_k, prompt_v = prompt_k.flatten(0, 1), prompt_v.flatten(0, 1)             # (P K, S, E)
            q = (q.view(P, G, K, -1, E) * E**-0.5).transpose(1, 2).reshape(P * K, -1, E)    # (P K, G R, E)
            to_prompt = torch.bmm(q, prompt_k.mT)                               # (P K, G R, S)
            to_own = torch.bmm(q.view(P * K * G, -1, E), own_k.mT)              # (P K G, R, width)
            if written is None or self.padded:
                to_prompt.view(P, -1, prompt_k.shape[1]).masked_fill_(~self.prompt_mask[:, None], -torch.inf)
            if written is None:
                to_own.masked_fill_(self.slots > slot, -torch.inf)
            scores = torch.cat([to_prompt.view(P * K * G, -1, prompt_k.shape[1]), to_own], dim=-1)
            weights = scores.softmax(-1)                                        # inside, torch computes in float32
            from_prompt, from_own = weights.split([prompt_k.shape[1], width], dim=-1)
            y = torch.bmm(from_prompt.view(P * K, q.shape[1], -1), prompt_v).view(P * K * G, -1, E)
            y = y.baddbmm_(from_own, own_v).view(P, K, G, -1, E)                # (P, K, G, R, E)
            return y.transpose(1, 2).reshape(P * G, -1, 1, E)
        return attend
