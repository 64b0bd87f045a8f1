"""A policy directory: a Qwen2-VL checkpoint in hub layout, plus drivegrpo.json with its prompt settings."""

import contextlib
import dataclasses
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from data.example import SCENE_SIZE
from grpo.engine.flags import RunFlags
from grpo.engine.prompts import PromptSettings
from models import load_model, load_processor, save_model
from models.adapters import merge_adapter, save_adapter
from models.files import holds_a_run, read_json
from models.images import MAX_PIXELS
from models.processor import Processor, save_picture_settings, save_processor
from models.qwen2_vl import Qwen2VL
from models.tokenizer import find_tokenizer
from rewards.action_file import actions_from, read_actions
from rewards.actions import ALPHADRIVE, Actions
from storage import fresh_directory, remove, write_json, write_text

SETTINGS_FILE, CARD_FILE = "drivegrpo.json", "README.md"
# What runs, scorings and report.py write to an output directory; a kill leaves the endings, and the lock of a scoring
OURS = re.compile(r"(config\.json|metrics\.jsonl?|(samples|skipped|predictions|trajectories)\.jsonl|table\.md|"
                  r"error\.txt|report\.html|features\.safetensors|model|adapter|state|bad-batches|tensorboard)"
                  r"(\.tmp|\.new|\.old)?|\..*\.lock")


def save_policy(model: Qwen2VL, processor: Processor, settings: PromptSettings, about: dict, directory: str | Path,
                card: str = "") -> None:
    """Write weights, config, tokenizer, preprocessor, settings and a model card; they replace `directory` at once.

    `about` (stage, reward mode, seed ...) is information for people in drivegrpo.json; only the settings are read back.
    """
    with fresh_directory(directory) as fresh:
        save_model(model, fresh)
        save_processor(processor, fresh)
        write_json({**settings.record, **about}, fresh / SETTINGS_FILE)
        if card:
            write_text(fresh / CARD_FILE, card)


def save_adapter_policy(tensors: dict[str, Tensor], lora: tuple[int, float], base: str, processor: Processor,
                        settings: PromptSettings, about: dict, directory: str | Path) -> None:
    """Write a LoRA adapter (rank, alpha) of the model `base` in PEFT's format, and what `--adapter` reads beside it:
    settings and pixel budget."""
    with fresh_directory(directory) as fresh:
        save_adapter(tensors, *lora, base, fresh)
        save_picture_settings(processor, fresh)
        write_json({**settings.record, **about}, fresh / SETTINGS_FILE)


def load_policy(directory: str | Path, dtype: torch.dtype, device: str, min_pixels: int = 0, max_pixels: int = 0,
                adapter: str = "") -> tuple[Qwen2VL, Processor, PromptSettings | None]:
    """Read a directory written by save_policy, or any published Qwen2-VL one (settings None).

    adapter: a directory in PEFT's format, which is merged into the weights.
    Pixel budget: the argument, else that of the training of adapter or model, else the published limit, at most
    401,408.
    """
    tokenizer = find_tokenizer(Path(directory))             # once: a released one takes a second
    model = load_model(directory, dtype=dtype, device=device, tokenizer=tokenizer)
    if adapter:
        merge_adapter(model, adapter)
    settings = read_settings(directory, adapter)
    # an adapter of another program may hold a copy of its base's file, which is not the budget of its training
    ours = adapter and all((Path(adapter) / name).is_file() for name in (SETTINGS_FILE, "preprocessor_config.json"))
    source = Path(adapter if ours else directory)
    cap = None if (source / SETTINGS_FILE).is_file() else MAX_PIXELS
    processor = load_processor(directory, min_pixels or None, max_pixels or None, cap, tokenizer, source)
    return model, processor, settings


def read_settings(directory: str | Path, adapter: str = "") -> PromptSettings | None:
    """drivegrpo.json of the adapter, else of the model -> settings; None where neither has one.

    Raises: ValueError naming file and fault."""
    files = [Path(place) / SETTINGS_FILE for place in (adapter, directory) if place]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    names = [f.name for f in dataclasses.fields(PromptSettings) if f.name != "actions"]
    try:
        # what older models lack, and what they have
        values = {"scene_size": SCENE_SIZE, "answer": "plan", "camera_count": 1, **read_json(file)}
        actions = actions_from(values["actions"], "actions") if "actions" in values else ALPHADRIVE
        return PromptSettings(**{name: values[name] for name in names}, actions=actions)
    except (ValueError, KeyError, TypeError) as fault:
        raise ValueError(f"{file}: {type(fault).__name__} {fault}; it needs the fields {', '.join(names)}") from fault


