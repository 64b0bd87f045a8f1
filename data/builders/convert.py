"""Other programs' data to an examples file: `python -m data.convert IN OUT`.

IN is JSON, a JSON list, JSON Lines or CSV: LLaVA's or ShareGPT's `conversations`, OpenAI's `messages`, the forms of
ms-swift and LLaMA-Factory, questions with answers, AlphaDrive's form or ours. OUT becomes JSON Lines in our form.
Pictures stay where they are. Labels in other words are translated by --map; unknown ones are counted and listed, and
nothing is written. A datasheet follows: counts, pictures or clips in two splits, broken pictures. It ends with the
command that trains on OUT. Exit status 1 if nothing was written, or if a picture is broken.
"""
import argparse
import csv
import io
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path

from data import datasheet
from data.builders.foreign import (
    KNOWN_FIELDS,
    UnknownLabel,
    as_flag,
    as_record,
    composed,
    is_short,
    read_notes,
    spelling,
)
from data.example import Example, printable
from data.fields import EMPTY_CELLS, MAX_TEXT, parse_navigation, short, value_in
from data.files import TABLES, Loaded, data_file, decoded, gather, picture_places, records, write_examples
from data.splits import CLIPS, clip_of, divide, same_split
from rewards import parse_plan
from rewards.action_file import read_actions
from rewards.actions import ALPHADRIVE, Actions

MAX_TABLE_BYTES = 256 * 2**20       # read at once, as a JSON list is
SHOWN = 20                          # labels and notes that are listed
NUMBER_LIKE_NAME = re.compile("[0-9]+[eE][0-9]+")
TRUTHS = {"true": True, "false": False}        # pandas writes True, Excel TRUE
SPLITS = {2: ("train", "val"), 3: ("train", "val", "test")}


# ---------------------------------------------------------------- tables

def table_rows(path: Path, names: dict[str, str], actions: Actions = ALPHADRIVE,
               labels: Collection[str] = ()) -> Iterator[tuple[str, object]]:
    """(place for messages, record or its fault) of a CSV file with a line of names; empty cells are absent fields.

    Raises: ValueError if the names are not usable.
    """
    rows, before = open_table(path)
    try:
        header = column_names(next(rows, []), path)
        given = [names.get(name, name) for name in header]
        label = next((given.index(name) for name in ("decision", "solution") if name in given), len(given))
        line = rows.line_num + before + 1                   # a row may have several lines; it is named by its first
        for cells in rows:
            where, line = f"{path}: line {line}", rows.line_num + before + 1
            if any(map(str.strip, cells[len(header):])):
                yield where, ValueError(f"{where}: {len(cells)} cells under {len(header)} names; quote cells that hold "
                                        "the separator")
            elif told := plan_in_two(cells[label:label + 2], actions, labels):
                yield where, ValueError(f"{where}: {told}")
            elif record := {name: cell for name, cell in zip(header, cells, strict=False) if not is_empty(cell)}:
                yield where, row_record(record, where, names)
    except csv.Error as fault:
        raise ValueError(f"{path}: line {rows.line_num + before}: not valid CSV ({fault}); write JSON Lines, or save "
                         "it again, with cells that hold quotes or line breaks in quotes") from None


def plan_in_two(cells: list[str], actions: Actions, labels: Collection[str]) -> str | None:
    """What to do about a plan without quotes, whose speed and path stand in two cells; None if these are no plan."""
    words = [cell.strip().upper() for cell in cells]
    if len(words) < 2 or words[0] not in actions.speeds or words[1] not in actions.paths:
        return None
    if spelling(cells[0]) in map(spelling, labels):
        return None                                         # --map says what the speed alone means
    speed, path = words
    return (f"{speed} and {path} stand in two cells; if they are one plan, quote it: \"{speed}, {path}\"; else say by "
            f"--map what {speed} means")


def open_table(path: Path) -> tuple[Iterator[list[str]], int]:
    """A reader of the rows, and the number of lines before them: 1 where Excel names the separator, as `sep=;`."""
    if (size := path.stat().st_size) > MAX_TABLE_BYTES:
        raise ValueError(f"{path}: {size:,} bytes, at most {MAX_TABLE_BYTES:,} are read; write JSON Lines")
    file = io.StringIO(decoded(path.read_bytes(), path, 0), newline="")
    first = file.readline()
    named = re.fullmatch("sep=(.)", first.strip("\r\n"))
    if not named:
        file.seek(0)
    csv.field_size_limit(MAX_TEXT)
    separator = named[1] if named else max(",;\t|", key=first.count)
    return csv.reader(file, delimiter=separator, strict=True, skipinitialspace=True), int(bool(named))


