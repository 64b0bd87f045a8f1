"""The sampler of grpo/sampling.py, faster: the same tokens from static caches and one fixed-shape decoding step.

All prompts are prefilled in one pass and all samples decoded together. Decoding repeats one function of fixed shapes
without host synchronisation, so that on CUDA it is captured as a graph.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor

from grpo.fast.cache import GroupCache
from grpo.fast.copies import refresh_copy, sampling_copy
from grpo.logprobs import NEVER, sampling_logits
from grpo.sampling import Rollout, collect, invert_cdf, uniform_table
from models.fast.packed import PackedLayer, PackedLinear
from models.precision import head_logits
from models.processor import Processor
from models.prompt import Prompt, check_prompts, make_prompt, prompt_features
from models.qwen2_vl import Qwen2VL

CHECK_EVERY = 8     # decode steps between two checks whether every sample has stopped (a check waits for the device)
PROMPT_STEP = 64    # a captured graph serves prompts up to the next multiple of this


@dataclass(frozen=True)
class Samples:
    """The tokens of B samples so far, in tensors that never move."""

    count: Tensor                     # (1,) long, tokens of each sample
    starts: Tensor                    # (B,) position of each sample's first token
    uniforms: Tensor                  # (B, N)
    ids: Tensor                       # (B, N) long
    logprobs: Tensor                  # (B, N)
    stopped: Tensor                   # (B,) bool


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

    In the model's own type it reads the current weights. In another one (`dtype`, bf16 for speed) it keeps a copy that
    `refresh` updates; the head stays shared and in the model's type. Used as a context, it refreshes at the beginning
    and frees packed weights and cache at the end. renew(model) updates a model whose weights several processes hold.
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
        if decode == "graph" and model.head_weight.device.type == "cpu":
            raise ValueError("decode is graph, a CUDA graph, but the model is on the CPU; use eager there")
        self.source, self.processor = model, processor
        self.model = sampling_copy(model, dtype, pack=decode != "compile")      # torch.compile rejects packed weights
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        device = model.head_weight.device
        self.stop_ids = torch.tensor(model.config.stop_token_ids, device=device)
        self.suppressed = torch.tensor(model.config.suppressed_token_ids, dtype=torch.long, device=device)
        self.mode, self.buffers, self.renew = decode, None, renew

    def __enter__(self) -> "Sampler":
        self.refresh()
        return self

    def __exit__(self, *fault: object) -> None:
        self.release()

    def refresh(self) -> None:
        """Bring the copy up to date with the model, in place, so that captured graphs stay valid."""
        if self.renew is not None:
            self.renew(self.source)
        if self.model is not self.source:
            refresh_copy(self.source, self.model)

    def release(self) -> None:
        """Free what nothing reads while the model trains: packed weights, which `refresh` packs again, and the cache,
        unless a captured or compiled step holds it."""
        if self.mode == "eager":
            self.buffers = None
        for layer in self.model.modules():
            if isinstance(layer, PackedLayer | PackedLinear):
                layer.release()

    @torch.no_grad()
    def sample(self, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """Complete each prompt once per row of random numbers. Shapes: uniforms (P, G, >= max_new_tokens)."""
        check_prompts(prompts, self.max_new_tokens, self.model.config)
        if uniforms.shape[:1] != (len(prompts),) or uniforms.shape[1] < 1:
            raise ValueError(f"{len(prompts)} prompts, random numbers of shape {tuple(uniforms.shape)}: give at least "
                             "one row of numbers for each prompt")
        with torch.autocast(self.stop_ids.device.type, enabled=False):          # the copy's own type decides
            buffers = self.buffers_for(prompts, uniforms.shape[1])
            buffers.begin(self.model.head_weight, prompts, uniforms)
            hidden = self.prefill(prompts, buffers.cache)                       # (P, D)
            logits = head_logits(hidden, buffers.head).repeat_interleave(uniforms.shape[1], dim=0)
            self.append_token(logits, buffers.samples)
            count = 1
            while count < self.max_new_tokens:
                if count % CHECK_EVERY == 0 and bool(buffers.samples.stopped.all()):
                    break
                self.advance(buffers, count)
                count += 1
        return collect(buffers.samples.ids[:, :count], buffers.samples.logprobs[:, :count],
                       torch.tensor(self.model.config.stop_token_ids), self.processor)

    def buffers_for(self, prompts: Sequence[Prompt], group_size: int) -> "DecodeBuffers":
        """The buffers of this batch shape: the last ones if they fit (a captured graph uses them), else new ones."""
        longest = max(len(prompt.input_ids) for prompt in prompts)
        if self.mode != "eager":
            longest = -(-longest // PROMPT_STEP) * PROMPT_STEP
        shape = len(prompts), group_size, longest, self.max_new_tokens
        if self.buffers is None or not serves(self.buffers.shape, shape, self.mode != "eager"):
            self.buffers = None                                                 # free the old ones first
            self.buffers = DecodeBuffers(self, shape)
        return self.buffers

    def prefill(self, prompts: Sequence[Prompt], cache: GroupCache) -> Tensor:
        """One pass over all prompts, concatenated without padding; fills the cache. -> last hidden states, (P, D)."""
        device, lengths = cache.slots.device, [len(prompt.input_ids) for prompt in prompts]
        ids, positions, last = (x.to(device, non_blocking=True) for x in (
            torch.cat([p.input_ids for p in prompts])[None],                    # (1, T)
            torch.cat([p.position_ids for p in prompts], dim=1)[:, None],       # (3, 1, T)
            torch.tensor(lengths).cumsum(0) - 1))                               # (P,)
        embeds = self.model.embed(ids, prompt_features(self.model, prompts, device))            # (1, T, D)
        return self.model.hidden_states(embeds, positions, cache.prefill(lengths), last)

    def advance(self, buffers: "DecodeBuffers", count: int) -> None:
        """One more token for every sample, which has `count` tokens."""
        if buffers.replay is not None:
            buffers.replay()
        elif buffers.compiled is not None:                  # fixed shapes, so that it compiles once
            buffers.compiled(buffers.cache, buffers.samples, buffers.head, None)
        else:
            self.step(buffers.cache, buffers.samples, buffers.head, count)

    def step(self, cache: GroupCache, samples: Samples, head: Tensor, written: int | None) -> None:
        """Feed every sample its newest token and draw the next: in place, no host synchronisation, and fixed shapes
        without `written`, the number of filled slots."""
        slot = samples.count - 1
        token = samples.ids.index_select(1, slot)                               # (B, 1)
        positions = (samples.starts + slot)[None, :, None].expand(3, -1, 1)     # (3, B, 1)
        embeds = self.model.embed(token, None)                                  # (B, 1, D)
        hidden = self.model.hidden_states(embeds, positions, cache.decode(slot, written))[:, 0]
        self.append_token(head_logits(hidden, head), samples)

    def append_token(self, logits: Tensor, samples: Samples) -> None:
        """Draw one token per row; write it and its log-probability. Shapes: logits (B, V)."""
        scaled = sampling_logits(logits, self.temperature or 1.0, self.suppressed)
        if self.min_new_tokens:
            held_back = scaled.index_fill(-1, self.stop_ids, NEVER)
            scaled = torch.where(samples.count < self.min_new_tokens, held_back, scaled)
        distribution = truncate(scaled, self.top_k, self.top_p).log_softmax(-1)
        uniforms = samples.uniforms.index_select(1, samples.count)[:, 0]
        token = invert_cdf(distribution.exp(), uniforms) if self.temperature > 0 else distribution.argmax(-1)
        samples.ids.index_copy_(1, samples.count, token[:, None])
        samples.logprobs.index_copy_(1, samples.count, distribution.gather(-1, token[:, None]))
        samples.stopped.logical_or_((token[:, None] == self.stop_ids).any(1))
        samples.count.add_(1)


class DecodeBuffers:
    """The static tensors of one batch shape (P, G, S, N), and its decode step if that is compiled or a CUDA graph.

    Nothing here refers to the buffers themselves: they are freed when the sampler lets go of them."""

    def __init__(self, sampler: Sampler, shape: tuple[int, int, int, int]) -> None:
        config, weight = sampler.model.config.text, sampler.model.head_weight
        device, rows, new_tokens = weight.device, shape[0] * shape[1], shape[3]
        self.shape = shape
        self.cache = GroupCache(config, shape, sampler.model.model.norm.weight.dtype, device)
        with torch.device(device):
            self.samples = Samples(torch.ones(1, dtype=torch.long), torch.zeros(rows, dtype=torch.long),
                               torch.zeros(rows, new_tokens), torch.zeros(rows, new_tokens, dtype=torch.long),
                               torch.zeros(rows, new_tokens), torch.zeros(rows, dtype=torch.bool))
        self.head, samples = weight, self.samples
        self.compiled = torch.compile(sampler.step, dynamic=False) if sampler.mode == "compile" else None
        graph = sampler.mode == "graph" and new_tokens > 1                      # the first token is the prefill's
        self.replay = captured(partial(sampler.step, self.cache, samples, weight, None),
                               lambda: samples.count.fill_(1)) if graph else None

    def begin(self, head_weight: Tensor, prompts: Sequence[Prompt], uniforms: Tensor) -> None:
        """Reset for a new batch of this shape, with the current head."""
        # CUDA multiplies bf16 into float32 itself; elsewhere the head is widened once a batch, not at every token
        self.head = head_weight if head_weight.is_cuda else head_weight.float()
        starts = torch.tensor([prompt.next_position for prompt in prompts]).repeat_interleave(uniforms.shape[1])
        self.samples.starts.copy_(starts, non_blocking=True)
        self.samples.uniforms.copy_(uniforms.flatten(0, 1)[:, :self.shape[3]], non_blocking=True)
        self.samples.stopped.zero_()
        self.samples.count.zero_()


def serves(held: tuple[int, ...], wanted: tuple[int, ...], fixed: bool) -> bool:
    """Whether buffers of one shape (P, G, S, N) serve a batch of another; a fixed step masks the prompt slots that a
    shorter prompt leaves empty."""
    return held == wanted or (fixed and held[2] > wanted[2] and (*held[:2], held[3]) == (*wanted[:2], wanted[3]))


def captured(step: Callable[[], None], reset: Callable[[], object]) -> Callable[[], None]:
    """Capture `step` as a CUDA graph, after warm-up runs that each begin with `reset`: the tokens of all of them might
    not fit. -> a function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            reset()
            step()
    torch.cuda.current_stream().wait_stream(stream)
    reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


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
