"""The plain sampler: prefill each prompt once, decode its group together, draw by inverse CDF.

A prompt's keys and values are held once for its G samples. Random numbers depend on (seed, step,
prompt, sample, position) alone, so batch shape and order do not change what is sampled.
grpo/fast/sampler.py draws the same tokens faster. A checkpoint's generation defaults are not read
(Qwen2-VL ships top_k = 1, which would make all answers of a group equal).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from grpo.logprobs import sampling_logits
from models.precision import autocast, head_logits
from models.processor import Processor
from models.prompt import Prompt, check_prompts, prompt_features
from models.qwen2_vl import Qwen2VL

KeysAndValues = dict[int, tuple[Tensor, Tensor]]        # of every layer


@dataclass(frozen=True)
class Rollout:
    """B = prompts x group_size completions of at most N tokens, a prompt's rows adjacent."""

    completion_ids: Tensor            # (B, N) long, as sampled: never re-tokenised
    completion_mask: Tensor           # (B, N) bool, True on sampled tokens and the stop token
    logprobs: Tensor                  # (B, N) float32, of the sampling distribution (greedy: T = 1)
    texts: list[str]                  # decoded, without special tokens
    truncated: Tensor                 # (B,) bool, True where no stop token came within the limit

    def completions(self) -> list[Tensor]:
        """Each row's real tokens."""
        rows = zip(self.completion_ids, self.completion_mask, strict=True)
        return [ids[mask] for ids, mask in rows]

    def rows(self, start: int, stop: int) -> "Rollout":
        """Some of the rows."""
        return Rollout(**{name: value[start:stop] for name, value in vars(self).items()})


class PlainSampler:
    """Draws a group of completions for each prompt, one prompt after the other."""

    def __init__(self, model: Qwen2VL, processor: Processor, temperature: float = 1.0,
                 max_new_tokens: int = 128, precision: str = "fp32") -> None:
        self.model, self.processor = model, processor
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.precision = precision

    def __enter__(self) -> "PlainSampler":
        """A faster sampler brings a copy of the weights up to date here, and frees it at exit."""
        return self

    def __exit__(self, *fault: object) -> None:
        pass

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Complete each prompt once per row of random numbers. Shapes: uniforms (P, G, N)."""
        check_prompts(prompts, self.max_new_tokens, self.model.config)
        uniforms = uniforms.to(self.model.head_weight.device)
        with autocast(self.model, self.precision):
            return merge_rollouts([self.sample_group(prompt, numbers)
                                   for prompt, numbers in zip(prompts, uniforms, strict=True)])

    def sample_group(self, prompt: Prompt, uniforms: Tensor) -> Rollout:
        """G completions of one prompt. Shapes: uniforms (G, N)."""
        stop_ids = torch.tensor(self.model.config.stop_token_ids, device=uniforms.device)
        hidden, shared = prefill(self.model, prompt)                            # (1, D)
        hidden = hidden.expand(len(uniforms), -1)
        own, ids, logprobs = {}, [], []
        for n in range(self.max_new_tokens):
            if n > 0:
                position = prompt.next_position + n - 1
                hidden = decode(self.model, ids[-1], position, shared, own)     # (G, D)
            logits = head_logits(hidden, self.model.head_weight)                # (G, V)
            token, logprob = self.draw(logits, uniforms[:, n])                  # (G,)
            ids.append(token)
            logprobs.append(logprob)
            if torch.isin(torch.stack(ids), stop_ids).any(dim=0).all():
                break
        return collect(torch.stack(ids, 1), torch.stack(logprobs, 1), stop_ids, self.processor)

    def draw(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """One token per row and its log-probability. Shapes: (G, V), (G,) -> (G,), (G,)."""
        scaled = sampling_logits(logits, self.temperature or 1.0,
                                 self.model.config.suppressed_token_ids)
        logprobs = scaled.log_softmax(-1)
        greedy = self.temperature == 0
        token = logprobs.argmax(-1) if greedy else invert_cdf(logprobs.exp(), uniforms)
        return token, logprobs.gather(-1, token[:, None])[:, 0]


def prefill(model: Qwen2VL, prompt: Prompt) -> tuple[Tensor, KeysAndValues]:
    """The prompt's last hidden state (1, D), and its keys and values (1, K, S, E) per layer."""
    device, cache = model.head_weight.device, {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache[layer] = k, v
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    embeds = model.embed(prompt.input_ids[None].to(device),
                         prompt_features(model, [prompt], device))              # (1, S, D)
    hidden = model.hidden_states(embeds, prompt.position_ids[:, None].to(device), attend)
    return hidden[:, -1], cache


def decode(model: Qwen2VL, tokens: Tensor, position: int, shared: KeysAndValues,
           own: KeysAndValues) -> Tensor:
    """Feed every sample its newest token -> hidden states (G, D); `own` grows by one token.

    Shapes: tokens (G,); shared (1, K, S, E) and own (G, K, n, E) per layer."""
    group_size = len(tokens)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before = own.get(layer, (k[:, :, :0], v[:, :, :0]))
        own[layer] = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        keys, values = (torch.cat([prompt.expand(group_size, -1, -1, -1), mine], dim=2)
                        for prompt, mine in zip(shared[layer], own[layer], strict=True))
        return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)  # (G, H, 1, E)

    positions = torch.full((3, group_size, 1), position, device=tokens.device)
    return model.hidden_states(model.embed(tokens[:, None], None), positions, attend)[:, 0]


