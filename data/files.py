"""Files of examples: one JSON object, a JSON list or JSON Lines.

Files are untrusted: pictures must be inside the file's folder or one that the user names, examples and lists have a
maximum size, and names contain no control characters.
"""
import ast
import codecs
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path

from data.example import CONTROL, Example, Navigation
from rewards import Decision, parse_plan
from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS
from storage import replaced

ALPHADRIVE_FIELDS = {"problem": "prompt", "solution": "decision", "thinking": "reasoning"}
MAX_LIST_BYTES = 256 * 2**20        # of a JSON list, parsed at once in up to 25 times as much memory
MAX_NAVIGATION = 2000               # characters; a long dictionary can exhaust the stack of Python's parser
MAX_NAME = 4096                     # characters of an id, a split, a path
MAX_SPEED = 1e6                     # m/s; also excludes integers too large for a float
MAX_LEVELS = 50                     # of nested objects and lists
MAX_EXAMPLE_BYTES = 2**20           # of one example; AlphaDrive's have about 1,200
FACTS = re.compile(r"current speed is (\d{1,9}(?:\.\d{1,9})?)\s*m/s, the navigation command is "
                   r"'(.{,500}?)', based on")                                   # bounds keep it linear in the prompt
FIELD_NAMES = tuple(field.name for field in fields(Example))


# ---------------------------------------------------------------- reading

def load_examples(path: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Example]:
    """Read examples from one JSON object, a JSON list, or JSON Lines.

    Fields are Example's or AlphaDrive's released ones (image, problem, solution, thinking). All pictures must be inside
    `root`, by default the file's own folder, after links are resolved. Relative paths start there; a path that leaves
    it by `..`, as `write_examples` may write, starts at the file's folder. Returned paths are absolute. Whether the
    pictures exist is checked by `dataset.check_images`.

    Raises: FileNotFoundError; ValueError naming file, line (or list item, counted from 0), field, value and remedy.
    """
    examples = []
    for example, fault in _read(Path(path), root):
        if fault:
            raise fault
        examples.append(example)
    return examples


def load_usable_examples(path: str | os.PathLike,
                         root: str | os.PathLike | None = None) -> tuple[list[Example], list[str]]:
    """The valid examples, and the faults of the other records.

    Raises: as `load_examples` if no record is valid or the file cannot be split into records."""
    examples, faults, first = [], [], None
    for example, fault in _read(Path(path), root, broken_lines=True):
        if fault:
            first = first or fault
            faults.append(str(fault))
        else:
            examples.append(example)
    if not examples:
        raise first
    return examples, faults


def _read(path: Path, root: str | os.PathLike | None,
          broken_lines: bool = False) -> Iterator[tuple[Example | None, ValueError | None]]:
    """For each record its example or its fault."""
    root = os.path.abspath(path.parent if root is None else root)
    places = PicturePlaces(os.path.abspath(path.parent), root, os.path.realpath(root))
    first_seen = {}
    for number, (where, record) in enumerate(_records(path, broken_lines)):
        try:
            if isinstance(record, ValueError):
                raise record
            example = _example(record, where, places, default_id=f"{path.stem}-{number:06d}")
            if example.id in first_seen:
                raise ValueError(f"{where}: field 'id': {example.id!r} was already used at {first_seen[example.id]}; "
                                 "give every example its own id")
        except ValueError as fault:
            yield None, fault
        else:
            first_seen[example.id] = where
            yield example, None


@dataclass(frozen=True)
class PicturePlaces:
    """The data file's folder, the folder that holds all pictures, and the latter with links resolved."""

    folder: str
    root: str
    real_root: str

    def find(self, image: str, where: str) -> str:
        """The absolute path of a picture. Raises: ValueError if it is outside the root, links resolved."""
        path = os.path.abspath(os.path.join(self.root, image))
        if not _inside(path, self.root):
            path = os.path.abspath(os.path.join(self.folder, image))
        if not _inside(os.path.realpath(path), self.real_root):
            raise ValueError(f"{where}: {image!r:.300} lies outside {self.root}; if that is right, name the folder "
                             "that holds all pictures: --image-root DIR (load_examples: root)")
        return path


