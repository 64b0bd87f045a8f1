"""The loop around the steps: logs, validation, the best model, saved states, and a clean end.

    follow   step -> metrics -> validation, best model -> log -> warnings -> state -> asked to stop?
    restore  the state of an interrupted run -> continue as if it had not been interrupted

What a step does is up to an iterator made by grpo/engine/stages.py. With several processes rank 0 writes, and an error
on any rank is raised on all (`Distributed.on_all`). docs/reliability.md lists what happens when.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from grpo.engine.checkpoint import save_policy
from grpo.engine.distributed import RankError, copy_to_save, local_shard
from grpo.engine.flags import SFTFlags
from grpo.engine.guards import TIME_IS_UP, WINDOW, Stopped, collapsed
from grpo.engine.memory import gigabytes
from grpo.engine.progress import Progress
from grpo.engine.run import Run
from grpo.engine.state import (
    LoopState,
    Trained,
    check_same,
    cut_back,
    forget_after,
    last_records,
    load_state,
    read_about,
    save_state,
    state_bytes,
)
from models.qwen2_vl import Qwen2VL
from storage import append_json, sync

# A step's metrics, some of its groups as records, and a function that saves its batch for inspection
Step = tuple[dict, list, Callable[[], None]]
LOGS = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")      # cut back to the step of the resumed state
# Flags that may differ when a run is resumed: places, and how a step is computed, but not what it computes
FREE = {"model", "data", "output", "overwrite", "preset", "resume", "save_every", "keep", "max_time", "on_bad_data",
        "device", "threads", "decode", "micro_batch_tokens", "gradient_checkpointing", "feature_cache_mb",
        "eval_batch", "max_skipped", "samples_every", "image_root"}


# ---------------------------------------------------------------- steps

def follow(run: Run, trained: Trained, steps: Iterator[Step], state: LoopState, total: int,
           validate: Callable[[], float]) -> LoopState:
    """Run the steps up to number `total`; write metrics, samples, states and the best model. -> the loop state then.

    An error in between saves the model and the state. With several processes this needs every rank's shards, so it
    happens only for errors that all ranks know of. Raises: Stopped if the run was asked to stop.
    """
    config, progress = run.config, Progress("step", total, state.step)
    recent = last_records(run.output / "metrics.jsonl", WINDOW)
    while state.step < total:
        before = time.monotonic()
        try:
            metrics, groups, keep_batch = next(steps)
        except (ValueError, OSError, KeyboardInterrupt) as fault:
            if run.world.size == 1 or isinstance(fault, RankError):
                leave(run, trained, state)
            raise
        if metrics["skipped"]:
            run.world.on_rank0(keep_batch)
        state, record = finish_step(run, state, metrics, time.monotonic() - before, total, validate)
        run.world.on_rank0(partial(report_step, run, progress, state.step, record, groups))
        recent = [*recent, record][-WINDOW:]
        state = warn_of_collapse(recent, state)
        if state.skipped >= config.max_skipped:
            raise FloatingPointError(f"{state.skipped} steps in a row had a non-finite loss or gradient (last loss "
                                     f"{metrics['loss']}); lower --learning-rate, or use --precision fp32; the batches "
                                     f"are saved in {run.output / 'bad-batches'}")
        if config.save_every and (state.step % config.save_every == 0 or state.step == total):
            hold(run, trained, state)
        if state.step < total:
            check_stop(run, trained, state, time.monotonic() - before)
    score = "" if state.accuracy is None else f": validation {state.best:.3f}"
    print(f"best model in {run.output / 'model'}{score}", flush=True)
    return state


def finish_step(run: Run, state: LoopState, metrics: dict, seconds: float, total: int,
               validate: Callable[[], float]) -> tuple[LoopState, dict]:
    """Validate and save the best model if due. -> the new loop state and the record of the step just done."""
    step, config, accuracy, best = state.step + 1, run.config, state.accuracy, state.best
    record = {"step": step, **metrics, "seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
    if run.validation and (step == total or (config.eval_every and step % config.eval_every == 0)):
        accuracy = record["val_accuracy"] = validate()
        if accuracy > best:
            best = accuracy
            save(run, step, accuracy)
    elif step == total:
        save(run, step, None)
    skipped = state.skipped + 1 if metrics["skipped"] else 0
    return replace(state, step=step, accuracy=accuracy, best=best, skipped=skipped,
                   seconds=state.seconds + seconds), record


def warn_of_collapse(recent: list[dict], state: LoopState) -> LoopState:
    """Print, once per metric, that it indicates a collapse, and what that means."""
    found = collapsed(recent)
    for name in found.keys() - set(state.warned):
        print(f"warning: step {state.step}: {found[name]}", flush=True)
    return replace(state, warned=tuple(sorted({*state.warned, *found})))


def report_step(run: Run, progress: Progress, step: int, record: dict, groups: list[dict]) -> None:
    """Write the logs and the progress line."""
    write_step(run, step, record, groups)
    progress.show(step, **headline(record))


def write_step(run: Run, step: int, record: dict, groups: list[dict]) -> None:
    """Append one line of metrics and, every --samples-every steps, some of rank 0's groups."""
    append_json(run.output / "metrics.jsonl", record)
    if groups and (step % run.config.samples_every == 0 or step == 1):
        append_json(run.output / "samples.jsonl", *({"step": step, **group} for group in groups[:4]))


