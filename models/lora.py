"""LoRA: train a small correction B A of each big matrix and leave the matrix itself alone (arXiv 2106.09685).

    y = W x + (alpha / rank) B A x          W (out, in) frozen;  A (rank, in) random, B (out, rank) zero at the start

A 2B model then needs optimizer state for a few million numbers, its base may stay in bfloat16, and that base without
the adapters IS the reference model (`base_model`): no second one is held. W keeps its name, so checkpoints keep theirs;
what is saved or sampled from is the plain model with W + (alpha / rank) B A in W's place.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.qwen2_vl import Qwen2VL, frozen_model


class LoRALinear(nn.Module):
    """A linear layer with an adapter; it takes over the weight and bias of `base`, frozen, under their names.

    Shapes: weight (out, in), lora_A (rank, in), lora_B (out, rank), the last two in float32 whatever the base is: an
        update of relative size 1e-3 would be lost in bfloat16.
    A ~ N(0, 1 / in), so that A x is as large as x; B = 0, so that training starts at the base model. Drawn where the
        generator lives: the same numbers on every device.
    Source: arXiv 2106.09685, section 4.1 (Gaussian A, zero B, scale alpha / rank)."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = base.weight.requires_grad_(False)
        self.register_parameter("bias", None if base.bias is None else base.bias.requires_grad_(False))
        start = torch.empty(rank, base.in_features, device=generator.device)
        start.normal_(0, base.in_features**-0.5, generator=generator)
        self.lora_A = nn.Parameter(start.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype nn.Linear would give."""
        y = F.linear(x, self.weight, self.bias)
        # The adapter follows x's dtype: turning x to float32 would keep a second, larger copy of it for backward.
        low = F.linear(x, self.lora_A.to(x.dtype))                              # (..., rank)
        return y + F.linear(low * self.scale, self.lora_B.to(x.dtype))

    @torch.no_grad()
    def merge_to(self, out: Tensor) -> Tensor:
        """Write W + (alpha / rank) B A into `out` (out, in): summed in float32 even inside autocast, rounded once.

        On a CPU 64 rows at a time, which stay in its cache: five times as fast as whole matrices of new memory."""
        device = self.weight.device.type
        size = 64 if device == "cpu" else len(out)
        with torch.autocast(device, enabled=False):
            for weight, up, rows in zip(*(x.split(size) for x in (self.weight, self.lora_B, out)), strict=True):
                rows.copy_(torch.addmm(weight.float(), up, self.lora_A, alpha=self.scale))
        return out


def add_lora(model: Qwen2VL, rank: int, alpha: float, targets: Collection[str], generator: torch.Generator) -> None:
    """Freeze the whole model and give the decoder's linear layers named in `targets` an adapter each, in place.

    Raises: ValueError, before anything is changed, for an impossible rank or alpha, a target that the decoder does not
        have, or a model that has adapters already."""
    if rank < 1 or alpha <= 0:
        raise ValueError(f"rank {rank} must be 1 or more and alpha {alpha} above 0")
    if lora_layers(model):
        raise ValueError("the model has adapters already; train those, or merge them first")
    found = [(parent, name, layer) for parent in model.model.modules() for name, layer in parent.named_children()
             if isinstance(layer, nn.Linear)]
    valid = dict.fromkeys(name for _, name, _ in found)
    if not targets or (wrong := [target for target in targets if target not in valid]):
        raise ValueError(f"targets {list(targets) if not targets else wrong}: the decoder's linear layers are "
                         f"{', '.join(valid) or 'none'}; name at least one of them")
    model.requires_grad_(False)
    for parent, name, layer in found:
        if name in targets:
            setattr(parent, name, LoRALinear(layer, rank, alpha, generator))


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The layers with an adapter, by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What an optimizer trains: every A and B."""
    return [parameter for layer in lora_layers(model).values() for parameter in (layer.lora_A, layer.lora_B)]


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict by the names of a model without adapters, nothing merged yet."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith((".lora_A", ".lora_B"))}


def base_model(model: Qwen2VL) -> Qwen2VL:
    """What the model was before training: a frozen plain model on the same memory."""
    return frozen_model(model.config, plain_tensors(model))


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """What the model's state dict would be without adapters: they are merged and rounded to their weight's dtype.

    Only merged weights are new memory; the others are the model's own tensors. A plain model's own comes back."""
    return plain_tensors(model) | {f"{name}.weight": layer.merge_to(torch.empty_like(layer.weight))
                                   for name, layer in lora_layers(model).items()}


def merged_weight(layer: nn.Module) -> Tensor:
    """A linear layer's weight, its adapter merged if it has one."""
    return layer.merge_to(torch.empty_like(layer.weight)) if isinstance(layer, LoRALinear) else layer.weight


def merge_into(model: nn.Module, plain: nn.Module) -> None:
    """Write the merged weights into `plain`, a model without adapters, in place, in its own dtype and on its device.

    What the two share, say a head, is left alone. Beside the two models this needs little memory.
    Raises: ValueError if they do not have the same tensors, or share a weight that has an adapter: W would be lost."""
    source, goal = plain_tensors(model), plain.state_dict()
    wanted, found = ({(name, tuple(tensor.shape)) for name, tensor in part.items()} for part in (source, goal))
    if wanted != found:
        raise ValueError(f"only one of the two models has {sorted(wanted ^ found)[:4]}; make the plain model from the "
                         "same config, and without adapters")
    layers = {f"{name}.weight": layer for name, layer in lora_layers(model).items()}
    shared = {name for name in source if source[name].data_ptr() == goal[name].data_ptr()}
    if lost := sorted(shared & layers.keys()):
        raise ValueError(f"the plain model shares {lost[0]} with the model itself; give it memory of its own")
    for name in source.keys() - shared:
        if name in layers:
            layers[name].merge_to(goal[name])
        else:
            goal[name].copy_(source[name])
