"""Score a driving planner: `python eval.py` scores the newest built-in run on the built-in test scenes.

Greedy and sampled answers go through the same strict parser, the same picture size and the same prompt. One picture:
`python eval.py --model DIR --image FILE --speed 4.2 --navigation "Turn left in 50 m" --samples 16` prints the
distinct plans with their frequency and a reason, which is the seam for a downstream planner.
"""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from data.dataset import check_images, open_image, select_split
from data.scenes import bayes_ceiling, scene_examples
from data.schema import Example, load_examples, parse_navigation
from grpo.batch import Prompt, PromptSettings, encode_example, request_text
from grpo.checkpoint import check_output, choose_device, load_policy, prepare_output, write_json
from grpo.config import EvalConfig, parse_flags
from grpo.progress import Progress
from grpo.rollout import Sampler, sample_many
from models.processor import Processor
from models.qwen2_vl import Qwen2VL
from rewards import Decision, parse_plan
from rewards.metrics import bootstrap_interval, plan_entropy, planning_metrics


def main(arguments: list[str]) -> None:
    """Parse, score, and turn errors at the border into one line."""
    flags = parse_flags(EvalConfig, f"{__doc__}", arguments)
    try:
        config = EvalConfig(**flags)
        config = dataclasses.replace(config, model=config.model or newest_model())
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.image:
            plan_one_picture(config)
        else:
            score_split(config)
    except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as fault:
        sys.exit(f"error: {fault}")


def newest_model() -> str:
    """The built-in run's GRPO model, else its SFT model."""
    for stage in ("grpo", "sft"):
        if Path(f"runs/{stage}/model").is_dir():
            return f"runs/{stage}/model"
    raise ValueError("neither runs/grpo/model nor runs/sft/model exists: train first, or name a --model")


def load(config: EvalConfig) -> tuple[Qwen2VL, Processor, PromptSettings]:
    """The model to score and how it was asked in training; a raw published checkpoint gets AlphaDrive's wording."""
    device = choose_device(config.device)
    bf16 = config.dtype == "bf16" or (config.dtype == "auto" and device == "cuda")
    policy, processor, settings = load_policy(config.model, torch.bfloat16 if bf16 else torch.float32, device,
                                              config.min_pixels, config.max_pixels)
    settings = settings or PromptSettings()
    if config.max_new_tokens:
        settings = dataclasses.replace(settings, max_new_tokens=config.max_new_tokens)
    return policy.eval(), processor, settings


def score_split(config: EvalConfig) -> None:
    """Answer every example greedily and `samples` times at the temperature; write metrics and predictions."""
    output = config.output or Path(config.model).parent / f"eval-{config.split}"
    check_output(output, config.overwrite, config.model)
    policy, processor, settings = load(config)
    examples = load_split(config)

    greedy = [texts[0] for texts in answers(policy, processor, settings, examples, config, 0.0, 1)]
    sampled = [[] for _ in examples]
    if config.samples:
        sampled = answers(policy, processor, settings, examples, config, config.temperature, config.samples)
    metrics = score(examples, greedy, sampled)
    metrics = {"model": config.model, "split": config.split, "temperature": config.temperature,
               "samples_per_example": config.samples, "prompt_style": settings.prompt_style,
               "reasoning": settings.reasoning, "hide": settings.hide, **metrics}
    output = prepare_output(output, config.overwrite)                           # only now: nothing can fail any more
    write_json(metrics, output / "metrics.json")
    with open(output / "predictions.jsonl", "w") as stream:
        for example, text, texts in zip(examples, greedy, sampled, strict=True):
            stream.write(json.dumps(prediction(example, settings, text, texts)) + "\n")
    print(summary(metrics))
    print(f"written to {output}")


def load_split(config: EvalConfig) -> list[Example]:
    """The examples to score."""
    if config.data == "scenes":
        return scene_examples(config.split, config.limit or 2000)
    examples = load_examples(config.data)
    check_images(examples)
    examples = select_split(examples, config.split)
    return examples[:config.limit] if config.limit else examples


def answers(policy: Qwen2VL, processor: Processor, settings: PromptSettings, examples: Sequence[Example],
            config: EvalConfig, temperature: float, samples: int) -> list[list[str]]:
    """`samples` completions of each example."""
    def encode(example: Example) -> Prompt:
        return encode_example(example, open_image(example), processor, policy.config, settings)

    sampler = Sampler(policy, processor, temperature, settings.max_new_tokens)
    label = "greedy" if temperature == 0 else f"T={temperature:g}"
    progress, texts = Progress(label, len(examples)), []
    for _, rollout in sample_many(sampler, examples, encode, samples, config.seed, config.batch_size):
        texts.append(rollout.texts)
        progress.show(len(texts))
    return texts


