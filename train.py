"""Train Qwen2-VL as a driving planner: `python train.py --stage sft`, then `python train.py --stage grpo`.

Without further flags both stages run the built-in scenes and a tiny Qwen2-VL on a CPU. With `--model DIR --data FILE`
the same code trains the real model. `python train.py --stage sft --help` explains every flag.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dataset import check_images, data_sign, indices_at, open_image, prepared_ahead, select_split, usable
from data.reasons import choose_reasons
from data.scenes import scene_examples, scene_text_corpus
from data.scenes.caption import caption_examples
from data.schema import Example, load_examples, load_usable_examples, printable
from grpo.batch import Prompt, PromptSettings, check_context, encode_example, encode_target
from grpo.checkpoint import (
    check_output,
    choose_device,
    load_policy,
    prepare_output,
    read_settings,
    save_policy,
    write_json,
)
from grpo.config import GRPOConfig, SFTConfig, TrainConfig, parse_flags, resolve
from grpo.distributed import (
    ALONE,
    CommonFault,
    World,
    check_supported,
    copy_to_save,
    depart,
    join,
    own_part,
    renew,
    shard,
    whole_copy,
)
from grpo.features import FeatureCache
from grpo.groups import PromptBatch, RewardFn
from grpo.guards import TIME_IS_UP, WINDOW, Stop, Stopped, blaming, collapsed, finite, save_batch
from grpo.logprobs import compute_dtype
from grpo.memory import advice, available_memory, describe, gigabytes, memory_plan, peak_memory, workload
from grpo.progress import Progress
from grpo.rollout import Sampler, sample_many
from grpo.sft import sft_step
from grpo.state import (
    Counters,
    Training,
    check_same,
    cut_back,
    find_state,
    fingerprint,
    forget_after,
    last_records,
    load_state,
    read_about,
    save_state,
    state_bytes,
    sync,
)
from grpo.trainer import Learner, freeze_copy, grpo_step, make_optimizer, make_scheduler
from models.config import PRESETS as MODEL_PRESETS
from models.lora import add_lora
from models.processor import MAX_PIXELS, MIN_PIXELS, SYSTEM_PROMPT, Processor, fit_config, train_bpe
from models.qwen2_vl import Qwen2VL, new_model
from models.value import ValueNetwork
from rewards import parse_plan, planning_rewards

TINY_VOCABULARY = 1024
VALIDATION_SCENES = 2000
SPARE = 10**9  # added to seeds and numbers of the stream that dynamic sampling draws from; twice: for bad examples
SPARES = 64    # examples that may stand in for a bad one
SHOWN = 5      # records left out that are shown; skipped.jsonl lists all
LOGS = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")      # cut back to the step of the state resumed
# What may differ when a run is resumed: places, and how a step is computed, but not what it computes
FREE = {"model", "data", "output", "overwrite", "preset", "resume", "save_every", "keep", "max_time", "on_bad_data",
        "device", "threads", "decode", "micro_batch_tokens", "gradient_checkpointing", "feature_cache_mb",
        "eval_batch", "max_skipped", "samples_every", "image_root"}


# A step's metrics, some of its groups as records, and what keeps its batch for inspection
Step = tuple[dict, list, Callable[[], None]]


@dataclass(frozen=True)
class Run:
    """Everything a stage works on."""

    config: SFTConfig | GRPOConfig
    policy: Qwen2VL
    processor: Processor
    settings: PromptSettings
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
        return encode_example(example, open_image(example), self.processor, self.policy.config, self.settings)


def main(arguments: list[str]) -> None:
    """Parse, train, and turn errors at the border into one line. Exit codes: docs/reliability.md."""
    stage, flags = read_command(arguments)
    try:
        world = join(choose_device(flags.get("device", "auto")))
        if world.rank:
            sys.stdout = open(os.devnull, "w")              # process 0 speaks for all
        config = configure(stage, flags)
        check_supported(config, world)
        run_stage(stage, config, world)
        depart(world)
    except Stopped as stopped:
        print(stopped, flush=True)
        depart(world, stopped.code)
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        print("interrupted before the first step", file=sys.stderr)
        sys.exit(130)
    except CommonFault as fault:
        print(f"error: {printable(str(fault))}", file=sys.stderr, flush=True)
        depart(world, 1)                                    # all are here
        sys.exit(1)
    except torch.OutOfMemoryError as fault:
        sys.exit(f"error: out of memory ({fault}): lower --micro-batch-tokens or --max-pixels, or use "
                 "--gradient-checkpointing")
    except (ValueError, OSError, FloatingPointError) as fault:
        sys.exit(f"error: {printable(str(fault))}")


def run_stage(stage: str, config: SFTConfig | GRPOConfig, world: World) -> None:
    """A run from its first or its resumed step to its last."""
    stop = Stop(config.max_seconds)                         # the clock starts here
    resume = find_resumed(config, world)
    if resume is None:
        world.first(lambda: check_output(config.output, config.overwrite, config.model))
    print(f"stage {stage}:", " ".join(f"{k}={v}" for k, v in dataclasses.asdict(config).items()), flush=True)
    before = peak_memory("cpu")
    run = prepare(stage, config)                            # reads model and data: only then an old run may go
    run = replace(run, world=world, resume=resume, stop=stop)
    count = len(run.examples)
    others = range(count) if config.on_bad_data == "skip" else []
    found, _ = usable(lambda i: run.encode(run.examples[i]),                    # a fault in the data shows here
                      (chain([i], others) for i in range(min(8, count))))
    planned = print_plan(run, [prompt for _, prompt in found], before)
    if resume is None:
        world.first(lambda: begin_output(run))
    with stop:
        (train_sft if stage == "sft" else train_grpo)(run)
    peak = peak_memory(run.policy.head_weight.device.type)
    print(f"memory: {gigabytes(planned)} planned, {gigabytes(peak)} at the peak", flush=True)


def find_resumed(config: TrainConfig, world: World) -> Path | None:
    """The state to go on from, which one process has looked through for damage; None for a new run."""
    if not config.resume:
        return None
    found = world.first(lambda: find_state(Path(config.output, "state"), config.resume))
    name = world.texts(str(found or ""))[0]
    return Path(name) if name else None


def begin_output(run: Run) -> None:
    """An output directory with the run's configuration."""
    prepare_output(run.output, run.config.overwrite)
    write_json({"stage": run.about["stage"], **dataclasses.asdict(run.config), "torch": torch.__version__,
                "processes": run.world.size}, run.output / "config.json")
    if run.left_out:
        append_json(run.output / "skipped.jsonl", *({"step": 0, "fault": fault} for fault in run.left_out))


