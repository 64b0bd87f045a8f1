"""LoRA: train a low-rank update B A of each large matrix W and keep W frozen (arXiv 2106.09685).

    y = W x + (alpha / rank) B A x          W (out, in) frozen;  A (rank, in) random, B (out, rank) zero at the start

The optimizer state of a 2B model shrinks to a few million numbers, and the base may be bfloat16. The base without its
adapters is the reference model (`base_model`), so no second copy is needed. W keeps its name in the state dict; a saved
model or a sampling copy is a plain model with W + (alpha / rank) B A in place of W.
"""

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.qwen2_vl import Qwen2VL, frozen_model


class LoRALinear(nn.Module):
    """A linear layer with an adapter. It takes the weight and bias of `base`, under the same names, and freezes them.

    Shapes: weight (out, in), lora_A (rank, in), lora_B (out, rank). The adapter is float32 for any dtype of the base,
        because bfloat16 would round away updates of relative size 1e-3.
    A ~ N(0, 1 / in), so that A x is as large as x; B = 0, so that training starts at the base model. A is drawn on the
        generator's device, so it is the same for a model on any device.
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
        """(..., in) -> (..., out), in the dtype that nn.Linear returns."""
        y = F.linear(x, self.weight, self.bias)
        # Cast the adapter to x's dtype: casting x to float32 would save a second, larger copy of it for backward.
        low = F.linear(x, self.lora_A.to(x.dtype))                              # (..., rank)
        return y + F.linear(low * self.scale, self.lora_B.to(x.dtype))

    @torch.no_grad()
    def merge_to(self, out: Tensor) -> Tensor:
        """Write W + (alpha / rank) B A into `out` (out, in): summed in float32 even inside autocast, rounded once.

        On a CPU 64 rows at a time, which fit in its cache: five times as fast as a whole matrix."""
        device = self.weight.device.type
        size = 64 if device == "cpu" else len(out)
        with torch.autocast(device, enabled=False):
            for weight, up, rows in zip(*(x.split(size) for x in (self.weight, self.lora_B, out)), strict=True):
                rows.copy_(torch.addmm(weight.float(), up, self.lora_A, alpha=self.scale))
        return out


def add_lora(model: Qwen2VL, rank: int, alpha: float, targets: Collection[str], generator: torch.Generator) -> None:
    """Freeze the whole model and add an adapter to each linear layer of the decoder named in `targets`, in place.

    Raises: ValueError, before anything is changed, for an invalid rank or alpha, an unknown target, or a model that
        already has adapters."""
    if rank < 1 or alpha <= 0:
        raise ValueError(f"rank {rank} must be 1 or more and alpha {alpha} above 0")
    if lora_layers(model):
        raise ValueError("the model has adapters already; train them, or merge them first")
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
    """Name -> layer, for the layers with an adapter."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Every A and B: the parameters to train."""
    return [parameter for layer in lora_layers(model).values() for parameter in (layer.lora_A, layer.lora_B)]


def plain_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the adapters, which are not merged."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith((".lora_A", ".lora_B"))}


def base_model(model: Qwen2VL) -> Qwen2VL:
    """The model without its adapters: a frozen plain model that shares its memory."""
    return frozen_model(model.config, plain_tensors(model))


def merged_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with the adapters merged into their weights and rounded to the weights' dtype.

    Only merged weights are new tensors; all others are the model's own."""
    return plain_tensors(model) | {f"{name}.weight": layer.merge_to(torch.empty_like(layer.weight))
                                   for name, layer in lora_layers(model).items()}


@torch.no_grad()
def kept_share(model: nn.Module, gather: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> float:
    """How much of the adapters' change D = (alpha / rank) B A is left in a merged model: <merged - W, D> / <D, D>.

    bfloat16 weights have 8 significant bits, and W is one of their values: where D is below half a unit in the last
    place of W, the sum is rounded back to W. 1 in float32. `gather` makes a shard whole."""
    kept, whole = 0.0, 0.0
    for layer in lora_layers(model).values():
        if layer.weight.dtype == torch.float32:
            return 1.0
        weight = gather(layer.weight)
        change = layer.scale * (gather(layer.lora_B) @ gather(layer.lora_A))    # (out, in)
        left = (weight.float() + change).to(weight.dtype).float() - weight.float()
        kept, whole = kept + (left * change).sum().item(), whole + change.square().sum().item()
    return kept / whole if whole else 1.0


def merged_weight(layer: nn.Module) -> Tensor:
    """The weight of a linear layer, with its adapter merged if it has one."""
    return layer.merge_to(torch.empty_like(layer.weight)) if isinstance(layer, LoRALinear) else layer.weight


def merge_into(model: nn.Module, plain: nn.Module) -> None:
    """Write the merged weights into `plain`, a model without adapters, in place, in its dtype and on its device.

    Tensors that both models share, such as the head, are not written.
    Raises: ValueError if the tensors differ in name or shape, or if both share a weight that has an adapter, because
        merging would overwrite W."""
    source, goal = plain_tensors(model), plain.state_dict()
    wanted, found = ({(name, tuple(tensor.shape)) for name, tensor in part.items()} for part in (source, goal))
    if wanted != found:
        raise ValueError(f"only one of the two models has {sorted(wanted ^ found)[:4]}; make the plain model from the "
                         "same config, without adapters")
    layers = {f"{name}.weight": layer for name, layer in lora_layers(model).items()}
    shared = {name for name in source if source[name].data_ptr() == goal[name].data_ptr()}
    if lost := sorted(shared & layers.keys()):
        raise ValueError(f"the plain model shares {lost[0]} with the model itself; copy that weight first")
    for name in source.keys() - shared:
        if name in layers:
            layers[name].merge_to(goal[name])
        else:
            goal[name].copy_(source[name])
