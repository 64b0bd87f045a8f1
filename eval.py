"""Score a driving planner: `python eval.py` takes runs/grpo/model, else runs/sft/model, and the built-in test scenes.

Every model is asked in the same way: the same strict parser for greedy and sampled answers, and the prompt and picture
size of its training. The output directory eval-<split>/ beside the model gets metrics.json, predictions.jsonl and
table.md, the row of the paper's Table 1.

`python eval.py --compare A B` compares scored runs on the scenes that all of them answered. It takes two or more
directories or predictions files; the first one is compared with each of the others.

`python eval.py --model DIR --image FILE --speed 4.2 --navigation "Turn left in 50 m" --samples 16` prints the
distinct plans for one picture with their frequency and a reason, as input for a downstream planner. It needs no label.
With a folder it does so for every picture in it; several --image are the pictures of one question, in this order.

`python eval.py --model DIR --images PATH --samples 16 --json OUT.jsonl` plans for many requests without labels in
batches, one JSON line each: a folder, a .txt list of paths, a .json or .jsonl file of records, or - for standard input.

`python eval.py --trajectories 16` drives: a trajectory decoder (`--decoder DIR`) samples 16 trajectories per
scene of a split, which are scored and written as JSON lines; with --image they are printed for pictures.
"""

import machine  # noqa: F401  sets up OpenMP and the allocator before torch is imported

# isort: split
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from data.dataset import check_images, open_images, prepared_ahead, select_split
from data.datasheet import notes_on
from data.example import Example, printable, views_record
from data.files import read_examples
from data.requests import picture_examples
from data.scenes import scene_examples
from data.splits import same_split
from evaluation.comparison import compare
from evaluation.predictions import append_lines, plan_name, read_object, read_predictions, replace_lines
from evaluation.scoring import coverage, paper_table, score, summary
from grpo.engine.card import add_scores
from grpo.engine.checkpoint import (
    check_output,
    choose_device,
    default_model,
    load_policy,
    only_writer,
    prepare_output,
    require_scene_labels,
)
from grpo.engine.driven import default_decoder, drive_pictures, drive_split
from grpo.engine.examples import note_styles, with_demonstrations
from grpo.engine.features import FeatureCache
from grpo.engine.flags import EvalConfig, parse_flags
from grpo.engine.guards import Stop, Stopped, mute_closed_streams, unforeseen
from grpo.engine.plans import plan_pictures, plan_requests
from grpo.engine.progress import Progress
from grpo.engine.prompts import PromptSettings, answering, asked, encode_example, request_text
from grpo.fast.copies import sampling_copy
from grpo.fast.sampler import Sampler
from grpo.sampling import Rollout, uniform_table
from models.files import holds_a_run
from models.processor import Processor
from models.prompt import Prompt
from models.qwen2_vl import Qwen2VL
from storage import write_json, write_text

Planner = tuple[Qwen2VL, Processor, PromptSettings]
OUT_OF_MEMORY = "lower --batch-size or --max-pixels"


def main(arguments: list[str]) -> None:
    """Parse the flags and run; an error becomes one line. Exit codes: docs/reliability.md."""
    flags = {} if arguments[:1] == ["--compare"] else parse_flags(EvalConfig, f"{__doc__}", arguments)
    try:
        if arguments[:1] == ["--compare"]:
            print(compare(arguments[1:]))
        else:
            evaluate(EvalConfig(**flags))
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.code)
    except (ValueError, OSError, FloatingPointError) as fault:
        sys.exit(f"error: {printable(str(fault))}")
    except Exception as fault:  # noqa: BLE001  the last frame of the program: every error becomes one line
        sys.exit(f"error: {unforeseen(fault, EvalConfig(**flags).scores, OUT_OF_MEMORY)}")