def read_command(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Command line -> stage and the given flags."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--stage", choices=("sft", "grpo"))
    chosen, rest = first.parse_known_args(arguments)
    if chosen.stage is None:
        print(f"{__doc__}\nusage: python train.py --stage sft|grpo [flags]")
        sys.exit(0 if {"-h", "--help"} & set(rest) else "error: choose --stage sft or --stage grpo")
    config_class = SFTConfig if chosen.stage == "sft" else GRPOConfig
    return chosen.stage, parse_flags(config_class, f"Stage {chosen.stage}: {config_class.__doc__}", rest)


def configure(stage: str, flags: dict[str, Any]) -> SFTConfig | GRPOConfig:
    """Fill in default directories, the demo preset when all is built in, and what the model directory says."""
    places = {"model": "tiny" if stage == "sft" else "runs/sft/model", "output": f"runs/{stage}",
              "split": {"sft": "sft", "grpo": "rl"}[stage] if flags.get("data", "scenes") == "scenes" else "train"}
    flags = {**places, **{name: value for name, value in flags.items() if value != "" or name not in places}}
    built_in = flags.get("data", "scenes") == "scenes" and flags["model"] in ("tiny", places["model"])
    if stage == "grpo" and flags["model"] == places["model"] and not Path(flags["model"]).is_dir():
        raise ValueError("runs/sft/model does not exist: run `python train.py --stage sft` first, or name a --model")
    settings = None if flags["model"] == "tiny" else read_settings(flags["model"])
    own = {} if settings is None else dataclasses.asdict(settings)
    if flags.get("data", "scenes") == "scenes" and not built_in and "preset" not in flags:
        print("note: this is not the built-in model, so the real-model defaults apply; --preset demo has tiny's values",
              flush=True)
    return resolve(SFTConfig if stage == "sft" else GRPOConfig, stage, flags, own, built_in)


