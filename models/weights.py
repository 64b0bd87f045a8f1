"""Checkpoint files: read and write a model as safetensors in the layout of the hub.

Tensor names are the hub's (`visual.*`, `model.*`, `lm_head.weight`). The names that some releases of transformers write
(`model.visual.*`, `model.language_model.*`) are read, too. Every tensor must be there with the right shape and none may
be left over: training a model with one random layer costs days, an error costs a minute.

The files may be untrusted. Nothing in them is executed, no file outside the directory is opened, and headers are
checked before anything is allocated, so loading needs no more memory than the files in the requested dtype.
"""

import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from models.config import Qwen2VLConfig
from models.files import missing_weights, read_json, refuse_pointer
from models.lora import merged_state_dict
from models.qwen2_vl import Qwen2VL
from models.reconcile import reconciled
from models.tokenizer import find_tokenizer
from storage import save_file, write_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
MAX_FILE_BYTES = 4_500_000_000      # the released 2B in bfloat16 (4.4 GB) stays one file
MAX_HEADER_BYTES = 16 * 2**20       # the released 2B needs 0.1 MB; the format allows 100 MB
DTYPES = ("BF16", "F16", "F32")     # others, such as packed 4-bit numbers, would be converted silently
SHOWN = 20                          # the most tensors that an error message lists


# What wrappers add to the names of a model that was saved inside them: DDP, PEFT; torch.compile, FSDP, checkpointing.
OUTER_WRAPPER = re.compile(r"^(?:module\.|base_model\.model\.)+")
INNER_WRAPPER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
OTHER_TREES = (("model.language_model.", "model."), ("language_model.", "model."), ("model.visual.", "visual."),
               ("model.model.", "model."), ("model.lm_head.", "lm_head."))
# Tensors that belong to quantisation or to old releases of transformers. A model with whole weights needs none of them.
LEFTOVER = re.compile(r"\.(?:inv_freq|SCB|g_idx|qweight|qzeros|scales|(?:input|output)_scale|weight_(?:scale|scale_inv|"
                      r"zero_point|shape|packed|format)|weight\.(?:nested_)?(?:absmax|quant_map|quant_state\.\w+))$")


def hub_name(name: str) -> str:
    """The hub's name of a tensor: without the prefixes of wrappers, in the hub's module tree.

    `module.model.language_model.X` -> `model.X`, `model.visual.X` -> `visual.X`; the hub's names are unchanged."""
    name = OUTER_WRAPPER.sub("", INNER_WRAPPER.sub("", name))
    for other, hub in OTHER_TREES:
        if name.startswith(other):
            return hub + name.removeprefix(other)
    return name


def tensor_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint: model.safetensors, or the shards that the index names."""
    if (directory / SINGLE).is_file():
        if (directory / INDEX).is_file():
            warnings.warn(f"{directory} has {SINGLE}, which is read, and {INDEX}, which is not; delete the one that is "
                          "out of date", stacklevel=3)
        return [directory / SINGLE]
    if not (directory / INDEX).is_file():
        raise FileNotFoundError(missing_weights(directory))
    names = shard_names(directory / INDEX)
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise FileNotFoundError(f"{directory / INDEX} names files that are not there: {', '.join(missing)}; copy or "
                                "download them, too")
    return [directory / name for name in names]


def shard_names(index: Path) -> list[str]:
    """The file names in an index. Raises: ValueError naming the index if it is broken or names other folders."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not a safetensors index with a weight_map ({error!r}); copy it again") from error
    if wrong := [name for name in names if not re.fullmatch(r"\w[\w.-]{,200}\.safetensors", str(name), re.ASCII)]:
        raise ValueError(f"{index} names {wrong[0]!r:.200}; only .safetensors files in its own folder are read: copy "
                         "the shards there and correct the index")
    return names


