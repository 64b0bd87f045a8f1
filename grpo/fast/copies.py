"""Copies of a model to sample from: in another type, adapters merged, on a CPU in oneDNN's packed layout."""

import torch

from models.fast.packed import PackedLinear, can_pack, pack_linears
from models.lora import merge_into, merged_weight, plain_tensors
from models.qwen2_vl import Qwen2VL, frozen_model

IN_FULL = ("model.embed_tokens.weight", "lm_head.weight")      # a sampling copy does not round these


def sampling_copy(model: Qwen2VL, dtype: torch.dtype | None) -> Qwen2VL:
    """The model itself if it is of this type, else a copy whose layers are, adapters merged; embeddings and head share
    the model's storage. On a CPU bf16 layers are packed, which is worth a copy of its own."""
    packed = dtype == torch.bfloat16 and can_pack(model.head_weight.device)
    if dtype is None or (dtype == model.model.norm.weight.dtype and not packed):
        return model
    copy = frozen_model(model.config, {name: tensor if name in IN_FULL else torch.empty_like(tensor, dtype=dtype)
                                       for name, tensor in plain_tensors(model).items()})
    merge_into(model, copy)
    if packed:
        pack_linears(copy.model)
        pack_linears(copy.visual)
    return copy


@torch.no_grad()
def refresh_copy(model: Qwen2VL, copy: Qwen2VL) -> None:
    """Write the model's weights, adapters merged, into a sampling copy, in place."""
    packed = {name: layer for name, layer in copy.named_modules() if isinstance(layer, PackedLinear)}
    if not packed:
        return merge_into(model, copy)
    for name, layer in packed.items():
        source = model.get_submodule(name)
        layer.pack(merged_weight(source), source.bias)
    tensors = plain_tensors(model)
    for name, tensor in copy.state_dict().items():
        if tensor.data_ptr() != tensors[name].data_ptr():
            tensor.copy_(tensors[name])