def _inside(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _records(path: Path, broken_lines: bool) -> Iterator[tuple[str, object]]:
    """(place for messages, record or its fault), one by one. A list is parsed at once, JSON Lines line by line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a .json or .jsonl file of examples")
    if _is_list(path):
        for number, record in enumerate(_document(path, MAX_LIST_BYTES)):
            yield f"{path}: item {number}", record
        return
    lines = _lines(path)
    head = list(islice(lines, 2))
    if not head:
        raise ValueError(f"{path}: the file is empty; add at least one example")
    if document := _one_document(path, [line for _, line in head], broken_lines):
        yield f"{path}: line 1", document
        return
    for number, line in chain(head, lines):
        yield f"{path}: line {number}", _parsed(line, path, number)


def _one_document(path: Path, head: list[str | ValueError], broken_lines: bool) -> object:
    """The object of a file that is one object over several lines; None for JSON Lines.

    A file whose first line is broken is JSON Lines if its second line is an object, or if `broken_lines` is set."""
    if isinstance(head[0], ValueError) or _is_whole_object(head[0]):
        return None
    try:
        return _document(path, MAX_EXAMPLE_BYTES)
    except ValueError:
        if broken_lines or (isinstance(head[-1], str) and _is_whole_object(head[-1])):
            return None
        raise


def _parsed(line: str | ValueError, path: Path, number: int) -> object:
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
                                         "example has; give one example per line")
                while line and not line.endswith(b"\n"):
                    start += len(line)
                    line = file.readline(MAX_EXAMPLE_BYTES)
            else:
                try:
                    text = _decoded(line, path, start).removesuffix("\n")
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
    document = _json(_decoded(path.read_bytes(), path, 0), path, 1)
    if document == []:
        raise ValueError(f"{path}: the list holds no example; add at least one")
    return document


def _decoded(data: bytes, path: Path, start: int) -> str:
    try:
        return data.decode("utf-8-sig" if start == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {start + error.start} is not UTF-8; save the file as UTF-8") from None


def _json(text: str, path: Path, first_line: int) -> object:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()                      # "\ud800" is half a character
    except (ValueError, RecursionError) as error:        # ValueError also for a number of 5,000 digits
        line = first_line + getattr(error, "lineno", 1) - 1
        raise ValueError(f"{path}: line {line}: not valid JSON ({error}); a file is one object, one list, or one "
                         "object per line") from None
    if _is_deeper(value, MAX_LEVELS):
        raise ValueError(f"{path}: line {first_line}: more than {MAX_LEVELS} objects or lists inside each other; "
                         "flatten them")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(part, levels - 1) for part in parts if isinstance(part, dict | list))


def _example(record: object, where: str, places: PicturePlaces, default_id: str) -> Example:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with named fields, got {_short(record)}")
    values = {name: value for name, value in _renamed(record, where).items() if value is not None}
    _check_presence(values, where)
    read = {name: FIELD_READERS[name](value, f"{where}: field {_given_name(name, record)!r}")
            for name, value in values.items()}
    read.setdefault("id", default_id)
    if "image" in read:
        read["image"] = places.find(read["image"], f"{where}: field 'image'")
    for name, value in _facts_in(read.get("prompt", "")).items():
        read.setdefault(name, value)
    return Example(**read)


def _renamed(record: dict, where: str) -> dict:
    values = {}
    for given, value in record.items():
        name = ALPHADRIVE_FIELDS.get(given, given)
        if name not in FIELD_NAMES:
            raise ValueError(f"{where}: field {_short(given)} is not known; known are {', '.join(FIELD_NAMES)} and "
                             f"AlphaDrive's {', '.join(ALPHADRIVE_FIELDS)}; put other facts inside 'factors'")
        if name in values:
            raise ValueError(f"{where}: field {given!r} says the same as {name!r}; keep one of them")
        values[name] = value
    return values


def _given_name(name: str, record: dict) -> str:
    return next((given for given in record if ALPHADRIVE_FIELDS.get(given, given) == name), name)


def _check_presence(values: dict, where: str) -> None:
    if "decision" not in values:
        raise ValueError(f"{where}: field 'decision' (AlphaDrive: 'solution') is missing; add the plan, such as "
                         "'KEEP, STRAIGHT'")
    if ("image" in values) == ("scene" in values):
        state = "both are given" if "image" in values else "both are missing"
        raise ValueError(f"{where}: fields 'image' and 'scene': {state}; give a picture file or a scene's seed")
    for name in ("speed", "navigation"):
        if "prompt" not in values and name not in values:
            raise ValueError(f"{where}: field {name!r} is missing; give 'prompt' (AlphaDrive: 'problem'), or both "
                             "'speed' and 'navigation'")


def _facts_in(prompt: str) -> dict:
    """Speed and navigation from a prompt in AlphaDrive's wording, for the compact style."""
    found = FACTS.search(prompt)
    if not found:
        return {}
    try:
        return {"speed": float(found[1]), "navigation": parse_navigation(found[2])}
    except ValueError:
        return {}


def parse_navigation(text: str) -> Navigation:
    """A navigation command typed by a person: AlphaDrive's dictionary form or free text.

    Raises: ValueError for empty text, or a dictionary that is not text -> text.
    """
    text = text.strip()
    if not text:
        raise ValueError("navigation is empty: say for example 'Go straight' or \"{'100m': 'Straight'}\"")
    if len(text) > MAX_NAVIGATION:
        raise ValueError(f"navigation {_short(text)} has {len(text):,} characters, at most {MAX_NAVIGATION:,} are "
                         "read; shorten it")
    if not text.startswith("{"):
        return text
    try:
        navigation = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"navigation {text!r} opens a dictionary but is not one: write \"{{'100m': 'Straight'}}\" "
                         "or plain words") from None
    return _navigation(navigation, "navigation")


