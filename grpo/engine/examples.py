"""The examples of a run: reading them, choosing those of a stage, and drawing the ones of a step."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data.dataset import balanced_at, check_images, indices_at, select_split, usable
from data.datasheet import notes_on
from data.example import Example, printable
from data.fields import is_alphadrive
from data.files import read_examples
from data.reasons import by_plan, choose_reasons
from data.scenes import scene_examples
from data.scenes.caption import caption_examples
from data.splits import same_split
from grpo.engine.flags import RunFlags, SFTFlags
from grpo.engine.prompts import PromptSettings, encode_target
from grpo.engine.run import Run
from models.processor import Processor
from rewards.actions import ALPHADRIVE, Actions
from storage import append_json
from trajectory.written import demonstrated

VALIDATION_SCENES = 2000
SPARE = 10**9  # added to seeds and numbers of the stream that dynamic sampling draws from; twice: for bad examples
SPARES = 64    # candidates that may replace a bad example
SHOWN = 5      # bad records that are printed; skipped.jsonl lists all


# ---------------------------------------------------------------- reading

def load_data(config: RunFlags, actions: Actions = ALPHADRIVE) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """-> training examples, validation examples, faults of records left out.

    A file without split names has no validation part; --val-data names a file of its own."""
    if config.data == "scenes":
        return built_in_data(config, actions)
    examples, faults = read_file(config.data, config, actions)
    chosen = select_split(examples, config.split)
    note_unused(config.data, examples, {config.split} if config.val_data else {config.split, "val"})
    if config.val_data:
        validation, more = read_file(config.val_data, config, actions)
        note_unused(config.val_data, validation, {"val"})
        validation = select_split(validation, "val")
        faults = [*faults, *more]
    else:
        validation = [example for example in examples if same_split(example.split, "val")]
    note_missing([*chosen, *validation], config.on_bad_data == "skip")
    if not validation:
        print("no example has the split `val` and there is no --val-data: the last model is kept, not the best",
              flush=True)
    note_overlap(chosen, validation, {Path(file).stem for file in (config.data, config.val_data or config.data)})
    note_styles([*chosen, *validation], config.prompt_style)
    return chosen, validation_part(validation, config.eval_examples), tuple(faults)


def built_in_data(config: RunFlags, actions: Actions) -> tuple[list[Example], list[Example], tuple[str, ...]]:
    """`load_data` of the built-in scenes, which have a validation part of their own."""
    captions = isinstance(config, SFTFlags) and config.task == "caption"
    examples = (caption_examples(config.scenes, prior=config.prior, cameras=config.camera_count) if captions else
                scene_examples(config.split, config.scenes, prior=config.prior, cameras=config.camera_count))
    if config.val_data:
        validation, faults = read_file(config.val_data, config, actions)
        validation = select_split(validation, "val")
        note_missing(validation, config.on_bad_data == "skip")
        return examples, validation_part(validation, config.eval_examples), tuple(faults)
    if config.eval_examples > VALIDATION_SCENES:
        print(f"validation uses {VALIDATION_SCENES} scenes, not {config.eval_examples}: there are no more", flush=True)
    return examples, scene_examples("val", min(config.eval_examples, VALIDATION_SCENES), prior=config.prior,
                                    cameras=config.camera_count), ()


def note_unused(file: str, examples: list[Example], used: set[str]) -> None:
    """Print how many examples belong to splits that this run does not read, such as `test`."""
    others = Counter(example.split for example in examples
                     if example.split and not any(same_split(example.split, name) for name in used))
    if others:
        names = ", ".join(f"{printable(name)} {count}" for name, count in others.items())
        print(f"{sum(others.values())} of {len(examples)} examples of {file} are not used, because of their split: "
              f"{names}", flush=True)


def note_styles(examples: list[Example], style: str) -> None:
    """Print how many questions the compact style cannot ask, because speed or navigation is not known, and how many
    questions in other words than AlphaDrive's it replaces."""
    if style != "compact":
        return
    known = [example for example in examples if example.speed is not None and example.navigation is not None]
    if verbatim := len(examples) - len(known):
        print(f"{verbatim} of {len(examples)} examples have no known speed and navigation: they are asked in the words "
              "of their prompt, not in the compact style", flush=True)
    if own := sum(example.prompt is not None and not is_alphadrive(example.prompt) for example in known):
        print(f"note: {own} of {len(examples)} examples have a question of their own, which the compact style does not "
              "ask: it asks speed and navigation alone; --prompt-style alphadrive asks them word for word", flush=True)