def prepare(stage: str, config: SFTConfig | GRPOConfig) -> Run:
    """Load or make the model, read the data, choose the examples of this stage."""
    if config.threads:
        torch.set_num_threads(config.threads)
    seed_generators(config.seed)
    device = choose_device(config.device)
    if config.model == "tiny":
        policy, processor = make_tiny(config.seed)
        policy.to(device)
        processor = Processor(processor.tokenizer, config.min_pixels or MIN_PIXELS, config.max_pixels or MAX_PIXELS)
    else:
        dtype = torch.float32 if not config.lora_rank else compute_dtype(device, config.precision) or torch.float32
        policy, processor, _ = load_policy(config.model, dtype, device, config.min_pixels, config.max_pixels)
    choose_trained(policy, config)
    policy.model.gradient_checkpointing = policy.visual.gradient_checkpointing = config.gradient_checkpointing
    settings = PromptSettings(config.prompt_style, config.reasoning, config.hide, config.max_new_tokens)
    examples, validation, left_out = load_data(config)
    if stage == "sft":
        examples = choose_reasons(examples, config.reason_share, config.reason_choice, config.seed)
        examples = with_reasons(examples) if config.reasoning else examples
        warn_of_long_targets(examples, processor, settings)
    if stage == "grpo" and config.group_size < 4 and (config.advantage, config.scale_rewards) == ("group", "group"):
        print(f"warning: with {config.group_size} completions a group, dividing by the group's standard deviation "
              "erases the size of rewards (2 always give +-0.7071); use a larger --group-size or --scale-rewards none",
              flush=True)
    total, trained = (sum(p.numel() for p in policy.parameters() if p.requires_grad or not only) for only in (0, 1))
    print(f"{total:,} parameters on {device}, {trained:,} of them trained; {len(examples)} training examples, "
          f"{len(validation)} for validation", flush=True)
    frozen = not any(parameter.requires_grad for parameter in policy.visual.parameters())
    features = FeatureCache(policy, config.precision, config.feature_cache_mb * 2**20) if frozen else None
    about = {"stage": stage, "config": dataclasses.asdict(config), "model": fingerprint(policy.state_dict()),
             "data": data_sign(examples), "commit": commit(), "torch": torch.__version__}
    return usable_validation(Run(config, policy.train(), processor, settings, examples, validation,
                                 Path(config.output), features, about, left_out=left_out))


def seed_generators(seed: int) -> None:
    """Seed what rewards and data of the user's may draw from; torch's own seed is another in every process."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def commit() -> str:
    """The git commit of this code, "" outside a repository."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True,
                              text=True, check=False).stdout.strip()
    except OSError:                                         # no git here
        return ""


def usable_validation(run: Run) -> Run:
    """With --on-bad-data skip: without the validation examples that cannot be used, each of which is told."""
    if run.config.on_bad_data == "stop":
        return run
    kept, left_out = [], [*run.left_out]
    for example in run.validation:
        try:
            run.encode(example)
            kept.append(example)
        except (ValueError, OSError) as fault:
            print(f"left out of validation: {fault}", flush=True)
            left_out.append(str(fault))
    return replace(run, validation=kept, left_out=tuple(left_out))