def evaluate(config: EvalConfig) -> None:
    """Score or plan, with a language model or a trajectory decoder."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("eval.py is one process: start it without torchrun, or unset WORLD_SIZE")
    if config.threads:
        torch.set_num_threads(config.threads)
    # in an ASCII locale Python reads the bytes of other letters on the command line as surrogates
    words = config.navigation.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    config = dataclasses.replace(config, navigation=words)
    if config.trajectories:
        config = dataclasses.replace(config, decoder=config.decoder or default_decoder())
        if config.image:
            drive_pictures(config, pictures_asked(config))
        else:
            with only_writer(config.scores):
                examples, _, faults = load_split(config, PromptSettings())
                drive_split(config, examples, faults)
        return
    config = dataclasses.replace(config, model=config.model or default_model(
            ("grpo", "sft"), "neither runs/grpo/model nor runs/sft/model exists: train first, or name a --model"))
    if config.images:
        planner = load(config)
        plan_requests(sampler_of(planner, config), lambda one: usable_prompt(one, planner, "skip"), config,
                      planner[2].actions)
    elif config.image:
        examples, planner = pictures_asked(config), load(config)
        plan_pictures(sampler_of(planner, config), lambda one: usable_prompt(one, planner, "skip"), examples, config,
                      planner[2].actions)
    else:
        with only_writer(config.scores):                # before an earlier scoring's answers are read
            score_split(config)


def pictures_asked(config: EvalConfig) -> list[Example]:
    """The questions of --image."""
    return picture_examples(config.image.split("\n"), config.cameras, config.speed, config.navigation)


def load(config: EvalConfig) -> Planner:
    """The model, and the prompt settings of its training (AlphaDrive's wording for a published checkpoint)."""
    device = choose_device(config.device)
    bf16 = config.dtype == "bf16" or (config.dtype == "auto" and device == "cuda")
    policy, processor, settings = load_policy(config.model, torch.bfloat16 if bf16 else torch.float32, device,
                                              config.min_pixels, config.max_pixels, config.adapter)
    settings = answering(settings or PromptSettings(), config.answer)
    if config.max_new_tokens:
        settings = dataclasses.replace(settings, max_new_tokens=config.max_new_tokens)
    if config.scene_size not in ("", settings.scene_size):
        print(f"note: the model was trained on pictures of {settings.scene_size} and is scored on {config.scene_size}",
              file=sys.stderr if config.images else sys.stdout)                 # there stand the JSON lines
        settings = dataclasses.replace(settings, scene_size=config.scene_size)
    if config.camera_count not in (0, settings.camera_count):
        print(f"note: the model was trained with --camera-count {settings.camera_count} and is scored with "
              f"{config.camera_count}", file=sys.stderr if config.images else sys.stdout)
        settings = dataclasses.replace(settings, camera_count=config.camera_count)
    return sampling_copy(policy.eval(), None), processor, settings             # one for all samplers; the rest is freed


def sampler_of(planner: Planner, config: EvalConfig) -> Sampler:
    """One answer is greedy; several are drawn at --temperature."""
    policy, processor, settings = planner
    return Sampler(policy, processor, config.temperature if config.samples > 1 else 0.0, settings.max_new_tokens)


def load_split(config: EvalConfig, settings: PromptSettings) -> tuple[list[Example], int | None, list[str]]:
    """The examples to score, how many there are (None for built-in scenes), and the faults of the unusable records."""
    actions = settings.actions
    if config.data == "scenes":
        require_scene_labels(actions, f"--model {config.model}")
        return scene_examples(config.split, config.limit or 2000, prior=config.prior,
                              cameras=settings.camera_count), None, []
    skip = config.on_bad_data == "skip"
    loaded = read_examples(config.data, config.image_root or None, leave_out_bad=skip, actions=actions)
    for line in notes_on(loaded):
        print(f"note: {config.data}: {printable(line)}")
    examples, faults = select_split(loaded.examples, config.split), loaded.faults
    chosen = examples[:config.limit] if config.limit else examples
    if config.scene_size and not any(example.scene is not None for example in chosen):
        raise ValueError(f"--scene-size is {config.scene_size!r}; leave it out for {config.data}, whose pictures "
                         "have sizes of their own (--max-pixels limits them)")
    note_styles(chosen, settings.prompt_style)
    note_trained_on(chosen, config)
    check_images(chosen, allow_some=skip)
    return chosen, len(examples) + len(faults), faults      # a bad record counts whatever its split would be


def note_trained_on(examples: Sequence[Example], config: EvalConfig) -> None:
    """Say how many of the examples the model's own run trained on, as config.json beside the model tells."""
    about = {}
    with contextlib.suppress(ValueError, OSError):          # a broken file there is no fault of the model
        about = read_object(config.run / "config.json") if holds_a_run(config.run) else {}
    if os.path.realpath(str(about.get("data"))) != os.path.realpath(config.data):
        return
    seen = sum(example.split is None or same_split(example.split, about.get("split")) for example in examples)
    if seen:
        print(f"note: {seen} of {len(examples)} examples belong to the data that the model was trained on; score "
              "recordings that it has not seen", file=sys.stderr)


# ---------------------------------------------------------------- answers

def score_split(config: EvalConfig) -> None:
    """Answer every example greedily and `samples` times per temperature; write predictions, metrics and table."""
    output = config.scores
    resumed = config.resume and (output / "predictions.jsonl").is_file()
    if not resumed:
        check_output(output, config.overwrite, config.model, config.adapter, config.data, config.image_root)
    planner = load(config)
    examples, available, faults = load_split(config, planner[2])
    examples = [asked(example, planner[2]) for example in examples]
    if planner[2].answer == "trajectory":
        examples = with_demonstrations(examples)
    about = answer_settings(config, planner)
    rows = kept_predictions(output, about, examples, planner[2]) if resumed else {}
    waiting = [number for number, example in enumerate(examples) if example.id not in rows]
    skipped = [{"fault": fault} for fault in faults]
    with keeping(output, rows, len(examples)) as stop:
        for batch, unusable in answer(planner, examples, waiting, config):
            skipped += unusable
            if batch and not rows and not resumed:                              # an earlier run is replaced only now
                write_json(about, prepare_output(output, config.overwrite) / "config.json")
            if batch:
                append_lines(output / "predictions.jsonl", batch)
                rows.update({row["id"]: row for row in batch})
            if code := stop.code():
                raise Stopped("stopped", code)
    if not rows:
        raise ValueError(f"none of {len(examples)} examples can be scored; the first fault: {skipped[0]['fault']}")
    ordered = [rows[example.id] for example in examples if example.id in rows]
    metrics = {"model": config.model, "split": config.split, "prior": about["prior"],
               "scene_size": None if ordered[0]["scene"] is None else about["scene_size"],
               "temperature": config.temperature,
               "samples_per_example": config.samples, "prompt_style": about["prompt_style"],
               "reasoning": about["reasoning"], "hide": about["hide"], "available": available,
               "skipped": len(skipped), **score(ordered, planner[2].actions)}
    write_scores(output, ordered, skipped, metrics)
    keep_in_card(config, metrics)


def write_scores(output: Path, rows: list[dict], skipped: list[dict], metrics: dict) -> None:
    """Write all files of a finished scoring and print its summary."""
    replace_lines(output / "predictions.jsonl", rows)                           # in the order of the data
    (output / "skipped.jsonl").unlink(missing_ok=True)
    if skipped:
        replace_lines(output / "skipped.jsonl", skipped)
    write_json(metrics, output / "metrics.json")
    table = paper_table({metrics["model"]: metrics})
    write_text(output / "table.md", table + "\n")
    print(f"{coverage(metrics)}\n{summary(metrics)}\n{table}\nwritten to {output}")


def keep_in_card(config: EvalConfig, metrics: dict) -> None:
    """Put the scores into the model's card, if it is one of ours and they are kept beside the model."""
    if config.output or config.adapter:
        return
    try:
        add_scores(config.model, f"{coverage(metrics)} ({scored_on(config)}).\n\n"
                                 f"{paper_table({Path(config.model).parent.name: metrics})}")
    except OSError as fault:
        print(f"note: the model card keeps its earlier scores ({fault})")


def scored_on(config: EvalConfig) -> str:
    """What the scores of a card are of: `test.json, split test; 8 samples each at T = 1`."""
    data = f"prior {config.prior}" if config.data == "scenes" else Path(config.data).name
    samples = f"; {config.samples} samples each at T = {config.temperature:g}" if config.samples else ""
    return f"{data}, split {config.split}{samples}"


@contextlib.contextmanager
def keeping(output: Path, rows: dict[str, dict], count: int) -> Iterator[Stop]:
    """Signals wait for the end of a batch. However the scoring ends, say which answers are kept."""
    try:
        with Stop() as stop:
            yield stop
    except BaseException:
        mute_closed_streams()
        if rows:
            print(f"{len(rows)} of {count} answers are kept in {output}: continue with the same command and --resume "
                  "(without --overwrite)", file=sys.stderr, flush=True)
        raise


def answer(planner: Planner, examples: Sequence[Example], numbers: Sequence[int],
           config: EvalConfig) -> Iterator[tuple[list[dict], list[dict]]]:
    """Lines of predictions.jsonl for the examples with these numbers, one batch at a time, longest requests first, and
    lines of skipped.jsonl for those that cannot be used.

    The features of a picture are computed once for all temperatures. The samples depend on seed, example and
    temperature only, not on the batch size or on an interruption.
    """
    policy, processor, settings = planner
    order = sorted(numbers, key=lambda number: -len(request_text(examples[number], settings)))
    batches = [order[start:start + config.batch_size] for start in range(0, len(order), config.batch_size)]
    samplers = {heat: Sampler(policy, processor, heat, settings.max_new_tokens) for heat in (0.0, *config.sweep)}
    features, done = FeatureCache(policy, "fp32", 0), len(examples) - len(numbers)
    progress = Progress("eval", len(examples), done)

    def encode(batch: Sequence[int]) -> tuple[dict[int, Prompt], list[dict]]:
        found = {number: usable_prompt(examples[number], planner, config.on_bad_data) for number in batch}
        return ({number: prompt for number, prompt in found.items() if not isinstance(prompt, str)},
                [{"id": examples[number].id, "fault": fault} for number, fault in found.items()
                 if isinstance(fault, str)])

    for chosen, (found, skipped) in zip(batches, prepared_ahead(encode, batches), strict=True):
        batch, prompts = list(found), features(list(found), list(found.values()))
        rollouts = {heat: sampler.sample(prompts, uniform_table(config.seed, 0, batch, config.samples if heat else 1,
                                                                settings.max_new_tokens))
                    for heat, sampler in samplers.items() if batch}
        yield [prediction(examples[number], settings, config, {
            heat: rollout.rows(*(part * len(rollout.texts) // len(batch) for part in (place, place + 1)))
            for heat, rollout in rollouts.items()}) for place, number in enumerate(batch)], skipped
        done += len(chosen)
        progress.show(done)


def usable_prompt(example: Example, planner: Planner, on_bad_data: str) -> Prompt | str:
    """The model's input, or with --on-bad-data skip the fault of an example that cannot be used. Faults name it."""
    policy, processor, settings = planner
    try:
        example = asked(example, settings)
        pictures = open_images(example, scene_size=settings.scene_size)
        return encode_example(example, pictures, processor, policy.config, settings)
    except (ValueError, OSError) as fault:
        known = f"example {example.id!r}" in str(fault) or f"example {example.id}" in str(fault)
        named = str(fault) if known else f"example {example.id!r}: picture {', '.join(example.pictures)}: {fault}"
        if on_bad_data == "stop":
            raise ValueError(f"{named}; --on-bad-data skip scores the others") from fault
        return named


def question(example: Example, settings: PromptSettings) -> dict:
    """What a line of predictions.jsonl holds of the data."""
    return {"id": example.id, "image": example.image, "scene": example.scene, **views_record(example),
            "prompt": request_text(example, settings), "reason": example.reasoning if settings.reasoning else None,
            "truth": str(example.decision), "acceptable": [str(plan) for plan in example.acceptable or ()] or None,
            "factors": example.factors,
            **({"trajectory": example.trajectory} if settings.answer == "trajectory" else {})}


def prediction(example: Example, settings: PromptSettings, config: EvalConfig, rollouts: dict[float, Rollout]) -> dict:
    """One line of predictions.jsonl from the example's rollout at each temperature; 0 is greedy."""
    (text,), sampled = rollouts[0.0].texts, rollouts.get(config.temperature) if config.samples else None
    actions = settings.actions
    return {**question(example, settings), "text": text, "truncated": bool(rollouts[0.0].truncated),
            "decision": plan_name(text, actions), "samples": sampled.texts if sampled else [],
            "samples_truncated": sampled.truncated.tolist() if sampled else [],
            "sample_decisions": [plan_name(sample, actions) for sample in sampled.texts] if sampled else [],
            "sweep": {f"{heat:g}": [plan_name(sample, actions) for sample in rollout.texts]
                      for heat, rollout in rollouts.items() if heat}}


# ---------------------------------------------------------------- resuming

def answer_settings(config: EvalConfig, planner: Planner) -> dict:
    """Everything that determines the answers, kept as config.json; a resumed scoring must have the same."""
    policy, processor, settings = planner
    names = ("model", "data", "split", "limit", "samples", "temperature", "temperatures", "seed")
    files = [file for place in filter(None, (config.model, config.adapter))
             for file in sorted(Path(place).glob("*.safetensors"))]
    return {"stage": "eval", **{name: getattr(config, name) for name in names}, **settings.record,
            **({"adapter": config.adapter} if config.adapter else {}),
            "prior": config.prior if config.data == "scenes" else None,
            "dtype": str(policy.head_weight.dtype).removeprefix("torch."),
            "min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels,
            "weights": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]}


def kept_predictions(output: Path, about: dict, examples: Sequence[Example],
                     settings: PromptSettings) -> dict[str, dict]:
    """The answers of an interrupted scoring by id; an incomplete last line is cut off.

    Raises: ValueError if they were made with other settings or for other examples.
    """
    before, file = read_object(output / "config.json"), output / "predictions.jsonl"
    changed = [f"{name} was {before.get(name)!r} and is {value!r}" for name, value in about.items()
               if before.get(name) != value]
    if changed:
        raise ValueError(f"--resume: {output} was made with other settings: {'; '.join(changed)}. Use --overwrite")
    os.truncate(file, file.read_bytes().rfind(b"\n") + 1)
    kept = read_predictions(file, ["prompt"], settings.actions) if file.stat().st_size else ()
    rows = {row["id"]: row for row in kept}
    asked = {example.id: json.loads(json.dumps(question(example, settings))) for example in examples}
    for name, row in rows.items():
        if any(row.get(field) != value for field, value in asked.get(name, {"id": None}).items()):
            raise ValueError(f"--resume: {file} answers {name} with another picture, question, label or expert's drive "
                             "than the data: use --overwrite")
    return rows


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")        # a terminal may lack the letters of a model or a path
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
