"""Copies of a model to sample from: in another type, adapters merged, on a CPU in oneDNN's packed layout."""

import torch

from models.fast.packed import PackedLayer, PackedLinear, can_pack, pack_layers, pack_linears
from models.lora import merge_into, plain_tensors
from models.qwen2_vl import Qwen2VL, frozen_model

IN_FULL = ("model.embed_tokens.weight", "lm_head.weight")      # a sampling copy does not round these


def sampling_copy(model: Qwen2VL, dtype: torch.dtype | None, pack: bool = True) -> Qwen2VL:
    """A copy whose decoder layers are of this type, adapters merged, and on a CPU packed unless `pack` is False.

    The model itself, with its adapters as they are, if it is such a copy, or if the type is its own and layers of that
    type cannot be packed. Embeddings and head share the model's storage, and in its own type everything but the layers.
    """
    if any(isinstance(part, PackedLayer) for part in model.modules()):
        return model
    own = model.model.norm.weight.dtype
    dtype = dtype or own
    packed = pack and can_pack(model.head_weight.device, dtype)
    if dtype == own and not packed:
        return model
    copy = frozen_model(model.config, {name: tensor if dtype == own or name in IN_FULL else
                                       torch.empty_like(tensor, dtype=dtype)
                                       for name, tensor in plain_tensors(model).items()})
    if packed:
        pack_layers(copy.model, dtype)
        if dtype == torch.bfloat16:
            pack_linears(copy.visual, dtype)
    refresh_copy(model, copy)
    return copy


@torch.no_grad()
def refresh_copy(model: Qwen2VL, copy: Qwen2VL) -> None:
    """Write the model's weights, adapters merged, into a sampling copy, in place."""
    packed = {name: part for name, part in copy.named_modules() if isinstance(part, PackedLayer | PackedLinear)}
    if not packed:
        return merge_into(model, copy)
    for name, part in packed.items():
        part.pack(model.get_submodule(name))
    tensors = plain_tensors(model)
    for name, tensor in copy.state_dict().items():
        if tensor.data_ptr() != tensors[name].data_ptr():
            tensor.copy_(tensors[name])
