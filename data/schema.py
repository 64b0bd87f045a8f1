"""The Example record, its file formats, and the two texts made from it: the prompt and the target.

A file may be a stranger's: its pictures must lie in its own folder or in one that the user names, examples and lists
have a largest size, and names hold nothing that a terminal would obey.
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

from rewards import Decision, parse_plan
from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS

Navigation = dict[str, str] | str

# AlphaDrive's released wording (data_tools/example.json), in the pieces that "reasoning off" exchanges.
ALPHADRIVE_PROMPT = (
    "You are an expert driving assistant. Your current speed is {speed:.1f}m/s, the navigation command is "
    "'{navigation}', based on the understanding of the driving scene and the navigation information, what is your "
    "driving plan for the next three seconds? {request} Planning answer consists of SPEED plan and PATH plan, SPEED "
    "includes KEEP, ACCELERATE, DECELERATE, and STOP. PATH includes STRAIGHT, RIGHT_CHANGE, LEFT_CHANGE, RIGHT_TURN, "
    "and LEFT_TURN. For example, a correct answer format is like '{sample}'.")
REQUEST_REASONING = ("Output the planning reasoning process in <think> </think> and final planning answer in <answer> "
                     "</answer> tags, respectively.")
REQUEST_ANSWER = "Output the final planning answer in <answer> </answer> tags."
SAMPLE_REASONING = "<think> planning reasoning process here </think> <answer> KEEP, LEFT_TURN </answer>"
SAMPLE_ANSWER = "<answer> KEEP, LEFT_TURN </answer>"
ANSWER_ONLY = "Give only the final answer in <answer> </answer> tags, without any reasoning."

ALPHADRIVE_FIELDS = {"problem": "prompt", "solution": "decision", "thinking": "reasoning"}
PROMPT_STYLES = ("alphadrive", "compact")
SCENE_SIZE = "224x112"              # of a built-in scene's picture, unless another is asked for
PICTURE_EDGES = (28, 4096)          # shortest and longest edge that is drawn

MAX_EXAMPLE_BYTES = 2**20           # one example; those of AlphaDrive have about 1,200
MAX_LIST_BYTES = 256 * 2**20        # a JSON list, parsed in one piece: up to some 25 times as much memory
MAX_NAVIGATION = 2000               # characters; a long dictionary could exhaust the stack of Python's own parser
MAX_NAME = 4096                     # characters of an id, a split, a path
MAX_SPEED = 1e6                     # m/s; refuses whole numbers that no float can hold, too
MAX_LEVELS = 50                     # objects and lists inside each other
# What a terminal obeys or shows out of order: control characters but tab and line feed, marks of writing direction;
# and halves of characters, which neither a file nor a tokenizer takes.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FACTS = re.compile(r"current speed is (\d{1,9}(?:\.\d{1,9})?)\s*m/s, the navigation command is "
                   r"'(.{,500}?)', based on")                                   # bounds keep it linear in the prompt


@dataclass(frozen=True, kw_only=True)
class Example:
    """One planning question and its answer.

    The picture is a file (`image`) or a built-in scene (`scene`, its seed). The question is a verbatim `prompt`, or is
    worded from `speed` and `navigation`. `acceptable` lists every plan that would be right, where that is known.

    Units: speed in m/s. navigation is AlphaDrive's {'100m': 'Straight', '200m': 'Turn left'} or free text.
    """
    id: str
    image: str | None = None
    scene: int | None = None
    prompt: str | None = None
    speed: float | None = None
    navigation: Navigation | None = None
    decision: Decision
    reasoning: str | None = None
    acceptable: tuple[Decision, ...] | None = None
    split: str | None = None
    factors: dict | None = None


FIELD_NAMES = tuple(field.name for field in fields(Example))


def picture_size(text: str) -> tuple[int, int] | None:
    """`448x224` -> (448, 224), width and height in pixels; None if it is none, or one that cannot be drawn."""
    found = re.fullmatch("([0-9]{2,4})x([0-9]{2,4})", text) if isinstance(text, str) else None
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    return size if all(PICTURE_EDGES[0] <= edge <= PICTURE_EDGES[1] for edge in size) else None


# ---------------------------------------------------------------- texts

def printable(text: str) -> str:
    """What a model or a stranger wrote, safe for a terminal: the escape sequence that clears the screen becomes the
    seven characters `\\x1b[2J`, and so on. Tabs and line feeds stay."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def prompt_text(example: Example, style: str = "alphadrive", reasoning: bool = True) -> str:
    """The user's question in one of two styles.

    alphadrive: the released wording; a verbatim `example.prompt` is kept. With reasoning off its request for a
                <think> block and the worked sample lose that block; an unknown wording gets one sentence appended.
    compact:    `speed 4.2 m/s. straight, then left.` for small models, with ` Answer.` behind it when reasoning is
                off. A prompt without known speed and navigation is kept as in the other style.

    Raises: ValueError for an unknown style.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"prompt style {style!r}: choose one of {', '.join(PROMPT_STYLES)}")
    described = example.speed is not None and example.navigation is not None
    if style == "compact" and described:
        text = f"speed {example.speed:.1f} m/s. {_compact_navigation(example.navigation)}"
        return text if reasoning else text + " Answer."
    if example.prompt is not None:
        return example.prompt if reasoning else without_reasoning(example.prompt)
    if not described:
        raise ValueError(f"example {example.id!r} has neither a prompt nor both speed and navigation: give one of them")
    return ALPHADRIVE_PROMPT.format(speed=example.speed, navigation=example.navigation,
                                    request=REQUEST_REASONING if reasoning else REQUEST_ANSWER,
                                    sample=SAMPLE_REASONING if reasoning else SAMPLE_ANSWER)


def without_reasoning(prompt: str) -> str:
    """The same question asking for the answer block alone."""
    text = prompt.replace(REQUEST_REASONING, REQUEST_ANSWER).replace(SAMPLE_REASONING, SAMPLE_ANSWER)
    return f"{text.rstrip()} {ANSWER_ONLY}" if text == prompt or "<think>" in text else text


def target_text(example: Example, reasoning: bool = True) -> str:
    """What the model should write: `<think> why </think> <answer> SPEED, PATH </answer>`, or the answer block alone.

    Raises: ValueError if reasoning is asked for and the example has none.
    """
    answer = f"<answer> {example.decision} </answer>"
    if not reasoning:
        return answer
    if example.reasoning is None:
        raise ValueError(f"example {example.id!r} has no reasoning: turn reasoning off or add a 'reasoning' field")
    return f"<think> {example.reasoning} </think> {answer}"


def _compact_navigation(navigation: Navigation) -> str:
    """The courses in the order driven, without their distances; free text as it is."""
    if isinstance(navigation, str):
        return navigation if navigation.endswith((".", "!", "?")) else navigation + "."
    return ", then ".join(course.lower().removeprefix("turn ") for course in navigation.values()) + "."


def parse_navigation(text: str) -> Navigation:
    """A navigation command as typed by a person: AlphaDrive's dictionary form, or else free text.

    Raises: ValueError for an empty text or a dictionary that is not text -> text.
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