def print_plan(run: Run, prompts: list[Prompt], before: int) -> int:
    """Say what the run will need, and what would help if that is not there. -> bytes planned."""
    device = run.policy.head_weight.device.type
    work = workload(run.policy, prompts, run.config, before if device == "cpu" else 0)
    plan = memory_plan(work, run.config)
    alone = "" if run.world.size == 1 else " of one process alone, each of several needs less"
    print(f"memory plan{alone}: {describe(plan)}", flush=True)
    planned, available = sum(plan.values()), available_memory(device)
    if run.world.size == 1 and planned > available:         # only then are the plans of other flags worth their time
        print(f"warning: {advice(work, run.config, available)}", flush=True)
    return planned


def choose_trained(policy: Qwen2VL, config: TrainConfig) -> None:
    """Leave to training what --lora-rank and --freeze-vision say."""
    if config.lora_rank:                                    # the base is frozen, so its type may be the computing's
        generator = torch.Generator().manual_seed(config.seed)
        add_lora(policy, config.lora_rank, config.lora_alpha, config.lora_targets.split(","), generator)
    if config.freeze_vision:
        policy.visual.requires_grad_(False)


def make_tiny(seed: int) -> tuple[Qwen2VL, Processor]:
    """A Qwen2-VL of about a million parameters and a byte-level BPE trained on the scenes' own sentences."""
    chat = [f"{role}\n{text}" for role, text in (("system", SYSTEM_PROMPT), ("user", ""), ("assistant", ""))]
    tokenizer = train_bpe(scene_text_corpus(3000) + chat * 100, TINY_VOCABULARY)  # the template's words in few tokens
    config = fit_config(MODEL_PRESETS["tiny"], tokenizer)
    return new_model(config, torch.Generator().manual_seed(seed)), Processor(tokenizer)


def load_data(config: TrainConfig) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """Training and validation examples, and the faults of those left out. A file without split names has no validation
    part."""
    if config.data == "scenes":
        captions = isinstance(config, SFTConfig) and config.task == "caption"
        examples = (caption_examples(config.scenes, prior=config.prior) if captions
                    else scene_examples(config.split, config.scenes, prior=config.prior))
        return examples, scene_examples("val", min(config.eval_examples, VALIDATION_SCENES), prior=config.prior), ()
    examples, faults = read_file(config)
    if missing := check_images(examples, allow_some=config.on_bad_data == "skip"):
        print(f"warning: {missing} of {len(examples)} pictures do not exist: they will be skipped", flush=True)
    validation = [example for example in examples if example.split == "val"][:config.eval_examples]
    if not validation:
        print("no example carries the split `val`: the last model is kept, not the best", flush=True)
    return select_split(examples, config.split), validation, tuple(faults)


def read_file(config: TrainConfig) -> tuple[list[Example], list[str]]:
    """The examples of the data file; with --on-bad-data skip without the records that break its rules, whose faults are
    counted, shown and returned."""
    if config.on_bad_data == "stop":
        return load_examples(config.data, config.image_root or None), []
    examples, faults = load_usable_examples(config.data, config.image_root or None)
    if faults:
        print(f"warning: {len(faults)} of {len(examples) + len(faults)} records of {config.data} break its rules: they "
              "are left out, and listed in skipped.jsonl", flush=True)
    for fault in faults[:SHOWN]:
        print(f"left out: {printable(fault)}", flush=True)
    return examples, faults


def with_reasons(examples: list[Example]) -> list[Example]:
    """The examples that have a reason to learn from; says how many were left out."""
    chosen = [example for example in examples if example.reasoning]
    if len(chosen) < len(examples):
        print(f"{len(examples) - len(chosen)} of {len(examples)} examples have no reasoning and are left out of SFT "
              "(--reasoning off takes all)", flush=True)
    if not chosen:
        raise ValueError("no training example has a reasoning text; use --reasoning off, or add `thinking` to the data")
    return chosen


