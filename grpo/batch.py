"""Prompts, and one packed row per group: the prompt once, then each of its completions.

    [ prompt with picture | completion 1 | completion 2 | ... | completion G | padding ]

A completion attends to the prompt and to itself, never to its siblings, and its positions continue from the prompt's
last one, so each branch sees exactly what it would see alone. The picture is encoded once and the prompt computed
once, whatever G is; loss and gradients equal the plain batch of G full sequences (tests/grpo/test_batch.py). A
supervised example is a group of one, and an expert's answer beside samples is one more branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor

from data.example import SCENE_SIZE, Example, picture_size, prompt_text, target_text
from models.config import Qwen2VLConfig
from models.processor import Processor
from models.qwen2_vl import rope_positions


@dataclass(frozen=True)
class PromptSettings:
    """What decides the model's input; it travels with the model in drivegrpo.json."""

    prompt_style: str = "alphadrive"
    reasoning: bool = True
    hide: str = "nothing"
    max_new_tokens: int = 256
    scene_size: str = SCENE_SIZE        # of the pictures of built-in scenes

    def __post_init__(self) -> None:
        allowed = {"prompt_style": ("alphadrive", "compact"), "hide": ("nothing", "picture", "text")}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r:.80}; it must be one of {', '.join(choices)}")
        if not isinstance(self.reasoning, bool):
            raise ValueError(f"reasoning is {self.reasoning!r:.80}; it must be true or false")
        if type(self.max_new_tokens) is not int or not 1 <= self.max_new_tokens <= 32_768:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens!r:.80}; it must be a whole number from 1 to "
                             "32,768")
        if picture_size(self.scene_size) is None:
            raise ValueError(f"scene_size is {self.scene_size!r:.80}; it must be WIDTHxHEIGHT in pixels, each from 28 "
                             "to 4096, such as 448x224")


@dataclass(frozen=True)
class Prompt:
    """One encoded request. P tokens; the grid counts patches (t, h, w) per picture."""

    input_ids: Tensor                 # (P,)
    position_ids: Tensor              # (3, P), M-RoPE
    next_position: int                # where every completion begins
    pixel_values: Tensor | None       # (patches, 1176)
    image_grid_thw: Tensor | None     # (pictures, 3)
    image_features: Tensor | None = None    # (patches / 4, D) in place of pixel_values, from a frozen vision tower


@dataclass(frozen=True)
class PackedRows:
    """R packed rows of T tokens holding B completions of at most N tokens, C completion tokens in all."""

    input_ids: Tensor                 # (R, T)
    position_ids: Tensor              # (3, R, T)
    branches: Tensor                  # (R, T): 0 prompt, 1 ... G the completion, -1 padding
    prompt_mask: Tensor               # (R, S) bool, True on the row's first tokens, its prompt
    slots: Tensor                     # (R, G, N) place of each branch's tokens in the row, -1 where it has none
    sources: Tensor                   # (R, T) place of the row's tokens in [prompt slots S | branch slots G * N]
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    image_features: Tensor | None     # (features, D) in the place of pixel_values, if those are known already
    predictors: Tensor                # (C,) place, in the flattened rows, of the token BEFORE each completion token
    targets: Tensor                   # (C,) the completion tokens themselves
    completion_mask: Tensor           # (B, N) bool

    def attention(self) -> Tensor:
        """(R, 1, T, T) bool, True = may attend: causal, and the key is the prompt's or of the query's own branch.

        This is the definition; grpo/fast/attention.py computes it without the products that the mask throws away."""
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        causal = torch.ones(query.shape[1], key.shape[2], dtype=torch.bool, device=key.device).tril()
        return (causal & ((key == 0) | (key == query)))[:, None]  # padding sees padding: its rows stay finite

    def to(self, device: torch.device | str) -> "PackedRows":
        """The same rows on another device."""
        return PackedRows(**{name: None if value is None else value.to(device) for name, value in vars(self).items()})


def make_prompt(ids: Sequence[int], pixel_values: Tensor, image_grid_thw: Tensor, config: Qwen2VLConfig) -> Prompt:
    """What `Processor.encode` returns -> a Prompt with its M-RoPE positions; no picture means None, not 0 patches."""
    input_ids = torch.tensor(ids)
    position_ids, next_position = rope_positions(input_ids[None], None, image_grid_thw, config)
    pictures = (pixel_values, image_grid_thw) if len(image_grid_thw) else (None, None)
    return Prompt(input_ids, position_ids[:, 0], int(next_position), *pictures)


def request_text(example: Example, settings: PromptSettings) -> str:
    """The words the model is asked with; a fixed one where the baseline hides speed and navigation."""
    return "Plan." if settings.hide == "text" else prompt_text(example, settings.prompt_style, settings.reasoning)


def encode_example(example: Example, image: Image, processor: Processor, config: Qwen2VLConfig,
                   settings: PromptSettings) -> Prompt:
    """Example and its picture -> Prompt: picture first, then the text, as one user turn.

    Raises: ValueError if prompt and longest completion together pass the model's context.
    """
    picture = [] if settings.hide == "picture" else [{"type": "image"}]
    messages = [{"role": "user", "content": [*picture, {"type": "text", "text": request_text(example, settings)}]}]
    prompt = make_prompt(*processor.encode(messages, [image] if picture else []), config)
    check_context(len(prompt.input_ids), settings.max_new_tokens, config, f"example {example.id}")
    return prompt


def check_context(prompt_tokens: int, new_tokens: int, config: Qwen2VLConfig, name: str) -> None:
    """Raise if a prompt and its longest completion do not fit the context."""
    limit = config.text.max_position_embeddings
    if prompt_tokens + new_tokens > limit:
        raise ValueError(f"{name}: {prompt_tokens} prompt tokens + {new_tokens} new tokens pass the model's context of "
                         f"{limit}; lower --max-pixels or --max-new-tokens")


