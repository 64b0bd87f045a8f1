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
        self.prompt_bias = torch.zeros(prompts, 1, prompt_size, dtype=dtype, device=device)    # -inf behind its end
        self.slots = torch.arange(new_tokens, device=device)

    def prefill(self, lengths: list[int]) -> Attend:
        """Prompts one behind the other, each attending to itself alone; their keys and values are kept."""
        tokens = torch.arange(self.prompt_bias.shape[2], device=self.slots.device)
        self.padded = min(lengths) < len(tokens)
        ended = tokens >= torch.tensor(lengths)[:, None, None].to(tokens.device, non_blocking=True)
        self.prompt_bias.zero_().masked_fill_(ended, -torch.inf)

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
        bias = self.prompt_bias if written is None or self.padded else None
        later = self.slots > slot if written is None else None                  # (N,)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            (prompt_k, prompt_v), (own_k, own_v) = self.prompt_kv[layer], self.own_kv[layer]
            P, K, G, _, E = own_k.shape
            own_k.index_copy_(3, slot, k.view(P, G, K, 1, E).transpose(1, 2))
            own_v.index_copy_(3, slot, v.view(P, G, K, 1, E).transpose(1, 2))
            own = own_k[:, :, :, :width], own_v[:, :, :, :width]                # (P, K, G, width, E)
            q = q.view(P, G, K, -1, E).transpose(1, 2)                          # (P, K, G, R, E)
            merge = q.dtype == torch.bfloat16 and q.device.type == "cpu" and later is None
            y = merged_softmax(q, prompt_k, prompt_v, *own, bias) if merge else \
                joint_softmax(q, prompt_k, prompt_v, *own, bias, later)         # (P, K, G, R, E)
            return y.transpose(1, 2).reshape(P * G, -1, 1, E)
        return attend


def joint_softmax(q: Tensor, prompt_k: Tensor, prompt_v: Tensor, own_k: Tensor, own_v: Tensor, bias: Tensor | None,
                  later: Tensor | None) -> Tensor:
    """One softmax over the scores of the prompt's keys and the sample's own."""
    (P, K, G, R, E), S, width = q.shape, prompt_k.shape[2], own_k.shape[3]
    q = (q * E**-0.5).reshape(P * K, G * R, E)
    to_prompt = torch.bmm(q, prompt_k.flatten(0, 1).mT)                         # (P K, G R, S)
    to_own = torch.bmm(q.view(-1, R, E), own_k.flatten(0, 2).mT)                # (P K G, R, width)
    if bias is not None:
        to_prompt.view(P, -1, S).add_(bias)
    if later is not None:
        to_own.masked_fill_(later, -torch.inf)
    weights = torch.cat([to_prompt.view(-1, R, S), to_own], dim=-1).softmax(-1)     # inside, torch computes in float32
    from_prompt, from_own = weights.split([S, width], dim=-1)
    y = torch.bmm(from_prompt.view(P * K, G * R, S), prompt_v.flatten(0, 1)).view(-1, R, E)
    return y.baddbmm_(from_own, own_v.flatten(0, 2)).view(P, K, G, R, E)


def merged_softmax(q: Tensor, prompt_k: Tensor, prompt_v: Tensor, own_k: Tensor, own_v: Tensor,
                   bias: Tensor | None) -> Tensor:
    """The same by two calls of torch's CPU kernel, each with the logarithm l of its sum of exponentials.

        y = y_prompt + sigmoid(l_own - l_prompt) (y_own - y_prompt)

    In bf16 it takes 0.6 of the time of `joint_softmax`, in float32 as long."""
    (P, K, G, R, E), attention = q.shape, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    bias = None if bias is None else bias[:, None]                              # (P, 1, 1, S)
    from_prompt, of_prompt = attention(q.reshape(P, K, G * R, E), prompt_k, prompt_v, attn_mask=bias)
    from_own, of_own = attention(q.reshape(P * K, G, R, E), own_k.flatten(0, 1), own_v.flatten(0, 1))
    share = (of_own.reshape(of_prompt.shape) - of_prompt).sigmoid_()[..., None]                 # (P, K, G R, 1)
    return from_prompt.lerp(from_own.reshape(from_prompt.shape), share.to(q.dtype)).view(P, K, G, R, E)
