"""A datasheet of examples files: `python -m data.datasheet FILE [FILE ...]`, also `python -m data.schema FILE`.

Validates every record, opens every picture, and prints counts per action, the joint table, lengths, speeds, what was
assumed, pictures that occur in two splits or with two decisions, and pictures that cannot be read. Without named splits
each file is a split. Exit status 1 if a record is invalid or a picture is broken.
"""
import argparse
import hashlib
import math
import os
import signal
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from data.dataset import open_images
from data.example import Example, prompt_text
from data.files import Loaded, read_examples
from data.splits import clip_of
from rewards.action_file import read_actions
from rewards.actions import ALPHADRIVE, Actions

FAST = {"half of the speeds are": 35.0, "the highest speed is": 70.0}       # m/s; 126 and 252 km/h
MOVED = 2.0                              # metres; a way-point that is nearer tells nothing about its axes
SECOND_WAY = 0.25                        # of the way to the first point; braking at 6 m/s2 leaves more for the second
SHOWN = 5                                # messages of a kind that are shown


def datasheet(examples: list[Example], actions: Actions = ALPHADRIVE) -> str:
    """The contents of the examples as Markdown. Pictures are not opened; see broken_images."""
    parts = [f"{len(examples)} examples", *overview(examples), "", *joint_table(examples, actions), "",
             *quantiles(examples, actions)]
    return "\n".join(parts)


def overview(examples: list[Example]) -> list[str]:
    """Splits, sources, and how many examples have each optional field."""
    splits = Counter(example.split or "none named" for example in examples)
    pictures = Counter(picture for example in examples for picture in example.pictures)
    forms = Counter(navigation_form(example) for example in examples)
    lines = ["split: " + listing(splits),
             f"source: {sum(pictures.values())} pictures ({len(pictures)} different files), "
             f"{sum(example.scene is not None for example in examples)} built-in scenes",
             "navigation: " + listing(forms),
             f"with reasoning: {share(sum(example.reasoning is not None for example in examples), len(examples))}"]
    views = Counter(", ".join(example.cameras) if example.cameras else f"{len(example.images)} pictures without names"
                    for example in examples if example.images or example.cameras)
    if views:
        lines.append(f"several cameras: {listing(views)}")
    known = [len(example.acceptable) for example in examples if example.acceptable]
    if known:
        sizes = Counter("3 or more" if size > 2 else str(size) for size in known)
        lines.append("acceptable plans: " + listing(dict(sorted(sizes.items()))))
    if driven := sum(example.trajectory is not None for example in examples):
        lines.append(f"with way-points: {share(driven, len(examples))}")
    others = Counter(name for example in examples for name in example.extra)
    if others:
        kept = [f"{name} {share(count, len(examples))}" for name, count in others.most_common(12)]
        lines.append(f"other fields, kept for rewards (extra): {'; '.join(kept)}"
                     + (f"; and {len(others) - 12} more" if len(others) > 12 else ""))
    flags = [example.factors["ambiguous"] for example in examples if "ambiguous" in (example.factors or {})]
    if flags:
        lines.append(f"near a threshold of the label rule: {share(sum(map(bool, flags)), len(flags))}")
    return lines


def navigation_form(example: Example) -> str:
    if isinstance(example.navigation, dict):
        return ", ".join(f"{key}: {course}" for key, course in example.navigation.items())
    return "inside the prompt" if example.navigation is None else "free text"


def joint_table(examples: list[Example], actions: Actions = ALPHADRIVE) -> list[str]:
    """Counts of each (speed, path) pair with margins, also for actions that never occur."""
    pairs = Counter((example.decision.speed, example.decision.path) for example in examples)
    rows = ["| speed \\ path | " + " | ".join(actions.paths) + " | all |",
            "|---|" + "---:|" * (len(actions.paths) + 1)]
    for speed in actions.speeds:
        counts = [pairs[speed, path] for path in actions.paths]
        rows.append(f"| {speed} | " + " | ".join(map(str, counts)) + f" | {share(sum(counts), len(examples))} |")
    columns = [sum(pairs[speed, path] for speed in actions.speeds) for path in actions.paths]
    return [*rows, "| all | " + " | ".join(share(count, len(examples)) for count in columns) + f" | {len(examples)} |"]