def encode_target(example: Example, processor: Processor, settings: PromptSettings) -> Tensor:
    """The expert's completion, ended by <|im_end|>: the supervised tokens and nothing else. Shape (N,)."""
    ids = processor.encode_text(target_text(example, settings.reasoning))
    return torch.tensor([*ids, processor.end_of_turn_id])


def expert_branch(example: Example, samples: Sequence[Tensor], processor: Processor,
                  reasoning: bool) -> tuple[Tensor, int]:
    """The expert's answer as one more branch of the group -> its ids and the index of its first supervised token.

    An expert without a reason borrows the first sampled think block and is imitated on the answer alone, which does
    not teach the policy to stop thinking; where no sample closed a think block the branch is empty.
    """
    if not reasoning or example.reasoning is not None:
        text = target_text(example, reasoning)
        return torch.tensor([*processor.encode_text(text), processor.end_of_turn_id]), 0
    answer = torch.tensor([*processor.encode_text(" " + target_text(example, False)), processor.end_of_turn_id])
    for ids in samples:
        end = think_length(ids, processor)
        if end is not None:
            return torch.cat([ids[:end], answer]), end
    return ids.new_zeros(0), 0


def think_length(ids: Tensor, processor: Processor) -> int | None:
    """Number of leading tokens that hold the think block and nothing behind it; None if no token ends there."""
    if "</think>" not in processor.decode(ids):
        return None
    lengths = range(1, len(ids) + 1)                                            # a token such as `><` ends elsewhere
    return next((n for n in lengths if processor.decode(ids[:n]).rstrip().endswith("</think>")), None)


def pack(prompts: Sequence[Prompt], completions: Sequence[Sequence[Tensor]], pad_id: int = 0) -> PackedRows:
    """Prompts and, for each, its completions (1-D id tensors, possibly empty) -> packed rows, padded at their ends."""
    rows = [pack_row(prompt, branches) for prompt, branches in zip(prompts, completions, strict=True)]
    length = max(len(ids) for ids, *_ in rows)
    ids, positions, branches, predictors = zip(*rows, strict=True)

    def stack(parts: Sequence[Tensor], fill: int) -> Tensor:
        return torch.stack([torch.nn.functional.pad(x, (0, length - x.shape[-1]), value=fill) for x in parts], dim=-2)

    flat = [ids for group in completions for ids in group]
    longest = max(1, max(len(ids) for ids in flat))
    mask = torch.arange(longest) < torch.tensor([len(ids) for ids in flat])[:, None]        # (B, N)
    prompt_lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts])
    slots = place_branches(prompt_lengths, completions, longest)
    return PackedRows(stack(ids, pad_id), stack(positions, 0), stack(branches, -1),
                      torch.arange(int(prompt_lengths.max())) < prompt_lengths[:, None], slots,
                      invert_places(slots, int(prompt_lengths.max()), length),
                      *(joined([getattr(p, name) for p in prompts]) for name in
                        ("pixel_values", "image_grid_thw", "image_features")),
                      torch.cat([at + i * length for i, at in enumerate(predictors)]), torch.cat(flat), mask)


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Those that are there, one behind the other; None if none is."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def pack_row(prompt: Prompt, completions: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One row without padding -> ids (T,), positions (3, T), branches (T,), predictors (C,)."""
    size = len(prompt.input_ids)
    positions, branches, predictors = [prompt.position_ids], [torch.zeros(size, dtype=torch.long)], []
    start = size
    for number, ids in enumerate(completions, start=1):
        steps = torch.arange(len(ids))
        positions.append((prompt.next_position + steps).expand(3, -1))          # text: t = h = w
        branches.append(torch.full((len(ids),), number))
        predictors.append(torch.where(steps == 0, size - 1, start + steps - 1))  # the first token follows the prompt
        start += len(ids)
    return (torch.cat([prompt.input_ids, *completions]), torch.cat(positions, dim=1), torch.cat(branches),
            torch.cat(predictors))


def place_branches(prompt_lengths: Tensor, completions: Sequence[Sequence[Tensor]], longest: int) -> Tensor:
    """Where each branch's tokens stand in their row, -1 for no token. -> (R, G, N), G the most branches of a row."""
    slots = torch.full((len(completions), max(1, max(len(group) for group in completions)), longest), -1)
    for row, group in enumerate(completions):
        start = int(prompt_lengths[row])
        for branch, ids in enumerate(group):
            slots[row, branch, :len(ids)] = torch.arange(start, start + len(ids))
            start += len(ids)
    return slots


def invert_places(slots: Tensor, prompt_size: int, length: int) -> Tensor:
    """Where each token of a row stands in [prompt slots | branch slots]; a prompt's token, and padding, at its own
    place or the last prompt slot. Shapes: (R, G, N) -> (R, length)."""
    sources = torch.arange(length).clamp(max=prompt_size - 1).repeat(len(slots), 1)
    row, branch, token = (slots >= 0).nonzero(as_tuple=True)
    sources[row, slots[row, branch, token]] = prompt_size + branch * slots.shape[2] + token
    return sources


def micro_batches(lengths: Sequence[int], tokens: int) -> list[slice]:
    """Neighbouring rows of these lengths, so many that their padded size stays within `tokens`; at least one each."""
    slices, start, longest = [], 0, 0
    for row, length in enumerate(lengths):
        if row > start and (row - start + 1) * max(longest, length) > tokens:
            slices.append(slice(start, row))
            start, longest = row, 0
        longest = max(longest, length)
    return [*slices, slice(start, len(lengths))]