def warn_of_long_targets(examples: list[Example], processor: Processor, settings: PromptSettings) -> None:
    """Say how many targets are longer than a completion may get: the model would learn what it can never finish."""
    lengths = [len(encode_target(example, processor, settings)) for example in examples]
    long = sum(length > settings.max_new_tokens for length in lengths)
    if long:
        print(f"warning: {long} of {len(examples)} targets are longer than --max-new-tokens {settings.max_new_tokens} "
              f"(the longest has {max(lengths)}): answers will be cut short in validation and evaluation", flush=True)


def train_sft(run: Run) -> None:
    """Supervised warm-up; with --gate it goes on, in rounds of half the steps, until validation passes the gate."""
    config = run.config
    run = replace(run, world=shard(run.world, run.dtype, run.policy))
    optimizer = make_optimizer(run.policy, config)          # of this process's parts, if there are several
    first = config.steps or max(1, round(config.epochs * len(run.examples) / config.batch_size))
    extra = max(1, first // 2)
    done = 0 if run.resume is None else read_about(run.resume)["step"]
    ends = [end for end in (first + extra * i for i in range(config.gate_rounds + 1)) if end >= done]
    counters = None
    for end in ends:                                        # each round has a schedule of its own
        scheduler = make_scheduler(optimizer, config, first if end == first else extra)
        training = Training(run.policy, None, optimizer, scheduler)
        counters = counters or restore(run, training)
        counters = follow(run, training, sft_steps(run, training, counters.step, end), counters, end)
        if counters.accuracy is None or counters.accuracy >= config.gate:
            break
        if end < ends[-1]:
            check_stop(run, training, counters)
            print(f"validation {counters.accuracy:.3f} is below the gate {config.gate}: {extra} more steps", flush=True)
    if counters.accuracy is not None and counters.accuracy < config.gate:
        print(f"warning: validation {counters.accuracy:.3f} is still below the gate {config.gate}: GRPO may not help "
              "from here", flush=True)


def take(run: Run, prepare: Callable[[Example], Any], seed: int, position: int,
         size: int) -> tuple[list[Example], list[Any], list[dict]]:
    """The `size` examples at a position of the data stream, and prepare(example) of each.

    With --on-bad-data skip one that cannot be used gives way to a spare one. Both follow from the place in the stream
    alone, so that they are the same for any number of processes.
    -> examples, what was prepared, and one record for each that was skipped.
    """
    count = len(run.examples)

    def candidates(place: int, index: int) -> Iterator[int]:
        yield index
        if run.config.on_bad_data == "skip":
            yield from indices_at(count, seed + 2 * SPARE, SPARES * place, SPARES)

    mine = run.world.share(list(enumerate(indices_at(count, seed, position, size), position)))
    found, faults = usable(lambda i: prepare(run.examples[i]), (candidates(*one) for one in mine))
    return ([run.examples[i] for i, _ in found], [item for _, item in found],
            [{"id": run.examples[i].id, "fault": fault} for i, fault in faults])


def sft_steps(run: Run, training: Training, start: int, end: int) -> Iterator[Step]:
    """The updates from step number `start` up to `end`."""
    config = run.config

    def pair(example: Example) -> tuple[Prompt, torch.Tensor]:
        prompt, target = run.encode(example), encode_target(example, run.processor, run.settings)
        check_context(len(prompt.input_ids), len(target), run.policy.config, f"example {example.id}")
        return prompt, target

    def batch(step: int) -> tuple[list, list, list]:
        return take(run, pair, config.seed, step * config.batch_size, config.batch_size)

    ahead = run.world.each(prepared_ahead(batch, range(start, end)))
    for step, (examples, pairs, skipped) in enumerate(ahead, start + 1):
        note_skipped(run, step, skipped)
        names, (prompts, targets) = [example.id for example in examples], zip(*pairs, strict=True)
        prompts = run.with_features(names, prompts)
        metrics = sft_step(run.policy, training.optimizer, training.scheduler, prompts, targets, config, run.world)
        yield metrics, [], partial(save_batch, run.output / "bad-batches", step, prompts, targets,
                                   {"ids": names, "metrics": metrics})


def note_skipped(run: Run, step: int, skipped: list[dict]) -> None:
    """Say which examples this step could not use, in any process, and list them."""
    if run.config.on_bad_data == "stop":
        return
    skipped = [record for said in run.world.texts(json.dumps(skipped)) for record in json.loads(said)]
    for record in skipped:
        print(f"step {step}: skipped: {printable(record['fault'])}", flush=True)
    if skipped:
        run.world.first(lambda: append_json(run.output / "skipped.jsonl",
                                            *({"step": step, **record} for record in skipped)))


def train_grpo(run: Run) -> None:
    """GRPO from the model given; the reference is that same model, frozen."""
    config = run.config
    steps = config.steps or max(1, round(config.epochs * len(run.examples) / config.prompts_per_step))
    learner = make_learner(run, steps)                      # the reference is a copy of the model before its state
    training = Training(run.policy, learner.value, learner.optimizer, learner.scheduler)
    counters = restore(run, training)
    learner.sampler.refresh()
    follow(run, training, grpo_steps(run, learner, counters.step, steps), counters, steps)


def grpo_steps(run: Run, learner: Learner, start: int, steps: int) -> Iterator[Step]:
    """Rounds of sample, score, compare, improve, from step number `start` up to `steps`."""
    config, reward_fn = run.config, blaming(make_reward_fn(run.config))

    def draw(step: int, attempt: int = 0) -> tuple[PromptBatch, list[dict]]:
        """The step's prompts, or spare ones from a stream of their own, so that a step number fixes its data."""
        size = config.prompts_per_step
        place = step if attempt == 0 else step * config.dynamic_sampling + attempt - 1
        examples, prompts, skipped = take(run, run.encode, config.seed + SPARE * (attempt > 0), place * size, size)
        numbers = [number + SPARE * (attempt > 0) for number in range(place * size, (place + 1) * size)]
        return PromptBatch(run.world.share(numbers), examples, prompts), skipped

    for step, ready in enumerate(run.world.each(prepared_ahead(draw, range(start, steps))), start):
        def drawn(attempt: int, step: int = step, ready: tuple = ready) -> PromptBatch:
            found, skipped = draw(step, attempt) if attempt else ready
            note_skipped(run, step + 1, skipped)
            return replace(found, prompts=run.with_features([e.id for e in found.examples], found.prompts))

        metrics, groups = grpo_step(learner, drawn, reward_fn, config, step, step / max(1, steps - 1))
        yield metrics, groups, partial(keep_rollout, run, learner, step + 1, ready[0],
                                       {"groups": groups, "metrics": metrics})


def keep_rollout(run: Run, learner: Learner, step: int, batch: PromptBatch, record: dict) -> None:
    """Keep a batch whose loss or gradient is not finite: prompts and answers as sampled last, the groups trained on."""
    answers = learner.sampler.collect(learner.sampler.bucket.drawn).completions()
    record = {"ids": [example.id for example in batch.examples], "numbers": list(batch.numbers), **record}
    save_batch(run.output / "bad-batches", step, batch.prompts, answers, record)


def make_learner(run: Run, steps: int) -> Learner:
    """Reference, value network, sampler, optimizer and schedule around the policy."""
    config = run.config
    value = ValueNetwork(run.policy, config.value_trunk == "own") if config.advantage == "gae" else None
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "auto": run.dtype}[config.reference_dtype]
    reference = freeze_copy(run.policy, dtype) if config.needs_reference else None
    world = shard(run.world, run.dtype, run.policy, value, reference)
    optimizer = make_optimizer(run.policy, config, value)   # of this process's parts, if there are several
    return Learner(run.policy, reference, value, make_sampler(run, config.temperature), optimizer,
                   make_scheduler(optimizer, config, steps * config.updates_per_rollout), world=world)


