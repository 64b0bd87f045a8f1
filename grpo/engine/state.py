"""The saved state of a run: everything its next step depends on, so that N + N steps equal 2 N steps to the bit.

    OUTPUT/state/step-00000120/    parameters.safetensors   trained parameters: weights or adapters, value network
                                   exp_avg.safetensors ...  AdamW's state, one file per kind, by parameter name
                                   generators.safetensors   torch's random generators
                                   state.json               learning rates, schedule, counters, config, commit
                                   manifest.json            size and sha256 of every file; written last

A state is written under a `.tmp` name, synced and renamed, so a directory named after a step is complete unless it was
damaged later. Nothing in it is unpickled. Data order and sampling noise follow from the step number.
With several processes rank 0 writes full tensors, gathered one by one, and each rank reads its shards: a state can be
resumed with any number of processes. grpo/engine/checkpoint.py writes model directories, for use after trained.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.engine.distributed import SINGLE, Distributed, full_tensor, shard_like
from grpo.engine.memory import gigabytes
from models.qwen2_vl import Qwen2VL
from models.value import ValueNetwork
from storage import replaced, save_file, sync, write_json

MANIFEST, STATE, PARAMETERS, GENERATORS = ("manifest.json", "state.json", "parameters.safetensors",
                                           "generators.safetensors")


@dataclass(frozen=True)
class Trained:
    """What an update changes."""

    policy: Qwen2VL
    value: ValueNetwork | None
    optimizer: Optimizer
    scheduler: LRScheduler

    def parameters(self) -> dict[str, Tensor]:
        """Trained parameters by name; with LoRA the adapters only."""
        modules = {"policy": self.policy, **({} if self.value is None else {"value": self.value})}
        return {f"{part}.{name}": parameter for part, module in modules.items()
                for name, parameter in module.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class LoopState:
    """What the training loop carries from step to step."""

    step: int = 0                     # steps done
    accuracy: float | None = None     # last validation
    best: float = -1.0                # best validation
    skipped: int = 0                  # consecutive steps with a skipped update
    seconds: float = 0.0              # spent in steps
    warned: tuple[str, ...] = ()      # metrics whose collapse was reported
    round_best: float = -1.0          # best validation when the current round of cloning began
    pending: dict | None = None       # record and groups of a step that is done but not yet validated and logged


class StateNotWritten(OSError):
    """A state could not be written; the message says what is intact and what to free."""


# ---------------------------------------------------------------- writing

def save_state(folder: str | Path, trained: Trained, about: Mapping[str, Any], step: int, keep: int,
               world: Distributed = SINGLE) -> Path:
    """Write FOLDER/step-N, unless it exists, and remove all but the newest `keep` states.

    `about` is stored in state.json. Collective: all ranks must call this; rank 0 writes.
    Raises: StateNotWritten that says what to free; earlier states stay intact. With several processes: RankError."""
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    fresh, safely = final.with_suffix(".tmp"), cleaning_up(folder, trained, final)
    if world.largest(world.rank == 0 and final.is_dir()):
        return final
    world.on_rank0(safely(partial(begin, folder, fresh)))
    for name, tensors in tensors_of(trained).items():
        held = full_tensors(tensors, world)                 # only one file's tensors at a time are in memory
        world.on_rank0(safely(partial(save_file, held, fresh / name)))
    world.on_rank0(safely(partial(finish, fresh, final, trained, {"step": step, **about})))
    world.on_rank0(partial(remove_oldest, folder, keep))
    return final


@contextlib.contextmanager
def cleaning_up(folder: Path, trained: Trained, final: Path) -> Iterator[None]:
    """If writing fails, remove what was written of this state and say what to free."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
        raise StateNotWritten(write_failure(folder, trained, final, fault)) from fault


def begin(folder: Path, fresh: Path) -> None:
    """Make an empty directory to write to."""
    remove_unfinished(folder)
    fresh.mkdir(parents=True)


def full_tensors(tensors: Mapping[str, Tensor], world: Distributed) -> dict[str, Tensor]:
    """These tensors, unsharded, on rank 0's CPU; nothing on other ranks. Collective."""
    found = {}
    for name, tensor in tensors.items():
        tensor = full_tensor(tensor.detach())
        if world.rank == 0:
            found[name] = tensor.cpu().contiguous()
    return found


def finish(fresh: Path, final: Path, trained: Trained, about: Mapping[str, Any]) -> None:
    """Write state.json and the manifest, then give the directory its final name."""
    rates = [{key: value for key, value in group.items() if key != "params"}
             for group in trained.optimizer.param_groups]
    write_json({**about, "rates": rates, "schedule": trained.scheduler.state_dict(),
                "generators": plain_generators()}, fresh / STATE)
    write_json({path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
                for path in sorted(fresh.iterdir())}, fresh / MANIFEST)
    sync(fresh)
    os.replace(fresh, final)
    sync(final.parent)


