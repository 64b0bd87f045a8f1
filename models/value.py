"""The value network of PPO: predicts the reward still to come from a hidden state.

It is one linear layer on a trunk. An own trunk is a second copy of the policy with its own gradients and optimizer
state: another 35 GB for the 2B model in float32 with Adam. With a shared trunk the head reads the policy's hidden
states, the value loss also trains the policy's layers, and the head adds a few kilobytes.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.qwen2_vl import Qwen2VL


class ValueNetwork(nn.Module):
    """V(state) for every hidden state. `trunk` is None if the head reads the policy's hidden states."""

    def __init__(self, policy: Qwen2VL, own_trunk: bool) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(policy) if own_trunk else None
        self.head = nn.Linear(policy.config.text.hidden_size, 1, device=policy.head_weight.device)
        nn.init.zeros_(self.head.weight)                    # V = 0, so the first advantages are the returns
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...), float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight.float(), self.head.bias.float())[..., 0]
