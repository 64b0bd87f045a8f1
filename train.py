"""Train Qwen2-VL as a driving planner: `python train.py --stage sft`, then `python train.py --stage grpo`.

Without further flags both stages use the built-in scenes and a tiny Qwen2-VL on a CPU. With `--model DIR --data FILE`
the same code trains the real model. `python train.py --stage STAGE --help` explains every flag of a stage.

Stages: sft, supervised fine-tuning; grpo, reinforcement learning, with eight algorithms; trajectory-bc, a diffusion
decoder cloned from demonstrations; trajectory-grpo, reinforcement learning on its denoising chain.
"""

import machine  # noqa: F401  sets up OpenMP and the allocator before torch is imported

# isort: split
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from data.dataset import usable
from data.example import printable
from grpo.engine.checkpoint import check_output, choose_device, only_writer, prepare_output
from grpo.engine.distributed import Distributed, RankError, check_supported, depart, join
from grpo.engine.events import EventWriter, require_tensorboard
from grpo.engine.flags import DecoderFlags, GRPOFlags, RunFlags, SFTFlags, places_read, shown_fields
from grpo.engine.guards import Stop, Stopped, unforeseen
from grpo.engine.memory import gigabytes, peak_memory
from grpo.engine.rewards import make_reward_fn
from grpo.engine.run import Run
from grpo.engine.saving import write_config
from grpo.engine.setup import configure, prepare, print_plan, read_command
from grpo.engine.stages import train_grpo, train_sft
from grpo.engine.state import find_state
from grpo.engine.trajectories import prepare_driving, train_cloning, train_trajectories
from storage import append_json, repair

# What a run says of its inputs, and what to do if it is not the same on all ranks
INPUTS = {"model": "models; give all of them the same --model", "data": "examples; give all of them the same --data",
          "val-data": "validation examples; give all of them the same --val-data",
          "steps": "numbers of steps; give all of them the same --steps",
          "rewards": "reward functions; give all of them the same --reward FILE.py:FUNCTION",
          "actions": "lists of actions; give all of them the same --actions FILE"}


def main(arguments: list[str]) -> None:
    """Parse, train, and turn errors at the border into one line. Exit codes: docs/reliability.md."""
    stage, flags = read_command(arguments, __doc__)
    try:
        world = join(choose_device(flags.get("device", "auto")))
        if world.rank:
            sys.stdout = open(os.devnull, "w")              # only rank 0 prints
        config = configure(stage, flags)
        check_supported(config, world)
        with ExitStack() as stack:
            world.on_rank0(lambda: stack.enter_context(only_writer(config.output)))
            run_stage(stage, config, world)
        depart(world)
    except Stopped as stopped:
        print(stopped, flush=True)
        depart(world, stopped.code)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)               # before the first step, or by a reward function
        sys.exit(130)
    except RankError as fault:
        print(f"error: {printable(str(fault))}", file=sys.stderr, flush=True)
        depart(world, 1)                                    # every rank raised it, so all can leave together
        sys.exit(1)
    except (ValueError, OSError, FloatingPointError) as fault:
        sys.exit(f"error: {printable(str(fault))}")
    except Exception as fault:  # noqa: BLE001  the last frame of the program: every error becomes one line
        remedy = "lower --micro-batch-tokens or --max-pixels, or use --gradient-checkpointing"
        sys.exit(f"error: {unforeseen(fault, Path(flags.get('output') or f'runs/{stage}'), remedy)}")


def run_stage(stage: str, config: SFTFlags | GRPOFlags, world: Distributed) -> None:
    """A run, from its first or its resumed step to its last."""
    stop = Stop(config.max_seconds, grace=5.0 if world.size > 1 else 0.0)       # --max-time counts from here
    resume = find_resumed(config, world)
    if resume is None:
        world.on_rank0(lambda: check_output(config.output, config.overwrite, *places_read(config)))
    print(f"stage {stage}:", " ".join(f"{f.name}={getattr(config, f.name)}" for f in shown_fields(type(config))),
          flush=True)
    if config.tensorboard:
        require_tensorboard()
    if isinstance(config, DecoderFlags):
        return run_decoder_stage(stage, config, world, stop, resume)
    reward_fn = make_reward_fn(config) if stage == "grpo" else None
    run = replace(prepare(stage, config, world, resume), stop=stop, events=events_of(config))
    check_equal(run, world)
    planned = print_plan(run, first_prompts(run))
    if resume is None:
        world.on_rank0(lambda: begin_output(run))           # only now, with model and data read, an old run is removed
    with stop:
        if stage == "sft":
            train_sft(run)
        else:
            train_grpo(run, reward_fn)
    peak = peak_memory(run.policy.head_weight.device.type)
    print(f"memory: {gigabytes(planned)} planned, {gigabytes(peak)} at the peak", flush=True)


def check_equal(run: Run, world: Distributed) -> None:
    """Raise RankError if the ranks have read different inputs, such as from disks of their own."""
    for name, what in INPUTS.items():
        if len(set(world.texts(json.dumps(run.about.get(name))))) > 1:
            raise RankError(f"the processes have different {what}")


def run_decoder_stage(stage: str, config: DecoderFlags, world: Distributed, stop: Stop, resume: Path | None) -> None:
    """A trajectory stage, from its first or its resumed step to its last."""
    run, driving = prepare_driving(stage, config, resume)
    run = replace(run, world=world, resume=resume, stop=stop, events=events_of(config))
    check_equal(run, world)
    if resume is None:
        world.on_rank0(lambda: begin_output(run))
    with stop:
        train_cloning(run, driving) if stage == "trajectory-bc" else train_trajectories(run, driving)


def events_of(config: RunFlags) -> EventWriter | None:
    """What --tensorboard writes to. Only rank 0 logs, so the other ranks' writers make no file."""
    return EventWriter(Path(config.output)) if config.tensorboard else None


def find_resumed(config: RunFlags, world: Distributed) -> Path | None:
    """The state to resume, which rank 0 has checked for damage; None for a new run."""
    if not config.resume:
        return None
    for name in ("model", "adapter"):
        world.on_rank0(partial(repair, Path(config.output, name)))              # after a crash between two renames
    found = world.on_rank0(lambda: find_state(Path(config.output, "state"), config.resume))
    name = world.texts(str(found or ""))[0]
    return Path(name) if name else None


def first_prompts(run: Run) -> list:
    """Encode the first examples, so that a fault in the data shows before an old run is removed."""
    count = len(run.examples)
    others = range(count) if run.config.on_bad_data == "skip" else []
    found, _ = usable(lambda i: run.encode(run.examples[i]), (chain([i], others) for i in range(min(8, count))))
    return [prompt for _, prompt in found]


def begin_output(run: Run) -> None:
    """Make the output directory and write the run's configuration to it."""
    prepare_output(run.output, run.config.overwrite)
    write_config(run)
    if run.left_out:
        append_json(run.output / "skipped.jsonl", *({"step": 0, "fault": fault} for fault in run.left_out))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")        # a terminal may lack the letters of a path
    main(sys.argv[1:])
