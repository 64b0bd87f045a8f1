"""One packed row per group: the prompt once, then each of its completions.

    [ prompt with picture | completion 1 | completion 2 | ... | completion G | padding ]

A completion attends to the prompt and to itself, never to its siblings, and its positions continue
from the prompt's last one, so each branch computes what it would compute alone: loss and gradients
equal those of a plain batch of G full sequences. Picture and prompt are computed once, whatever G
is. A supervised example is a group of one; an expert's answer is one more branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.prompt import Prompt


@dataclass(frozen=True)
class PackedRows:
    """R rows of T tokens, one per group: B branches of at most N tokens, C tokens in all."""

    groups: slice | None              # which groups of the batch these rows are
    lengths: list[list[int]]          # per row: tokens of the prompt, of branch 1, of branch 2 ...
    input_ids: Tensor                 # (R, T)
    position_ids: Tensor              # (3, R, T)
    branches: Tensor                  # (R, T): 0 prompt, 1 ... G the completion, -1 padding
    pixel_values: Tensor | None
    image_grid_thw: Tensor | None
    image_features: Tensor | None     # (features, D) in place of pixel_values, if known already
    predictors: Tensor                # (C,) index, in the flattened rows, of the token BEFORE each
    targets: Tensor                   # (C,) the completion tokens themselves
    completion_mask: Tensor           # (B, N) bool
    cells: Tensor                     # (C,) where the mask is True, in its flattened form
    idle: bool = False                # filler for a rank with fewer micro-batches; no token counts

    def attention(self) -> Tensor:
        """(R, 1, T, T) bool, True = may attend: causal, to the prompt and to the own branch."""
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        causal = torch.ones(query.shape[1], key.shape[2], dtype=torch.bool, device=key.device)
        return (causal.tril() & ((key == 0) | (key == query)))[:, None]     # padding sees padding

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "PackedRows":
        """The same on another device, without a wait for its work; the host keeps the grid."""
        return PackedRows(**{name: value.to(device, non_blocking=non_blocking)
                             if isinstance(value, Tensor) and name != "image_grid_thw" else value
                             for name, value in vars(self).items()})


def pack_groups(prompts: Sequence[Prompt], completions: Sequence[Sequence[Tensor]],
                tokens: int) -> list[PackedRows]:
    """Each prompt with its completions, in micro-batches of at most `tokens` padded tokens; a group
    longer than that stands alone. completions: 1-D id tensors, possibly empty, per prompt."""
    groups = zip(prompts, completions, strict=True)
    lengths = [len(prompt.input_ids) + sum(map(len, group)) for prompt, group in groups]
    return [pack(prompts[groups], completions[groups], groups)
            for groups in micro_batches(lengths, tokens)]


def micro_batches(lengths: Sequence[int], tokens: int) -> list[slice]:
    """Neighbouring rows whose padded size stays within `tokens`; at least one row each."""
    slices, start, longest = [], 0, 0
    for row, length in enumerate(lengths):
        if row > start and (row - start + 1) * max(longest, length) > tokens:
            slices.append(slice(start, row))
            start, longest = row, 0
        longest = max(longest, length)
    return [*slices, slice(start, len(lengths))]


def pack(prompts: Sequence[Prompt], completions: Sequence[Sequence[Tensor]],
         groups: slice | None = None, pad_id: int = 0) -> PackedRows:
    """Prompts and, for each, its completions -> packed rows, padded at their ends."""
    rows = [pack_row(prompt, group) for prompt, group in zip(prompts, completions, strict=True)]
    ids, positions, branches, predictors = zip(*rows, strict=True)
    length = max(map(len, ids))                                                 # T

    def stack(parts: Sequence[Tensor], fill: int) -> Tensor:
        return torch.stack([F.pad(x, (0, length - x.shape[-1]), value=fill) for x in parts], dim=-2)

    flat = [ids for group in completions for ids in group]
    longest = max(1, max(map(len, flat)))                                       # N
    mask = torch.arange(longest) < torch.tensor([len(ids) for ids in flat])[:, None]    # (B, N)
    pictures = (joined([getattr(prompt, name) for prompt in prompts])
                for name in ("pixel_values", "image_grid_thw", "image_features"))
    lengths = [[len(prompt.input_ids), *map(len, group)]
               for prompt, group in zip(prompts, completions, strict=True)]
    return PackedRows(groups, lengths, stack(ids, pad_id), stack(positions, 0), stack(branches, -1),
                      *pictures, torch.cat([at + i * length for i, at in enumerate(predictors)]),
                      torch.cat(flat), mask, mask.flatten().nonzero()[:, 0])


def pack_row(prompt: Prompt, completions: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One row without padding -> ids (T,), positions (3, T), branches (T,), predictors (C,)."""
    size = len(prompt.input_ids)
    positions, branches = [prompt.position_ids], [torch.zeros(size, dtype=torch.long)]
    predictors, start = [], size
    for number, ids in enumerate(completions, start=1):
        steps = torch.arange(len(ids))
        positions.append((prompt.next_position + steps).expand(3, -1))          # text: t = h = w
        branches.append(torch.full((len(ids),), number))
        predictors.append(torch.where(steps == 0, size - 1, start + steps - 1))  # prompt's last
        start += len(ids)
    return (torch.cat([prompt.input_ids, *completions]), torch.cat(positions, dim=1),
            torch.cat(branches), torch.cat(predictors))


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The tensors among the parts, concatenated; None if there is none."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
