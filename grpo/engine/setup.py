"""Setting up a run: flags -> configuration -> model and data -> memory plan."""

import argparse
import dataclasses
import math
import random
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dataset import data_sign, open_images
from data.example import COMPACT_WAYPOINTS, SCENE_SIZE, Example
from data.scenes import scene_text_corpus
from grpo.config import SFTConfig, require
from grpo.engine.card import model_card
from grpo.engine.checkpoint import choose_device, chosen_actions, load_policy, read_settings, save_policy
from grpo.engine.conditions import default_planner
from grpo.engine.distributed import SINGLE, Distributed
from grpo.engine.examples import (
    check_acceptable,
    check_boxes,
    examples_to_imitate,
    load_data,
    note_balance,
    usable_validation,
    with_waypoints,
)
from grpo.engine.features import FeatureCache
from grpo.engine.flags import (
    OF_SCENES,
    STAGES,
    DecoderFlags,
    GRPOFlags,
    RunFlags,
    SFTFlags,
    parse_flags,
    resolve,
)
from grpo.engine.memory import available_memory, describe, memory_plan, resident_memory, what_helps, workload
from grpo.engine.precision import choose_precision
from grpo.engine.prompts import PromptSettings, answering, asked
from grpo.engine.rewards import reward_signs
from grpo.engine.run import Run
from grpo.engine.state import fingerprint
from models.config import PRESETS as MODEL_PRESETS
from models.fast.recomputed import use_recomputed
from models.images import MAX_PIXELS, MIN_PIXELS
from models.lora import add_lora
from models.precision import compute_dtype
from models.processor import Processor, fit_config
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL, frozen_model, new_model
from models.template import SYSTEM_PROMPT
from models.tokenizer import train_bpe
from rewards.action_file import as_record
from rewards.actions import ALPHADRIVE, Actions
from rewards.waypoints import write_waypoints

TINY_VOCABULARY = 1024


# ---------------------------------------------------------------- configuration

