"""Files of examples: one JSON object, a JSON list or JSON Lines.

Files are untrusted: examples and lists have a maximum size, and fields.py checks every value.
"""
import codecs
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from data.example import Example
from data.fields import FIELD_NAMES, PicturePlaces, named_once, read_record
from data.fields import MAX_TEXT as MAX_EXAMPLE_BYTES
from data.recognise import broken_path, what_else
from rewards.actions import ALPHADRIVE, Actions
from storage import replaced

MAX_LIST_BYTES = 256 * 2**20        # of a JSON list, parsed at once in up to 25 times as much memory
TABLES = (".csv", ".tsv")           # endings; read by data.convert
SHOWN = 20                          # kinds of notes that are told
MAX_LEVELS = 50                     # of nested objects and lists
NOT_TEXT = ("the file holds zero bytes, so it is no text, or UTF-16 text without its mark (`iconv -f UTF-16LE -t UTF-8 "
            "FILE > OUT`)")


# ---------------------------------------------------------------- reading

@dataclass(frozen=True)
class Loaded:
    """What a file holds: its examples, the faults of the records left out, and how often each note applies."""
    examples: list[Example]
    faults: list[str]
    notes: Counter[str]

    def lines(self) -> list[str]:
        """One line for each thing that was left out, assumed or dropped, such as `3 of 40 examples: ...`."""
        count = len(self.examples)
        left_out = [f"{len(self.faults)} of {count + len(self.faults)} records were left out, first: {self.faults[0]}"
                    ] if self.faults else []
        return left_out + counted(self.notes, count, "examples")


def counted(notes: Counter[str], count: int, what: str) -> list[str]:
    """The most frequent notes, as `3 of 40 examples: ...`, and how many other kinds there are."""
    more = [f"{len(notes) - SHOWN} more kinds of notes"] if len(notes) > SHOWN else []
    return [f"{number} of {count} {what}: {note}" for note, number in notes.most_common(SHOWN)] + more


def read_examples(path: str | os.PathLike, root: str | os.PathLike | None = None,
                  leave_out_bad: bool = False, actions: Actions = ALPHADRIVE) -> Loaded:
    """Read examples from one JSON object, a JSON list, or JSON Lines.

    Fields are Example's or AlphaDrive's released ones (image, problem, solution, thinking). All pictures must be inside
    `root`, by default the file's own folder. Links may lead out of a `root` that is named, but not out of the default
    one. Relative paths start at the root, or at the file's folder where the picture exists there only. Returned paths
    are absolute. Whether the pictures exist is checked by `dataset.check_images`.

    Raises: FileNotFoundError; ValueError naming file, line (or list item, counted from 0), field, value and remedy.
    With `leave_out_bad`: only if no record is valid or the file cannot be split into records.
    """
    path = data_file(path)
    loaded = gather(records(path, broken_lines=leave_out_bad), picture_places(path, root), path.stem, leave_out_bad,
                    actions)
    if not loaded.examples:
        raise ValueError(loaded.faults[0])
    return loaded


def picture_places(path: Path, root: str | os.PathLike | None) -> PicturePlaces:
    """Where the pictures of a file may be: in `root`, whose links are trusted, or in the file's own folder."""
    folder = os.path.abspath(path.parent)
    return PicturePlaces(folder, folder if root is None else os.path.abspath(root), trusted=root is not None)


def gather(found: Iterable[tuple[str, object]], places: PicturePlaces, stem: str, leave_out_bad: bool,
           actions: Actions = ALPHADRIVE) -> Loaded:
    """The examples of (place for messages, record or its fault), each with an id of its own.

    Raises: ValueError for the first bad record, unless `leave_out_bad`.
    """
    examples, faults, notes, first_seen = [], [], Counter(), {}
    for number, (where, record) in enumerate(found):
        try:
            if isinstance(record, ValueError):
                raise record
            example, said = read_record(record, where, places, f"{stem}-{number:06d}", actions)
            if example.id in first_seen:
                raise ValueError(f"{where}: field 'id': {example.id!r} was already used at {first_seen[example.id]}; "
                                 "give every example its own id")
        except ValueError as fault:
            if not leave_out_bad:
                raise
            faults.append(fault)
        else:
            first_seen[example.id] = where
            examples.append(example)
            notes.update(said)
    return Loaded(examples, [str(fault) for fault in faults], notes)


def load_examples(path: str | os.PathLike, root: str | os.PathLike | None = None,
                  actions: Actions = ALPHADRIVE) -> list[Example]:
    """The examples of a file; see `read_examples`."""
    return read_examples(path, root, actions=actions).examples


def data_file(path: str | os.PathLike) -> Path:
    """The path of an existing file that may hold JSON. Raises: FileNotFoundError, ValueError with the remedy."""
    text, path = str(path), Path(path)
    if (path / "config.json").is_file():
        raise ValueError(f"{path} is a model directory (--model); give a file of examples")
    if path.is_dir():
        if (path / "dataset_info.json").is_file():
            raise ValueError(f"{path} is a folder of `datasets`; write its examples to a file: "
                             "load_from_disk(FOLDER).to_json('examples.jsonl'), and pictures to files")
        found = sorted(file.name for file in path.iterdir() if file.suffix in (".json", ".jsonl"))[:3]
        raise ValueError(f"{path} is a folder; give a file of examples" + (", such as " + found[0] if found else ""))
    if not path.is_file():
        if re.match(r"\w\w+:/", text):
            raise ValueError(f"{text} is an address, and nothing is downloaded; download the file and give its path")
        if text.startswith("~"):
            raise FileNotFoundError(f"{path}: no such file; ~ is not expanded here, write the whole path")
        raise FileNotFoundError(f"{path}: no such file{broken_path(path)}; give a .json or .jsonl file of examples")
    if told := what_else(path):
        raise ValueError(f"{path} {told}")
    return path


