"""The value network of PPO: how much reward is still to come, read off a hidden state.

One linear layer on top of a trunk. With its own trunk the trunk is a second copy of the policy, with gradients and
optimizer state of its own: for the 2B model that is another 35 GB in float32 with Adam. With a shared trunk the head
reads the policy's hidden states and the value loss also trains the policy's layers: a few kilobytes more.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.qwen2_vl import Qwen2VL


class ValueNetwork(nn.Module):
    """V(state) for every hidden state; `trunk` is None when the policy's own states are read."""

    def __init__(self, policy: Qwen2VL, own_trunk: bool) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(policy) if own_trunk else None
        self.head = nn.Linear(policy.config.text.hidden_size, 1, device=policy.head_weight.device)
        nn.init.zeros_(self.head.weight)                    # V = 0 everywhere: the first advantages are plain returns
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (...), float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight.float(), self.head.bias.float())[..., 0]