def read_command(arguments: list[str], usage: str) -> tuple[str, dict[str, Any]]:
    """Command line -> stage and the given flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--stage", choices=tuple(STAGES))
    chosen, rest = first.parse_known_args(arguments)
    if chosen.stage is None:
        print(f"{usage}\nusage: python train.py --stage {'|'.join(STAGES)} [flags]")
        sys.exit(0 if {"-h", "--help"} & set(rest) else f"error: choose a --stage: {', '.join(STAGES)}")
    config_class = STAGES[chosen.stage]
    return chosen.stage, parse_flags(config_class, f"Stage {chosen.stage}: {config_class.__doc__}", rest)


def configure(stage: str, flags: dict[str, Any]) -> SFTFlags | GRPOFlags:
    """Fill in default directories, the demo preset (if all is built in) and the settings of the model directory."""
    if stage.startswith("trajectory"):
        return configure_decoder(stage, flags)
    places = {"model": "tiny" if stage == "sft" else "runs/sft/model", "output": f"runs/{stage}",
              "split": {"sft": "sft", "grpo": "rl"}[stage] if flags.get("data", "scenes") == "scenes" else "train"}
    flags = {**places, **{name: value for name, value in flags.items() if value != "" or name not in places}}
    built_in = flags.get("data", "scenes") == "scenes" and flags["model"] in ("tiny", places["model"])
    if stage == "grpo" and flags["model"] == places["model"] and not Path(flags["model"]).is_dir():
        raise ValueError("runs/sft/model does not exist: run `python train.py --stage sft` first, or name a --model")
    settings = None if flags["model"] == "tiny" else read_settings(flags["model"], flags.get("adapter", ""))
    own = {} if settings is None else without_actions(answering(settings, flags.get("answer", "")).record)
    for name, value in ({} if settings is None else without_actions(settings.record)).items():
        if flags.get(name, value) != value:
            print(f"note: the model was trained with --{name.replace('_', '-')} {value}; this run uses {flags[name]}",
                  flush=True)
    if flags.get("data", "scenes") == "scenes" and not built_in and "preset" not in flags:
        print("note: this is not the built-in model, so the real-model defaults apply; --preset demo selects the tiny "
              "model's values", flush=True)
    if built_in or flags["model"] == "tiny":
        flags = {"save_minutes": 0.0, **flags}              # such a run takes minutes itself
    config = resolve(STAGES[stage], stage, flags, own, built_in)
    check_given(flags, config)
    actions = chosen_actions(config)
    if settings is not None and actions != settings.actions:
        print(f"note: the model was trained with the actions {', '.join(settings.actions.names)}; this run uses those "
              f"of {config.actions}: {', '.join(actions.names)}", flush=True)
    return config


def without_actions(record: dict) -> dict:
    """Prompt settings that are flags of the same name and form; --actions names a file (`chosen_actions`)."""
    return {name: value for name, value in record.items() if name != "actions"}


def configure_decoder(stage: str, flags: dict[str, Any]) -> DecoderFlags:
    """Fill in the default directories of a trajectory stage. Raises: ValueError that says which stage to run first."""
    built_in, cloned = flags.get("data", "scenes") == "scenes", "runs/trajectory-bc/model"
    places = {"output": f"runs/{stage}", "save_minutes": 0.0 if built_in else 20.0,
              "split": {"trajectory-bc": "sft", "trajectory-grpo": "rl"}[stage] if built_in else "train"}
    flags = {**places, **{name: value for name, value in flags.items() if value != "" or name not in places}}
    if stage == "trajectory-grpo" and not flags.get("model"):
        if not Path(cloned).is_dir():
            raise ValueError(f"{cloned} does not exist: run `python train.py --stage trajectory-bc` first (with "
                             "--condition facts it needs no language model), or name a decoder with --model")
        flags["model"] = cloned
    if stage == "trajectory-bc" and flags.get("condition", "planner") == "planner" and not flags.get("model"):
        flags["model"] = default_planner()
    config = resolve(STAGES[stage], stage, flags, {}, False)
    check_given(flags, config)
    return config


def check_given(flags: dict[str, Any], config: RunFlags) -> None:
    """Raises: ValueError for a flag on the command line that another one, or a preset, makes void."""
    if config.resume:                                       # an earlier version's run may go on with it
        return
    require("scenes" not in flags or config.data == "scenes", config, "scenes", f"left out {OF_SCENES}")
    require("epochs" not in flags or not config.steps, config, "epochs",
            f"left out with --steps {config.steps} (given, of the preset, or the default); --steps 0 counts epochs")


# ---------------------------------------------------------------- model and data

def prepare(stage: str, config: SFTFlags | GRPOFlags, world: Distributed = SINGLE, resume: Path | None = None) -> Run:
    """Choose the precision, load or make the model, read the data, choose the examples of this stage.

    The run's configuration names fp32 or bf16: from here on nothing reads `auto`."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    if config.decode == "graph" and device == "cpu":
        raise ValueError("--decode is 'graph', a CUDA graph, and there is no GPU; use eager")
    config = replace(config, precision=choose_precision(config, device, world, resume))
    seed_generators(config.seed)
    settings = PromptSettings(config.prompt_style, config.reasoning, config.hide, config.max_new_tokens,
                              config.scene_size, config.answer, chosen_actions(config), config.camera_count)
    policy, processor = make_policy(config, device, settings.actions)
    examples, validation, left_out = stage_examples(stage, config, processor, settings)
    total, trained = (sum(p.numel() for p in policy.parameters() if p.requires_grad or not only) for only in (0, 1))
    print(f"{total:,} parameters on {device}, {trained:,} of them trained; {len(examples)} training examples, "
          f"{len(validation)} for validation", flush=True)
    frozen = not any(parameter.requires_grad for parameter in policy.visual.parameters())
    features = FeatureCache(policy, config.precision, config.feature_cache_mb * 2**20) if frozen else None
    about = run_facts(stage, config, policy, examples, settings.actions) | {"val-data": data_sign(validation)}

    def write(model: Qwen2VL, facts: dict, directory: Path) -> None:
        save_policy(model, processor, settings, facts, directory, model_card(stage, config, len(examples), facts))

    return usable_validation(Run(config, policy.train(), processor, settings,
                                 partial(open_images, scene_size=settings.scene_size), examples, validation,
                                 Path(config.output), write, partial(frozen_model, policy.config), features, about,
                                 left_out=left_out, world=world, resume=resume))


