"""A datasheet of an examples file: `python -m data.datasheet FILE`, also `python -m data.schema FILE`.

Validates every line, opens every picture, and prints counts per action, the joint table, lengths, speeds, and the
pictures that cannot be read. Exit status 1 if the file is invalid or a picture is broken.
"""
import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.dataset import open_image
from data.example import Example, prompt_text
from data.files import load_examples
from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS

SHOWN = 5                                # broken pictures named individually


def datasheet(examples: list[Example]) -> str:
    """The contents of the examples as Markdown. Pictures are not opened; see broken_images."""
    parts = [f"{len(examples)} examples", *overview(examples), "", *joint_table(examples), "", *quantiles(examples)]
    return "\n".join(parts)


def overview(examples: list[Example]) -> list[str]:
    """Splits, sources, and how many examples have each optional field."""
    splits = Counter(example.split or "none named" for example in examples)
    pictures = Counter(example.image for example in examples if example.image)
    forms = Counter(navigation_form(example) for example in examples)
    lines = ["split: " + listing(splits),
             f"source: {sum(pictures.values())} pictures ({len(pictures)} different files), "
             f"{sum(example.scene is not None for example in examples)} built-in scenes",
             "navigation: " + listing(forms),
             f"with reasoning: {share(sum(example.reasoning is not None for example in examples), len(examples))}"]
    known = [len(example.acceptable) for example in examples if example.acceptable]
    if known:
        sizes = Counter("3 or more" if size > 2 else str(size) for size in known)
        lines.append("acceptable plans: " + listing(dict(sorted(sizes.items()))))
    flags = [example.factors["ambiguous"] for example in examples if "ambiguous" in (example.factors or {})]
    if flags:
        lines.append(f"near a threshold of the label rule: {share(sum(map(bool, flags)), len(flags))}")
    return lines


def navigation_form(example: Example) -> str:
    if isinstance(example.navigation, dict):
        return ", ".join(f"{key}: {course}" for key, course in example.navigation.items())
    return "inside the prompt" if example.navigation is None else "free text"


def joint_table(examples: list[Example]) -> list[str]:
    """Counts of each (speed, path) pair with margins, also for actions that never occur."""
    pairs = Counter((example.decision.speed, example.decision.path) for example in examples)
    rows = ["| speed \\ path | " + " | ".join(PATH_ACTIONS) + " | all |", "|---|" + "---:|" * (len(PATH_ACTIONS) + 1)]
    for speed in SPEED_ACTIONS:
        counts = [pairs[speed, path] for path in PATH_ACTIONS]
        rows.append(f"| {speed} | " + " | ".join(map(str, counts)) + f" | {share(sum(counts), len(examples))} |")
    columns = [sum(pairs[speed, path] for speed in SPEED_ACTIONS) for path in PATH_ACTIONS]
    return [*rows, "| all | " + " | ".join(share(count, len(examples)) for count in columns) + f" | {len(examples)} |"]


def quantiles(examples: list[Example]) -> list[str]:
    """Minimum, median and maximum of the speeds and of the text lengths in words."""
    measures = {
        "speed, m/s": [example.speed for example in examples if example.speed is not None],
        "prompt, words": [len(prompt_text(example).split()) for example in examples],
        "reasoning, words": [len(example.reasoning.split()) for example in examples if example.reasoning],
    }
    rows = [f"| {name} | {len(values)} | {min(values):g} | {statistics.median(values):g} | {max(values):g} |"
            for name, values in measures.items() if values]
    return ["| | examples | least | median | most |", "|---|---:|---:|---:|---:|", *rows]


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
    once = list({example.image: example for example in examples if example.image}.values())
    with ThreadPoolExecutor(max_workers=workers) as pool:
        messages = []
        for done, message in enumerate(pool.map(fault_of, once), 1):
            messages += [message] if message else []
            report(done)
    return messages


def fault_of(example: Example) -> str | None:
    try:
        open_image(example)
    except (OSError, ValueError) as error:
        return str(error)
    return None


# ---------------------------------------------------------------- command

def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.datasheet", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="examples: one JSON object, a JSON list, or JSON Lines")
    parser.add_argument("--root", type=Path, help="folder that holds all pictures (default: the file's folder)")
    parser.add_argument("--no-pictures", action="store_true", help="do not open the pictures")
    flags = parser.parse_args(arguments)
    try:
        examples = load_examples(flags.file, flags.root)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"# {flags.file}\n\n{datasheet(examples)}")                           # noqa: T201
    if flags.no_pictures:
        return
    broken = broken_images(examples, show_progress)
    print(f"\nbroken pictures: {len(broken)}")                                  # noqa: T201
    for message in broken[:SHOWN]:
        print(f"- {message}")                                                   # noqa: T201
    if broken:
        sys.exit(1)


def show_progress(done: int, every: int = 500) -> None:
    if done % every == 0:
        sys.stderr.write(f"\r{done} pictures opened")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
