"""Sampling: prefill each prompt once, then decode its whole group together from static KV caches.

The keys and values of a prompt are held once and shared by its G samples; each sample keeps its own only for the
tokens it wrote. Decoding repeats one function of fixed shapes that never waits for the device, so that on CUDA it is
captured as a graph. Random numbers come from a table that depends on (seed, step, prompt, sample, position) alone, and
a token is drawn by inverting the CDF, so batch shape, order and number of processes do not change what is sampled.
The checkpoint's own generation defaults (Qwen2-VL ships top_k = 1, which makes a group G equal rows) are never read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from grpo.batch import Prompt, check_context, make_prompt
from grpo.logprobs import NEVER, head_logits, sampling_logits
from models.config import TextConfig
from models.fast.packed import PackedLinear, can_pack, pack_linears
from models.lora import merge_into, merged_weight, plain_tensors
from models.processor import Processor
from models.qwen2_vl import Qwen2VL, frozen_model
from models.text import Attend

CHECK_EVERY = 8     # decode steps between two looks at whether every sample has stopped (a look waits for the device)
WIDTH_STEP = 16     # outside a graph, attention reads this many more own slots when the written ones are full
PROMPT_STEP = 64    # a captured graph serves prompts up to the next multiple of this
IN_FULL = ("model.embed_tokens.weight", "lm_head.weight")      # what a sampling copy does not round


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
        self.prompt_mask.copy_(tokens < torch.tensor(lengths, device=tokens.device)[:, None])

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


@dataclass(frozen=True)
class Drawn:
    """What a batch of B samples has drawn so far, in tensors that never move."""

    count: Tensor                     # (1,) long, tokens drawn
    starts: Tensor                    # (B,) position of each sample's first token
    uniforms: Tensor                  # (B, N)
    ids: Tensor                       # (B, N) long
    logprobs: Tensor                  # (B, N)
    stopped: Tensor                   # (B,) bool


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
    """Draws groups of completions from a model that may be training.

    In the model's own type it reads the weights as they are at each call. In another one (`dtype`, bf16 for speed) it
    keeps a copy, which `refresh` brings up to date after an update; the head stays shared and in the model's type.
    A model whose weights come from elsewhere, say from several processes, is brought up to date by `renew(model)`.
    decode: `eager`, `graph` (a CUDA graph) or `compile` (torch.compile).
    """

    def __init__(self, model: Qwen2VL, processor: Processor, temperature: float = 1.0, max_new_tokens: int = 128,
                 min_new_tokens: int = 0, top_k: int = 0, top_p: float = 1.0, dtype: torch.dtype | None = None,
                 decode: str = "eager", renew: Callable[[Qwen2VL], None] | None = None) -> None:
        if temperature < 0 or max_new_tokens < 1:
            raise ValueError(f"temperature {temperature} must be >= 0 and max_new_tokens {max_new_tokens} >= 1")
        if top_k < 0 or not 0 < top_p <= 1:
            raise ValueError(f"top_k {top_k} must be >= 0 (0: all tokens) and top_p {top_p} in (0, 1]")
        if decode not in ("eager", "graph", "compile"):
            raise ValueError(f"decode is {decode!r}; it must be eager, graph or compile")
        self.source, self.processor = model, processor
        self.model = sampling_copy(model, dtype)
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        device = model.head_weight.device
        self.stop_ids = torch.tensor(model.config.stop_token_ids, device=device)
        self.suppressed = torch.tensor(model.config.suppressed_token_ids, dtype=torch.long, device=device)
        self.mode, self.bucket, self.renew = decode, None, renew

    def refresh(self) -> None:
        """Bring the copy up to date with the model, in place, so that captured graphs stay valid."""
        if self.renew is not None:
            self.renew(self.source)
        if self.model is not self.source:
            refresh_copy(self.source, self.model)

    def release(self) -> None:
        """Give back what `refresh` makes anew anyway: packed weights, which nothing reads while the model trains."""
        for layer in self.model.modules():
            if isinstance(layer, PackedLinear):
                layer.release()

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Complete each prompt once per row of random numbers. Shapes: uniforms (P, G, >= max_new_tokens)."""
        for i, prompt in enumerate(prompts):
            check_context(len(prompt.input_ids), self.max_new_tokens, self.model.config, f"prompt {i}")
        if not prompts or uniforms.shape[:1] != (len(prompts),) or uniforms.shape[1] < 1:
            raise ValueError(f"{len(prompts)} prompts, random numbers of shape {tuple(uniforms.shape)}: give at least "
                             "one prompt, a row of numbers for each, and a group of at least one")
        with torch.autocast(self.stop_ids.device.type, enabled=False):          # the type is the copy's, nothing else's
            bucket = self.bucket_for(prompts, uniforms.shape[1])
            bucket.begin(self.model.head_weight, prompts, uniforms)
            hidden = self.prefill(prompts, bucket.cache)                        # (P, D)
            self.draw(head_logits(hidden, bucket.head).repeat_interleave(uniforms.shape[1], dim=0), bucket.drawn)
            for count in range(1, self.max_new_tokens):
                if count % CHECK_EVERY == 0 and bool(bucket.drawn.stopped.all()):
                    break
                bucket.advance(count)
        return self.collect(bucket.drawn)

    def bucket_for(self, prompts: Sequence[Prompt], group_size: int) -> "Bucket":
        """The bucket of this batch shape: the last one if it fits (a captured graph lives in it), else a new one."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        if self.mode != "eager":
            longest = -(-longest // PROMPT_STEP) * PROMPT_STEP
        shape = len(prompts), group_size, longest, self.max_new_tokens
        if self.bucket is None or self.bucket.shape != shape:
            self.bucket = None                                                  # free the old one first
            self.bucket = Bucket(self, shape)
        return self.bucket

    def prefill(self, prompts: Sequence[Prompt], cache: GroupCache) -> Tensor:
        """Every prompt once, one behind the other without padding; fills the cache. -> last hidden states, (P, D)."""
        device, lengths = cache.slots.device, [len(prompt.input_ids) for prompt in prompts]
        embeds = self.model.embed(torch.cat([p.input_ids for p in prompts])[None].to(device),
                                  image_features(self.model, prompts, device))  # (1, T, D)
        positions = torch.cat([p.position_ids for p in prompts], dim=1)[:, None].to(device)     # (3, 1, T)
        hidden = self.model.hidden_states(embeds, positions, cache.prefill(lengths))[0]         # (T, D)
        return hidden.index_select(0, (torch.tensor(lengths).cumsum(0) - 1).to(device))

    def step(self, cache: GroupCache, drawn: Drawn, head: Tensor, width: int) -> None:
        """Feed every sample its newest token and draw the next: fixed shapes, in place, no word with the host."""
        slot = drawn.count - 1
        token = drawn.ids.index_select(1, slot)                                 # (B, 1)
        positions = (drawn.starts + slot)[None, :, None].expand(3, -1, 1)       # (3, B, 1)
        embeds = self.model.embed(token, None)                                  # (B, 1, D)
        hidden = self.model.hidden_states(embeds, positions, cache.decode(slot, width))[:, 0]
        self.draw(head_logits(hidden, head), drawn)

    def draw(self, logits: Tensor, drawn: Drawn) -> None:
        """Append one token per row and its log-probability. Shapes: logits (B, V)."""
        scaled = sampling_logits(logits, self.temperature or 1.0, self.suppressed)
        if self.min_new_tokens:
            held_back = scaled.index_fill(-1, self.stop_ids, NEVER)
            scaled = torch.where(drawn.count < self.min_new_tokens, held_back, scaled)
        distribution = truncate(scaled, self.top_k, self.top_p).log_softmax(-1)
        uniforms = drawn.uniforms.index_select(1, drawn.count)[:, 0]
        token = invert_cdf(distribution.exp(), uniforms) if self.temperature > 0 else distribution.argmax(-1)
        drawn.ids.index_copy_(1, drawn.count, token[:, None])
        drawn.logprobs.index_copy_(1, drawn.count, distribution.gather(-1, token[:, None]))
        drawn.stopped.logical_or_((token[:, None] == self.stop_ids).any(1))
        drawn.count.add_(1)

    def collect(self, drawn: Drawn) -> Rollout:
        """Cut every row after its first stop token, and all of them to the longest."""
        count = int(drawn.count)
        ids, logprobs = drawn.ids[:, :count].cpu(), drawn.logprobs[:, :count].cpu()
        if not torch.isfinite(logprobs).all():
            raise FloatingPointError("the model's logits are not finite; its weights are broken: lower --learning-rate")
        is_stop = torch.isin(ids, self.stop_ids.cpu())                          # (B, N)
        mask = is_stop.cumsum(1) - is_stop.long() == 0                          # no stop token BEFORE this one
        longest = int(mask.sum(1).max())
        ids, logprobs, mask = ids[:, :longest], logprobs[:, :longest], mask[:, :longest]
        ids = ids.masked_fill(~mask, self.processor.pad_token_id)
        texts = [self.processor.decode(row[keep].tolist()) for row, keep in zip(ids, mask, strict=True)]
        truncated = ~(is_stop[:, :longest] & mask).any(1)
        return Rollout(ids, mask, logprobs.masked_fill(~mask, 0.0), texts, truncated)


class Bucket:
    """The static tensors of one batch shape (P, G, S, N), and its decode step: eager, compiled or a CUDA graph."""

    def __init__(self, sampler: Sampler, shape: tuple[int, int, int, int]) -> None:
        config, weight = sampler.model.config.text, sampler.model.head_weight
        device, rows, new_tokens = weight.device, shape[0] * shape[1], shape[3]
        self.shape, self.mode = shape, sampler.mode
        self.cache = GroupCache(config, shape, sampler.model.model.norm.weight.dtype, device)
        with torch.device(device):
            self.drawn = Drawn(torch.ones(1, dtype=torch.long), torch.zeros(rows, dtype=torch.long),
                               torch.zeros(rows, new_tokens), torch.zeros(rows, new_tokens, dtype=torch.long),
                               torch.zeros(rows, new_tokens), torch.zeros(rows, dtype=torch.bool))
        self.head = weight

        def step(width: int) -> None:
            sampler.step(self.cache, self.drawn, self.head, width)

        self.step = torch.compile(step, dynamic=False) if self.mode == "compile" else step
        self.replay = captured(lambda: step(new_tokens)) if self.mode == "graph" else None

    def begin(self, head_weight: Tensor, prompts: Sequence[Prompt], uniforms: Tensor) -> None:
        """Ready for a new batch of this shape, with the head as it is now."""
        # CUDA multiplies bf16 into float32 itself; elsewhere the head is widened once a batch, not at every token
        self.head = head_weight if head_weight.is_cuda else head_weight.float()
        starts = torch.tensor([prompt.next_position for prompt in prompts]).repeat_interleave(uniforms.shape[1])
        self.drawn.starts.copy_(starts)
        self.drawn.uniforms.copy_(uniforms.flatten(0, 1)[:, :self.shape[3]])
        self.drawn.stopped.zero_()
        self.drawn.count.zero_()

    def advance(self, count: int) -> None:
        """One more token of every sample, `count` being drawn already."""
        if self.replay is not None:
            self.replay()
        elif self.mode == "compile":
            self.step(self.shape[3])                                            # one width, so that it compiles once
        else:
            self.step(min(self.shape[3], -(-count // WIDTH_STEP) * WIDTH_STEP))


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Record what `step` does on the device -> a function that repeats it. Runs it some times first, to warm up."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def sampling_copy(model: Qwen2VL, dtype: torch.dtype | None) -> Qwen2VL:
    """The model itself if it is of this type, else a copy whose layers are, adapters merged; embeddings and head share
    the model's storage. On a CPU bf16 layers are packed, which is worth a copy of its own."""
    packed = dtype == torch.bfloat16 and can_pack(model.head_weight.device)
    if dtype is None or (dtype == model.model.norm.weight.dtype and not packed):
        return model
    copy = frozen_model(model.config, {name: tensor if name in IN_FULL else torch.empty_like(tensor, dtype=dtype)
                                       for name, tensor in plain_tensors(model).items()})
    merge_into(model, copy)
    if packed:
        pack_linears(copy.model)
        pack_linears(copy.visual)
    return copy


