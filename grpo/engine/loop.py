"""The loop around the steps: logs, validation, the best model, saved states, and a clean end.

    follow   step -> metrics -> validation, best model -> log -> warnings -> state -> asked to stop?
    restore  the state of an interrupted run -> continue as if it had not been interrupted

What a step does is up to an iterator made by grpo/engine/stages.py. With several processes rank 0 writes, and an error
on any rank is raised on all (`Distributed.on_all`). docs/reliability.md lists what happens when.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from grpo.engine.checkpoint import SETTINGS_FILE
from grpo.engine.distributed import RankError, full_tensor
from grpo.engine.guards import TIME_IS_UP, WINDOW, Stopped, collapsed
from grpo.engine.precision import stored_precision
from grpo.engine.progress import Progress
from grpo.engine.run import Run
from grpo.engine.saving import (
    FAULTS,
    LOGS,
    UpdateWatch,
    hold,
    leave,
    print_disk_plan,
    require_finite,
    rescue,
    save,
    write_config,
    write_state,
)
from grpo.engine.state import (
    LoopState,
    StateNotWritten,
    Trained,
    check_same,
    cut_back,
    forget_after,
    last_records,
    list_states,
    load_state,
    read_about,
)
from models.files import read_json
from models.lora import kept_share
from storage import append_json
from trajectory.files import ABOUT

# A step's metrics, some of its groups as records, and a function that saves its batch for inspection
Step = tuple[dict, list, Callable[[], None]]
NEAR_ZERO = ("note: the policy loss is near 0 as long as the policy is the one that sampled: the ratio is 1 and the "
             "advantages of a group sum to 0; watch the reward instead")
KEPT = "note: `kept` is the share of groups with unequal rewards"
# Flags that may differ when a run is resumed: places, and how a step is computed, but not what it computes
FREE = {"model", "data", "val_data", "output", "overwrite", "preset", "resume", "save_every", "save_minutes", "keep",
        "max_time", "on_bad_data", "tensorboard", "device", "threads", "decode", "micro_batch_tokens",
        "gradient_checkpointing", "feature_cache_mb", "eval_batch", "max_skipped", "samples_every", "image_root",
        "adapter", "planner",
        "actions", "reward", "reward_processes", "reward_timeout",      # `check_same` compares what they are
        "steps", "epochs", "gate", "gate_rounds"}           # how long; `check_steps` looks at these


# ---------------------------------------------------------------- steps

def follow(run: Run, trained: Trained, steps: Iterator[Step], state: LoopState, total: int,
           validate: Callable[[], float]) -> LoopState:
    """Run the steps up to number `total`; write metrics, samples, states and the best model. -> the loop state then.

    After an error the last whole step is saved (`rescue`). Raises: Stopped if the run was asked to stop."""
    progress, watch = Progress("step", total, state.step), UpdateWatch(run, trained)
    recent, saved = last_records(run.output / "metrics.jsonl", WINDOW), time.monotonic()
    while state.step < total or state.pending:
        before = time.monotonic()
        try:
            if not state.pending:
                state = make_step(run, steps, state, before)
                watch.step_is_whole()
            record = state.pending["record"]
            state = finish_step(run, progress, state, total, validate)
            recent = [*recent, record][-WINDOW:]
            state = warn_of_collapse(run, recent, state)
            run.world.on_all(partial(check_skipped, run, state, record))
            saved = save_if_due(run, trained, state, total, saved)
        except FAULTS as fault:
            rescue(run, trained, state, watch, fault)
            raise
        if state.step < total:
            check_stop(run, trained, state, time.monotonic() - before)
    watch.hook.remove()                                     # a further round of --gate has its own
    kept = "last model" if state.accuracy is None else f"best model (validation {state.best:.3f})"
    place = run.output / "model"
    print(f"{kept} in {place}" if place.is_dir() else f"warning: {place} is no longer there", flush=True)
    warn_of_rounding(run)
    return state


def warn_of_rounding(run: Run) -> None:
    """Warn if merging the adapters into bf16 weights, as model/ holds them, rounds most of their change away."""
    share = kept_share(run.policy, full_tensor)
    if share < 0.9:
        print(f"warning: {run.output / 'model'} keeps {share:.0%} of what the adapters learned: its bf16 weights "
              "cannot hold smaller changes. Train with --precision fp32 or a larger --learning-rate. If adapter/ is "
              "saved, it holds everything: `--model BASE --adapter DIR --precision fp32`", flush=True)


def make_step(run: Run, steps: Iterator[Step], state: LoopState, before: float) -> LoopState:
    """Take the next step. -> the loop state after it, with its record `pending`: not yet validated and logged."""
    metrics, groups, keep_batch = next(steps)
    seconds, step = time.monotonic() - before, state.step + 1
    logged = groups and (step % run.config.samples_every == 0 or step == 1)
    record = {"step": step, **metrics, "seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
    if metrics["skipped"]:
        run.world.on_rank0(keep_batch)
    unmoved = metrics["skipped"] and not metrics.get("updates")         # not one of the step's updates was made
    return replace(state, step=step, skipped=state.skipped + 1 if unmoved else 0,
                   seconds=state.seconds + seconds,
                   pending={"record": record, "groups": spread(groups) if logged else []})


def spread(groups: list[dict], most: int = 4) -> list[dict]:
    """At most four groups, from the shortest to the longest: they come in the order of their length."""
    count = min(most, len(groups))
    return [groups[round(i * (len(groups) - 1) / max(1, count - 1))] for i in range(count)]


def finish_step(run: Run, progress: Progress, state: LoopState, total: int,
                validate: Callable[[], float]) -> LoopState:
    """Validate and save the best model if due, then log the step. -> the loop state with nothing pending."""
    step, config, accuracy, best = state.step, run.config, state.accuracy, state.best
    record = state.pending["record"]
    if run.validation and (step == total or (config.eval_every and step % config.eval_every == 0)):
        accuracy = record["val_accuracy"] = validate()
        if accuracy > best:
            best = accuracy
            save(run, step, accuracy)
    elif step == total:
        save(run, step, None)
    run.world.on_rank0(partial(report_step, run, progress, step, record, state.pending["groups"]))
    return replace(state, accuracy=accuracy, best=best, pending=None)


def check_skipped(run: Run, state: LoopState, record: dict) -> None:
    """Raise FloatingPointError after --max-skipped steps in a row without an update."""
    if state.skipped < run.config.max_skipped:
        return
    remedy = ("no update has been made yet, so the model or the data are at fault: try --precision fp32, and look at "
              "the batches" if state.skipped == state.step else
              "lower --learning-rate, or use --precision fp32; the batches are saved")
    raise FloatingPointError(f"{state.skipped} steps in a row had a non-finite loss or gradient (last loss "
                             f"{record['loss']}); {remedy} in {run.output / 'bad-batches'}")


def save_if_due(run: Run, trained: Trained, state: LoopState, total: int, saved: float) -> float:
    """Save the state every --save-every steps and --save-minutes, and at the end if it did so before. -> last saving.

    If only --save-minutes asks for it, a disk that is too full for a state does not end the run."""
    config, minutes = run.config, (time.monotonic() - saved) / 60
    late = bool(config.save_minutes) and bool(run.world.largest(minutes >= config.save_minutes))
    if config.save_every and (state.step % config.save_every == 0 or state.step == total):
        hold(run, trained, state)
    elif late or (state.step == total and run.world.largest(bool(list_states(run.output / "state")))):
        run.world.on_all(lambda: require_finite(trained.parameters(), state.step))        # an error, unlike a full disk
        try:
            write_state(run, trained, state)
        except (StateNotWritten, RankError) as fault:
            if run.world.rank == 0:
                print(f"warning: {fault}", file=sys.stderr, flush=True)
    else:
        return saved
    return time.monotonic()


def warn_of_collapse(run: Run, recent: list[dict], state: LoopState) -> LoopState:
    """Print, once per metric, that it indicates a collapse, and what that means."""
    found = collapsed(recent)
    config = run.config
    if getattr(config, "advantage", "") in ("return", "gae") or getattr(config, "reward_kl", 0) > 0:
        found.pop("flat_groups", None)                      # equal rewards have a gradient there
    for name in found.keys() - set(state.warned):
        print(f"warning: step {state.step}: {found[name]}", flush=True)
    return replace(state, warned=tuple(sorted({*state.warned, *found})))


def report_step(run: Run, progress: Progress, step: int, record: dict, groups: list[dict]) -> None:
    """Write the logs and the progress line."""
    write_step(run, step, record, groups)
    if step == 1 and "reward" in record:
        config = run.config
        ratio = config.variant not in ("reinforce", "cispo") and config.advantage in ("group", "leave_one_out")
        print(*[NEAR_ZERO] * ratio, KEPT, sep="\n", flush=True)
    progress.show(step, **headline(record))


def write_step(run: Run, step: int, record: dict, groups: list[dict]) -> None:
    """Append one line of metrics and, every --samples-every steps, some of rank 0's groups."""
    append_json(run.output / "metrics.jsonl", record)
    if run.events:
        run.events(step, record)
    if groups:
        append_json(run.output / "samples.jsonl", *({"step": step, **group} for group in groups))


