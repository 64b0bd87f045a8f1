"""Reading the small files of a model directory, and what to say when one is not there. Writing: storage.py."""

import json
import re
from pathlib import Path
from typing import Any

LFS_START = b"version https://git-lfs.github.com/spec/"
CLASS = "Qwen2VLForConditionalGeneration"
MAX_JSON_BYTES = 16 * 2**20         # per JSON file of a model directory; parsing can need 25 times as much memory


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from an untrusted file.

    Raises: ValueError naming the file if it is longer than MAX_JSON_BYTES, not valid JSON, or not an object."""
    refuse_pointer(path)
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, at most {MAX_JSON_BYTES:,} are read; copy it again from the "
                         "checkpoint")
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:       # RecursionError: deeply nested brackets
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object; copy it again")
    return value


def refuse_pointer(path: Path) -> None:
    """Raises: ValueError if the file is empty, or a Git LFS pointer in place of the file."""
    with open(path, "rb") as file:
        start = file.read(len(LFS_START))
    if start == LFS_START:
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself; install git-lfs and run `git lfs pull` in "
                         f"{path.parent}, or download the model again with `hf download`")
    if not start:
        raise ValueError(f"{path} is empty; copy it again")


def not_a_model(directory: Path) -> str | None:
    """What a path is that is no model directory, and what to do about it; None if there is nothing to say."""
    name = re.sub(r"^(?:https?:/+)?(?:huggingface\.co|hf\.co)/+", "", str(directory))
    if directory.is_file():
        remedy = ("give the directory that holds it" if (directory.parent / "config.json").is_file() else
                  "give a directory with config.json, tokenizer and weights")
        return f"{directory} is a file; {remedy}"
    if not directory.exists():
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII):
            folder = name.rpartition("/")[2]
            return (f"{directory} does not exist. If it is a model on the hub, download it first with "
                    f"`hf download {name} --local-dir {folder}`, then give the directory {folder}")
        return f"{directory} does not exist" + "; the shell did not expand ~, give the full path" * name.startswith("~")
    if (directory / "adapter_config.json").is_file():
        return adapter_found(directory)
    places = ("model",) if (directory / "config.json").is_file() else ("model", "snapshots/*", "checkpoint-*")
    inside = sorted(path.parent for place in places for path in directory.glob(f"{place}/config.json"))
    if not inside and holds_a_run(directory):
        return f"{directory} is a run that has saved no model yet; continue it with --resume auto"
    return f"{directory} is not a model, but holds one; give {' or '.join(map(str, inside[:3]))}" if inside else None


def holds_a_run(directory: Path, stage: str = "") -> bool:
    """Whether config.json is that of a run or an evaluation of ours; a model of the hub has one too, but no stage."""
    config = directory / "config.json"
    return config.is_file() and f'"stage": "{stage}' in config.read_text(errors="replace")


def missing_weights(directory: Path) -> str:
    """Why a model directory has no weights to read, and what to do about it."""
    names = sorted(path.name for path in directory.iterdir())
    problem = f"{directory} has neither model.safetensors nor model.safetensors.index.json"
    if others := [name for name in names if name.endswith((".bin", ".pt", ".pth")) and "model" in name]:
        return (f"{problem}; pickled .bin weights are not read ({others[0]!r:.200}). Convert them with transformers: "
                f"{CLASS}.from_pretrained({str(directory)!r}, torch_dtype='auto').save_pretrained(NEW), then copy the "
                "other files to NEW")
    if shards := [name for name in names if name.endswith(".safetensors")]:
        return (f"{problem}; {shards[0]!r:.200} cannot be read without model.safetensors.index.json: copy it, too, "
                "or rename a single file to model.safetensors")
    return f"{problem}; copy or download the weights, too"


def adapter_found(directory: Path) -> str:
    """The message for a directory of PEFT, which holds an adapter and no model."""
    base = read_json(directory / "adapter_config.json").get("base_model_name_or_path")
    return (f"{directory} holds a PEFT adapter of {base!r:.200}, not a model. Give both: --model {base!r:.200} "
            f"--adapter {directory}. If the directory holds whole weights, too, remove adapter_config.json to use them")
