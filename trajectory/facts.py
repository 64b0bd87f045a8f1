"""The facts of a built-in scene as numbers: what a decoder with perfect perception would know."""

import torch
from torch import Tensor

from data.example import Example
from data.scenes import sample_scene
from data.scenes.world import EVENTS

WORDS = {
    "road": ("straight", "curve_left", "curve_right", "junction_near", "junction_far"),
    "light": ("none", "red", "yellow", "green", "off"),
    "lead": ("none", "far", "near"), "lead_kind": ("car", "truck", "cyclist"),
    "pedestrian": ("none", "kerb", "crossing"), "blockage": ("none", "cones", "parked"),
    "left_lane": ("none", "free", "occupied"), "right_lane": ("none", "free", "occupied"),
    "turn_100": ("straight", "left", "right"), "turn_200": ("straight", "left", "right"),
    "event": ("none", *EVENTS),
}
COUNT = sum(map(len, WORDS.values())) + 1


def scene_facts(examples: list[Example]) -> Tensor:
    """One-hot words of each scene, and whether brake lamps are lit: (P, COUNT)."""
    scenes = [sample_scene(example.scene) for example in examples]
    return torch.tensor([[float(getattr(scene, name) == word) for name, words in WORDS.items() for word in words]
                         + [float(scene.braking)] for scene in scenes])