@torch.no_grad()
def refresh_copy(model: Qwen2VL, copy: Qwen2VL) -> None:
    """Write the model's weights, adapters merged, into a sampling copy, in place."""
    packed = {name: layer for name, layer in copy.named_modules() if isinstance(layer, PackedLinear)}
    if not packed:
        return merge_into(model, copy)
    for name, layer in packed.items():
        source = model.get_submodule(name)
        layer.pack(merged_weight(source), source.bias)
    tensors = plain_tensors(model)
    for name, tensor in copy.state_dict().items():
        if tensor.data_ptr() != tensors[name].data_ptr():
            tensor.copy_(tensors[name])


def image_features(model: Qwen2VL, prompts: Sequence[Prompt], device: torch.device) -> Tensor | None:
    """Features of the prompts' pictures in order; a picture that stands in several prompts is encoded once."""
    distinct = {id(p.pixel_values): p for p in prompts if p.pixel_values is not None}
    parts: dict[int, Tensor] = {}
    if distinct:
        grids = [p.image_grid_thw for p in distinct.values()]
        features = model.image_features(torch.cat([p.pixel_values for p in distinct.values()]).to(device),
                                        torch.cat(grids).to(device))
        merge = model.config.vision.spatial_merge_size**2
        parts = dict(zip(distinct, features.split([int(grid.prod(1).sum()) // merge for grid in grids]), strict=True))
    found = [p.image_features if p.image_features is not None else parts[id(p.pixel_values)]
             for p in prompts if p.image_grid_thw is not None]
    return torch.cat([features.to(model.model.norm.weight.dtype) for features in found]) if found else None


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