def quantiles(examples: list[Example], actions: Actions = ALPHADRIVE) -> list[str]:
    """Minimum, median and maximum of the speeds and of the text lengths in words."""
    measures = {
        "speed, m/s": [example.speed for example in examples if example.speed is not None],
        "prompt, words": [len(prompt_text(example, actions=actions).split()) for example in examples],
        "way driven in 4 s, m": [way_length(example.trajectory) for example in examples if example.trajectory],
        "reasoning, words": [len(example.reasoning.split()) for example in examples if example.reasoning],
    }
    rows = [f"| {name} | {len(values)} | {min(values):g} | {statistics.median(values):g} | {max(values):g} |"
            for name, values in measures.items() if values]
    return ["| | examples | least | median | most |", "|---|---:|---:|---:|---:|", *rows]


def imbalance(examples: list[Example]) -> list[str]:
    """A line if one plan has over half of the examples, or over 20 times as many as the rarest; else none."""
    (plan, most), *others = Counter(str(example.decision) for example in examples).most_common()
    rarest, least = others[-1] if others else (plan, most)
    if most <= len(examples) / 2 and most <= 20 * least:
        return []
    beside = f"; rarest {rarest} {share(least, len(examples))}" if others else ", the only plan"
    return [f"warning: imbalance: {plan} {share(most, len(examples))}{beside}; always answering {plan} gives that "
            "accuracy; `train.py --balance` draws every plan equally often"]


def too_fast(examples: list[Example]) -> list[str]:
    """A line if the median or the highest speed is one that cars hardly have in m/s; else none."""
    speeds = [example.speed for example in examples if example.speed is not None] or [0.0]
    for (said, most), speed in zip(FAST.items(), (statistics.median(speeds), max(speeds)), strict=True):
        if speed > most:
            more = " or more" * said.startswith("half")
            return [f"warning: {said} {speed:.4g} m/s ({3.6 * speed:.0f} km/h){more}; `speed` is in m/s: divide km/h "
                    "by 3.6, and mph by 2.237"]
    return []


def turned_axes(examples: list[Example]) -> list[str]:
    """A line if most way-points seem to have other axes than x forward and y left: paths that end behind the car, or
    STRAIGHT ones that end farther to the side than ahead; else none."""
    moved = [example for example in examples if example.trajectory and math.hypot(*example.trajectory[-1]) > MOVED]
    straight = [example.trajectory[-1] for example in moved if example.decision.path == "STRAIGHT"]
    aside = sum(abs(y) > abs(x) for x, y in straight)
    behind = sum(example.trajectory[-1][0] < 0 for example in moved)
    axes = "way-points are [x, y], x forward and y to the left"
    if aside > len(straight) / 2:
        return [f"warning: {aside} of {len(straight)} paths that are called STRAIGHT end farther to the side than "
                f"ahead; {axes}; nuScenes and others have x to the right and y forward: write [y, -x]"]
    return [f"warning: {behind} of {len(moved)} driven paths end behind the car; {axes}"] * (behind > len(moved) / 2)


def mirrored(examples: list[Example]) -> list[str]:
    """A line if most paths that are called LEFT or RIGHT end on the other side; else none."""
    ends = [(example.decision.path.upper(), example.trajectory[-1][1]) for example in examples if example.trajectory]
    wrong = [("LEFT" in path) == (y < 0) for path, y in ends
             if abs(y) > MOVED and ("LEFT" in path) != ("RIGHT" in path)]
    if sum(wrong) <= len(wrong) / 2:
        return []
    return [f"warning: {sum(wrong)} of {len(wrong)} paths that are called LEFT or RIGHT end on the other side; "
            "way-points are [x, y], x forward and y to the left; where y is to the right write [x, -y]"]


