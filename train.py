"""Train Qwen2-VL as a driving planner: `python train.py --stage sft`, then `python train.py --stage grpo`.

Without further flags both stages run the built-in scenes and a tiny Qwen2-VL on a CPU. With `--model DIR --data FILE`
the same code trains the real model. `python train.py --stage sft --help` explains every flag.
"""

import argparse
import dataclasses
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dataset import check_images, data_sign, indices_at, open_image, prepared_ahead, select_split, usable
from data.example import Example, printable
from data.files import load_examples, load_usable_examples
from data.reasons import choose_reasons
from data.scenes import scene_examples, scene_text_corpus
from data.scenes.caption import caption_examples
from grpo.batch import Prompt, PromptSettings, check_context, encode_target
from grpo.config import GRPOConfig, SFTConfig, TrainConfig, parse_flags, resolve
from grpo.engine.checkpoint import check_output, choose_device, load_policy, prepare_output, read_settings, write_json
from grpo.engine.distributed import CommonFault, World, check_supported, depart, join, renew, shard, whole_copy
from grpo.engine.features import FeatureCache
from grpo.engine.guards import Stop, Stopped, blaming, save_batch
from grpo.engine.loop import Run, Step, append_json, check_stop, follow, restore
from grpo.engine.memory import advice, available_memory, describe, gigabytes, memory_plan, peak_memory, workload
from grpo.engine.state import Training, find_state, fingerprint, read_about
from grpo.groups import PromptBatch, RewardFn
from grpo.logprobs import compute_dtype
from grpo.rollout import Sampler, sample_many
from grpo.sft import sft_step
from grpo.trainer import Learner, freeze_copy, grpo_step, make_optimizer, make_scheduler
from models.config import PRESETS as MODEL_PRESETS
from models.fast.recomputed import use_recomputed
from models.lora import add_lora
from models.processor import MAX_PIXELS, MIN_PIXELS, SYSTEM_PROMPT, Processor, fit_config
from models.qwen2_vl import Qwen2VL, new_model
from models.tokenizer import train_bpe
from models.value import ValueNetwork
from rewards import parse_plan, planning_rewards

TINY_VOCABULARY = 1024
VALIDATION_SCENES = 2000
SPARE = 10**9  # added to seeds and numbers of the stream that dynamic sampling draws from; twice: for bad examples
SPARES = 64    # examples that may stand in for a bad one
SHOWN = 5      # records left out that are shown; skipped.jsonl lists all


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
    if settings and flags.get("scene_size", settings.scene_size) != settings.scene_size:
        print(f"note: the model learnt from pictures of {settings.scene_size}, from now on they are "
              f"{flags['scene_size']}", flush=True)
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
    policy, processor = make_policy(config, device)
    settings = PromptSettings(config.prompt_style, config.reasoning, config.hide, config.max_new_tokens,
                              config.scene_size)
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
    opened = partial(open_image, scene_size=settings.scene_size)
    return usable_validation(Run(config, policy.train(), processor, settings, opened, examples, validation,
                                 Path(config.output), features, about, left_out=left_out))


def make_policy(config: TrainConfig, device: str) -> tuple[Qwen2VL, Processor]:
    """The model to train, made or loaded, on its device, with what is to be trained chosen."""
    if config.model == "tiny":
        policy, processor = make_tiny(config.seed)
        policy.to(device)
        processor = Processor(processor.tokenizer, config.min_pixels or MIN_PIXELS, config.max_pixels or MAX_PIXELS)
    else:
        dtype = torch.float32 if not config.lora_rank else compute_dtype(device, config.precision) or torch.float32
        policy, processor, _ = load_policy(config.model, dtype, device, config.min_pixels, config.max_pixels)
    use_recomputed(policy)
    choose_trained(policy, config)
    policy.model.gradient_checkpointing = policy.visual.gradient_checkpointing = config.gradient_checkpointing
    return policy, processor


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
        counters = follow(run, training, sft_steps(run, training, counters.step, end), counters, end,
                          partial(validate, run))
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
    follow(run, training, grpo_steps(run, learner, counters.step, steps), counters, steps, partial(validate, run))


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


def validate(run: Run) -> float:
    """Greedy strict planning accuracy on the validation examples."""
    sampler = make_sampler(run, temperature=0.0)
    examples = run.world.share(run.validation)
    answers = sample_many(sampler, examples, run.encode, 1, run.config.seed, run.config.eval_batch)
    right = [parse_plan(rollout.texts[0]) == example.decision for example, rollout in answers]
    found = run.world.total({"right": sum(right), "asked": len(right)})
    return found["right"] / found["asked"]


if __name__ == "__main__":
    main(sys.argv[1:])