def headline(record: dict) -> dict[str, float]:
    """The numbers of the progress line."""
    shown = {"loss": "loss", "reward": "reward", "reward_accuracy": "accuracy", "kl": "kl", "entropy": "entropy",
             "val_accuracy": "val", "tokens_per_second": "tok/s"}
    return {short: record[name] for name, short in shown.items() if record.get(name) is not None}


# ---------------------------------------------------------------- stopping

def check_stop(run: Run, trained: Trained, state: LoopState, seconds: float = 0.0) -> None:
    """Save and raise Stopped if a signal came or --max-time does not allow another step.

    All ranks stop if one has to."""
    if code := int(run.world.largest(run.stop.code(seconds))):
        leave(run, trained, state)
        why = "time is up" if code == TIME_IS_UP else "stopped"
        raise Stopped(f"{why} after step {state.step}: continue with the same command and --resume auto", code)


def leave(run: Run, trained: Trained, state: LoopState) -> None:
    """Save before the run ends early: the state, and the model unless validation has saved a better one. Collective."""
    if state.step == 0:
        return
    if state.best < 0:
        save(run, state.step, None)
        print(f"stopped after step {state.step}; the model is in {run.output / 'model'}", flush=True)
    hold(run, trained, state)


def hold(run: Run, trained: Trained, state: LoopState) -> None:
    """Write the state of the run. Raises: FloatingPointError instead of saving weights that are not finite."""
    run.world.on_all(lambda: require_finite(run.policy, state.step))
    run.world.on_rank0(lambda: sync_logs(run.output))          # the steps before this state are on disk too
    about = {**run.about, "processes": run.world.size, "counters": dataclasses.asdict(state)}
    save_state(run.output / "state", trained, about, state.step, run.config.keep, run.world)


def sync_logs(output: Path) -> None:
    """Flush the logs to disk."""
    for name in LOGS:
        if (output / name).exists():
            sync(output / name)


# ---------------------------------------------------------------- the model

def save(run: Run, step: int, accuracy: float | None) -> None:
    """Write OUTPUT/model. Raises: FloatingPointError instead of replacing a good model by one that is not finite."""
    policy = run.policy if run.world.size == 1 else copy_to_save(run.policy, run.world)
    run.world.on_rank0(lambda: write_model(run, policy, step, accuracy))           # policy is None on other ranks


def write_model(run: Run, policy: Qwen2VL, step: int, accuracy: float | None) -> None:
    """Replace OUTPUT/model."""
    require_finite(policy, step)
    about = {"stage": "sft" if isinstance(run.config, SFTFlags) else "grpo", "step": step, "val_accuracy": accuracy,
             "reward_mode": getattr(run.config, "reward_mode", None), "seed": run.config.seed}
    save_policy(policy, run.processor, run.settings, about, run.output / "model")


def require_finite(policy: Qwen2VL, step: int) -> None:
    """Raise FloatingPointError if a weight, of this rank's shards, is not finite."""
    if not all(torch.isfinite(local_shard(parameter)).all() for parameter in policy.parameters()):
        raise FloatingPointError(f"step {step}: the weights are not finite; models and states saved earlier are kept; "
                                 "lower --learning-rate")


# ---------------------------------------------------------------- resuming

def restore(run: Run, trained: Trained) -> LoopState:
    """Load the state to resume, if any. -> the loop state at that step."""
    if run.resume is None:
        run.world.on_rank0(lambda: warn_of_room(run, trained))
        return LoopState()
    about = read_about(run.resume)
    check_same(run.resume, about, run.about, FREE)
    run.world.on_all(lambda: load_state(run.resume, trained))
    run.world.on_rank0(lambda: go_back(run, about["step"]))
    now = {**run.about, "processes": run.world.size}
    for name, value in {"processes": 1, **about}.items():    # older states do not name it
        if name in ("commit", "torch", "processes") and value != now[name]:
            print(f"note: the state was written by {name} {value}, this is {now[name]}: results may differ", flush=True)
    return LoopState(**{**about["counters"], "warned": tuple(about["counters"]["warned"])})


def go_back(run: Run, step: int) -> None:
    """Cut the logs back to the step of the resumed state, so that each step appears once; remove later states."""
    dropped = sum(cut_back(run.output / name, step) for name in LOGS)
    removed = forget_after(run.output / "state", run.resume)
    print(f"resumed after step {step} from {run.resume}; {dropped} later log lines dropped"
          + "".join(f"; {path} removed" for path in removed), flush=True)


def warn_of_room(run: Run, trained: Trained) -> None:
    """Warn before the first step if the states will not fit on the disk."""
    needed, free = (run.config.keep + 1) * state_bytes(trained), shutil.disk_usage(run.output).free
    if run.config.save_every and needed > free:
        print(f"warning: {run.config.keep} states and the one being written need {gigabytes(needed)}, "
              f"{gigabytes(free)} are free at {run.output}: lower --keep or free some space", flush=True)
