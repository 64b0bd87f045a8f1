"""Questions without labels: pictures of a folder, paths in a .txt file, records in a .jsonl file or on a stream.

A record holds `image` (or a built-in `scene`), and optionally `id`, `speed`, `navigation` or `prompt`; what it does not
say is taken from the flags. Labels in it are ignored, so a file of examples is a file of requests too.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.example import Example
from data.fields import MOST_PICTURES, PicturePlaces, camera_names, check_is_path, parse_navigation, read_record
from data.files import parse_line, picture_places, records
from data.recognise import PICTURE_ENDINGS, broken_path, what_else
from rewards import Decision

RECORDS = (".json", ".jsonl", ".ndjson")
LABELS = ("decision", "solution", "reasoning", "thinking", "acceptable", "split", "factors", "trajectory")
# What other programs may call a field; then a flag's value does not stand in for it. What is about it is another thing
LIKELY = {"speed": r"^(ego_?)?v[x0]?(_?ego)?$|speed|spd|veloc|egovel$|(^|_)(vel|kmh|km_h|kph|mph|mps)(_|$)",
          "navigation": "nav|route|command|instruct|question|query|man(oeuvre|euver)|"
                        "^(driving|ego|next|high_?level)?_?(direction|turn|goal|intent(ion)?|text|cmd)$"}
ABOUT = re.compile(r"limit|unit|(^|_)id$|Id$|(^|_)(min|max)(_|$)|avail")
STAND_IN = Decision("KEEP", "STRAIGHT")             # an Example needs a label; nothing reads this one


@dataclass(frozen=True)
class Refused:
    """A record that is no question."""

    id: object
    fault: str


Request = Example | Refused


def read_requests(path: str | os.PathLike, speed: float, navigation: str, root: str | None = None,
                  notes: Counter[str] | None = None) -> list[Request]:
    """The questions of a folder, a list of paths (.txt) or a file of records, in order.

    A folder is searched with its sub-folders; ids are paths inside it. Paths of a list start at its folder, or at the
    working directory where the picture exists there only. Paths of records follow the rules of `read_examples`.
    `notes` counts what was assumed or dropped.

    Raises: FileNotFoundError; ValueError for a path that is none of the three, and where no question is found.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist{broken_path(path)}; name a folder, a .txt list of paths, a "
                                ".json or .jsonl file of records, or - for records on standard input")
    if path.is_dir():
        found = [file for file in visible_files(path, "**/*") if file.suffix.lower() in PICTURE_ENDINGS]
        requests = [_of_picture(file, file.relative_to(path).as_posix(), speed, navigation) for file in found]
    elif told := what_else(path):
        raise ValueError(f"{path} {told}")
    elif path.suffix.lower() == ".txt":
        requests = _listed(path, speed, navigation)
    elif path.suffix.lower() in RECORDS:
        places = picture_places(path, root)
        requests = [_of_record(record, where, places, f"{path.stem}-{number:06d}", speed, navigation, notes)
                    for number, (where, record) in enumerate(records(path, broken_lines=True))]
    else:
        raise ValueError(f"{path} is not a folder, a .txt list or a .json or .jsonl file of records; for "
                         "one picture use --image")
    if not requests:
        raise ValueError(f"{path} contains no picture" + (f" ({', '.join(PICTURE_ENDINGS)})" if path.is_dir() else ""))
    return requests


