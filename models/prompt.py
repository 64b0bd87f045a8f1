"""A request as the model reads it: token ids, three-axis positions, and the pictures' patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import Qwen2VLConfig
from models.qwen2_vl import Qwen2VL, rope_positions


@dataclass(frozen=True)
class Prompt:
    """One encoded request of P tokens. The grid counts patches (t, h, w) per picture."""

    input_ids: Tensor                 # (P,)
    position_ids: Tensor              # (3, P), M-RoPE
    next_position: int                # where every completion begins
    pixel_values: Tensor | None       # (patches, 1176)
    image_grid_thw: Tensor | None     # (pictures, 3)
    image_features: Tensor | None = None    # (patches / 4, D) in place of pixel_values, from a frozen vision tower


def make_prompt(ids: Sequence[int], pixel_values: Tensor, image_grid_thw: Tensor, config: Qwen2VLConfig) -> Prompt:
    """What `Processor.encode` returns -> a Prompt with M-RoPE positions. Without a picture, both tensors are None."""
    input_ids = torch.tensor(ids)
    position_ids, next_position = rope_positions(input_ids[None], None, image_grid_thw, config)
    pictures = (pixel_values, image_grid_thw) if len(image_grid_thw) else (None, None)
    return Prompt(input_ids, position_ids[:, 0], int(next_position), *pictures)


def check_context(prompt_tokens: int, new_tokens: int, config: Qwen2VLConfig, name: str) -> None:
    """Raise ValueError if a prompt and its longest completion do not fit the context."""
    limit = config.text.max_position_embeddings
    if prompt_tokens + new_tokens > limit:
        raise ValueError(f"{name}: {prompt_tokens} prompt tokens + {new_tokens} new tokens exceed the model's context "
                         f"of {limit}; lower --max-pixels or --max-new-tokens")


def check_prompts(prompts: Sequence[Prompt], new_tokens: int, config: Qwen2VLConfig) -> None:
    """Raise ValueError unless there are prompts, and each fits the context with its longest completion."""
    if not prompts:
        raise ValueError("no prompts: give at least one")
    for i, prompt in enumerate(prompts):
        check_context(len(prompt.input_ids), new_tokens, config, f"prompt {i}")


def prompt_features(model: Qwen2VL, prompts: Sequence[Prompt], device: torch.device) -> Tensor | None:
    """Features of the prompts' pictures in order, None without pictures. A picture shared by several prompts is encoded
    once."""
    distinct = {id(p.pixel_values): p for p in prompts if p.pixel_values is not None}
    parts: dict[int, Tensor] = {}
    if distinct:
        grids = [p.image_grid_thw for p in distinct.values()]
        pixels = torch.cat([p.pixel_values for p in distinct.values()])
        features = model.image_features(pixels.to(device, non_blocking=True), torch.cat(grids))
        merge = model.config.vision.spatial_merge_size**2
        parts = dict(zip(distinct, features.split([int(grid.prod(1).sum()) // merge for grid in grids]), strict=True))
    found = [p.image_features if p.image_features is not None else parts[id(p.pixel_values)]
             for p in prompts if p.image_grid_thw is not None]
    return torch.cat([features.to(model.model.norm.weight.dtype) for features in found]) if found else None