def headline(record: dict) -> dict[str, float]:
    """The numbers of the progress line."""
    shown = {"reward": "reward", "reward_accuracy": "accuracy", "kept_groups": "kept", "kl": "kl", "entropy": "entropy",
             "completion_length": "length", "val_accuracy": "val", "tokens_per_second": "tok/s"}
    if "reward" not in record:                              # the loss of SFT says something, that of GRPO does not
        shown = {"loss": "loss", **shown}
    elif record.get("flat_groups") is not None:
        record = {**record, "kept_groups": 1 - record["flat_groups"]}
    return {short: record[name] for name, short in shown.items() if record.get(name) is not None}


# ---------------------------------------------------------------- stopping

def check_stop(run: Run, trained: Trained, state: LoopState, seconds: float = 0.0) -> None:
    """Save and raise Stopped if a signal came or --max-time does not allow another step.

    All ranks stop if one has to."""
    if code := int(run.world.largest(run.stop.code(seconds))):
        leave(run, trained, state)
        why = "time is up" if code == TIME_IS_UP else "stopped"
        raise Stopped(f"{why} after step {state.step}: continue with the same command and --resume auto", code)


# ---------------------------------------------------------------- resuming

def restore(run: Run, trained: Trained) -> LoopState:
    """Load the state to resume, if any. -> the loop state at that step."""
    run.world.on_rank0(lambda: print_disk_plan(run, trained))
    if run.resume is None:
        return LoopState()
    about = read_about(run.resume)
    if run.config.precision != "auto":                      # what a trajectory stage has, which computes in fp32
        about["config"]["precision"] = stored_precision(about, run.policy.head_weight.device.type)
    check_same(run.resume, about, run.about, FREE)
    check_steps(run, about)
    run.world.on_all(lambda: load_state(run.resume, trained))
    state = LoopState(**{**about["counters"], "warned": tuple(about["counters"]["warned"])})
    run.world.on_rank0(lambda: go_back(run, state))
    now = {**run.about, "processes": run.world.size}
    for name, value in {"processes": 1, **about}.items():    # older states do not name it
        if name in ("commit", "torch", "processes") and value != now[name]:
            print(f"note: the state was written by {name} {value}, this is {now[name]}: results may differ", flush=True)
    return state