def chosen_actions(config: RunFlags) -> Actions:
    """The lists of --actions, else those that the model was trained with, else AlphaDrive's.

    Raises: ValueError for a wrong file, and for lists that the built-in scenes have no labels of."""
    settings = None if config.model == "tiny" else read_settings(config.model, config.adapter)
    actions = ALPHADRIVE if settings is None else settings.actions
    if config.actions:
        actions = read_actions(config.actions)
    if config.data == "scenes":
        require_scene_labels(actions, f"--actions {config.actions}" if config.actions else f"--model {config.model}")
    return actions


def require_scene_labels(actions: Actions, source: str) -> None:
    """Raise ValueError for lists that the built-in scenes have no labels of. source: the flag that they come from."""
    if not actions.covers(ALPHADRIVE):
        raise ValueError(f"{source} has the actions {', '.join(actions.names)}, and the built-in scenes are labelled "
                         "with AlphaDrive's; name examples with your labels by --data FILE")


def default_model(stages: tuple[str, ...], advice: str) -> str:
    """The model directory of the first of these stages that has run here. Raises: ValueError with the advice."""
    for stage in stages:
        if Path(f"runs/{stage}/model").is_dir():
            return f"runs/{stage}/model"
    raise ValueError(advice)


def foreign(directory: Path) -> Path | None:
    """An entry that no run and no scoring of ours wrote, or the directory itself if it is not that of a run.

    The folder of a run may hold those of scorings. config.json is written first and removed last."""
    entries = [path for path in sorted(directory.iterdir()) if path.name != "config.json.tmp"]
    if entries and not holds_a_run(directory):
        return directory
    for path in entries:
        if path.is_dir() and (path.name.startswith("eval") or holds_a_run(path, "eval")):
            if found := foreign(path):
                return found
        elif not OURS.fullmatch(path.name):
            return path
    return None


def choose_device(name: str) -> str:
    """`auto` -> cuda where there is one. Raises: ValueError if cuda is asked for and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no usable GPU here; use --device cpu, or install torch with CUDA")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


@contextlib.contextmanager
def only_writer(directory: str | Path) -> Iterator[None]:
    """Keep other runs out of an output directory, by a lock beside it that ends with this process.

    Where nothing may be written beside it, there is no lock. Raises: ValueError if another run has it."""
    place = Path(directory).resolve()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = place.with_name(f".{place.name}.lock")
            file = stack.enter_context(open(lock, "a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another run is writing to --output {directory}; wait for its end, or name another "
                                 "directory") from None
            stack.callback(lock.unlink, missing_ok=True)
        yield


def prepare_output(directory: str | Path, overwrite: bool) -> Path:
    """Make an output directory, emptied in place if `check_output` allows it. Call it once all inputs are read."""
    check_output(directory, overwrite)
    directory, real = Path(directory), Path(directory).resolve()
    try:
        real.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ValueError(f"--output {directory} cannot be made ({fault.strerror}); name another directory") from fault
    for path in sorted(real.iterdir(), key=lambda path: path.name == "config.json"):        # last: it says whose it is
        with contextlib.suppress(OSError):
            remove(path)
        if os.path.lexists(path):
            raise ValueError(f"--output {directory} cannot be emptied: {path} cannot be removed; name another "
                             "directory")
    return directory


def check_output(directory: str | Path, overwrite: bool, *read: str | Path) -> None:
    """Raise ValueError for a non-empty directory unless overwriting was asked for, and even then for one that holds
    anything that is not ours, or a place that is to be read. Changes nothing: commands call it before the slow work."""
    directory = Path(directory)
    if directory.is_file():
        raise ValueError(f"--output {directory} is a file; name a directory")
    place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        why = "is not writable" if place.is_dir() else "is not a folder"
        raise ValueError(f"--output {directory} cannot be made: {place} {why}; name another directory")
    if directory.is_dir() and any(directory.iterdir()):
        if not overwrite:
            raise ValueError(f"--output {directory} is not empty; add --overwrite to replace it, or name another")
        for place in read:
            if place and Path(place).exists() and Path(place).resolve().is_relative_to(directory.resolve()):
                raise ValueError(f"--output {directory} holds {place}, which this command reads; name another")
        if found := foreign(directory):
            what, remedy = ("files", "") if found == directory else (found, "move it elsewhere, or ")
            raise ValueError(f"--output {directory} holds {what} that no run of ours wrote; {remedy}name another "
                             "directory")