def offsets(examples: list[Example]) -> list[str]:
    """A line if most way-points seem to be steps from one to the next: the second is where the first is; else none."""
    steps = [math.dist(*example.trajectory[:2]) / math.hypot(*example.trajectory[0]) for example in examples
             if example.trajectory and math.hypot(*example.trajectory[0]) > MOVED]
    middle = statistics.median(steps) if steps else 1.0
    if middle >= SECOND_WAY:
        return []
    return [f"warning: from the first way-point to the second are {middle:.2g} (median) of the way to the first; "
            "way-points are places seen from the present one, not steps from one to the next: add up the steps"]


def other_times(examples: list[Example]) -> list[str]:
    """A line if most way-points seem to be at other times than 0.5, 1 ... 4 s: the first is not as far from the car as
    its speed says; else none."""
    ways = [math.hypot(*example.trajectory[0]) / (0.5 * example.speed) for example in examples
            if example.trajectory and example.speed and example.speed > MOVED]
    middle = statistics.median(ways) if ways else 1.0
    if 0.5 < middle < 1.5:
        return []
    return [f"warning: the first way-point is at {middle:.2g} (median) of the distance that the speed covers in 0.5 s; "
            "way-points are at 0.5, 1, 1.5 ... 4 s, without the present place, and `speed` is in m/s"]


def doubts(examples: list[Example]) -> list[str]:
    """Lines on values that are probably in other units than they should be."""
    return [*too_fast(examples), *(turned_axes(examples) or mirrored(examples)),
            *(other_times(examples) or offsets(examples))]             # places on a map are no steps


def notes_on(loaded: Loaded) -> list[str]:
    """What reading a file assumed, and the doubts about its values, for the log of a command."""
    return [*loaded.lines(), *(line.removeprefix("warning: ") for line in doubts(loaded.examples))]


def warning_lines(examples: list[Example]) -> list[str]:
    return [*imbalance(examples), *doubts(examples)]


def way_length(points: Sequence[tuple[float, float]]) -> float:
    """Length of the straight pieces from the car through its way-points, to a decimetre."""
    return round(sum(math.dist(*piece) for piece in pairwise([(0.0, 0.0), *points])), 1)


def listing(counts: dict[str, int]) -> str:
    """`name count (share)` of the twelve most frequent names, in the given order."""
    total = sum(counts.values())
    kept = set(sorted(counts, key=counts.get, reverse=True)[:12])
    others = total - sum(counts[name] for name in kept)
    parts = [f"{name} {share(count, total)}" for name, count in counts.items() if name in kept]
    return "; ".join(parts + ([f"others {share(others, total)}"] if others else []))


def share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.1f} %)"


def broken_images(examples: Iterable[Example], report: Callable[[int], None] = lambda done: None,
                  workers: int = 4) -> list[str]:
    """One message for each picture file that is missing or cannot be read."""
    once = list({example.pictures: example for example in examples if example.pictures}.values())
    with ThreadPoolExecutor(max_workers=workers) as pool:
        messages = []
        for done, message in enumerate(pool.map(fault_of, once), 1):
            messages += [message] if message else []
            report(done)
    return messages


def fault_of(example: Example) -> str | None:
    try:
        open_images(example)
    except (OSError, ValueError) as error:
        return str(error)
    return None


# ---------------------------------------------------------------- repeated pictures