def make_sampler(run: Run, temperature: float) -> Sampler:
    """A sampler in the run's compute type; where the policy is in parts, of a whole copy."""
    alone = run.world.size == 1
    return Sampler(run.policy if alone else whole_copy(run.policy, run.dtype), run.processor, temperature,
                   run.config.max_new_tokens, dtype=run.dtype, decode=run.config.decode,
                   renew=None if alone else partial(renew, run.policy))


def make_reward_fn(config: GRPOConfig) -> RewardFn:
    """AlphaDrive's rewards as named components; `accuracy` (strict, against the label) is logged, not rewarded."""
    def reward_fn(example: Example, completions: list[str]) -> list[dict[str, float]]:
        rows = planning_rewards(completions, example.decision, example.acceptable, config.reward_mode,
                                accuracy=config.reward_accuracy, diversity=config.diversity,
                                reasoning=config.reasoning)
        return [{"speed": speed, "path": path, "format": form, "accuracy": float(parse_plan(text) == example.decision)}
                for text, (speed, path, form) in zip(completions, rows, strict=True)]
    return reward_fn


def follow(run: Run, training: Training, steps: Iterator[Step], counters: Counters, total: int) -> Counters:
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
        counters, record = count_step(run, counters, metrics, time.monotonic() - before, total)
        run.world.first(lambda: report_step(run, progress, counters.step, record, groups))  # noqa: B023  called here
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


