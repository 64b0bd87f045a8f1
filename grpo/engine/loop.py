"""The loop around the steps: it logs, keeps the best model and the states, and ends a run in good order.

    follow   step -> metrics -> validation, best model -> log -> warnings -> state -> told to stop?
    restore  the state of an interrupted run -> go on as if nothing had happened

It knows nothing of what a step does: that is an iterator made by train.py. Of several processes the first writes, and
a fault in any is told to all (`World.together`). docs/reliability.md says what happens when.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from data.example import Example
from grpo.config import GRPOConfig, SFTConfig
from grpo.engine.checkpoint import save_policy
from grpo.engine.distributed import ALONE, CommonFault, World, copy_to_save, own_part
from grpo.engine.features import FeatureCache
from grpo.engine.guards import TIME_IS_UP, WINDOW, Stop, Stopped, collapsed, finite
from grpo.engine.memory import gigabytes
from grpo.engine.progress import Progress
from grpo.engine.prompts import PromptSettings, encode_example
from grpo.engine.state import (
    Counters,
    Training,
    check_same,
    cut_back,
    forget_after,
    last_records,
    load_state,
    read_about,
    save_state,
    state_bytes,
    sync,
)
from models.precision import compute_dtype
from models.processor import Processor
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL

# A step's metrics, some of its groups as records, and what keeps its batch for inspection
Step = tuple[dict, list, Callable[[], None]]
LOGS = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")      # cut back to the step of the state resumed
# What may differ when a run is resumed: places, and how a step is computed, but not what it computes
FREE = {"model", "data", "output", "overwrite", "preset", "resume", "save_every", "keep", "max_time", "on_bad_data",
        "device", "threads", "decode", "micro_batch_tokens", "gradient_checkpointing", "feature_cache_mb",
        "eval_batch", "max_skipped", "samples_every", "image_root"}


@dataclass(frozen=True)
class Run:
    """Everything a stage works on."""

    config: SFTConfig | GRPOConfig
    policy: Qwen2VL
    processor: Processor
    settings: PromptSettings
    open_image: Callable[[Example], Image]
    examples: list[Example]
    validation: list[Example]
    output: Path
    features: FeatureCache | None = None    # with a frozen vision tower
    about: dict[str, Any] = field(default_factory=dict)     # stage, config, signs of model and data: kept in states
    resume: Path | None = None              # the state to go on from
    stop: Stop = field(default_factory=Stop)
    world: World = ALONE
    left_out: tuple[str, ...] = ()          # faults of what was left out before the first step

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that layers compute in, if it is not that of their weights."""
        return compute_dtype(self.policy.head_weight.device.type, self.config.precision)

    def with_features(self, names: list[str], prompts: list[Prompt]) -> list[Prompt]:
        """The prompts of these examples with their pictures' features, where those never change."""
        return prompts if self.features is None else self.features(names, prompts)

    def encode(self, example: Example) -> Prompt:
        """Open an example's picture and encode its prompt."""
        return encode_example(example, self.open_image(example), self.processor, self.policy.config, self.settings)


# ---------------------------------------------------------------- a step after the other