def tensors_of(trained: Trained) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors, in the same order on every rank."""
    parameters, files = trained.parameters(), {}
    for name, parameter in parameters.items():
        for kind, value in trained.optimizer.state.get(parameter, {}).items():
            files.setdefault(f"{kind}.safetensors", {})[name] = value
    return {PARAMETERS: parameters, **files, GENERATORS: generator_states()[0]}


def generator_states() -> tuple[dict[str, Tensor], tuple, tuple]:
    """States of torch's generators by device, Python's and numpy's, which a user's rewards or data may use."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = {"cpu": torch.get_rng_state(), **{f"cuda.{i}": state for i, state in enumerate(devices)}}
    return states, random.getstate(), np.random.get_state()


def set_generators(states: Mapping[str, Tensor], python: tuple, numpy: tuple) -> None:
    """Put generators back; a CUDA device that the states do not know keeps its own."""
    torch.set_rng_state(states["cpu"])
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{device}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{device}"], device)
    random.setstate(python)
    np.random.set_state(numpy)


def plain_generators() -> dict[str, Any]:
    """States of Python's and numpy's generators as JSON."""
    _, python, (kind, keys, *rest) = generator_states()
    return {"python": python, "numpy": [kind, keys.tolist(), *rest]}


def write_failure(folder: Path, trained: Trained, wanted: Path, fault: Exception) -> str:
    """Message for a state that could not be written: the fault, what is intact, what to free."""
    states = list_states(folder)
    kept = f"{states[-1]} is intact" if states else "there is no earlier state"
    remedy = "continue with --resume auto" if states else "start again with --overwrite"
    return (f"{wanted} could not be written ({fault}); {kept}. A state needs {gigabytes(state_bytes(trained))}; "
            f"{gigabytes(free_bytes(folder))} are free at {folder}. Free some space (old runs, other states "
            f"in {folder}) or restore write permission, then {remedy}")


def free_bytes(place: Path) -> int:
    """Free bytes on the disk of a directory, which need not exist yet."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def state_bytes(trained: Trained) -> int:
    """Size of a state: the parameters and AdamW's two moments."""
    return 3 * sum(parameter.nbytes for parameter in trained.parameters().values())