# ---------------------------------------------------------------- one reader per field: value, where -> value or error

def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text that is not empty, got {_short(value)}")
    if len(value) > MAX_EXAMPLE_BYTES:
        raise ValueError(f"{where}: a text of {len(value):,} characters, at most {MAX_EXAMPLE_BYTES:,} are read; cut "
                         "it")
    return value


def _name(value: object, where: str) -> str:
    """A text that is safe in messages and file names."""
    text = _text(value, where)
    if CONTROL.search(text) or "\n" in text or len(text) > MAX_NAME:
        raise ValueError(f"{where}: expected one line of at most {MAX_NAME:,} characters without control characters, "
                         f"got {_short(text)}")
    return text


def _seed(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: expected a scene's seed, a whole number >= 0, got {_short(value)}")
    return value


def _speed(value: object, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_SPEED:
        raise ValueError(f"{where}: expected a speed in m/s, a number >= 0, got {_short(value)} (at most "
                         f"{MAX_SPEED:g} is read)")
    return float(value)


def _navigation(value: object, where: str) -> Navigation:
    if isinstance(value, str):
        return _text(value, where).strip()
    pairs = value.items() if isinstance(value, dict) else ()
    if not pairs or not all(isinstance(word, str) and word.strip() for pair in pairs for word in pair):
        raise ValueError(f"{where}: expected words or a dictionary such as {{'100m': 'Straight'}}, got {_short(value)}")
    return value


def _decision(value: object, where: str) -> Decision:
    text = _text(value, where)
    decision = parse_plan(text if "<answer>" in text else f"<answer> {text} </answer>")
    if decision is None:
        raise ValueError(f"{where}: {_short(value)} is not one plan 'SPEED, PATH'; SPEED is one of "
                         f"{', '.join(SPEED_ACTIONS)} and PATH one of {', '.join(PATH_ACTIONS)}")
    return decision


def _reasoning(value: object, where: str) -> str | None:
    """The reason without its tags; None if it is empty."""
    if isinstance(value, str) and not re.sub(r"</?think>", "", value).strip():
        return None
    text = re.sub(r"^\s*<think>|</think>\s*$", "", _text(value, where)).strip()
    if re.search(r"</?(think|answer)>", text):
        raise ValueError(f"{where}: expected one plain explanation, got {_short(value)}; remove inner <think> and "
                         "<answer> tags")
    return text


def _acceptable(value: object, where: str) -> tuple[Decision, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: expected a list of plans such as ['KEEP, STRAIGHT'], got {_short(value)}")
    plans = tuple(_decision(plan, where) for plan in value)
    if len(set(plans)) < len(plans):
        raise ValueError(f"{where}: a plan is listed twice in {_short(value)}; list each once")
    return plans


def _factors(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object of named facts, got {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


FIELD_READERS = {"id": _name, "image": _name, "scene": _seed, "prompt": _text, "speed": _speed,
                 "navigation": _navigation, "decision": _decision, "reasoning": _reasoning,
                 "acceptable": _acceptable, "split": _name, "factors": _factors}


# ---------------------------------------------------------------- writing

def write_examples(examples: list[Example], path: str | os.PathLike) -> None:
    """Write JSON Lines, completely or not at all. `load_examples` returns the same examples.

    Picture paths are written relative to the file's folder, so that both can be moved together.
    """
    path = Path(path)
    with replaced(path) as file:
        for example in examples:
            file.write(json.dumps(_record(example, path.parent), ensure_ascii=False, allow_nan=False) + "\n")


def _record(example: Example, folder: Path) -> dict:
    record = {name: getattr(example, name) for name in FIELD_NAMES if getattr(example, name) is not None}
    record["decision"] = str(example.decision)
    if example.acceptable is not None:
        record["acceptable"] = [str(plan) for plan in example.acceptable]
    if example.image is not None:
        record["image"] = Path(os.path.relpath(example.image, folder)).as_posix()
    return record