def requests_in(lines: Iterable[bytes], speed: float, navigation: str, root: str | None = None,
                notes: Counter[str] | None = None) -> Iterator[Request]:
    """The question of each line of a stream, one JSON record per line; paths start at the working directory."""
    name = Path("standard input")
    places = picture_places(name, root)
    for number, line in enumerate(lines, 1):
        where, default_id = f"{name}: line {number}", f"line-{number:06d}"
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            yield Refused(default_id, f"{where}: not UTF-8; write JSON in UTF-8, or with escapes such as \\u00e9")
            continue
        if text.strip():
            yield _of_record(parse_line(text, name, number), where, places, default_id, speed, navigation, notes)


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder in order, without hidden ones and those that macOS adds to archives."""
    return sorted(file for file in folder.glob(pattern) if not file.is_dir() and not any(
        part.startswith(".") or part == "__MACOSX" for part in file.relative_to(folder).parts))


def left_out(folder: Path, pattern: str) -> str:
    """How many files have other endings than pictures, as a note; an empty text if none has."""
    others = [file for file in visible_files(folder, pattern) if file.suffix.lower() not in PICTURE_ENDINGS]
    return (f"{len(others)} files with other endings were left out, the first is {others[0].relative_to(folder)}"
            if others else "")


def _of_picture(image: Path, name: str, speed: float, navigation: str) -> Example:
    return Example(id=name, image=str(image), speed=speed, navigation=parse_navigation(navigation), decision=STAND_IN)


def _listed(path: Path, speed: float, navigation: str) -> list[Request]:
    requests = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines(), 1):
        name = line.strip()
        try:
            if name:
                check_is_path(name, f"{path}: line {number}")
                beside = path.parent / name
                image = Path(name) if os.path.exists(name) and not os.path.exists(beside) else beside
                requests.append(_of_picture(image, name, speed, navigation))
        except ValueError as fault:
            requests.append(Refused(name, str(fault)))
    return requests


def _of_record(record: object, where: str, places: PicturePlaces, default_id: str, speed: float,
               navigation: str, notes: Counter[str] | None) -> Request:
    if isinstance(record, ValueError):
        return Refused(default_id, str(record))
    try:
        if isinstance(record, dict):
            own = {name: value for name, value in record.items() if name not in LABELS and value is not None}
            # a question in words states speed and navigation itself
            flags = {} if {"prompt", "problem"} & own.keys() else {"speed": speed, "navigation": navigation}
            record = {**flags, **own, "decision": str(STAND_IN)}
        example, said = read_record(record, where, places, default_id)
        check_nothing_misnamed(example, own, where)
        if notes is not None:
            notes.update([note.replace("kept for rewards (extra)", "not used") for note in said])
            notes.update(f"{name!r} is not given; --{name} {value} was assumed" for name, value in flags.items()
                         if name not in own)
        return example
    except ValueError as fault:
        return Refused(record.get("id", default_id) if isinstance(record, dict) else default_id, str(fault))


def check_nothing_misnamed(example: Example, own: Mapping, where: str) -> None:
    """Raises: ValueError if a flag filled in what the record may say under a name that is not known."""
    asked = {"prompt", "problem"} & own.keys()
    for name, likely in LIKELY.items():
        other = next((field for field in _with_inner(example.extra) if not ABOUT.search(field)
                      and re.search(likely, field.rpartition(".")[2], re.IGNORECASE)), None)
        if other is not None and name not in own and not asked:
            raise ValueError(f"{where}: field {other!r:.80} is not known and {name!r} is not given; call it {name!r}"
                             + (", in m/s" if name == "speed" else ""))


def _with_inner(fields: Mapping) -> Iterator[str]:
    """The names of fields, and `ego.speed` for those of objects inside, also in lists."""
    for name, value in fields.items():
        yield name
        for inside in value if isinstance(value, list) else [value]:
            yield from (f"{name}.{inner}" for inner in _with_inner(inside)) if isinstance(inside, dict) else ()


# ---------------------------------------------------------------- --image

def picture_examples(files: Sequence[str], cameras: str, speed: float, navigation: str) -> list[Example]:
    """The question about one picture, or about every picture of a folder; of several files, one question.

    Raises: ValueError for a folder without pictures, or one among several files."""
    question = dict(speed=speed, navigation=parse_navigation(navigation), decision=STAND_IN)
    for file in files:
        check_is_path(file, "--image")
    if len(files) > 1:
        return [several_pictures(tuple(files), cameras.split(",") if cameras else None, question)]
    folder = Path(files[0])
    pictures = [str(file) for file in visible_files(folder, "*") if file.suffix.lower() in PICTURE_ENDINGS] \
        if folder.is_dir() else [files[0]]
    if not folder.exists():
        raise ValueError(f"--image {folder} does not exist{broken_path(folder)}; name a picture or a folder")
    if not pictures:
        raise ValueError(f"--image {folder} contains no picture ({', '.join(PICTURE_ENDINGS)})")
    return [Example(id=picture, image=picture, **question) for picture in pictures]


def several_pictures(files: tuple[str, ...], names: list[str] | None, question: dict) -> Example:
    """One example with the pictures of several --image, whose cameras may have names."""
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"--image {file} is no file{broken_path(Path(file))}; several --image are the pictures of "
                             "one question")
    if len(files) > MOST_PICTURES:
        raise ValueError(f"--image is given {len(files)} times; a question has at most {MOST_PICTURES} pictures")
    cameras = None if names is None else camera_names(names, "--cameras")
    return Example(id=", ".join(files), images=files, cameras=cameras, **question)