def stage_examples(stage: str, config: SFTFlags | GRPOFlags, processor: Processor,
                   settings: PromptSettings) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """The examples to train on and to validate on, as the model sees them, and the faults of records left out."""
    examples, validation, left_out = load_data(config, settings.actions)
    check_scene_size([*examples, *validation], config)
    examples, validation = ([asked(example, settings) for example in part] for part in (examples, validation))
    if config.answer == "trajectory":
        examples = with_waypoints(examples)
    if stage == "grpo" and config.trajectory_reward == "pdms":
        check_boxes(examples)
    if stage == "grpo" and config.reward_mode == "set" and "planning" in config.rewards:
        check_acceptable(examples)
    if stage == "sft":
        examples = examples_to_imitate(examples, config, processor, settings)
    else:
        warn_of_small_groups(config)
    note_balance(examples, config)
    return examples, validation, left_out


def check_scene_size(examples: list[Example], config: SFTFlags | GRPOFlags) -> None:
    """Raises: ValueError for --scene-size with a file that asks for no built-in scene."""
    if config.resume or config.scene_size == SCENE_SIZE or any(example.scene is not None for example in examples):
        return
    trained = None if config.model == "tiny" else read_settings(config.model, config.adapter)
    require(trained is not None and trained.scene_size == config.scene_size, config, "scene_size",
            f"left out for {config.data}, whose pictures have sizes of their own (--max-pixels limits them)")


def run_facts(stage: str, config: SFTFlags | GRPOFlags, policy: Qwen2VL, examples: list[Example],
              actions: Actions) -> dict[str, Any]:
    """What a state says of its run, so that resuming another run is noticed."""
    facts = {"stage": stage, "config": dataclasses.asdict(config), "model": fingerprint(policy.state_dict()),
             "data": data_sign(examples), "steps": planned_steps(config, len(examples)), "commit": commit(),
             "torch": torch.__version__}
    if actions != ALPHADRIVE:
        facts["actions"] = as_record(actions)
    if stage == "grpo" and config.own_rewards:
        facts["rewards"] = reward_signs(config)
    return facts


def planned_steps(config: RunFlags, count: int) -> int:
    """--steps, or as many as --epochs needs: the last one is filled up with examples of the next epoch."""
    size = config.batch_size if isinstance(config, SFTConfig) else config.prompts_per_step
    steps = config.steps or max(1, math.ceil(config.epochs * count / size - 1e-9))
    print(f"{steps} steps of {size} examples: {steps * size / count:.3g} epochs of {count} examples", flush=True)
    return steps


def warn_of_small_groups(config: GRPOFlags) -> None:
    """Warn if groups are too small for their standard deviation to mean anything."""
    if config.group_size < 4 and (config.advantage, config.scale_rewards) == ("group", "group"):
        print(f"warning: with {config.group_size} completions per group, division by the group's standard deviation "
              "removes the size of reward differences (2 completions give +-0.7071 for nearly every "
              "difference); use a larger --group-size or --scale-rewards none", flush=True)