def report_step(run: Run, progress: Progress, step: int, record: dict, groups: list[dict]) -> None:
    """The logs and the progress line."""
    write_step(run, step, record, groups)
    progress.show(step, **headline(record))


def count_step(run: Run, counters: Counters, metrics: dict, seconds: float, total: int) -> tuple[Counters, dict]:
    """Validate and save the best model, if it is time to. -> the counters and the record of the step just made."""
    step, config, accuracy, best = counters.step + 1, run.config, counters.accuracy, counters.best
    record = {"step": step, **metrics, "seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
    if run.validation and (step == total or (config.eval_every and step % config.eval_every == 0)):
        accuracy = record["val_accuracy"] = validate(run)
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


def leave(run: Run, training: Training, counters: Counters) -> None:
    """Save what there is before the run ends early: the state, and the model unless validation has saved a better.

    Several processes must all have come here."""
    if counters.step == 0:
        return
    if counters.best < 0:
        save(run, counters.step, None)
        print(f"stopped after step {counters.step}; the model is in {run.output / 'model'}", flush=True)
    hold(run, training, counters)


def check_stop(run: Run, training: Training, counters: Counters, seconds: float = 0.0) -> None:
    """Save and raise Stopped if a signal came or the time allowed would not last for another such step.

    All processes stop if one has to."""
    if code := int(run.world.largest(run.stop.code(seconds))):
        leave(run, training, counters)
        why = "time is up" if code == TIME_IS_UP else "stopped"
        raise Stopped(f"{why} after step {counters.step}: go on with the same command and --resume auto", code)


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


def validate(run: Run) -> float:
    """Greedy strict planning accuracy on the validation examples."""
    sampler = make_sampler(run, temperature=0.0)
    examples = run.world.share(run.validation)
    answers = sample_many(sampler, examples, run.encode, 1, run.config.seed, run.config.eval_batch)
    right = [parse_plan(rollout.texts[0]) == example.decision for example, rollout in answers]
    found = run.world.total({"right": sum(right), "asked": len(right)})
    return found["right"] / found["asked"]


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


def append_json(file: Path, *records: dict) -> None:
    """Add one line per record; a number that is not finite becomes null, which JSON can say."""
    with open(file, "a") as stream:
        stream.writelines(json.dumps(finite(record), allow_nan=False) + "\n" for record in records)


if __name__ == "__main__":
    main(sys.argv[1:])