def digest(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# ---------------------------------------------------------------- finding

def list_states(folder: str | Path) -> list[Path]:
    """Complete states of a run, oldest first."""
    return sorted(path for path in Path(folder).glob("step-" + "[0-9]" * 8) if path.is_dir())


def remove(state: Path) -> None:
    """Delete a state; a crash in between leaves an unfinished state, not a damaged one."""
    doomed = state.with_suffix(".tmp")
    os.replace(state, doomed)
    shutil.rmtree(doomed)


def remove_oldest(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` states."""
    for state in list_states(folder)[:-keep]:
        remove(state)


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path)


def find_state(folder: str | Path, wanted: str) -> Path | None:
    """The state to continue from: the newest one for `auto` (None if there is none), or the one named.

    Raises: ValueError for a damaged state, naming the damaged file and the newest intact state before it, which is
    used only if asked for by name; FileNotFoundError if the name is not a state of this run.
    """
    states = list_states(folder)
    if wanted == "auto":
        chosen = states[-1] if states else None
    else:
        chosen = next((state for state in states if state.resolve() == Path(wanted).resolve()), None)
        if chosen is None:
            raise FileNotFoundError(f"--resume {wanted} is not a state of this run; {folder} has "
                                    f"{', '.join(state.name for state in states) or 'none'}")
    if chosen is None or not (fault := damage(chosen)):
        return chosen
    others = [state for state in states if state < chosen and not damage(state)]
    remedy = (f"to continue from the newest intact state before it, use --resume {others[-1]}" if others else
              "there is no intact state before it: start again with --overwrite and without --resume")
    raise ValueError(f"state {chosen} is damaged: {fault}; {remedy}")


def damage(directory: Path) -> str:
    """What is wrong with a state's files; "" if nothing."""
    try:
        files = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        named = {directory / name: (about["bytes"], about["sha256"]) for name, about in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        return f"{MANIFEST} cannot be read ({fault})"
    for path, (size, sha256) in named.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
        if digest(path) != sha256:
            return f"{path.name} has another sha256 than in the manifest"
    return "" if {PARAMETERS, STATE, GENERATORS} <= set(files) else f"{MANIFEST} does not name all files"


def read_about(directory: Path) -> dict[str, Any]:
    """state.json."""
    return json.loads((directory / STATE).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- loading

@torch.no_grad()
def load_state(directory: str | Path, trained: Trained) -> None:
    """Copy a state's numbers into the trained tensors in place; with shards, this rank's.

    Raises: ValueError, before anything is changed, if the state's parameters are not those of this run."""
    directory, parameters = Path(directory), trained.parameters()
    with safe_open(directory / PARAMETERS, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        if wrong := sorted(found.items() ^ wanted.items()):
            raise ValueError(f"{directory} does not match what this run trains: {len(wrong)} parameters differ, the "
                             f"first is {wrong[0][0]}. Resume with the model and flags that the state was written with")
        for name, parameter in parameters.items():
            parameter.copy_(shard_like(file.get_tensor(name), parameter))
    load_optimizer(directory, trained)
    load_generators(directory)


def load_optimizer(directory: Path, trained: Trained) -> None:
    """Load moments, step counts, learning rates and the position in the schedule."""
    about, parameters = read_about(directory), trained.parameters()
    trained.optimizer.state.clear()
    others = {PARAMETERS, GENERATORS}
    for path in sorted(directory.glob("*.safetensors")):
        for name, value in ({} if path.name in others else load_file(path)).items():
            parameter = parameters[name]
            trained.optimizer.state[parameter][path.stem] = shard_like(value, parameter).clone()
    for group, rates in zip(trained.optimizer.param_groups, about["rates"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in rates.items()})
    trained.scheduler.load_state_dict(about["schedule"])
    # the rate of the next step by this run's schedule: as saved, unless the number of steps has changed
    for group, factor in zip(trained.optimizer.param_groups, trained.scheduler.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * factor(trained.scheduler.last_epoch)


def load_generators(directory: Path) -> None:
    """Load torch's, Python's and numpy's generators."""
    plain = read_about(directory)["generators"]
    version, keys, gauss = plain["python"]
    set_generators(load_file(directory / GENERATORS), (version, tuple(keys), gauss), tuple(plain["numpy"]))


# ---------------------------------------------------------------- going back

def forget_after(folder: str | Path, state: Path) -> list[Path]:
    """Remove the states newer than the one resumed, because their steps will be repeated. -> those removed."""
    newer = [path for path in list_states(folder) if path > state]
    for path in newer:
        remove(path)
    return newer


def cut_back(file: str | Path, step: int) -> int:
    """Keep the lines of a .jsonl file up to `step`, so that each step appears once. -> number of lines dropped.

    A line torn by a crash, and everything after it, is dropped too."""
    file = Path(file)
    if not file.is_file():
        return 0
    lines, kept = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), []
    for line in lines:
        try:
            kept += [line] * (json.loads(line)["step"] <= step)
        except (ValueError, KeyError, TypeError):
            break
    with replaced(file) as stream:
        stream.writelines(kept)
    return len(lines) - len(kept)


def last_records(file: str | Path, count: int) -> list[dict[str, Any]]:
    """The last records of a .jsonl file that `cut_back` has checked."""
    file = Path(file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[-count:]] \
        if file.is_file() else []


# ---------------------------------------------------------------- the same run?

def check_same(state: Path, was: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> None:
    """Raise ValueError if the stage, the model, the data or a flag that is not `free` differs from the saved run's."""
    # states written before there was --balance do not name it
    before, present = ({f"--{name.replace('_', '-')}": value
                        for name, value in {"balance": False, **about["config"]}.items() if name not in free}
                       for about in (was, now))
    changed = [f"{name} was {value!r} and is {present[name]!r}" for name, value in before.items()
               if name in present and value != present[name]]
    if was["stage"] != now["stage"]:
        changed = [f"--stage was {was['stage']} and is {now['stage']}"]         # whose flags differ too
    if changed:
        raise ValueError(f"{state} belongs to another run: {'; '.join(changed)}. Use "
                         "the saved run's flags, or start a new run from its model with another --output")
    before, present = (", ".join(about.get("rewards", ["planning"])) for about in (was, now))
    if before != present:
        raise ValueError(f"{state} was written with --reward {before}; this is {present}. Restore its file, or start a "
                         "new run from its model with another --output")
    if was.get("actions") != now.get("actions"):
        raise ValueError(f"{state} was written with other lists of actions; restore the file of --actions, or start a "
                         "new run from its model with another --output")
    for name in ("model", "data", "val-data"):              # older states do not name the last one
        if was.get(name, now.get(name)) != now.get(name):
            raise ValueError(f"{state} was written with another --{name}, or its contents have changed since; restore "
                             "them, or start a new run with another --output")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of a model: names, shapes and the first numbers of every tensor."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