def column_names(cells: list[str], path: Path) -> list[str]:
    """The names of the columns; one without a name, such as the index of pandas, is called by its place."""
    if not any(map(str.strip, cells)):
        raise ValueError(f"{path}: line 1: expected the names of the columns, got {cells!r:.200}")
    header = [composed(cell.strip()) or f"column {number}" for number, cell in enumerate(cells, 1)]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: line 1: expected a different name for every column, got {header!r:.200}")
    return header


def is_empty(cell: str) -> bool:
    return cell.strip().casefold() in ("", *EMPTY_CELLS)


def row_record(cells: dict[str, str], where: str, names: dict[str, str]) -> dict | ValueError:
    """The record of a row by the names of its columns, or its fault."""
    try:
        return {name: cell_value(cell, names.get(name, name)) for name, cell in cells.items()}
    except ValueError as fault:
        return ValueError(f"{where}: {fault}")


def cell_value(cell: str, name: str) -> object:
    """A cell: JSON (or Python's text) where it is a list or an object, or a number or truth value of an unknown field;
    else its text.

    Names of clips stay text, and so does what is rather a name than a number, such as `3e7`."""
    if name == "navigation":
        return parse_navigation(cell)
    is_text = name in KNOWN_FIELDS or name in CLIPS or NUMBER_LIKE_NAME.fullmatch(cell.strip())
    if cell.strip().lower() in TRUTHS and not is_text:
        return TRUTHS[cell.strip().lower()]
    if cell.lstrip().startswith(("{", "[")) or not is_text:
        try:
            return value_in(cell.strip())
        except ValueError:
            pass
    return cell


# ---------------------------------------------------------------- the whole file

def convert(path: Path, root: Path | None, names: dict[str, str], labels: dict[str, str],
            actions: Actions) -> tuple[Loaded, Counter[str], Counter[str]]:
    """What a file holds, notes on the conversion, and labels that are not plans.

    Raises: ValueError, FileNotFoundError for a file that cannot be split into records.
    """
    path = data_file(path)
    table = path.suffix.lower() in TABLES
    found = table_rows(path, names, actions, labels) if table else records(path, broken_lines=True)
    notes = Counter(dict.fromkeys([*read_notes("field", names), *read_notes("label", labels)], 0))
    unknown = Counter()

    def ours() -> Iterator[tuple[str, object]]:
        for where, record in found:
            try:
                if not isinstance(record, ValueError):
                    record, said = as_record(record, where, names, labels, actions)
                    notes.update(said)
            except UnknownLabel as fault:
                unknown[fault.label] += 1
                record = fault
            except ValueError as fault:
                record = fault
            yield where, record

    loaded = gather(ours(), picture_places(path, root), path.stem, leave_out_bad=True, actions=actions)
    return loaded, notes, unknown


def with_splits(examples: list[Example], shares: dict[str, float], clip: str, seed: int) -> list[Example]:
    """The examples divided by ratio; equal pictures, scenes and clips stay together. Raises: ValueError."""
    clips = [clip_of(example, clip) for example in examples]
    if clip and not any(clips):
        raise ValueError(f"--clip {clip}: no record has this field; name the field that tells recordings apart")
    pictures = datasheet.picture_keys(examples, open_files=True)
    keys = [[*(("picture", picture) for picture in own), *([("clip", one)] if one else [])]
            for own, one in zip(pictures, clips, strict=True)]
    return divide(examples, keys, shares, seed)


def needed_root(examples: list[Example], places_root: str, folder: Path) -> str | None:
    """The --image-root that reading OUT needs: none if all pictures lie in its folder."""
    real = os.path.join(os.path.realpath(folder), "")
    apart = any(not os.path.realpath(picture).startswith(real) for example in examples for picture in example.pictures)
    return places_root if apart else None


# ---------------------------------------------------------------- command

