"""Sampling: prefill each prompt once, then decode its whole group together from static KV caches.

The keys and values of a prompt are held once and shared by its G samples; each sample keeps its own only for the
tokens it wrote. Random numbers come from a table that depends on (seed, step, prompt, sample, position) alone, and a
token is drawn by inverting the CDF, so batch shape, order and number of processes do not change what is sampled.
The checkpoint's own generation defaults (Qwen2-VL ships top_k = 1, which makes a group G equal rows) are never read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from grpo.batch import Prompt, check_context, make_prompt
from grpo.logprobs import NEVER, head_logits, sampling_logits
from models.processor import Processor
from models.qwen2_vl import Qwen2VL
from models.text import masked_attention

CHECK_EVERY = 8  # decode steps between two looks at whether every sample has stopped (a look waits for the device)


@dataclass(frozen=True)
class Rollout:
    """B = prompts x group_size completions, a prompt's rows adjacent. N is the longest completion's length."""

    completion_ids: Tensor            # (B, N) long, as sampled: never re-tokenised
    completion_mask: Tensor           # (B, N) bool, True on sampled tokens including the stop token
    logprobs: Tensor                  # (B, N) float32, of the sampling distribution; at temperature 0 those at T = 1
    texts: list[str]                  # decoded, without special tokens
    truncated: Tensor                 # (B,) bool, True where no stop token came within the limit

    def completions(self) -> list[Tensor]:
        """Each row's real tokens."""
        return [ids[mask] for ids, mask in zip(self.completion_ids, self.completion_mask, strict=True)]

    def rows(self, start: int, stop: int) -> "Rollout":
        """Some of the rows."""
        return Rollout(**{name: value[start:stop] for name, value in vars(self).items()})