def follow(run: Run, training: Training, steps: Iterator[Step], counters: Counters, total: int,
           validate: Callable[[], float]) -> Counters:
    """Run the steps up to number `total`; write metrics, samples, states and the best model. -> the counters then.

    A fault half-way saves what there is; of several processes all must know of it, as they do of one in the data: the
    weights of all are needed. Raises: Stopped when the run was asked to end.
    """
    config, progress = run.config, Progress("step", total, counters.step)
    recent = last_records(run.output / "metrics.jsonl", WINDOW)
    while counters.step < total:
        before = time.monotonic()
        try:
            metrics, groups, keep_batch = next(steps)
        except (ValueError, OSError, KeyboardInterrupt) as fault:
            if run.world.size == 1 or isinstance(fault, CommonFault):
                leave(run, training, counters)
            raise
        if metrics["skipped"]:
            run.world.first(keep_batch)
        counters, record = count_step(run, counters, metrics, time.monotonic() - before, total, validate)
        run.world.first(partial(report_step, run, progress, counters.step, record, groups))
        recent = [*recent, record][-WINDOW:]
        counters = warn_of_collapse(recent, counters)
        if counters.skipped >= config.max_skipped:
            raise FloatingPointError(f"{counters.skipped} steps in a row had a non-finite loss or gradient (last "
                                     f"loss {metrics['loss']}); lower --learning-rate, or use --precision fp32; the "
                                     f"batches are in {run.output / 'bad-batches'}")
        if config.save_every and (counters.step % config.save_every == 0 or counters.step == total):
            hold(run, training, counters)
        if counters.step < total:
            check_stop(run, training, counters, time.monotonic() - before)
    score = "" if counters.accuracy is None else f": validation {counters.best:.3f}"
    print(f"best model in {run.output / 'model'}{score}", flush=True)
    return counters


