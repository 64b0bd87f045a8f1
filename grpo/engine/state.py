"""The state of an interrupted run: everything that decides its next step, so that N + N steps equal 2 N to the bit.

    OUTPUT/state/step-00000120/    parameters.safetensors   what is trained: masters or adapters, value network
                                   exp_avg.safetensors ...  AdamW's state, one file for each kind, by parameter name
                                   generators.safetensors   torch's generators
                                   state.json               rates, schedule, counters, config, commit
                                   manifest.json            size and sha256 of every file: written last

A state is written under a `.tmp` name, synced and renamed, so a directory with a step's name is whole or was damaged
later; nothing in it is unpickled. The place in the data and the random numbers of sampling follow from the step.
Of several processes the first writes whole tensors, gathered one by one, and each reads its parts: the files have no
trace of the number of processes but a note, and any other number may go on from them.
Model directories, for use after training, are the business of grpo/engine/checkpoint.py.
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
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from grpo.engine.distributed import ALONE, World, part_like, whole
from grpo.engine.memory import gigabytes
from models.qwen2_vl import Qwen2VL
from models.value import ValueNetwork
from models.weights import sync

MANIFEST, STATE, PARAMETERS, GENERATORS = ("manifest.json", "state.json", "parameters.safetensors",
                                           "generators.safetensors")


@dataclass(frozen=True)
class Training:
    """What updates change."""

    policy: Qwen2VL
    value: ValueNetwork | None
    optimizer: Optimizer
    scheduler: LRScheduler

    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name; with LoRA these are the adapters alone."""
        modules = {"policy": self.policy, **({} if self.value is None else {"value": self.value})}
        return {f"{part}.{name}": parameter for part, module in modules.items()
                for name, parameter in module.named_parameters() if parameter.requires_grad}


@dataclass(frozen=True)
class Counters:
    """What a run remembers between two steps beside its tensors."""

    step: int = 0                     # steps done
    accuracy: float | None = None     # of the last validation
    best: float = -1.0                # of all validations
    skipped: int = 0                  # steps in a row with an update skipped
    seconds: float = 0.0              # spent on steps
    warned: tuple[str, ...] = ()      # metrics whose collapse was told


# ---------------------------------------------------------------- writing

def save_state(folder: str | Path, training: Training, about: Mapping[str, Any], step: int, keep: int,
               world: World = ALONE) -> Path:
    """Write FOLDER/step-N and remove all but the newest `keep` states; one that is there already is left alone.

    `about` is kept in state.json. All processes must call this; the first one writes.
    Raises: OSError, the earlier states being intact, saying what to free; with several processes CommonFault in all."""
    folder = Path(folder)
    final = folder / f"step-{step:08d}"
    fresh, safely = final.with_suffix(".tmp"), advising(folder, training, final)
    if world.largest(world.rank == 0 and final.is_dir()):
        return final
    world.first(safely(partial(begin, folder, fresh)))
    for name, tensors in tensors_of(training).items():
        held = whole_tensors(tensors, world)                 # one file at a time has to fit beside the model
        world.first(safely(partial(write_tensors, held, fresh / name)))
    world.first(safely(partial(finish, fresh, final, training, {"step": step, **about})))
    world.first(partial(remove_oldest, folder, keep))
    return final


@contextlib.contextmanager
def advising(folder: Path, training: Training, final: Path) -> Iterator[None]:
    """What fails in here leaves nothing half-written, and says what to free."""
    try:
        yield
    except (OSError, SafetensorError) as fault:
        shutil.rmtree(final.with_suffix(".tmp"), ignore_errors=True)
        raise OSError(advice(folder, training, final, fault)) from fault


def begin(folder: Path, fresh: Path) -> None:
    """An empty directory to write to."""
    remove_unfinished(folder)
    fresh.mkdir(parents=True)


