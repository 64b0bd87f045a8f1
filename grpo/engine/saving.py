"""What a run leaves on disk: the model, the state, and what an error in a step allows to save.

An error before the step's first optimizer update leaves the weights of the last whole step: they are saved, with the
random generators as they were after that step. After the update has begun, only an earlier saved state is consistent.
As long as there is none, a small run copies what each update is about to change, and a failed update is undone.
"""

import contextlib
import dataclasses
import gc
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from grpo.engine.checkpoint import save_adapter_policy
from grpo.engine.distributed import RankError, copy_to_save, full_tensor, local_shard
from grpo.engine.guards import mute_closed_streams
from grpo.engine.memory import gigabytes
from grpo.engine.run import Run
from grpo.engine.state import (
    LoopState,
    StateNotWritten,
    Trained,
    free_bytes,
    generator_states,
    list_states,
    save_state,
    set_generators,
    state_bytes,
)
from models.adapters import adapter_tensors
from models.lora import plain_tensors
from models.qwen2_vl import Qwen2VL
from storage import sync, write_json

LOGS = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")
# a run ends with any error; what stands for SIGKILL in the tests is neither of these
FAULTS = (Exception, KeyboardInterrupt, SystemExit)
# errors that a second attempt to save may meet
SAVING_FAULTS = (OSError, ValueError, RuntimeError, ArithmeticError, MemoryError, SafetensorError)


SMALL = 256 * 2**20             # bytes of a state that may be copied before an update


class UpdateWatch:
    """Whether an update has begun since the last whole step, and what is needed to go back to that step."""

    def __init__(self, run: Run, trained: Trained) -> None:
        self.trained, self.states = trained, run.output / "state"
        self.copies = run.world.size == 1 and state_bytes(trained) <= SMALL
        self.step_is_whole()
        self.hook = trained.optimizer.register_step_pre_hook(self.note_update)

    def note_update(self, *_: Any) -> None:  # noqa: ANN401
        """The optimizer's hook."""
        if not self.begun and self.copies and not list_states(self.states):
            self.before = copied(self.trained)
        self.begun = True

    def step_is_whole(self) -> None:
        """Call this after each step."""
        self.begun, self.before, self.generators = False, None, generator_states()

    @torch.no_grad()
    def undo(self) -> None:
        """Put back what the update has changed, if it was copied."""
        if self.before is None:
            return
        weights, moments, rates, schedule = self.before
        optimizer = self.trained.optimizer
        for parameter, value in weights.items():
            parameter.copy_(value)
        for parameter in list(optimizer.state):
            if parameter not in moments:
                del optimizer.state[parameter]              # made by the failed update
            for kind, value in moments.get(parameter, {}).items():
                optimizer.state[parameter][kind].copy_(value)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.trained.scheduler.load_state_dict(schedule)
        self.begun = False


def copied(trained: Trained) -> tuple[dict, dict, list[float], dict]:
    """Copies on the CPU of all that an update changes: weights, moments, learning rates, the place in the schedule."""
    def copy(value: Tensor) -> Tensor:
        return value.detach().to("cpu", copy=True)

    weights = {parameter: copy(parameter) for parameter in trained.parameters().values()}
    moments = {parameter: {kind: copy(value) for kind, value in state.items()}
               for parameter, state in trained.optimizer.state.items()}
    return weights, moments, [group["lr"] for group in trained.optimizer.param_groups], trained.scheduler.state_dict()


# ---------------------------------------------------------------- the model

def write_config(run: Run) -> None:
    """Write config.json: every resolved setting and the planned number of steps."""
    named = {name: run.about[name] for name in ("actions",) if name in run.about}       # the lists, not their file
    write_json({"stage": run.about["stage"], **dataclasses.asdict(run.config), **named, "torch": torch.__version__,
                "processes": run.world.size, "planned_steps": run.about["steps"]}, run.output / "config.json")


def save(run: Run, step: int, accuracy: float | None) -> None:
    """Write OUTPUT/model. Raises: FloatingPointError instead of replacing a good model by one that is not finite."""
    policy = run.policy if run.world.size == 1 else copy_to_save(run.policy, run.world, run.unsharded)
    # none beside --adapter or for a new model: its base would be no directory
    based = not run.config.adapter and run.config.model != "tiny"
    adapter = adapter_tensors(run.policy, full_tensor) if based else {}
    run.world.on_rank0(lambda: write_model(run, policy, adapter, step, accuracy))       # policy is None on other ranks


def write_model(run: Run, policy: Qwen2VL, adapter: dict[str, Tensor], step: int, accuracy: float | None) -> None:
    """Replace OUTPUT/model, and OUTPUT/adapter if there is one.

    Raises: OSError that says what to free; the earlier model stays."""
    require_finite(dict(policy.named_parameters()), step)
    about = {"stage": run.about["stage"], "step": step, "val_accuracy": accuracy,
             "reward_mode": getattr(run.config, "reward_mode", None), "seed": run.config.seed}
    if "rewards" in run.about:
        about["rewards"] = run.about["rewards"]
    with naming_what_to_free(run.output / "model", model_bytes(policy)) as directory:
        run.write(policy, about, directory)
    if adapter:
        size = sum(tensor.nbytes for tensor in adapter.values())
        with naming_what_to_free(run.output / "adapter", size) as directory:
            save_adapter_policy(adapter, (run.config.lora_rank, run.config.lora_alpha), run.config.model, run.processor,
                                run.settings, about, directory)


