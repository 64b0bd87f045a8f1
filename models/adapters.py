"""LoRA adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors.

`save_adapter` writes what `add_lora` has trained; PEFT loads it onto the base model with equal logits. `merge_adapter`
reads an adapter of any tool that writes this format and merges it into a base model. Adapters that are more than
W + scale B A (DoRA, trained biases, whole modules) are refused: reading a part of them would be another model.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from models.files import read_json
from models.lora import lora_layers
from models.qwen2_vl import Qwen2VL
from models.weights import header_shapes, hub_name
from storage import save_file, write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT puts before the names of a decoder's layers. transformers has had this module tree since 4.52; with an older
# one PEFT would leave the adapter out.
PREFIX = "base_model.model.model.language_model."
PART = re.compile(r"\.(lora_[AB])(?:\.default)?\.weight$")
# Settings with which an adapter is more than scale B A, and their values without effect
WITHOUT_EFFECT = {"use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []),
                  "fan_in_fan_out": (False, None), "trainable_token_indices": (None, [], {}),
                  "layer_replication": (None, []), "alora_invocation_tokens": (None, []), "use_bdlora": (False, None),
                  "use_qalora": (False, None)}
OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")   # these change the base weights when training begins


# ---------------------------------------------------------------- writing

def adapter_tensors(model: nn.Module, gather: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Tensor]:
    """Every A (rank, in) and B (out, rank) on the CPU, by the name that PEFT gives it. `gather` makes a shard whole."""
    parts = {f"{name.removeprefix('model.')}.{part}.weight": getattr(layer, part).detach()
             for name, layer in lora_layers(model).items() for part in ("lora_A", "lora_B")}
    return {PREFIX + name: gather(tensor).cpu().contiguous() for name, tensor in parts.items()}


def save_adapter(tensors: Mapping[str, Tensor], rank: int, alpha: float, base: str, directory: str | Path) -> None:
    """Write an adapter of scale alpha / rank for the base model `base`, a directory or a name on the hub."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    targets = sorted({PART.sub("", name).rpartition(".")[2] for name in tensors})
    save_file(dict(tensors), directory / WEIGHTS, metadata={"format": "pt"})
    write_json({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": rank,
                "lora_alpha": alpha, "target_modules": targets, "lora_dropout": 0.0, "bias": "none",
                "inference_mode": True}, directory / CONFIG)


# ---------------------------------------------------------------- reading

@torch.no_grad()
def merge_adapter(model: Qwen2VL, directory: str | Path) -> None:
    """W <- W + scale B A for every weight that the adapter names: summed in float32, rounded once to W's dtype.

    Raises: FileNotFoundError; ValueError naming the file and what does not fit, before any weight is changed."""
    directory = Path(directory)
    config, weights = read_config(directory), dict(model.named_parameters())
    pairs = read_pairs(directory)
    scales = read_scales(config, {name: len(down) for name, (down, _) in pairs.items()}, directory / CONFIG)
    for name, (down, up) in pairs.items():
        wanted = tuple(weights[name].shape) if name in weights else None
        if wanted != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
            raise ValueError(f"{directory / WEIGHTS}: A {tuple(down.shape)} and B {tuple(up.shape)} do not fit {name} "
                             f"{wanted or ', which the model does not have'}; name the --model of this adapter: "
                             f"{config.get('base_model_name_or_path')!r:.200}")
    for name, (down, up) in pairs.items():
        change = up.float() @ down.float() * scales[name]                       # (out, in)
        weights[name].copy_(weights[name].float() + change.to(weights[name].device))


def read_config(directory: Path) -> dict[str, Any]:
    """adapter_config.json. Raises: ValueError if it is no LoRA adapter, or does more than LoRA."""
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(f"{directory} has no {CONFIG}; give the directory of a LoRA adapter in PEFT's format")
    file, config = directory / CONFIG, read_json(directory / CONFIG)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{file}: peft_type is {config.get('peft_type')!r:.80}; only LORA is read")
    for name, harmless in WITHOUT_EFFECT.items():
        if config.get(name) not in harmless:
            raise ValueError(f"{file}: {name} is {config[name]!r:.80}, which is more than a low-rank update; merge the "
                             "adapter with peft (merge_and_unload) and give the result as --model")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OTHER_BASE):
        raise ValueError(f"{file}: init_lora_weights is {start!r:.80}, whose base weights are not those of the base "
                         "model; merge the adapter with peft (merge_and_unload) and give the result as --model")
    check_scales(config, file)
    return config