def check_steps(run: Run, about: dict) -> None:
    """Another number of steps than before: print what that does to the schedule, or raise ValueError."""
    done, was, now = about["step"], about.get("steps", run.about["steps"]), run.about["steps"]
    if was == now:
        return
    if done > min(was, now):
        why = "extra rounds have begun" if done > was else f"it has done {done} steps"
        raise ValueError(f"{run.resume} cannot continue with {now} steps instead of {was}: {why}. Keep the number of "
                         "steps, or start a new run from its model with another --output")
    print(f"note: {now} steps instead of {was}: from step {done + 1} on, the learning rate and annealed coefficients "
          f"follow the schedule of a run of {now} steps (--lr-schedule {run.config.lr_schedule})", flush=True)


def go_back(run: Run, state: LoopState) -> None:
    """Cut the logs back to the step of the resumed state, so that each step appears once; remove later states."""
    logged = state.step - 1 if state.pending else state.step
    dropped = sum(cut_back(run.output / name, logged if name != "skipped.jsonl" else state.step) for name in LOGS)
    removed = forget_after(run.output / "state", run.resume)
    write_config(run)                                       # --steps may differ
    (run.output / "error.txt").unlink(missing_ok=True)      # of the end from which this run goes on
    print(f"resumed after step {state.step} from {run.resume}; {dropped} later log lines dropped"
          + "".join(f"; {path} removed" for path in removed), flush=True)
    if (step := written_after(run.output / "model")) > state.step:
        print(f"note: {run.output / 'model'} is of step {step}, after this state; it stays until a model is saved "
              "again: at a better validation or, if nothing is validated, at the end", flush=True)


def written_after(model: Path) -> int:
    """The step after which a model directory was written, by what `save` noted in it; 0 if it is not there."""
    notes = [read_json(model / name) for name in (SETTINGS_FILE, ABOUT) if (model / name).is_file()]
    return notes[0].get("step", 0) if notes else 0