class GroupCache:
    """Keys and values of a batch of groups: each prompt's once, and each sample's own in static tensors.

    L layers, P prompts, G samples each, S prompt tokens, N new tokens, K kv heads, R = H / K query heads a kv head.
    """

    def __init__(self, prompt_mask: Tensor, group_size: int, new_tokens: int) -> None:
        self.prompt_mask = prompt_mask                                          # (P, S) bool, right-padded
        self.group_size, self.new_tokens, self.length = group_size, new_tokens, 0
        tokens = torch.arange(prompt_mask.shape[1], device=prompt_mask.device)
        self.causal = masked_attention((tokens[:, None] >= tokens)[None, None])  # pads follow all real tokens
        self.prompt_kv: list[tuple[Tensor, Tensor]] = []                        # L x (P, K, S, E)
        self.own_kv: list[tuple[Tensor, Tensor]] = []                           # L x (P, K, G, N, E)

    def prefill(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Prompt attends to prompt, and its keys and values are kept. Shapes: q (P, H, S, E) -> (P, H, S, E)."""
        self.prompt_kv.append((k, v))
        size = (*k.shape[:2], self.group_size, self.new_tokens, k.shape[-1])
        self.own_kv.append((k.new_zeros(size), v.new_zeros(size)))
        return self.causal(layer, q, k, v)

    def decode(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One token of every sample attends to its prompt and to its own past. Shapes: q (P*G, H, 1, E) -> same."""
        prompt_k, prompt_v = self.prompt_kv[layer]
        own_k, own_v = self.own_kv[layer]
        P, K, S, E = prompt_k.shape
        G, now = self.group_size, self.length
        own_k[:, :, :, now] = k.view(P, G, K, E).transpose(1, 2)
        own_v[:, :, :, now] = v.view(P, G, K, E).transpose(1, 2)
        q = q.view(P, G, K, -1, E).transpose(1, 2) * E**-0.5                    # (P, K, G, R, E)
        to_prompt = q.flatten(2, 3) @ prompt_k.transpose(2, 3)                  # (P, K, G*R, S)
        to_prompt = to_prompt.masked_fill(~self.prompt_mask[:, None, None], -torch.inf).unflatten(2, (G, -1))
        to_own = q @ own_k[:, :, :, :now + 1].transpose(3, 4)                   # (P, K, G, R, now + 1)
        weights = torch.cat([to_prompt, to_own], dim=-1).float().softmax(-1).to(v.dtype)
        y = (weights[..., :S].flatten(2, 3) @ prompt_v).unflatten(2, (G, -1)) \
            + weights[..., S:] @ own_v[:, :, :, :now + 1]                       # (P, K, G, R, E)
        return y.transpose(1, 2).reshape(P * G, -1, 1, E)


def uniform_table(seed: int, step: int, prompt_numbers: Sequence[int], group_size: int, length: int) -> Tensor:
    """Random numbers in [0, 1), each a function of (seed, step, prompt, sample, position). Shape (P, G, length)."""
    rows = [[np.random.default_rng([seed, step, number, sample]).random(length, dtype=np.float32)
             for sample in range(group_size)] for number in prompt_numbers]
    return torch.from_numpy(np.array(rows))


def invert_cdf(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability passes u: a draw for a given uniform number, never of weight 0.

    Shapes: probabilities (B, V), need not sum to exactly 1; uniforms (B,) in [0, 1) -> (B,) long.
    """
    cumulative = probabilities.cumsum(-1)                                       # (B, V)
    threshold = uniforms[:, None] * cumulative[:, -1:]                          # below the total: u <= 1 - 2^-24
    token = torch.searchsorted(cumulative, threshold, right=True)
    token = token.clamp(max=probabilities.shape[-1] - 1)                        # (B, 1); NaN weights would give V
    impossible = probabilities.gather(-1, token) == 0                           # a parallel cumsum may not be monotone
    return torch.where(impossible, probabilities.argmax(-1, keepdim=True), token)[:, 0]


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the top_k likeliest tokens, and of them the fewest whose mass reaches top_p (evaluation only). (B, V)."""
    if top_k > 0:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, NEVER)
    if top_p < 1:
        sorted_logits, order = logits.sort(descending=True)
        mass_before = sorted_logits.softmax(-1).cumsum(-1) - sorted_logits.softmax(-1)
        logits = logits.masked_fill((mass_before >= top_p).scatter(-1, order, mass_before >= top_p), NEVER)
    return logits


class Sampler:
    """Draws groups of completions from a model that may be training: it reads the weights as they are at each call."""

    def __init__(self, model: Qwen2VL, processor: Processor, temperature: float = 1.0, max_new_tokens: int = 128,
                 min_new_tokens: int = 0, top_k: int = 0, top_p: float = 1.0) -> None:
        if temperature < 0 or max_new_tokens < 1:
            raise ValueError(f"temperature {temperature} must be >= 0 and max_new_tokens {max_new_tokens} >= 1")
        if top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(f"top_k {top_k} must be >= 0 (0: all tokens) and top_p {top_p} in (0, 1]")
        self.model, self.processor = model, processor
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        self.stop_ids = torch.tensor(model.config.stop_token_ids)

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Complete each prompt once per row of random numbers. Shapes: uniforms (P, G, >= max_new_tokens)."""
        device = self.model.head_weight.device
        for i, prompt in enumerate(prompts):
            check_context(len(prompt.input_ids), self.max_new_tokens, self.model.config, f"prompt {i}")
        if not prompts or uniforms.shape[:1] != (len(prompts),) or uniforms.shape[1] < 1:
            raise ValueError(f"{len(prompts)} prompts, random numbers of shape {tuple(uniforms.shape)}: give at least "
                             "one prompt, a row of numbers for each, and a group of at least one")
        group_size = uniforms.shape[1]
        lengths = torch.tensor([len(p.input_ids) for p in prompts])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(device)  # (P, S)
        cache = GroupCache(mask, group_size, self.max_new_tokens)
        hidden = self.prefill(prompts, cache, device)                           # (P, D)
        logits = head_logits(hidden, self.model.head_weight).repeat_interleave(group_size, dim=0)  # (B, V)
        starts = torch.tensor([p.next_position for p in prompts], device=device).repeat_interleave(group_size)
        ids, logprobs = self.decode(cache, logits, starts, uniforms.flatten(0, 1).to(device))
        return self.collect(ids.cpu(), logprobs.cpu())

    def prefill(self, prompts: Sequence[Prompt], cache: GroupCache, device: torch.device) -> Tensor:
        """Every prompt and picture once; fills the cache. -> hidden state of each prompt's last token, (P, D)."""
        def pad(tensors: list[Tensor]) -> Tensor:
            longest = cache.prompt_mask.shape[1]
            return torch.stack([torch.nn.functional.pad(x, (0, longest - x.shape[-1])) for x in tensors], dim=-2)

        pixels = [p.pixel_values for p in prompts if p.pixel_values is not None]
        features = None
        if pixels:
            grids = torch.cat([p.image_grid_thw for p in prompts if p.image_grid_thw is not None])
            features = self.model.image_features(torch.cat(pixels).to(device), grids.to(device))
        embeds = self.model.embed(pad([p.input_ids for p in prompts]).to(device), features)  # (P, S, D)
        positions = pad([p.position_ids for p in prompts]).to(device)           # (3, P, S)
        hidden = self.model.hidden_states(embeds, positions, cache.prefill)
        last = cache.prompt_mask.sum(1) - 1
        return hidden[torch.arange(len(prompts), device=device), last]

    def decode(self, cache: GroupCache, logits: Tensor, starts: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Token by token until every sample has stopped. -> ids and log-probabilities, (B, <= max_new_tokens)."""
        stop_ids = self.stop_ids.to(logits.device)
        stopped = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        ids, logprobs = [], []
        for step in range(self.max_new_tokens):
            token, logprob = self.draw(logits, uniforms[:, step], step)
            ids.append(token)
            logprobs.append(logprob)
            stopped = stopped | torch.isin(token, stop_ids)
            if step + 1 == self.max_new_tokens or ((step + 1) % CHECK_EVERY == 0 and stopped.all()):
                break
            cache.length = step
            positions = (starts + step).expand(3, 1, -1).transpose(1, 2)        # (3, B, 1)
            embeds = self.model.embed(token[:, None], None)                     # (B, 1, D)
            hidden = self.model.hidden_states(embeds, positions, cache.decode)[:, -1]
            logits = head_logits(hidden, self.model.head_weight)
        return torch.stack(ids, dim=1), torch.stack(logprobs, dim=1)

    def draw(self, logits: Tensor, uniforms: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """One token per row and its log-probability. Shapes: logits (B, V), uniforms (B,) -> (B,), (B,)."""
        never = [*self.model.config.suppressed_token_ids]
        if step < self.min_new_tokens:
            never += self.model.config.stop_token_ids
        scaled = sampling_logits(logits, self.temperature or 1.0, never)
        scaled = truncate(scaled, self.top_k, self.top_p)
        distribution = scaled.log_softmax(-1)
        token = invert_cdf(distribution.exp(), uniforms) if self.temperature > 0 else distribution.argmax(-1)
        return token, distribution.gather(-1, token[:, None])[:, 0]

    def collect(self, ids: Tensor, logprobs: Tensor) -> Rollout:
        """Cut every row after its first stop token, and all of them to the longest."""
        if not torch.isfinite(logprobs).all():
            raise FloatingPointError("the model's logits are not finite; its weights are broken: lower --learning-rate")
        is_stop = torch.isin(ids, self.stop_ids)                                # (B, N)
        mask = is_stop.cumsum(1) - is_stop.long() == 0                          # no stop token BEFORE this one
        longest = int(mask.sum(1).max())
        ids, logprobs, mask = ids[:, :longest], logprobs[:, :longest], mask[:, :longest]
        ids = ids.masked_fill(~mask, self.processor.pad_token_id)
        texts = [self.processor.decode(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]
        truncated = ~(is_stop[:, :longest] & mask).any(1)
        return Rollout(ids, mask, logprobs.masked_fill(~mask, 0.0), texts, truncated)


def sample_many(sampler: Sampler, examples: Sequence, encode: Callable[..., Prompt], group_size: int, seed: int,
                batch_size: int) -> Iterator[tuple[object, Rollout]]:
    """Each example with its own rollout of `group_size` rows, decoded `batch_size` prompts at a time."""
    for start in range(0, len(examples), batch_size):
        batch = examples[start:start + batch_size]
        numbers = range(start, start + len(batch))
        rollout = sampler.sample([encode(example) for example in batch],
                                 uniform_table(seed, 0, numbers, group_size, sampler.max_new_tokens))
        for i, example in enumerate(batch):
            yield example, rollout.rows(i * group_size, (i + 1) * group_size)


def generate(model: Qwen2VL, processor: Processor, messages: Sequence[list[dict]], images: Sequence[list[Image]],
             group_size: int = 8, max_new_tokens: int = 128, min_new_tokens: int = 0, temperature: float = 1.0,
             top_k: int = 0, top_p: float = 1.0, generator: torch.Generator | None = None) -> Rollout:
    """Sample `group_size` completions of each conversation (temperature 0: greedy). One-call form of Sampler.

    Randomness: one seed is drawn from `generator`; without one the seed is 0, so a call repeats itself.
    """
    prompts = [make_prompt(*processor.encode(turns, pictures), model.config)
               for turns, pictures in zip(messages, images, strict=True)]
    seed = 0 if generator is None else int(torch.randint(2**31, (1,), generator=generator))
    sampler = Sampler(model, processor, temperature, max_new_tokens, min_new_tokens, top_k, top_p)
    return sampler.sample(prompts, uniform_table(seed, 0, range(len(prompts)), group_size, max_new_tokens))
