"""Features of a frozen vision tower: computed once per picture, shared by sampler, reference and policy."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.precision import autocast
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL


class FeatureCache:
    """Keeps the first features that fit into `budget` bytes; others are computed again at each call."""

    def __init__(self, model: Qwen2VL, precision: str, budget: int) -> None:
        self.model, self.precision, self.budget = model, precision, budget
        self.kept: dict[Hashable, Tensor] = {}

    @torch.no_grad()
    def __call__(self, keys: Sequence[Hashable], prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with image features instead of pixels; `keys` identify the pictures."""
        return [prompt if prompt.pixel_values is None else
                replace(prompt, pixel_values=None, image_features=self.features(key, prompt))
                for key, prompt in zip(keys, prompts, strict=True)]

    def features(self, key: Hashable, prompt: Prompt) -> Tensor:
        """Image features (N / 4, D) on the model's device."""
        if key in self.kept:
            return self.kept[key]
        device = self.model.head_weight.device
        with autocast(self.model, self.precision):
            features = self.model.image_features(prompt.pixel_values.to(device, non_blocking=True),
                                                 prompt.image_grid_thw)
        size = features.numel() * features.element_size()
        if size <= self.budget:
            self.kept[key], self.budget = features, self.budget - size
        return features