def check_scales(config: Mapping[str, Any], file: Path) -> None:
    """Raise a ValueError for a setting of the scales that is not what PEFT writes."""
    if not isinstance(config.get("use_rslora"), bool | None):
        raise ValueError(f"{file}: use_rslora is {config['use_rslora']!r:.80}; it must be true or false")
    for name in ("r", "lora_alpha"):
        require_number(config.get(name), f"{file}: {name}")
    for pattern in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(pattern) or {}, dict):
            raise ValueError(f"{file}: {pattern} is {config[pattern]!r:.80}; it must be an object from layer to number")
        for layer, value in (config.get(pattern) or {}).items():
            require_number(value, f"{file}: {pattern} of {layer!r:.80}")


def require_number(value: object, where: str) -> None:
    """Raise a ValueError for what is no number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where} is {value!r:.80}; it must be a number above 0")


def read_pairs(directory: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of a weight -> A (r, in) and B (out, r). Raises: ValueError for other tensors, or half a pair."""
    file = directory / WEIGHTS
    if not file.is_file():
        pickled = "; pickled adapter_model.bin is not read" if (directory / "adapter_model.bin").is_file() else ""
        raise FileNotFoundError(f"{directory} has no {WEIGHTS}{pickled}; save the adapter with safe_serialization=True")
    header_shapes(file)                                     # checks names, types and sizes before anything is read
    halves: dict[str, dict[str, Tensor]] = {}
    with safe_open(file, framework="pt") as stream:
        for name in stream.keys():
            found = PART.search(name)
            if not found:
                raise ValueError(f"{file} holds {name}, which is no A or B of a linear layer; only low-rank updates "
                                 "are read: merge the adapter with peft (merge_and_unload)")
            half = stream.get_tensor(name)
            if not torch.isfinite(half).all():
                raise ValueError(f"{file}: {name} has values that are NaN or infinite; copy the file again, or use an "
                                 "earlier adapter")
            halves.setdefault(f"{hub_name(name[:found.start()])}.weight", {})[found[1]] = half
    if lonely := [name for name, half in halves.items() if len(half) < 2]:
        raise ValueError(f"{file} has only one of A and B for {lonely[0]}; copy the file again")
    if not halves:
        raise ValueError(f"{file} holds no adapter; copy the file again")
    return {name: (half["lora_A"], half["lora_B"]) for name, half in halves.items()}


def read_scales(config: Mapping[str, Any], ranks: Mapping[str, int], file: Path) -> dict[str, float]:
    """Name of a weight -> alpha / r, or alpha / sqrt(r) with use_rslora (arXiv 2312.03732).

    `rank_pattern` and `alpha_pattern` hold the values of layers whose names end with their keys.
    Raises: ValueError if the tensors have another rank than the configuration, or a pattern names no layer."""
    said, alpha = (by_layer(config.get(pattern) or {}, config[general], ranks, f"{file}: {pattern}")
                   for pattern, general in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")))
    if wrong := [name for name, rank in ranks.items() if said[name] != rank]:
        raise ValueError(f"{file} says rank {said[wrong[0]]} for {wrong[0]}, the tensors have {ranks[wrong[0]]}; the "
                         "two files do not belong together")
    return {name: alpha[name] / (math.sqrt(rank) if config.get("use_rslora") else rank) for name, rank in ranks.items()}


def by_layer(pattern: Mapping[str, float], general: float, names: Iterable[str], where: str) -> dict[str, float]:
    """The value of every layer: that of the first key which its name ends with, as in PEFT; else the general one."""
    values = dict.fromkeys(names, general)
    for key, value in reversed(pattern.items()):
        found = [name for name in values if f".{name}".endswith((f".{key}.weight", f".{hub_name(key)}.weight"))]
        if not found:
            raise ValueError(f"{where}: {key!r:.200} names no layer of the adapter; merge the adapter with peft "
                             "(merge_and_unload) and give the result as --model")
        values |= dict.fromkeys(found, value)
    return values