def load_model(directory: str | Path, dtype: torch.dtype = torch.float32,
               device: str | torch.device = "cpu", tokenizer: Tokenizer | None = None) -> Qwen2VL:
    """Load a Qwen2-VL checkpoint directory (config.json and safetensors) as a model in `dtype` on `device`.

    tokenizer: the directory's, if it was read before.

    The model is made on the meta device and filled tensor by tensor, so the peak memory is about the model's size. If
    neither dtype nor device changes, nothing is copied: the parameters are pages of the mapped file, read at first use
    and copied on write. The file may then be replaced or deleted, but not overwritten in place.
    Raises: FileNotFoundError; ValueError naming every missing, surplus and misshapen tensor."""
    directory = Path(directory)
    config = Qwen2VLConfig.from_directory(directory)
    files = tensor_files(directory)
    found = file_shapes(files)
    config = reconciled(config, directory, HEAD in found, find_tokenizer(directory) if tokenizer is None else tokenizer)
    with torch.device("meta"):
        model = Qwen2VL(config)
    parameters = dict(model.named_parameters())
    check_shapes({name: tuple(parameter.shape) for name, parameter in parameters.items()}, found, directory)
    if config.tie_word_embeddings and HEAD in found:
        check_equal_head(files, directory)
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if hub_name(name) in parameters:
                    set_parameter(model, hub_name(name), file.get_tensor(name).to(device=device, dtype=dtype))
    return model


def check_shapes(wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], directory: Path) -> None:
    """Raises: ValueError unless the files hold the model's parameters. Warns of LEFTOVER tensors: they are not read."""
    leftovers = [name for name in found if LEFTOVER.search(name)]
    spare = {HEAD} - wanted.keys()                          # a tied head, which may be in the files once more
    problems = shape_problems(wanted, {name: found[name] for name in found if name not in (*leftovers, *spare)})
    if problems:
        shown = problems[:SHOWN] + ([f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])
        if any("missing" in problem for problem in problems) and leftovers:
            shown.append(f"tensors like {leftovers[0]} are quantised weights; use a checkpoint that is not quantised")
        if any(".lora_" in problem for problem in problems):
            shown.append("LoRA adapters are not merged; merge them (in peft: merge_and_unload) and save again, or save "
                         "the adapter alone and give --model BASE --adapter DIR")
        raise ValueError(f"{directory} does not hold the model of its config.json; copy config.json and all weight "
                         "files of one checkpoint:\n  " + "\n  ".join(shown))
    if leftovers:
        warnings.warn(f"{directory}: {len(leftovers)} of {len(found)} tensors are left over from quantisation or an "
                      f"old release of transformers and are not read ({leftovers[0]} ...)", stacklevel=3)


def check_equal_head(files: Iterable[Path], directory: Path) -> None:
    """Raises: ValueError if config.json ties the head to the embeddings, but the files hold another head."""
    matrices = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            matrices |= {hub_name(name): file.get_tensor(name) for name in file.keys()
                         if hub_name(name) in (HEAD, EMBEDDINGS)}
    if not torch.equal(matrices[HEAD], matrices[EMBEDDINGS]):
        raise ValueError(f"{directory / 'config.json'} has tie_word_embeddings true, but {HEAD} differs from "
                         f"{EMBEDDINGS}; change it to false to use this head")


def file_shapes(files: Iterable[Path]) -> dict[str, tuple[int, ...]]:
    """Hub name -> shape of every tensor, from the headers alone. Raises: ValueError if a file is invalid."""
    shapes = {}
    for path in files:
        found = header_shapes(path)
        if twice := sorted(shapes.keys() & found.keys()):
            raise ValueError(f"{path} repeats tensors of another file: {', '.join(twice)}; the files do not belong "
                             "together")
        shapes |= found
    return shapes


def header_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """`file_shapes` of one file. safetensors checks that offsets, shapes, dtypes and the file's size agree."""
    refuse_pointer(path)
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"{path} claims a header of {size:,} bytes, at most {MAX_HEADER_BYTES:,} are read; it is not "
                         "a safetensors file, or broken: copy it again")
    shapes = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                check_tensor(path, name, part.get_dtype())
                if hub_name(name) in shapes:
                    raise ValueError(f"{path} holds {hub_name(name)} under two names; copy it again")
                shapes[hub_name(name)] = tuple(part.get_shape())
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({str(error)[:300]!r}); copy it again") from error
    return shapes