def whole_tensors(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """All of these tensors on the CPU of process 0, nothing in the others, which must call this, too."""
    found = {}
    for name, tensor in tensors.items():
        tensor = whole(tensor.detach())
        if world.rank == 0:
            found[name] = tensor.cpu().contiguous()
    return found


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """One file of a state."""
    save_file(tensors, file)
    sync(file)


def finish(fresh: Path, final: Path, training: Training, about: Mapping[str, Any]) -> None:
    """What is no tensor, the manifest, and the name that makes a state of it."""
    rates = [{key: value for key, value in group.items() if key != "params"}
             for group in training.optimizer.param_groups]
    write_text(fresh / STATE, {**about, "rates": rates, "schedule": training.scheduler.state_dict(),
                               "generators": plain_generators()})
    write_text(fresh / MANIFEST, {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)}
                                  for path in sorted(fresh.iterdir())})
    sync(fresh)
    os.replace(fresh, final)
    sync(final.parent)


def tensors_of(training: Training) -> dict[str, dict[str, Tensor]]:
    """File name -> its tensors, in the same order in every process."""
    parameters, files = training.parameters(), {}
    for name, parameter in parameters.items():
        for kind, value in training.optimizer.state.get(parameter, {}).items():
            files.setdefault(f"{kind}.safetensors", {})[name] = value
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    generators = {"cpu": torch.get_rng_state(), **{f"cuda.{i}": state for i, state in enumerate(devices)}}
    return {PARAMETERS: parameters, **files, GENERATORS: generators}


def plain_generators() -> dict[str, Any]:
    """The generators of Python and numpy, for rewards and data that use them. Ours draw from tables instead."""
    kind, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [kind, keys.tolist(), *rest]}


def advice(folder: Path, training: Training, wanted: Path, fault: Exception) -> str:
    """What went wrong with a state, what is safe, and what to free."""
    states, place = list_states(folder), folder
    while not place.exists():
        place = place.parent
    kept = f"{states[-1]} is intact" if states else "there is no earlier state"
    return (f"{wanted} could not be written ({fault}); {kept}. A state takes {gigabytes(state_bytes(training))} and "
            f"{gigabytes(shutil.disk_usage(place).free)} are free at {place}: free some (old runs, other states in "
            f"{folder}), or give the directory back its permissions, then go on with --resume auto")


def state_bytes(training: Training) -> int:
    """Size of a state: the parameters and AdamW's two moments."""
    return 3 * sum(parameter.nbytes for parameter in training.parameters().values())


def write_text(file: Path, value: Any) -> None:  # noqa: ANN401
    """JSON, synced; floats come back as they were."""
    with open(file, "w", encoding="utf-8") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())