def count_step(run: Run, counters: Counters, metrics: dict, seconds: float, total: int,
               validate: Callable[[], float]) -> tuple[Counters, dict]:
    """Validate and save the best model, if it is time to. -> the counters and the record of the step just made."""
    step, config, accuracy, best = counters.step + 1, run.config, counters.accuracy, counters.best
    record = {"step": step, **metrics, "seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
    if run.validation and (step == total or (config.eval_every and step % config.eval_every == 0)):
        accuracy = record["val_accuracy"] = validate()
        if accuracy > best:
            best = accuracy
            save(run, step, accuracy)
    elif step == total:
        save(run, step, None)
    skipped = counters.skipped + 1 if metrics["skipped"] else 0
    return replace(counters, step=step, accuracy=accuracy, best=best, skipped=skipped,
                   seconds=counters.seconds + seconds), record


def warn_of_collapse(recent: list[dict], counters: Counters) -> Counters:
    """Say once for each metric that it shows a collapse, and what that means."""
    found = collapsed(recent)
    for name in found.keys() - set(counters.warned):
        print(f"warning: step {counters.step}: {found[name]}", flush=True)
    return replace(counters, warned=tuple(sorted({*counters.warned, *found})))


def report_step(run: Run, progress: Progress, step: int, record: dict, groups: list[dict]) -> None:
    """The logs and the progress line."""
    write_step(run, step, record, groups)
    progress.show(step, **headline(record))


def write_step(run: Run, step: int, record: dict, groups: list[dict]) -> None:
    """One line of metrics, and now and then some groups of samples, those of process 0."""
    append_json(run.output / "metrics.jsonl", record)
    if groups and (step % run.config.samples_every == 0 or step == 1):
        append_json(run.output / "samples.jsonl", *({"step": step, **group} for group in groups[:4]))


def headline(record: dict) -> dict[str, float]:
    """The numbers of the progress line."""
    shown = {"loss": "loss", "reward": "reward", "reward_accuracy": "accuracy", "kl": "kl", "entropy": "entropy",
             "val_accuracy": "val", "tokens_per_second": "tok/s"}
    return {short: record[name] for name, short in shown.items() if record.get(name) is not None}


def append_json(file: Path, *records: dict) -> None:
    """Add one line per record; a number that is not finite becomes null, which JSON can say."""
    with open(file, "a") as stream:
        stream.writelines(json.dumps(finite(record), allow_nan=False) + "\n" for record in records)


# ---------------------------------------------------------------- stopping

def check_stop(run: Run, training: Training, counters: Counters, seconds: float = 0.0) -> None:
    """Save and raise Stopped if a signal came or the time allowed would not last for another such step.

    All processes stop if one has to."""
    if code := int(run.world.largest(run.stop.code(seconds))):
        leave(run, training, counters)
        why = "time is up" if code == TIME_IS_UP else "stopped"
        raise Stopped(f"{why} after step {counters.step}: go on with the same command and --resume auto", code)


def leave(run: Run, training: Training, counters: Counters) -> None:
    """Save what there is before the run ends early: the state, and the model unless validation has saved a better.

    Several processes must all have come here."""
    if counters.step == 0:
        return
    if counters.best < 0:
        save(run, counters.step, None)
        print(f"stopped after step {counters.step}; the model is in {run.output / 'model'}", flush=True)
    hold(run, training, counters)


def hold(run: Run, training: Training, counters: Counters) -> None:
    """Write the state of the run as it is now. Raises: FloatingPointError rather than keep broken weights."""
    run.world.together(lambda: require_finite(run.policy, counters.step))
    run.world.first(lambda: sync_logs(run.output))          # what the state says was logged is on disk
    about = {**run.about, "processes": run.world.size, "counters": dataclasses.asdict(counters)}
    save_state(run.output / "state", training, about, counters.step, run.config.keep, run.world)


def sync_logs(output: Path) -> None:
    """Have the logs written to disk."""
    for name in LOGS:
        if (output / name).exists():
            sync(output / name)


# ---------------------------------------------------------------- the model

def save(run: Run, step: int, accuracy: float | None) -> None:
    """Write OUTPUT/model. Raises: FloatingPointError rather than put broken weights in the place of good ones."""
    policy = run.policy if run.world.size == 1 else copy_to_save(run.policy, run.world)
    run.world.first(lambda: write_model(run, policy, step, accuracy))           # policy is None in the others


def write_model(run: Run, policy: Qwen2VL, step: int, accuracy: float | None) -> None:
    """OUTPUT/model, whole or not at all."""
    require_finite(policy, step)
    about = {"stage": "sft" if isinstance(run.config, SFTConfig) else "grpo", "step": step, "val_accuracy": accuracy,
             "reward_mode": getattr(run.config, "reward_mode", None), "seed": run.config.seed}
    save_policy(policy, run.processor, run.settings, about, run.output / "model")


def require_finite(policy: Qwen2VL, step: int) -> None:
    """Raise FloatingPointError if training has broken the weights, of which only the own part is looked at."""
    if not all(torch.isfinite(own_part(parameter)).all() for parameter in policy.parameters()):
        raise FloatingPointError(f"step {step}: the weights are not finite; the model and the states saved before, if "
                                 "any, are kept; lower --learning-rate")


# ---------------------------------------------------------------- going on

def restore(run: Run, training: Training) -> Counters:
    """Load the state to be resumed, if any. -> what the run remembers at that step."""
    if run.resume is None:
        run.world.first(lambda: warn_of_room(run, training))
        return Counters()
    about = read_about(run.resume)
    check_same(run.resume, about, run.about, FREE)
    run.world.together(lambda: load_state(run.resume, training))
    run.world.first(lambda: go_back(run, about["step"]))
    now = {**run.about, "processes": run.world.size}
    for name, value in {"processes": 1, **about}.items():    # states once had no note of their processes
        if name in ("commit", "torch", "processes") and value != now[name]:
            print(f"note: the state was written by {name} {value}, this is {now[name]}: results may differ", flush=True)
    return Counters(**{**about["counters"], "warned": tuple(about["counters"]["warned"])})


def go_back(run: Run, step: int) -> None:
    """Cut the logs back to the step of the state resumed, so that each step stands there once; later states go."""
    dropped = sum(cut_back(run.output / name, step) for name in LOGS)
    removed = forget_after(run.output / "state", run.resume)
    print(f"resumed after step {step} from {run.resume}; {dropped} later lines of the logs dropped"
          + "".join(f"; {state} removed" for state in removed), flush=True)


def warn_of_room(run: Run, training: Training) -> None:
    """Say before the first step that the states will not fit the disk."""
    needed, free = (run.config.keep + 1) * state_bytes(training), shutil.disk_usage(run.output).free
    if run.config.save_every and needed > free:
        print(f"warning: {run.config.keep} states and one being written take {gigabytes(needed)}, "
              f"{gigabytes(free)} are free at {run.output}: lower --keep or free some", flush=True)
