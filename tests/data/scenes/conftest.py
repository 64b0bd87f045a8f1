"""Scenes of each prior, drawn once for all tests."""

import pytest

from data.scenes import label_distribution, sample_scene
from data.scenes.priors import scene_seeds


@pytest.fixture(scope="session")
def scenes():
    return [sample_scene(seed) for seed in range(6000)]


@pytest.fixture(scope="session")
def odds(scenes):
    return [label_distribution(scene) for scene in scenes]


@pytest.fixture(scope="session")
def natural():
    return [sample_scene(seed) for seed in scene_seeds("test", 3000, 0, "natural")]


@pytest.fixture(scope="session")
def long_tail():
    return [sample_scene(seed) for seed in scene_seeds("test", 3000, 0, "long_tail")]