def read_file(file: str, config: RunFlags, actions: Actions = ALPHADRIVE) -> tuple[list[Example], list[str]]:
    """-> the examples of a data file, and the faults of the records that --on-bad-data skip left out."""
    skip = config.on_bad_data == "skip"
    loaded = read_examples(file, config.image_root or None, leave_out_bad=skip, actions=actions)
    examples, faults = loaded.examples, loaded.faults
    for line in notes_on(loaded):
        print(f"note: {file}: {printable(line)}", flush=True)
    if faults:
        print(f"warning: {len(faults)} of {len(examples) + len(faults)} records of {file} are invalid: they are left "
              "out and listed in skipped.jsonl", flush=True)
    for fault in faults[:SHOWN]:
        print(f"left out: {printable(fault)}", flush=True)
    return examples, faults


def note_missing(examples: list[Example], skip: bool) -> None:
    """Print how many pictures of the examples that are used do not exist. Raises: as `check_images`."""
    if missing := check_images(examples, allow_some=skip):
        print(f"warning: pictures that do not exist: {missing}; examples (of {len(examples)}) that need one are "
              "skipped", flush=True)


def validation_part(validation: list[Example], most: int) -> list[Example]:
    """At most `most` validation examples; prints how many of how many."""
    if len(validation) > most:
        print(f"validation uses the first {most} of {len(validation)} examples (--eval-examples)", flush=True)
    return validation[:most]


def note_overlap(training: list[Example], validation: list[Example], stems: set[str]) -> None:
    """Print how many validation examples share a picture or an id with training. stems: the names of the files, of
    which the ids of records without an id are made; these tell nothing."""
    files = {picture for example in training for picture in example.pictures}
    made = re.compile("(" + "|".join(map(re.escape, stems)) + r")-\d{6,}")
    names = {example.id for example in training if not made.fullmatch(example.id)}
    same_file = sum(not files.isdisjoint(example.pictures) for example in validation)
    same_name = sum(example.id in names for example in validation)
    if same_file or same_name:
        print(f"warning: {same_file} of {len(validation)} validation examples have a picture of a training example, "
              f"{same_name} have the id of one: validation accuracy will be too high; split the data by recording",
              flush=True)


def examples_to_imitate(examples: list[Example], config: SFTFlags, processor: Processor,
                        settings: PromptSettings) -> list[Example]:
    """The examples of stage sft, with their reasons as --reasoning and --reason-share say."""
    examples = choose_reasons(examples, config.reason_share, config.reason_choice, config.seed)
    examples = with_reasons(examples) if config.reasoning else examples
    warn_of_long_targets(examples, processor, settings)
    return examples


def with_waypoints(examples: list[Example]) -> list[Example]:
    """The examples that have way-points, built-in scenes those of a demonstration; prints how many were left out."""
    chosen = [example for example in with_demonstrations(examples) if example.trajectory is not None]
    note_left_out(chosen, examples, "way-points and are left out (--answer plan uses all)")
    if not chosen:
        raise ValueError("no training example has way-points; use --answer plan, or add a `trajectory` to the data")
    return chosen


def note_left_out(chosen: list[Example], examples: list[Example], lacking: str) -> None:
    """Print how many of the examples were not chosen, and what they lack."""
    if len(chosen) < len(examples):
        print(f"{len(examples) - len(chosen)} of {len(examples)} examples have no {lacking}", flush=True)


def with_demonstrations(examples: list[Example]) -> list[Example]:
    """The same examples; built-in scenes without way-points get those of a demonstration of their plan."""
    scenes = [example for example in examples if example.scene is not None and example.trajectory is None]
    ways = iter(demonstrated(scenes) if scenes else ())
    return [replace(example, trajectory=next(ways)) if example.scene is not None and example.trajectory is None
            else example for example in examples]


