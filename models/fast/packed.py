"""bf16 linear layers in oneDNN's own blocked layout: the same products on a CPU, a third faster for a few rows.

Decoding multiplies 8 to 64 rows with every weight of the model; torch's own bf16 product then reads the weights in a
layout that the CPU has to rearrange each time. The operators are torch's own but private: `can_pack` looks for them.
"""

import torch
from torch import Tensor, nn

ROWS = 16  # the layout is chosen for about this many rows and serves 8 to 128 well


class PackedLinear(nn.Module):
    """y = W x + b for inference in bf16. W exists in the blocked layout alone; `pack` writes a new one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.pack(weight, bias)

    def pack(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take over a weight (out, in) and a bias (out,) of any type."""
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().bfloat16().contiguous(), ROWS)
        self.bias = None if bias is None else bias.detach().bfloat16()

    def release(self) -> None:
        """Give the weight's memory back until the next `pack`."""
        self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def can_pack(device: torch.device) -> bool:
    """Whether this build of torch has the operators, and the CPU bf16 instructions."""
    return (device.type == "cpu" and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def pack_linears(model: nn.Module) -> None:
    """Replace every linear layer of the model, in place."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, PackedLinear(layer.weight, layer.bias))