def make_policy(config: SFTFlags | GRPOFlags, device: str,
                actions: Actions = ALPHADRIVE) -> tuple[Qwen2VL, Processor]:
    """The model to train, made or loaded, on its device, with its trained parameters chosen."""
    if config.model == "tiny":
        policy, processor = make_tiny(config.seed, config.answer, actions)
        policy.to(device)
        processor = Processor(processor.tokenizer, config.min_pixels or MIN_PIXELS, config.max_pixels or MAX_PIXELS)
    else:
        # a frozen base may have the type of computation; trained weights are float32
        dtype = torch.float32 if not config.lora_rank else compute_dtype(device, config.precision) or torch.float32
        policy, processor, _ = load_policy(config.model, dtype, device, config.min_pixels, config.max_pixels,
                                           config.adapter)
        require_finite_checkpoint(policy, config.model)
    if config.kernels == "fast":
        use_recomputed(policy)
    choose_trained(policy, config)
    policy.model.gradient_checkpointing = policy.visual.gradient_checkpointing = config.gradient_checkpointing
    return policy, processor


def require_finite_checkpoint(policy: Qwen2VL, directory: str) -> None:
    """Raise ValueError if a loaded weight is not finite: no learning rate would help."""
    for name, parameter in policy.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"--model {directory}: the tensor {name} has values that are NaN or infinite; "
                             "copy the checkpoint again, or use an earlier one")


def choose_trained(policy: Qwen2VL, config: SFTFlags | GRPOFlags) -> None:
    """Add adapters for --lora-rank; freeze the tower for --freeze-vision."""
    if config.lora_rank:
        generator = torch.Generator().manual_seed(config.seed)
        add_lora(policy, config.lora_rank, config.lora_alpha, config.target_modules, generator)
    if config.freeze_vision:
        policy.visual.requires_grad_(False)


def make_tiny(seed: int, answer: str = "plan", actions: Actions = ALPHADRIVE) -> tuple[Qwen2VL, Processor]:
    """A Qwen2-VL of about a million parameters and a byte-level BPE trained on the scenes' sentences."""
    chat = [f"{role}\n{text}" for role, text in (("system", SYSTEM_PROMPT), ("user", ""), ("assistant", ""))]
    # the chat template a hundred times, so that its words become few tokens
    waypoints = [f" {COMPACT_WAYPOINTS}", f" {write_waypoints([])}"] if answer == "trajectory" else []
    plans = [] if actions == ALPHADRIVE else list(map(str, actions.plans))      # the scenes' sentences name the others
    tokenizer = train_bpe(scene_text_corpus(3000) + (chat + waypoints + plans) * 100, TINY_VOCABULARY)
    config = fit_config(MODEL_PRESETS["tiny"], tokenizer)
    return new_model(config, torch.Generator().manual_seed(seed)), Processor(tokenizer)


def seed_generators(seed: int) -> None:
    """Seed the global generators, which a user's rewards or data may use; ours have generators of their own."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def commit() -> str:
    """The git commit of this code; "" outside a repository or without git."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
                              text=True, check=False).stdout.strip()
    except OSError:
        return ""


# ---------------------------------------------------------------- memory

def print_plan(run: Run, prompts: list[Prompt]) -> int:
    """Print the memory plan, and what would help if memory is short. -> bytes planned."""
    device = run.policy.head_weight.device.type
    work = workload(run.policy, prompts, run.config, 0, len(run.examples))
    plan = memory_plan(work, run.config)
    if device == "cpu":                                     # now: data, tokenizer and the plan itself take memory
        work = replace(work, process=max(0, resident_memory() - plan["weights"]))
        plan["process"] = work.process
    alone = "" if run.world.size == 1 else " for a single process (each of several needs less)"
    print(f"memory plan{alone}: {describe(plan)}", flush=True)
    planned, available = sum(plan.values()), available_memory(device)
    if run.world.size == 1 and planned > available:         # what_helps computes other plans, which takes time
        print(f"warning: {what_helps(work, run.config, available)}", flush=True)
    return planned
