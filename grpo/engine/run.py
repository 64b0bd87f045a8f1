"""Run: what a stage works on, apart from what its updates change (`Trained` in state.py)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from data.example import Example
from grpo.engine.distributed import SINGLE, Distributed
from grpo.engine.features import FeatureCache
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.guards import Stop
from grpo.engine.prompts import PromptSettings, encode_named
from models.precision import compute_dtype
from models.processor import Processor
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL


@dataclass(frozen=True)
class Run:
    """Configuration, model, data and places of one run."""

    config: SFTFlags | GRPOFlags
    policy: Qwen2VL                         # or, in the trajectory stages, a decoder
    processor: Processor | None
    settings: PromptSettings | None
    open_images: Callable[[Example], list[Image]]
    examples: list[Example]
    validation: list[Example]
    output: Path
    write: Callable[[nn.Module, dict, Path], None]          # a model, and facts about it -> a model directory
    unsharded: Callable[[dict[str, Tensor]], nn.Module]     # a model of these tensors, to be written
    features: FeatureCache | None = None    # with a frozen vision tower
    about: dict[str, Any] = field(default_factory=dict)     # stage, config, hashes of model and data: stored in states
    resume: Path | None = None              # the state to continue from
    stop: Stop = field(default_factory=Stop)
    world: Distributed = SINGLE
    events: Callable[[int, dict], None] | None = None       # with --tensorboard, on rank 0
    left_out: tuple[str, ...] = ()          # faults of records left out before the first step

    @property
    def dtype(self) -> torch.dtype | None:
        """The type to compute in; None if it is that of the weights."""
        return compute_dtype(self.policy.head_weight.device.type, self.config.precision)

    def with_features(self, names: list[str], prompts: list[Prompt]) -> list[Prompt]:
        """The prompts of these examples, with image features if the vision tower is frozen."""
        return prompts if self.features is None else self.features(names, prompts)

    def encode(self, example: Example) -> Prompt:
        """Open an example's pictures and encode its prompt. Raises: ValueError or OSError that names the example."""
        return encode_named(example, self.open_images(example), self.processor, self.policy.config, self.settings)