@contextlib.contextmanager
def naming_what_to_free(directory: Path, size: int) -> Iterator[Path]:
    """An error while OUTPUT/model or OUTPUT/adapter is written says what is kept, and how much room it needs."""
    try:
        yield directory
    except (OSError, SafetensorError) as fault:
        kept = "the earlier one is intact" if directory.is_dir() else "there is no earlier one"
        raise OSError(f"{directory} could not be written ({fault}); {kept}. It needs {gigabytes(size)}; "
                      f"{gigabytes(free_bytes(directory))} are free at {directory.parent}. Free some space (old runs, "
                      "states) or raise the limit on file sizes") from fault


def model_bytes(policy: Qwen2VL) -> int:
    """Size of a saved model, adapters merged."""
    return sum(tensor.nbytes for tensor in plain_tensors(policy).values())


def require_finite(parameters: Mapping[str, Tensor], step: int) -> None:
    """Raise FloatingPointError if a weight, of this rank's shards, is not finite. A value network's are `value.*`."""
    for name, parameter in parameters.items():
        if not torch.isfinite(local_shard(parameter)).all():
            flag = "--value-learning-rate" if name.startswith("value.") else "--learning-rate"
            raise FloatingPointError(f"step {step}: the weights are not finite, the first in {name}; models and states "
                                     f"saved earlier are kept; lower {flag}")


# ---------------------------------------------------------------- the state

def hold(run: Run, trained: Trained, state: LoopState) -> None:
    """Write the state of the run. Raises: FloatingPointError instead of saving weights that are not finite."""
    run.world.on_all(lambda: require_finite(trained.parameters(), state.step))
    write_state(run, trained, state)


def write_state(run: Run, trained: Trained, state: LoopState) -> None:
    """Write the state of weights that are finite. Raises: StateNotWritten."""
    run.world.on_rank0(lambda: sync_logs(run.output))       # the lines of these steps must not be newer than the state
    about = {**run.about, "processes": run.world.size, "counters": dataclasses.asdict(state)}
    save_state(run.output / "state", trained, about, state.step, run.config.keep, run.world)


def sync_logs(output: Path) -> None:
    """Flush the logs to disk."""
    for name in LOGS:
        if (output / name).exists():
            sync(output / name)


def leave(run: Run, trained: Trained, state: LoopState, model: bool = True) -> None:
    """Save before the run ends early: the state, and the model unless validation has saved a better one. Collective."""
    if state.step == 0:
        return
    hold(run, trained, state)
    if model and state.best < 0:
        save(run, state.step, None)
        print(f"stopped after step {state.step}; the model is in {run.output / 'model'}", flush=True)


# ---------------------------------------------------------------- after an error

def rescue(run: Run, trained: Trained, state: LoopState, watch: UpdateWatch, fault: BaseException) -> None:
    """Save the last whole step after an error if it is still in memory; print what is kept and what is lost.

    With several processes saving needs every rank, so it happens only for errors that all ranks know of."""
    mute_closed_streams()
    if isinstance(fault, StateNotWritten) or state.step == 0:
        return                                              # its message says what is kept
    watch.undo()
    if watch.begun or (run.world.size > 1 and not isinstance(fault, RankError)):
        print(lost(run, state, watch), file=sys.stderr, flush=True)
        return
    free_memory(trained, fault)
    set_generators(*watch.generators)
    try:
        leave(run, trained, state, model=not state.pending)
        print(f"the state after step {state.step} is saved: continue with the same command and --resume auto",
              flush=True)
    except SAVING_FAULTS as second:
        print(f"the state could not be saved either: {second}\n{lost(run, state, watch)}", file=sys.stderr, flush=True)


def lost(run: Run, state: LoopState, watch: UpdateWatch) -> str:
    """Which state counts, and how many steps are lost."""
    why = f"step {state.step + 1} failed within its update, so its weights are not saved; " if watch.begun else ""
    states = list_states(run.output / "state")
    if not states:
        return (f"{why}no state was saved: {state.step} steps are lost; start again with --overwrite (--save-every and "
                "--save-minutes limit such a loss)")
    newest = int(states[-1].name.removeprefix("step-"))
    return (f"{why}the newest state is {states[-1]}: {state.step - newest} steps are lost; continue with the same "
            "command and --resume auto")


def free_memory(trained: Trained, fault: BaseException) -> None:
    """Release gradients, caches, and the activations that the error's stack frames hold."""
    while fault is not None:
        traceback.clear_frames(fault.__traceback__)
        fault = fault.__context__
    trained.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):             # after a fault of the device every call fails
            torch.cuda.empty_cache()


# ---------------------------------------------------------------- room on the disk

def print_disk_plan(run: Run, trained: Trained) -> None:
    """Print what states and model will need; warn if the disk has less."""
    config, state, model = run.config, state_bytes(trained), model_bytes(run.policy)
    periodic = config.save_every or config.save_minutes
    states = config.keep + 1 if periodic else 1
    needed, free = states * state + 2 * model, shutil.disk_usage(run.output).free
    print(f"disk plan: {gigabytes(needed)} = {states} x state {gigabytes(state)} + 2 x model {gigabytes(model)} (the "
          f"second ones during a save); {gigabytes(free)} are free at {run.output}", flush=True)
    if needed > free:
        what = f"{config.keep} states and the one being written" if periodic else "a state"
        print(f"warning: {what} need {gigabytes(states * state)}, the model {gigabytes(2 * model)}, but "
              f"{gigabytes(free)} are free at {run.output}: lower --keep or free some space", flush=True)