def check_acceptable(examples: list[Example]) -> None:
    """Raise ValueError for --reward-mode set on an example whose acceptable plans are not known."""
    for example in examples:
        if example.acceptable is None:
            raise ValueError(f"--reward-mode is 'set', but example {example.id!r} has no `acceptable` plans; use "
                             "repaired if only the label is known")


def check_boxes(examples: list[Example]) -> None:
    """Raise ValueError for --trajectory-reward pdms on an example that is no built-in scene."""
    for example in examples:
        if example.scene is None:
            raise ValueError(f"--trajectory-reward is 'pdms', but example {example.id!r} is a picture, and where cars "
                             "and edges of the road are in it is not known; use l2, or the built-in scenes")


def with_reasons(examples: list[Example]) -> list[Example]:
    """The examples that have a reason; prints how many were left out."""
    chosen = [example for example in examples if example.reasoning]
    note_left_out(chosen, examples, "reasoning and are left out of SFT (--reasoning off uses all)")
    if not chosen:
        raise ValueError("no training example has a reasoning text; use --reasoning off, or add `thinking` to the data")
    return chosen


def warn_of_long_targets(examples: list[Example], processor: Processor, settings: PromptSettings) -> None:
    """Print how many targets are longer than a completion may be: the model would learn answers it cannot finish."""
    lengths = [len(encode_target(example, processor, settings)) for example in examples]
    long = sum(length > settings.max_new_tokens for length in lengths)
    if long:
        print(f"warning: {long} of {len(examples)} targets are longer than --max-new-tokens {settings.max_new_tokens} "
              f"(the longest has {max(lengths)}): answers will be truncated in validation and evaluation", flush=True)


def note_balance(examples: list[Example], config: RunFlags) -> None:
    """With --balance: print how many examples each plan has, and how often each of them is drawn."""
    if not config.balance:
        return
    counts = Counter(str(example.decision) for example in examples)
    print(f"balance: {len(counts)} plans, each in 1 of {len(counts)} draws; examples, and draws of each example per "
          f"{len(examples)} draws:", flush=True)
    for plan, count in counts.most_common():
        print(f"  {plan:<26} {count:>7}  {len(examples) / len(counts) / count:.3g}", flush=True)


def usable_validation(run: Run) -> Run:
    """With --on-bad-data skip: the run without the validation examples that cannot be used; prints each of them."""
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


# ---------------------------------------------------------------- a step's

def take(run: Run, prepare: Callable[[Example], Any], seed: int, position: int,
         size: int) -> tuple[list[Example], list[Any], list[dict]]:
    """This rank's share of the `size` examples at a position of the data stream, and prepare(example) of each.

    With --on-bad-data skip a spare example replaces one that cannot be used. Both depend only on the position in the
    stream, so they are the same for any number of processes.
    -> examples, their prepared forms, and one record per skipped example.
    """
    stream = partial(indices_at, len(run.examples))
    if run.config.balance:
        stream = partial(balanced_at, by_plan(range(len(run.examples)), run.examples))

    def candidates(place: int, index: int) -> Iterator[int]:
        yield index
        if run.config.on_bad_data == "skip":
            yield from stream(seed + 2 * SPARE, SPARES * place, SPARES)

    mine = run.world.share(list(enumerate(stream(seed, position, size), position)))
    found, faults = usable(lambda i: prepare(run.examples[i]), (candidates(*one) for one in mine))
    return ([run.examples[i] for i, _ in found], [item for _, item in found],
            [{"id": run.examples[i].id, "fault": fault} for i, fault in faults])


def note_skipped(run: Run, step: int, skipped: list[dict]) -> None:
    """Print the examples that any rank skipped in this step, and add them to skipped.jsonl."""
    if run.config.on_bad_data == "stop":
        return
    skipped = [record for text in run.world.texts(json.dumps(skipped)) for record in json.loads(text)]
    for record in skipped:
        print(f"step {step}: skipped: {printable(record['fault'])}", flush=True)
    if skipped:
        run.world.on_rank0(lambda: append_json(run.output / "skipped.jsonl",
                                               *({"step": step, **record} for record in skipped)))