def check_tensor(path: Path, name: str, dtype: str) -> None:
    """Raises: ValueError for a name that cannot be a parameter's, or a dtype other than DTYPES."""
    if not re.fullmatch(r"[\w.-]{1,200}", name, re.ASCII):
        raise ValueError(f"{path} holds a tensor named {name!r:.200}; names are letters, digits, '.', '_' and '-'")
    if dtype not in DTYPES and not LEFTOVER.search(name):
        remedy = "save it as float32 or bfloat16" if dtype == "F64" else "use a checkpoint that is not quantised"
        raise ValueError(f"{path}: {name} has the dtype {dtype}; weights are {', '.join(DTYPES)}; {remedy}")


def shape_problems(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line per tensor that is missing, surplus or misshapen."""
    missing = [f"missing: {name} {shape}" for name, shape in wanted.items() if name not in found]
    surplus = [f"surplus: {name} {shape}" for name, shape in found.items() if name not in wanted]
    misshapen = [f"misshapen: {name} is {found[name]}, the model needs {shape}"
                 for name, shape in wanted.items() if name in found and found[name] != shape]
    return missing + surplus + misshapen


def set_parameter(model: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter, which may be on the meta device, by `value`."""
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(value))


def save_model(model: Qwen2VL, directory: str | Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write config.json, generation_config.json and the weights, for `load_model`, transformers and vLLM.

    LoRA adapters are merged into their weights."""
    save_tensors(merged_state_dict(model), model.config, directory, max_file_bytes)


def save_tensors(tensors: Mapping[str, Tensor], config: Qwen2VLConfig, directory: str | Path,
                 max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """`save_model` for a state dict, for instance one gathered from several processes.

    A crash leaves either the old or the new weights: shards never take the name of a file in use, and a single rename,
    of the weights file or of the index, replaces old by new."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards = split_shards(tensors, max_file_bytes)
    names = [SINGLE] if len(shards) == 1 else free_names(directory, len(shards))
    for name, shard in zip(names, shards, strict=True):
        contiguous = {key: tensors[key].detach().cpu().contiguous() for key in shard}
        save_file(contiguous, directory / f"{name}.tmp", metadata={"format": "pt"})
    for name in names:
        os.replace(directory / f"{name}.tmp", directory / name)
    _write_index(directory, dict(zip(names, shards, strict=True)), tensors)
    _remove_others(directory, names)
    write_json({**config.to_dict(), "torch_dtype": _dtype_name(tensors)}, directory / "config.json")
    write_json(generation_config(config), directory / "generation_config.json")


def free_names(directory: Path, count: int) -> list[str]:
    """Names for `count` shards that the directory's index does not use."""
    in_use = shard_names(directory / INDEX) if (directory / INDEX).is_file() else []
    stem = next(stem for stem in ("model", "model-b") if f"{stem}-00001-of-{count:05d}.safetensors" not in in_use)
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def split_shards(tensors: Mapping[str, Tensor], max_file_bytes: int) -> list[list[str]]:
    """The tensor names, in order, of each file: none exceeds the limit unless one tensor alone does."""
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_file_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def generation_config(config: Qwen2VLConfig) -> dict[str, Any]:
    """The stop tokens. Not the released file's top_k 1, with which all samples of a group would be equal."""
    return {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id,
            "eos_token_id": list(config.stop_token_ids)}


def _dtype_name(tensors: Mapping[str, Tensor]) -> str:
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


def _write_index(directory: Path, shards: Mapping[str, list[str]], tensors: Mapping[str, Tensor]) -> None:
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json({"metadata": {"total_size": total}, "weight_map": weight_map}, directory / INDEX)


def _remove_others(directory: Path, names: list[str]) -> None:
    """Delete the weights of an earlier save with another number of files, which a loader could read instead."""
    kept = {*names, INDEX} if len(names) > 1 else set(names)
    for path in [directory / SINGLE, directory / INDEX, *directory.glob("model-*-of-*.safetensors")]:
        if path.name not in kept:
            path.unlink(missing_ok=True)