def uniform_table(seed: int, step: int, prompt_numbers: Sequence[int], group_size: int,
                  length: int) -> Tensor:
    """Random numbers (P, G, length) in [0, 1), each a function of its place, seed and step."""
    rows = [[np.random.default_rng([seed, step, number, sample]).random(length, dtype=np.float32)
             for sample in range(group_size)] for number in prompt_numbers]
    return torch.from_numpy(np.array(rows))


def invert_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u; never one of probability 0.

    Shapes: probabilities (B, V), summing to about 1; uniforms (B,) in [0, 1) -> (B,)."""
    cumulative = probabilities.cumsum(-1)                                       # (B, V)
    threshold = uniforms[:, None] * cumulative[:, -1:]      # below the total, as u <= 1 - 2^-24
    token = torch.searchsorted(cumulative, threshold, right=True)               # (B, 1)
    token = token.clamp(max=probabilities.shape[-1] - 1)                # NaN weights would give V
    impossible = probabilities.gather(-1, token) == 0       # a parallel cumsum may not be monotone
    return torch.where(impossible, probabilities.argmax(-1, keepdim=True), token)[:, 0]


def collect(ids: Tensor, logprobs: Tensor, stop_ids: Tensor, processor: Processor) -> Rollout:
    """Cut every row after its first stop token, and all rows to the longest. Shapes: (B, N)."""
    ids, logprobs, stop_ids = ids.cpu(), logprobs.cpu(), stop_ids.cpu()
    if not torch.isfinite(logprobs).all():
        raise FloatingPointError("the model's logits are not finite, so its weights are broken")
    is_stop = torch.isin(ids, stop_ids)                                         # (B, N)
    mask = is_stop.cumsum(1) - is_stop.long() == 0          # no stop token BEFORE this one
    longest = int(mask.sum(1).max())
    ids, logprobs, mask = ids[:, :longest], logprobs[:, :longest], mask[:, :longest]
    ids = ids.masked_fill(~mask, processor.pad_token_id)
    texts = [processor.decode(row[keep]) for row, keep in zip(ids, mask, strict=True)]
    truncated = ~(is_stop[:, :longest] & mask).any(1)
    return Rollout(ids, mask, logprobs.masked_fill(~mask, 0.0), texts, truncated)


def merge_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Rollouts one below the other, padded to the longest."""
    ids, masks, logprobs = (
        pad_sequence([row for part in parts for row in getattr(part, name)], batch_first=True)
        for name in ("completion_ids", "completion_mask", "logprobs"))
    texts = [text for part in parts for text in part.texts]
    return Rollout(ids, masks, logprobs, texts, torch.cat([part.truncated for part in parts]))