def digest(file: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


# ---------------------------------------------------------------- finding

def list_states(folder: str | Path) -> list[Path]:
    """The states of a run, oldest first; unfinished ones have another name."""
    return sorted(path for path in Path(folder).glob("step-*") if path.is_dir() and path.suffix == "")


def remove(state: Path) -> None:
    """Delete a state; a crash half-way leaves an unfinished one, not a damaged one."""
    doomed = state.with_suffix(".tmp")
    os.replace(state, doomed)
    shutil.rmtree(doomed)


def remove_oldest(folder: Path, keep: int) -> None:
    """All but the newest `keep` states go."""
    for state in list_states(folder)[:-keep]:
        remove(state)


def remove_unfinished(folder: Path) -> None:
    """What a killed process left half-written or half-removed."""
    for path in folder.glob("step-*.tmp"):
        shutil.rmtree(path)


def find_state(folder: str | Path, wanted: str) -> Path | None:
    """The state to go on from: the newest one for `auto` (None if there is none), or the one named.

    Raises: ValueError for a damaged one, naming the file and the whole one before it, which is used only when asked
    for by name; FileNotFoundError for a name that is no state of this run.
    """
    states = list_states(folder)
    if wanted == "auto":
        chosen = states[-1] if states else None
    else:
        chosen = next((state for state in states if state.resolve() == Path(wanted).resolve()), None)
        if chosen is None:
            raise FileNotFoundError(f"--resume {wanted} is no state of this run; {folder} has "
                                    f"{', '.join(state.name for state in states) or 'none'}")
    if chosen is None or not (fault := damage(chosen)):
        return chosen
    others = [state for state in states if state < chosen and not damage(state)]
    remedy = f"to go back to the one before it, say --resume {others[-1]}" if others else "no whole one is before it"
    raise ValueError(f"state {chosen} is damaged: {fault}; {remedy}")


def damage(directory: Path) -> str:
    """What is wrong with a state's files, "" if nothing is."""
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
            return f"{path.name} has another sha256 than its manifest says"
    return "" if {PARAMETERS, STATE, GENERATORS} <= set(files) else f"{MANIFEST} does not name all files"


def read_about(directory: Path) -> dict[str, Any]:
    """state.json."""
    return json.loads((directory / STATE).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- loading

@torch.no_grad()
def load_state(directory: str | Path, training: Training) -> None:
    """Put a state's numbers in the place of the present ones, in the same memory; of parts, the own ones.

    Raises: ValueError, before anything is changed, if the state holds other parameters than are trained."""
    directory, parameters = Path(directory), training.parameters()
    with safe_open(directory / PARAMETERS, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
        wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        if wrong := sorted(found.items() ^ wanted.items()):
            raise ValueError(f"{directory} does not hold what this run trains; {len(wrong)} parameters differ, first "
                             f"{wrong[0][0]}: resume with the run's own model and flags")
        for name, parameter in parameters.items():
            parameter.copy_(part_like(file.get_tensor(name), parameter))
    load_optimizer(directory, training)
    load_generators(directory)


def load_optimizer(directory: Path, training: Training) -> None:
    """Moments, step counts, rates and the place in the schedule."""
    about, parameters = read_about(directory), training.parameters()
    training.optimizer.state.clear()
    others = {PARAMETERS, GENERATORS}
    for path in sorted(directory.glob("*.safetensors")):
        for name, value in ({} if path.name in others else load_file(path)).items():
            parameter = parameters[name]
            training.optimizer.state[parameter][path.stem] = part_like(value, parameter).clone()
    for group, rates in zip(training.optimizer.param_groups, about["rates"], strict=True):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in rates.items()})
    training.scheduler.load_state_dict(about["schedule"])


def load_generators(directory: Path) -> None:
    """Torch's, numpy's and Python's generators; a CUDA device that was not there then keeps its own."""
    states, plain = load_file(directory / GENERATORS), read_about(directory)["generators"]
    torch.set_rng_state(states["cpu"])
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{device}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{device}"], device)
    version, keys, gauss = plain["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(plain["numpy"]))


# ---------------------------------------------------------------- going back

def forget_after(folder: str | Path, state: Path) -> list[Path]:
    """Remove the states newer than the one resumed: the steps they hold will be made again. -> those removed."""
    newer = [path for path in list_states(folder) if path > state]
    for path in newer:
        remove(path)
    return newer


def cut_back(file: str | Path, step: int) -> int:
    """Keep the lines of a .jsonl file up to `step`, so that each step stands in it once. -> lines dropped.

    A line torn by a crash is dropped as well, and all after it."""
    file = Path(file)
    if not file.is_file():
        return 0
    lines, kept = file.read_text(encoding="utf-8").splitlines(keepends=True), []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            break
        kept += [line] * (record["step"] <= step)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    sync(temporary)
    os.replace(temporary, file)
    return len(lines) - len(kept)


def last_records(file: str | Path, count: int) -> list[dict[str, Any]]:
    """The last lines of a .jsonl file that `cut_back` has looked at."""
    file = Path(file)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[-count:]] \
        if file.is_file() else []


# ---------------------------------------------------------------- the same run?

def check_same(state: Path, was: Mapping[str, Any], now: Mapping[str, Any], free: set[str]) -> None:
    """Raise ValueError where a state belongs to another run: other flags but the `free` ones, stage, model or data."""
    before, present = ({f"--{name.replace('_', '-')}": value for name, value in about["config"].items()
                        if name not in free} for about in (was, now))
    changed = [f"{name} was {value!r} and is {present[name]!r}" for name, value in before.items()
               if name in present and value != present[name]]
    if was["stage"] != now["stage"] or changed:
        raise ValueError(f"{state} belongs to another run: {'; '.join(changed) or '--stage was ' + was['stage']}. Give "
                         "its flags, or start a new run from its model")
    for name in ("model", "data"):
        if was[name] != now[name]:
            raise ValueError(f"{state} was written with another --{name}: its contents have changed since; put the old "
                             "ones back, or start a new run")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short sign of a model: names, shapes and the first numbers of every tensor."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