def score(examples: Sequence[Example], greedy: Sequence[str], sampled: Sequence[Sequence[str]]) -> dict:
    """Planning metrics of the greedy answers at the top level, of the samples under `sampled`, and the ceiling."""
    truths, acceptable = [e.decision for e in examples], [e.acceptable for e in examples]
    known = acceptable if all(acceptable) else None
    plans = [parse_plan(text) for text in greedy]
    metrics = planning_metrics(truths, plans, known)
    right = [float(plan == truth) for plan, truth in zip(plans, truths, strict=True)]
    metrics["planning_accuracy_interval"] = bootstrap_interval(right, seed=0)
    groups = [[parse_plan(text) for text in texts] for texts in sampled]
    if groups[0]:
        metrics["sampled"] = score_samples(truths, groups, known)
    if all(example.scene is not None for example in examples):
        metrics["bayes_ceiling"], metrics["bayes_ceiling_sampled"] = bayes_ceiling(examples)
    return metrics


def score_samples(truths: Sequence[Decision], groups: Sequence[Sequence[Decision | None]],
                  acceptable: Sequence | None) -> dict:
    """Metrics over all samples; intervals are over examples, since one example's samples go together."""
    size = len(groups[0])
    flat = [plan for group in groups for plan in group]
    metrics = planning_metrics([t for t in truths for _ in range(size)], flat,
                               [a for a in acceptable for _ in range(size)] if acceptable else None)
    right = [sum(plan == truth for plan in group) / size for group, truth in zip(groups, truths, strict=True)]
    metrics["planning_accuracy_interval"] = bootstrap_interval(right, seed=0)
    entropies = [plan_entropy(group) for group in groups]
    metrics["plan_entropy"] = sum(entropies) / len(entropies) if size > 1 else None  # one sample has no spread
    return metrics


def prediction(example: Example, settings: PromptSettings, text: str, samples: Sequence[str]) -> dict:
    """One line of predictions.jsonl."""
    return {"id": example.id, "image": example.image, "scene": example.scene,
            "prompt": request_text(example, settings),
            "truth": str(example.decision), "acceptable": [str(plan) for plan in example.acceptable or ()] or None,
            "factors": example.factors, "text": text, "decision": plan_name(parse_plan(text)),
            "samples": list(samples), "sample_decisions": [plan_name(parse_plan(sample)) for sample in samples]}


def plan_name(plan: Decision | None) -> str | None:
    """Decision -> `STOP, STRAIGHT`; an answer that is none stays None."""
    return None if plan is None else str(plan)


def summary(metrics: dict) -> str:
    """A few lines for people."""
    low, high = metrics["planning_accuracy_interval"]
    lines = [f"planning accuracy {metrics['planning_accuracy']:.4f} greedy (95 % {low:.4f} to {high:.4f}), speed "
             f"{metrics['speed_accuracy']:.4f}, path {metrics['path_accuracy']:.4f}, invalid "
             f"{metrics['invalid_rate']:.4f}"]
    if "sampled" in metrics:
        sampled = metrics["sampled"]
        spread = "" if sampled["plan_entropy"] is None else f", plan entropy {sampled['plan_entropy']:.3f} nats"
        lines.append(f"                  {sampled['planning_accuracy']:.4f} at T = {metrics['temperature']:g}, "
                     f"{metrics['samples_per_example']} per example{spread}")
    if "bayes_ceiling" in metrics:
        lines.append(f"                  {metrics['bayes_ceiling']:.4f} is the Bayes ceiling (sampled "
                     f"{metrics['bayes_ceiling_sampled']:.4f}); greedy reaches "
                     f"{metrics['planning_accuracy'] / metrics['bayes_ceiling']:.3f} of it")
    if metrics.get("acceptable_accuracy") is not None:
        lines.append(f"                  {metrics['acceptable_accuracy']:.4f} greedy answers are an acceptable plan")
    for part in ("speed", "path"):
        f1 = "  ".join(f"{name} {row['f1']:.3f}" for name, row in metrics[part].items() if row["f1"] is not None)
        lines.append(f"F1 {part}: {f1}")
    return "\n".join(lines)


def plan_one_picture(config: EvalConfig) -> None:
    """Print the distinct plans for one picture, most frequent first."""
    policy, processor, settings = load(config)
    example = Example(id=config.image, image=config.image, speed=config.speed,
                      navigation=parse_navigation(config.navigation), decision=Decision("KEEP", "STRAIGHT"))

    samples = max(config.samples, 1)
    temperature = config.temperature if samples > 1 else 0.0
    texts = answers(policy, processor, settings, [example], config, temperature, samples)[0]
    counts = Counter(plan_name(parse_plan(text)) for text in texts)
    for plan, count in counts.most_common():
        reason = next(text for text in texts if plan_name(parse_plan(text)) == plan)
        print(f"{count}/{samples}  {plan or 'no valid plan'}\n      {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