def repetitions(examples: list[Example], open_files: bool = True) -> list[str]:
    """Lines about pictures (and scenes) in several examples: how many, in two splits, with two decisions. And about
    clips in two splits (`splits.clip_of`).

    Two files are one picture if their bytes are equal, or with `open_files` off, if their paths are. Two decisions
    contradict each other only if the question is the same too.
    """
    pictures = picture_keys(examples, open_files)
    questions = [[(key, prompt_text(example))] for key, example in zip(pictures, examples, strict=True)]
    recorded = [example for example in examples if clip_of(example)]
    return [line for line in (
        repetition("pictures used more than once", examples, pictures, lambda example: example.id),
        repetition("same picture in more than one split", examples, pictures, lambda example: example.split),
        repetition("same picture and question, different decisions", examples, questions,
                   lambda example: str(example.decision)),
        repetition("same clip in more than one split", recorded, [[clip_of(one)] for one in recorded],
                   lambda example: example.split),
    ) if line]


def repetition(title: str, examples: list[Example], keys: Sequence[Sequence[Hashable]],
               value: Callable[[Example], str | None]) -> str | None:
    """How many examples share a key with an example of another value, with the first two such examples."""
    groups = defaultdict(list)
    for own, example in zip(keys, examples, strict=True):
        for key in own:
            groups[key].append(example)
    mixed = [group for group in groups.values() if len(set(map(value, group))) > 1]
    if not mixed:
        return None
    first = mixed[0][0]
    other = next(example for example in mixed[0] if value(example) != value(first))
    named = [f"{one.id!r}" + (f" ({value(one)})" if value(one) != one.id else "") for one in (first, other)]
    count = len({id(example) for group in mixed for example in group})
    return f"{title}: {share(count, len(examples))}, first {' and '.join(named)}"


def picture_keys(examples: list[Example], open_files: bool) -> list[tuple[str | int, ...]]:
    """What tells each example's pictures apart: a scene's seed, or their paths; the hash of a file whose size another
    file has, too."""
    paths = {picture: os.path.realpath(picture) for example in examples for picture in example.pictures}
    files = [path for path in set(paths.values()) if os.path.isfile(path)] if open_files else []
    sizes = Counter(map(os.path.getsize, files))
    hashes = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files
              if sizes[os.path.getsize(path)] > 1}
    return [tuple(hashes.get(paths[picture], paths[picture]) for picture in example.pictures) or (example.scene,)
            for example in examples]


# ---------------------------------------------------------------- command

def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.schema", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE",
                        help="examples: one JSON object, a JSON list, or JSON Lines")
    parser.add_argument("--root", "--image-root", type=Path,
                        help="folder that holds all pictures (default: the file's folder)")
    parser.add_argument("--actions", type=Path, metavar="FILE.json", help="lists of actions of your own (docs/own.md)")
    parser.add_argument("--no-pictures", action="store_true", help="do not open the pictures")
    flags = parser.parse_args(arguments)
    try:
        actions = read_actions(flags.actions) if flags.actions else ALPHADRIVE
        sheets = {file: read_examples(file, flags.root, True, actions) for file in flags.files}
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    examples = [replace(example, split=example.split or str(file)) for file, read in sheets.items()
                for example in read.examples]
    faults = [fault for read in sheets.values() for fault in read.faults]
    for file, read in sheets.items():
        print("\n".join([f"# {file}\n\n{datasheet(read.examples, actions)}", "",                 # noqa: T201
                         *warning_lines(read.examples), *read.lines()]))
    print("\n".join(repetitions(examples, not flags.no_pictures)))                             # noqa: T201
    tell("invalid records", faults)
    broken = [] if flags.no_pictures else broken_images(examples, show_progress)
    if not flags.no_pictures:
        tell("broken pictures", broken)
    if faults or broken:
        sys.exit(1)


def tell(title: str, messages: list[str]) -> None:
    """The number of messages and the first of them."""
    print("\n".join([f"\n{title}: {len(messages)}", *(f"- {message}" for message in messages[:SHOWN])]))   # noqa: T201


def show_progress(done: int, every: int = 500) -> None:
    if done % every == 0:
        sys.stderr.write(f"\r{done} pictures opened")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")       # a terminal may lack the letters of a path
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)           # `| head` ends it without a traceback
    main()
