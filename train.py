"""Train Qwen2-VL as a driving planner: `python train.py --stage sft`, then `python train.py --stage grpo`.

Without further flags both stages run the built-in scenes and a tiny Qwen2-VL on a CPU. With `--model DIR --data FILE`
the same code trains the real model. `python train.py --stage sft --help` explains every flag.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data.dataset import check_images, indices_at, open_image, prepared_ahead, select_split
from data.scenes import scene_examples, scene_text_corpus
from data.schema import Example, load_examples
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
from grpo.distributed import ALONE, World, check_supported, copy_to_save, depart, join, renew, sampling_copy, shard
from grpo.features import FeatureCache
from grpo.groups import PromptBatch, RewardFn
from grpo.logprobs import compute_dtype
from grpo.memory import advice, available_memory, describe, gigabytes, memory_plan, peak_memory, workload
from grpo.progress import Progress
from grpo.rollout import Sampler, sample_many
from grpo.sft import sft_step
from grpo.trainer import Learner, freeze_copy, grpo_step, make_optimizer, make_scheduler
from models.config import PRESETS as MODEL_PRESETS
from models.lora import add_lora
from models.processor import MAX_PIXELS, MIN_PIXELS, SYSTEM_PROMPT, Processor, fit_config, train_bpe
from models.qwen2_vl import Qwen2VL, new_model
from models.value import ValueNetwork
from rewards import parse_plan, planning_rewards

TINY_VOCABULARY = 1024
VALIDATION_SCENES = 2000
SPARE = 10**9  # added to seeds and numbers of the stream that dynamic sampling draws from


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
    world: World = ALONE

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
    """Parse, train, and turn errors at the border into one line."""
    stage, flags = read_command(arguments)
    try:
        world = join(choose_device(flags.get("device", "auto")))
        if world.rank:
            sys.stdout = open(os.devnull, "w")              # process 0 speaks for all
        config = configure(stage, flags)
        check_supported(config, world)
        if world.rank == 0:
            check_output(config.output, config.overwrite, config.model)
        print(f"stage {stage}:", " ".join(f"{k}={v}" for k, v in dataclasses.asdict(config).items()), flush=True)
        before = peak_memory("cpu")
        run = replace(prepare(stage, config), world=world)  # reads model and data: only then an old run may go
        prompts = [run.encode(example) for example in run.examples[:8]]     # a fault in the data shows here, too
        planned = print_plan(run, prompts, before)
        if world.rank == 0:
            prepare_output(run.output, config.overwrite)
            write_json({"stage": stage, **dataclasses.asdict(config), "torch": torch.__version__,
                        "processes": world.size}, run.output / "config.json")
        (train_sft if stage == "sft" else train_grpo)(run)
        peak = peak_memory(run.policy.head_weight.device.type)
        print(f"memory: {gigabytes(planned)} planned, {gigabytes(peak)} at the peak", flush=True)
        depart(world)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except torch.OutOfMemoryError as fault:
        sys.exit(f"error: out of memory ({fault}): lower --micro-batch or --max-pixels, or checkpoint gradients")
    except (ValueError, OSError, FloatingPointError) as fault:
        sys.exit(f"error: {fault}")


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
    examples, validation = load_data(config)
    if stage == "sft":
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
    return Run(config, policy.train(), processor, settings, examples, validation, Path(config.output), features)


def print_plan(run: Run, prompts: list[Prompt], before: int) -> int:
    """Say what the run will need, and what would help if that is not there. -> bytes planned."""
    device = run.policy.head_weight.device.type
    work = workload(run.policy, prompts, run.config, before if device == "cpu" else 0)
    plan = memory_plan(work, run.config)
    alone = "" if run.world.size == 1 else " of one process alone, each of several needs less"
    print(f"memory plan{alone}: {describe(plan)}", flush=True)
    if alone == "" and (lacking := advice(work, run.config, available_memory(device))):
        print(f"warning: {lacking}", flush=True)
    return sum(plan.values())


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


def load_data(config: TrainConfig) -> tuple[list[Example], list[Example]]:
    """Training and validation examples. A file without split names has no validation part."""
    if config.data == "scenes":
        return (scene_examples(config.split, config.scenes),
                scene_examples("val", min(config.eval_examples, VALIDATION_SCENES)))
    examples = load_examples(config.data)
    check_images(examples)
    validation = [example for example in examples if example.split == "val"][:config.eval_examples]
    if not validation:
        print("no example carries the split `val`: the last model is kept, not the best", flush=True)
    return select_split(examples, config.split), validation


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
    steps = config.steps or max(1, round(config.epochs * len(run.examples) / config.batch_size))
    (accuracy, best), done = follow(run, sft_steps(run, optimizer, 0, steps), 0, steps), steps
    for _ in range(config.gate_rounds):
        if accuracy is None or accuracy >= config.gate:
            break
        extra = max(1, steps // 2)
        print(f"validation {accuracy:.3f} is below the gate {config.gate}: {extra} more steps", flush=True)
        accuracy, best = follow(run, sft_steps(run, optimizer, done, extra), done, extra, best)
        done += extra
    if accuracy is not None and accuracy < config.gate:
        print(f"warning: validation {accuracy:.3f} is still below the gate {config.gate}: GRPO may not help from here",
              flush=True)


def sft_steps(run: Run, optimizer: torch.optim.Optimizer, start: int, steps: int) -> Iterator[tuple[dict, list]]:
    """`steps` updates from step number `start` on, with a schedule of their own."""
    config = run.config
    scheduler = make_scheduler(optimizer, config, steps)

    def batch(step: int) -> tuple[list, list, list]:
        numbers = indices_at(len(run.examples), config.seed, step * config.batch_size, config.batch_size)
        chosen = [run.examples[i] for i in run.world.share(numbers)]
        prompts = [run.encode(example) for example in chosen]
        targets = [encode_target(example, run.processor, run.settings) for example in chosen]
        for example, prompt, target in zip(chosen, prompts, targets, strict=True):
            check_context(len(prompt.input_ids), len(target), run.policy.config, f"example {example.id}")
        return [example.id for example in chosen], prompts, targets

    for names, prompts, targets in prepared_ahead(batch, range(start, start + steps)):
        prompts = run.with_features(names, prompts)
        yield sft_step(run.policy, optimizer, scheduler, prompts, targets, config, run.world), []


def train_grpo(run: Run) -> None:
    """GRPO from the model given; the reference is that same model, frozen."""
    config = run.config
    steps = config.steps or max(1, round(config.epochs * len(run.examples) / config.prompts_per_step))
    follow(run, grpo_steps(run, steps), 0, steps)


def grpo_steps(run: Run, steps: int) -> Iterator[tuple[dict, list]]:
    """`steps` rounds of sample, score, compare, improve."""
    config, learner, reward_fn = run.config, make_learner(run, steps), make_reward_fn(run.config)

    def draw(step: int, attempt: int = 0) -> PromptBatch:
        """The step's prompts, or spare ones from a stream of their own, so that a step number fixes its data."""
        size, count = config.prompts_per_step, len(run.examples)
        place = step if attempt == 0 else step * config.dynamic_sampling + attempt - 1
        indices = indices_at(count, config.seed + SPARE * (attempt > 0), place * size, size)
        chosen = [run.examples[i] for i in run.world.share(indices)]
        numbers = [number + SPARE * (attempt > 0) for number in range(place * size, (place + 1) * size)]
        return PromptBatch(run.world.share(numbers), chosen, [run.encode(example) for example in chosen])

    for step, batch in enumerate(prepared_ahead(draw, range(steps))):
        def drawn(attempt: int, step: int = step, batch: PromptBatch = batch) -> PromptBatch:
            found = draw(step, attempt) if attempt else batch
            return replace(found, prompts=run.with_features([e.id for e in found.examples], found.prompts))

        yield grpo_step(learner, drawn, reward_fn, config, step, step / max(1, steps - 1))


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
    return Sampler(run.policy if alone else sampling_copy(run.policy, run.dtype), run.processor, temperature,
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


def follow(run: Run, steps: Iterator[tuple[dict, list]], start: int, total: int,
           best: float = -1.0) -> tuple[float | None, float]:
    """Run the steps; write metrics, samples and the best model. -> last validation accuracy (if any), best so far.

    A fault in the data or Ctrl-C half-way saves the model as it is, unless validation has saved one already, or this is
    one of several processes: the weights of all would be needed, and the others may be elsewhere.
    """
    config, accuracy, skipped, step = run.config, None, 0, start
    progress = Progress("step", start + total, start)
    before = time.monotonic()
    try:
        for step, (metrics, groups) in enumerate(steps, start + 1):
            seconds, last = time.monotonic() - before, step == start + total
            record = {"step": step, **metrics, "seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
            if run.validation and (last or (config.eval_every and step % config.eval_every == 0)):
                accuracy = record["val_accuracy"] = validate(run)
                if accuracy > best:
                    best = accuracy
                    save(run, step, accuracy)
            elif last:
                save(run, step, None)
            write_step(run, progress, step, record, groups)
            skipped = skipped + 1 if metrics["skipped"] else 0
            if skipped >= config.max_skipped:
                raise FloatingPointError(f"{skipped} steps in a row had a non-finite gradient (last loss "
                                         f"{metrics['loss']}); lower --learning-rate, or use --precision fp32")
            before = time.monotonic()
    except (ValueError, OSError, KeyboardInterrupt):
        if best < 0 and step > start and run.world.size == 1:
            save(run, step, None)
            print(f"stopped after step {step}; the model is in {run.output / 'model'}", flush=True)
        raise
    score = "" if accuracy is None else f": validation {best:.3f}"
    print(f"best model in {run.output / 'model'}{score}", flush=True)
    return accuracy, best


def write_step(run: Run, progress: Progress, step: int, record: dict, groups: list[dict]) -> None:
    """The progress line, one line of metrics, and now and then some groups of samples, those of process 0."""
    if run.world.rank:
        return
    progress.show(step, **headline(record))
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
    if policy is None:                                      # process 0 writes what all have gathered
        return
    if not all(torch.isfinite(parameter).all() for parameter in policy.parameters()):
        raise FloatingPointError(f"step {step}: the weights are not finite; the model saved before, if any, is kept; "
                                 "lower --learning-rate")
    about = {"stage": "sft" if isinstance(run.config, SFTConfig) else "grpo", "step": step, "val_accuracy": accuracy,
             "reward_mode": getattr(run.config, "reward_mode", None), "seed": run.config.seed}
    save_policy(policy, run.processor, run.settings, about, run.output / "model")


def append_json(file: Path, *records: dict) -> None:
    """Add one line per record; a number that is not finite becomes null, which JSON can say."""
    plain = [{name: None if isinstance(value, float) and not math.isfinite(value) else value
              for name, value in record.items()} for record in records]
    with open(file, "a") as stream:
        stream.writelines(json.dumps(record, allow_nan=False) + "\n" for record in plain)


if __name__ == "__main__":
    main(sys.argv[1:])
