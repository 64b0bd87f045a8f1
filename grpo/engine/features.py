"""Features of a frozen vision tower: computed once per picture, shared by sampler, reference and policy."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.precision import autocast
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL


class FeatureCache:
    """Keeps what fits `budget` bytes, first come first kept; the rest is computed again each time it is asked for."""

    def __init__(self, model: Qwen2VL, precision: str, budget: int) -> None:
        self.model, self.precision, self.budget = model, precision, budget
        self.kept: dict[Hashable, Tensor] = {}

    @torch.no_grad()
    def __call__(self, keys: Sequence[Hashable], prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts with their pictures' features in the place of the pixels; `keys` name the pictures."""
        return [prompt if prompt.pixel_values is None else
                replace(prompt, pixel_values=None, image_features=self.features(key, prompt))
                for key, prompt in zip(keys, prompts, strict=True)]

    def features(self, key: Hashable, prompt: Prompt) -> Tensor:
        """(N / 4, D), where the model lives."""
        if key in self.kept:
            return self.kept[key]
        device = self.model.head_weight.device
        with autocast(self.model, self.precision):
            features = self.model.image_features(prompt.pixel_values.to(device), prompt.image_grid_thw.to(device))
        size = features.numel() * features.element_size()
        if size <= self.budget:
            self.kept[key], self.budget = features, self.budget - size
        return features