def read_pairs(texts: list[str], flag: str) -> dict[str, str]:
    """`LEFT=RIGHT` of a flag that may be repeated. The last `=` counts."""
    pairs = {}
    for text in texts:
        left, equals, right = (part.strip() for part in text.rpartition("="))
        if not (left and equals and right):
            raise ValueError(f"{flag} {text!r}: expected THEIRS=OURS")
        left = composed(left)
        if pairs.setdefault(left, right) != right:
            raise ValueError(f"{flag} {left!r} is given twice, as {pairs[left]!r} and {right!r}; keep one")
    return pairs


def read_labels(texts: list[str], actions: Actions) -> dict[str, str]:
    """Spelling of a label -> plan. Raises: ValueError for a right side that is not a plan, and for one label twice."""
    labels, first = {}, {}
    for label, plan in read_pairs(texts, "--map").items():
        if (known := parse_plan(f"<answer> {plan} </answer>", actions)) is None:
            raise ValueError(f"--map {label!r}: {plan!r} is not a plan; write SPEED, PATH, such as {actions.sample}")
        name = spelling(label)
        if labels.setdefault(name, str(known)) != str(known):
            raise ValueError(f"--map {label!r} and --map {first[name]!r} are one label, with the meanings {known} and "
                             f"{labels[name]}; keep one")
        first.setdefault(name, label)
    return labels


def read_shares(text: str) -> dict[str, float]:
    """`0.8/0.1/0.1` -> shares of train, val and test; two numbers: train and val. They are divided by their sum."""
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in SPLITS or not all(0 < number < 1e9 for number in numbers):
        raise ValueError(f"--split {text!r}: give shares above 0 of train and val, or of train, val and test, such as "
                         "0.8/0.1/0.1")
    return dict(zip(SPLITS[len(numbers)], numbers, strict=True))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.convert", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="IN", help="the data: .json, .jsonl, .csv or .tsv")
    parser.add_argument("output", type=Path, metavar="OUT", help="the examples file to write (JSON Lines)")
    parser.add_argument("--image-root", type=Path, help="folder that holds all pictures (default: that of IN)")
    parser.add_argument("--map", action="append", default=[], metavar='"LABEL=SPEED, PATH"',
                        help='what a label means, such as "Go Straight=KEEP, STRAIGHT"; repeatable')
    parser.add_argument("--rename", action="append", default=[], metavar="THEIRS=OURS",
                        help="read a field under another name, such as img_path=image; repeatable")
    parser.add_argument("--actions", type=Path, metavar="FILE.json", help="lists of actions of your own (docs/own.md)")
    parser.add_argument("--split", default="", metavar="0.8/0.1/0.1",
                        help="divide into train, val and test (or train and val) by these shares; pictures of equal "
                             "contents, and of one clip, stay together")
    parser.add_argument("--clip", default="", metavar="FIELD",
                        help="with --split: field that names the recording of a picture, or `folder`; default: the "
                             "first of clip, scene_token, sequence and the like")
    parser.add_argument("--seed", type=int, help="with --split: seed of the division (default: 0)")
    parser.add_argument("--on-bad-data", choices=("stop", "skip"), default="stop",
                        help="for a record that cannot be used: write nothing, or leave it out")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT")
    parser.add_argument("--no-pictures", action="store_true", help="do not open the pictures for the datasheet")
    try:
        run(parser.parse_args(arguments))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {printable(str(error))}")


def run(flags: argparse.Namespace) -> None:
    """Convert, divide, write, and print the datasheet of what was written."""
    actions = read_actions(flags.actions) if flags.actions else ALPHADRIVE
    labels, names = read_labels(flags.map, actions), read_pairs(flags.rename, "--rename")
    shares = read_shares(flags.split) if flags.split else None
    if not shares and (flags.clip or flags.seed is not None):
        raise ValueError("--clip and --seed are of --split: add --split 0.8/0.1/0.1, or leave them out")
    check_output(flags.input, flags.output, flags.overwrite)
    loaded, notes, unknown = convert(flags.input, flags.image_root, names, labels, actions)
    tell_left_out(flags.input, loaded, unknown)
    if not loaded.examples and not loaded.faults:
        raise ValueError(f"{flags.input} holds no record below its line of names; add at least one")
    if not loaded.examples or (loaded.faults and flags.on_bad_data == "stop"):
        raise ValueError(f"nothing was written: {len(loaded.faults)} of {len(loaded.faults) + len(loaded.examples)} "
                         f"records of {flags.input} cannot be used"
                         + "; --on-bad-data skip leaves them out" * bool(loaded.examples))
    examples = loaded.examples
    if shares:
        clip = composed(flags.clip)
        examples = with_splits(examples, shares, clip, flags.seed or 0)
        tell_division(loaded.examples, examples, shares, clip)
    check_splits(examples)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    write_examples(examples, flags.output)
    say(f"{len(examples)} examples of {flags.input} written to {flags.output}")
    for note, number in islice(notes.items(), SHOWN):
        say(f"{number} records: {printable(note)}")
    places = picture_places(flags.input, flags.image_root)
    tell_datasheet(examples, flags, needed_root(examples, places.root, flags.output.parent))