# ---------------------------------------------------------------- reading

def load_examples(path: str | os.PathLike, root: str | os.PathLike | None = None) -> list[Example]:
    """Read examples from one JSON object, a JSON list, or JSON Lines.

    Fields are Example's or AlphaDrive's released ones (image, problem, solution, thinking). All pictures must lie in
    `root`, by default the file's own folder, wherever links lead. Relative paths start there; one that leaves it by
    `..`, as `write_examples` may write, starts at the file. Paths come back absolute; whether the pictures exist is
    left to `dataset.check_images`.

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
    """The examples that `load_examples` would take one by one, and the faults of the records that it would not.

    Raises: what it raises where no record can be used, or the file cannot be told apart into records."""
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
    """For each record its example, or its fault."""
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
    """The data file's folder, the folder that all pictures must lie in, and that folder with links followed."""

    folder: str
    root: str
    real_root: str

    def find(self, image: str, where: str) -> str:
        """The absolute path of a picture. Raises: ValueError if it lies outside the root, or a link leads there."""
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
    """(place for messages, record or what is wrong with it) one by one: a list is parsed in one piece, JSON Lines are a
    line at a time."""
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
    """What a file holds whose first line is no object by itself: one object over several lines. None for JSON Lines:
    what cannot be read as one although its second line can, or with broken_lines in any case."""
    if isinstance(head[0], ValueError) or _is_whole_object(head[0]):
        return None
    try:
        return _document(path, MAX_EXAMPLE_BYTES)
    except ValueError:
        if broken_lines or (isinstance(head[-1], str) and _is_whole_object(head[-1])):
            return None
        raise


def _parsed(line: str | ValueError, path: Path, number: int) -> object:
    """A line's value, or what is wrong with it."""
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
    """JSON Lines and not one object spread over several lines."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path) -> Iterator[tuple[int, str | ValueError]]:
    """Number and text of the lines that are not blank, or what is wrong with one; no more than MAX_EXAMPLE_BYTES of the
    file are held."""
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
    """A file parsed in one piece: a list that is not empty, or one object."""
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
            json.dumps(value, ensure_ascii=False).encode()                      # "\ud800" alone is half a character
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
    """Speed and navigation said inside a prompt of AlphaDrive's wording, so that the compact style can use them."""
    found = FACTS.search(prompt)
    if not found:
        return {}
    try:
        return {"speed": float(found[1]), "navigation": parse_navigation(found[2])}
    except ValueError:
        return {}


# ---------------------------------------------------------------- one reader per field: value, where -> value or error

def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text that is not empty, got {_short(value)}")
    if len(value) > MAX_EXAMPLE_BYTES:
        raise ValueError(f"{where}: a text of {len(value):,} characters, at most {MAX_EXAMPLE_BYTES:,} are read; cut "
                         "it")
    return value


def _name(value: object, where: str) -> str:
    """A text that messages and file names may hold."""
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
    """The sentence without its tags; an empty one is none at all."""
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
        raise ValueError(f"{where}: a plan stands twice in {_short(value)}; list each once")
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
    """Write JSON Lines, whole or not at all; `load_examples` gives the same examples back.

    Picture paths are written relative to the file's folder, so that folder and pictures can move together.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="\n") as file:
            for example in examples:
                file.write(json.dumps(_record(example, path.parent), ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _record(example: Example, folder: Path) -> dict:
    record = {name: getattr(example, name) for name in FIELD_NAMES if getattr(example, name) is not None}
    record["decision"] = str(example.decision)
    if example.acceptable is not None:
        record["acceptable"] = [str(plan) for plan in example.acceptable]
    if example.image is not None:
        record["image"] = Path(os.path.relpath(example.image, folder)).as_posix()
    return record


if __name__ == "__main__":
    from data.datasheet import main
    main()
