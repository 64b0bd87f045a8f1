"""Small worlds: a field by hand, and a decoder with scenes of the built-in benchmark."""

import math

import pytest
import torch

from trajectory.field import BOXES, Field


@pytest.fixture
def field():
    """make(speed=8, boxes=[...], ...) -> a Field of one scene, a free straight lane unless told otherwise."""
    def make(speed=8.0, road=0.0, left=1.75, right=1.75, closed_left=False, closed_right=False, entry=math.inf,
             turn=0.0, boxes=(), lines=()):
        table, is_line = torch.zeros(1, BOXES, 7), torch.zeros(1, BOXES, dtype=torch.bool)
        for i, box in enumerate((*boxes, *lines)):
            table[0, i] = torch.tensor(box)
            is_line[0, i] = i >= len(boxes)
        numbers = [torch.tensor([float(value)]) for value in (speed, road, left, right)]
        closed = [torch.tensor([value]) for value in (closed_left, closed_right)]
        return Field(*numbers, *closed, torch.tensor([float(entry)]), torch.tensor([float(turn)]), table, is_line)
    return make


@pytest.fixture
def constant():
    """constant(a, kappa) -> controls (1, 1, 8, 2) that never change."""
    def make(acceleration=0.0, curvature=0.0):
        return torch.tensor([acceleration, curvature]).expand(1, 1, 8, 2)
    return make