def check_splits(examples: list[Example]) -> None:
    """Raises: ValueError if only some examples name a split, because training and scoring refuse such a file."""
    unnamed = [example.id for example in examples if example.split is None]
    if 0 < len(unnamed) < len(examples):
        raise ValueError(f"nothing was written: {len(unnamed)} of {len(examples)} records name no split, first "
                         f"{short(unnamed[0])}, and the others do; give every record a 'split', or divide all of them: "
                         "--split 0.8/0.1/0.1")


def check_output(source: Path, output: Path, overwrite: bool) -> None:
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"{output} is IN itself; give another name for OUT")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; give a file, such as {output / 'train.jsonl'}")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; give another name for OUT, or --overwrite")


def tell_left_out(path: Path, loaded: Loaded, unknown: Counter[str]) -> None:
    """Print faults of records, and the labels that are not plans with their counts."""
    if loaded.faults:
        datasheet.tell(f"records of {path} that cannot be used", [printable(fault) for fault in loaded.faults])
    if unknown:
        say(f"\nlabels that are not plans: {len(unknown)}, in {unknown.total()} records; say what each means:")
        for label, number in unknown.most_common(SHOWN):
            say(f"- {number} times: " + (printable(as_flag(label)) if is_short(label) else short(label)))


def tell_division(before: list[Example], after: list[Example], shares: dict[str, float], clip: str) -> None:
    """Print what was replaced, whether clips are known, and splits that got nothing."""
    if own := sum(example.split is not None for example in before):
        say(f"{own} records named a split, which --split replaces")
    clips = [known for example in before if (known := clip_of(example, clip))]
    if clips:
        say(f"{len(set(clips))} clips in {len(clips)} of {len(before)} examples, such as {printable(clips[0])}")
    else:
        say("note: no field names the clip of a picture, so pictures of one clip may be in two splits; --clip FIELD, "
            "or --clip folder, keeps them together")
    if 0 < len(clips) < len(before):
        say(f"warning: {len(before) - len(clips)} of {len(before)} examples name no clip, so pictures of one recording "
            "may be in two splits; give every record the field, or name another: --clip FIELD")
    for name in shares.keys() - {example.split for example in after}:
        say(f"warning: the split {name} is empty: there are too few clips or pictures; use other shares, or --clip")


def tell_datasheet(examples: list[Example], flags: argparse.Namespace, root: str | None) -> None:
    """Print the datasheet of OUT, then the command that trains on it. Raises: SystemExit if a picture is broken."""
    reading = ["--image-root", root] if root else []
    reading += ["--actions", str(flags.actions)] if flags.actions else []
    train = ["python", "train.py", "--stage", "sft", "--data", str(flags.output), *reading]
    if not any(example.reasoning for example in examples):
        train += ["--reasoning", "off"]
    others = other_splits(examples)
    train += ["--split", "NAME"] if others else []
    say("")
    try:
        datasheet.main([str(flags.output), *reading, *["--no-pictures"] * flags.no_pictures])
    except SystemExit:
        say(f"{others}\nTo train on it, without the broken pictures:  {shlex.join([*train, '--on-bad-data', 'skip'])}")
        raise
    say(f"{others}\nTo train on it:  {shlex.join(train)}")


def other_splits(examples: list[Example]) -> str:
    """What the command needs if splits are named and none is for training; else nothing."""
    named = {example.split for example in examples} - {None}
    if not named or any(same_split(name, "train") for name in named):
        return ""
    return ("\nno split is called train; put the one to train on in place of NAME: "
            + ", ".join(sorted(map(printable, named))))


def say(text: str) -> None:
    print(text)                                                                                 # noqa: T201