def records(path: Path, broken_lines: bool) -> Iterator[tuple[str, object]]:
    """(place for messages, record or its fault), one by one. A list is parsed at once, JSON Lines line by line."""
    if _is_list(path):
        for number, record in enumerate(_document(path, MAX_LIST_BYTES)):
            yield f"{path}: item {number}", record
        return
    lines = _lines(path)
    head = list(islice(lines, 1))
    if not head:
        raise ValueError(f"{path}: the file is empty; add at least one example")
    if isinstance(head[0][1], str):                         # behind a broken line may stand gigabytes without an end
        head += islice(lines, 1)
    if document := _one_document(path, [line for _, line in head], broken_lines):
        yield f"{path}: line 1", document
        return
    for number, line in chain(head, lines):
        yield f"{path}: line {number}", parse_line(line, path, number)


def _one_document(path: Path, head: list[str | ValueError], broken_lines: bool) -> object:
    """The object of a file that is one object over several lines; None for JSON Lines.

    A file whose first line is broken is JSON Lines if its second line is an object, or if `broken_lines` is set."""
    if isinstance(head[0], ValueError) or _is_whole_object(head[0]):
        return None
    try:
        return _document(path, MAX_EXAMPLE_BYTES)
    except ValueError:
        indented = head[0].strip() == "{"                   # no line of JSON Lines: the object's own fault counts
        if (broken_lines and not indented) or (isinstance(head[-1], str) and _is_whole_object(head[-1])):
            return None
        raise


def parse_line(line: str | ValueError, path: Path, number: int) -> object:
    """The value of a line, or its fault."""
    if isinstance(line, ValueError):
        return line
    try:
        return _json(line, path, number)
    except ValueError as fault:
        return fault


def _is_list(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _is_whole_object(line: str) -> bool:
    """Whether a line holds a whole JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Iterator[tuple[int, str | ValueError]]:
    """Number and text (or fault) of the lines that are not blank, with at most MAX_EXAMPLE_BYTES in memory."""
    number = start = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_EXAMPLE_BYTES + 1):
            number += 1
            if len(line) > MAX_EXAMPLE_BYTES:
                yield number, ValueError(f"{path}: line {number}: more than {MAX_EXAMPLE_BYTES:,} bytes, which no "
                                         "example has; give one example per line, and pictures as files")
                while line and not line.endswith(b"\n"):
                    start += len(line)
                    line = file.readline(MAX_EXAMPLE_BYTES)
            else:
                try:
                    text = decoded(line, path, start, number).removesuffix("\n")
                except ValueError as fault:
                    yield number, fault
                else:
                    if text.strip():
                        yield number, text
            start += len(line)


def _document(path: Path, largest: int) -> object:
    """A file parsed at once: a list that is not empty, or one object."""
    if (size := path.stat().st_size) > largest:
        raise ValueError(f"{path}: {size:,} bytes in one piece, at most {largest:,} are read; give one example per "
                         "line (JSON Lines)")
    document = _json(decoded(path.read_bytes(), path, 0), path, 1)
    if document == []:
        raise ValueError(f"{path}: the list holds no example; add at least one")
    return document


def decoded(data: bytes, path: Path, start: int, first_line: int = 1) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")                       # also within a file of several joined
    except UnicodeDecodeError as error:
        line = first_line + data[:error.start].count(b"\n")
        remedy = NOT_TEXT if b"\0" in data[:4096] else "save the file as UTF-8"
        raise ValueError(f"{path}: byte {start + error.start} is not UTF-8 (line {line}); {remedy}") from None


def _json(text: str, path: Path, first_line: int) -> object:
    try:
        value = json.loads(text, object_pairs_hook=named_once)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()                      # "\ud800" is half a character
    except (ValueError, RecursionError) as error:        # ValueError also for a number of 5,000 digits
        line = first_line + getattr(error, "lineno", 1) - 1
        remedy = NOT_TEXT if "\0" in text[:4096] else "a file is one object, one list, or one object per line"
        if path.suffix.lower() in TABLES:
            remedy = f"write a table as examples with `python -m data.convert {path} OUT`"
        raise ValueError(f"{path}: line {line}: not valid JSON ({error}); {remedy}") from None
    if _is_deeper(value, MAX_LEVELS):
        raise ValueError(f"{path}: line {first_line}: more than {MAX_LEVELS} objects or lists inside each other; "
                         "flatten them")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(part, levels - 1) for part in parts if isinstance(part, dict | list))


# ---------------------------------------------------------------- writing

def write_examples(examples: list[Example], path: str | os.PathLike) -> None:
    """Write JSON Lines, completely or not at all. `load_examples` returns the same examples.

    Picture paths are written relative to the folder of `path`, so that both can be moved together; `path` may be a
    link.
    """
    path = Path(path)
    with replaced(path.resolve()) as file:                  # a link stays one
        for example in examples:
            file.write(_line(example, path.parent) + "\n")


def _line(example: Example, folder: Path) -> str:
    record = {name: getattr(example, name) for name in FIELD_NAMES if getattr(example, name) is not None}
    record = {**record, **example.extra, "decision": str(example.decision)}
    if example.acceptable is not None:
        record["acceptable"] = [str(plan) for plan in example.acceptable]
    files = [Path(os.path.relpath(picture, folder)).as_posix() for picture in example.pictures]
    if example.image is not None:
        record["image"] = files[0]
    elif files:
        record["images"] = dict(zip(example.cameras, files, strict=True)) if example.cameras else files
        record.pop("cameras", None)
    try:
        return json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError(f"example {example.id!r} holds NaN or Infinity, which JSON lacks; leave it out") from None
