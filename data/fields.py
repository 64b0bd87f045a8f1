"""From one JSON record to an Example: field names, one reader per field, and where a picture may be.

Records are untrusted: texts have a maximum length, names contain no control characters, and pictures must be inside the
file's folder or a folder that the user names. Whatever a reader assumes or drops is returned as a note.
"""
import ast
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from difflib import get_close_matches

from data.example import CONTROL, VIEWS, Example, Navigation
from data.recognise import PICTURE_ENDINGS, UNREAD_ENDINGS, VIDEO_ENDINGS
from rewards import Decision, parse_plan
from rewards.actions import ALPHADRIVE, Actions
from rewards.waypoints import WAYPOINTS

FIELD_NAMES = tuple(field.name for field in fields(Example) if field.name != "extra")
ALPHADRIVE_FIELDS = {"problem": "prompt", "solution": "decision", "thinking": "reasoning"}
MOST_PICTURES = 16                  # of one example
A_CHAT = ("a chat is not read; write it as examples with `python -m data.convert FILE OUT`, or give its picture as "
          "'image', the question as 'problem', and the answer with its <think> and <answer> blocks as 'solution'")
FOREIGN_FIELDS = {"conversations": A_CHAT, "messages": A_CHAT,
                  "video": "a video is not read; extract a frame and give it as 'image'",
                  "videos": "videos are not read; extract a frame and give it as 'image'"}
# The end of a picture's name in a repr, and names of fields that hold pictures
PICTURE_FILE = re.compile(f"({'|'.join(map(re.escape, PICTURE_ENDINGS + UNREAD_ENDINGS))})[\\s'\"?#]|'bytes':", re.I)
PICTURE_NAME = re.compile(r"im(g|ages?)(_|$)|pic(ture)?s?$|photos?$|frames?$|file_?(name|path)", re.I)
# A data address, or base64 that begins as JPEG, PNG, GIF or WebP does; a path has a dot before so many such characters
PICTURE_IN_TEXT = re.compile(r"\s*(?:(?i:data:)|(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR)[A-Za-z0-9+/=\s]{40})")
OF_A_RECORDING = "keep the name of a recording under another name (data.convert: --rename scene=scene_name)"
ORDINARY = re.compile(r"^(seed|resolution)$|_id$", re.I)         # fields of the user's, though nearly ours
MAX_NAVIGATION = 2000               # characters; a long dictionary can exhaust the stack of Python's parser
MAX_NAME = 4096                     # characters of an id, a split, a path
MAX_SPEED = 1e6                     # m/s; also excludes integers too large for a float
SPEED = re.compile(r"([+-]?[0-9]{1,9}(?:\.[0-9]{0,20})?(?:e[+-]?[0-9]{1,2})?)\s*([^\W\d_].{0,40})?")
OTHER_UNITS = {"3.6": r"km[\s/_.]*(p(er)?)?[\s/_.]*h|kph|kilomet\w+[ _/]",
               "2.237": r"mph|(?<![a-z])mi(les?)?[\s_/]*(per)?[\s_/]*h(rs?|ours?)?(?![a-z])|miles[ _]|imperial",
               "1.944": r"(?<![a-z])(kn|kts?)(?![a-z])|knots?",
               "3.281": r"(?<![a-z])(ft|feet|foot)[\s/_.]*(p(er)?)?[\s/_.]*s|(?<![a-z])fps(?![a-z])",
               "100": r"(?<![a-z])(cm|centimet(er|re)s?)[\s/_.]*(p(er)?)?[\s/_.]*s"}
METRES_A_SECOND = re.compile(r"mps|(m|met(er|re)s?)(/|per)?s(ec(ond)?s?)?(-1|⁻¹)?", re.I)
OF_THE_CAR = re.compile(r"(ego|car|vehicle)?(speed|spd|velocity|vel|v)")
LEAST_SPEED = -0.5                  # m/s; sensor noise of a standing car
MOST_ROUNDING = 0.5                 # m/s between a speed and its text in a question
MAX_METRES = 1000.0                 # of a way-point; 4 s at 250 m/s
MAX_TEXT = 2**20                    # characters of one text, and bytes of one example; AlphaDrive's have about 1,200
FACTS = re.compile(r"current speed is (-?\d{1,9}(?:\.\d{1,9})?)\s*m/s, the navigation command is "
                   r"'(.{,500}?)', based on")                                   # bounds keep it linear in the prompt
ASKED_SPEED = re.compile(r"\bspeed(?: is| of|:|=)? {0,3}(-?\d{1,9}(?:\.\d{1,9})?) ?"
                         r"([a-z][a-z/]{0,20}(?: per \w{1,12})?)", re.I)
PLACEHOLDER = re.compile(r"<image>|<\|vision_start\|><\|image_pad\|><\|vision_end\|>|<\|image_pad\|>")
SPECIAL_TOKEN = re.compile(                     # of chats, and the marks of pictures that other models have
    r"<\|(?:im_start|im_end|endoftext|(?:vision|image|video|object_ref|box|quad)(?:_\w{1,9})?)\|>|"
    r"<(?:image|video|img)(?: ?\d{1,3}|[_-]?\w{1,20})?>|<(?:start|end)_of_image>|\[IMG\]", re.I)
THINK_TAG = re.compile(r"<(/?)(?:think|thinking|reasoning)>", re.I)
ANSWER_TAG = re.compile(r"<(/?)answer>", re.I)
EMPTY_CELLS = ("nan", "none", "null", "na", "n/a", "#n/a", "<na>")         # an absent value in tables, in any case
END_TOKENS = ("<|im_end|>", "<|endoftext|>")

LABEL_NOTE = "the label is not among the acceptable plans, so answering it counts as wrong; list it too"
SPEED_NOTE = f"a speed from {LEAST_SPEED:g} to 0 m/s was read as 0"
REASON_NOTE = "the reason was taken from the <think> block of the plan's field"
PICTURE_NOTE = "the placeholder of the picture was removed from the question"
CAMERA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]{0,39}")


def read_record(record: object, where: str, places: "PicturePlaces", default_id: str,
                actions: Actions = ALPHADRIVE) -> tuple[Example, list[str]]:
    """The example of one JSON value, and notes on what was assumed or dropped.

    Raises: ValueError naming the place, the field, the value and the remedy.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected an object with named fields, got {short(record)}")
    values, extra = _renamed(record, where)
    _check_presence(values, where)
    if "scene" in values:
        _check_no_other_picture(extra, where)
    _check_unit(values, extra, where)
    read, notes = {"extra": extra}, [f"field {name!r} is unknown and kept for rewards (extra)" for name in extra]
    for name, value in values.items():
        own = {"actions": actions} if name in PLAN_FIELDS else {}
        read[name] = FIELD_READERS[name](value, f"{where}: field {_given_name(name, record)!r}", **own)
    read.setdefault("id", default_id)
    read |= _pictures_of(read, where, places)
    if "prompt" in read:
        read["prompt"], found = without_placeholder(read["prompt"], f"{where}: field {_given_name('prompt', record)!r}",
                                                    len(read["images"] or read["cameras"] or [None]))
        notes += [PICTURE_NOTE] * found
        _check_asked_unit(read, f"{where}: field {_given_name('prompt', record)!r}")
        read = _agreeing(_facts_in(read["prompt"]), read, f"{where}: field {_given_name('prompt', record)!r}") | read
    if read.get("speed", 0.0) < 0:
        read["speed"] = 0.0
        notes.append(SPEED_NOTE)
    read["decision"], reason = read["decision"]
    if "scene" not in read and read["decision"] not in read.get("acceptable", (read["decision"],)):
        notes.append(LABEL_NOTE)                            # the scenes' labels are noisy: there it is no fault
    if reason is not None:
        _check_agreement(reason, read.get("reasoning"), f"{where}: field {_given_name('decision', record)!r}")
        notes += [REASON_NOTE] * (read.get("reasoning") is None)
        read["reasoning"] = reason
    return Example(**read), notes


def _renamed(record: dict, where: str) -> tuple[dict, dict]:
    """The fields of an example by their names, and the fields that it does not know."""
    if foreign := [name for name in FOREIGN_FIELDS if not is_absent(name, record.get(name))]:
        raise ValueError(f"{where}: field {foreign[0]!r}: {FOREIGN_FIELDS[foreign[0]]}")
    values, extra = {}, {}
    for given, value in record.items():
        name = ALPHADRIVE_FIELDS.get(given, given)
        absent = is_absent(given, value) or (name == "images" and value == [] and record.get("image"))
        if absent and (name in FIELD_NAMES or given in FOREIGN_FIELDS):
            continue                                        # as pandas and others write a field that is absent
        if name not in FIELD_NAMES:
            inner = value[0] if isinstance(value, list) and value else value
            if isinstance(inner, dict) and {"decision", "solution"} & inner.keys():
                raise ValueError(f"{where}: field {short(given)} holds whole records; write them as a list, or one per "
                                 "line, without anything around them")
            _check_own_name(given, where)
            extra[given] = _json_value(value, f"{where}: field {short(given)}")
            continue
        if name in values:
            raise ValueError(f"{where}: field {given!r} says the same as {name!r}; keep one of them")
        values[name] = value
    return values, extra


def is_absent(name: str, value: object) -> bool:
    """Whether a field says nothing: null, and for chats and videos also an empty list or text."""
    return value is None or (name in FOREIGN_FIELDS and value in ("", []))


def _check_own_name(given: str, where: str) -> None:
    """A field of the user's must be safe to print, and no misspelled name of ours."""
    if not given.strip() or CONTROL.search(given) or "\n" in given or len(given) > MAX_NAME:
        raise ValueError(f"{where}: field {short(given)}: a name is one line of at most {MAX_NAME:,} characters "
                         "without control characters; rename it")
    ours = {*FIELD_NAMES, *ALPHADRIVE_FIELDS} - {"cameras"}                     # `camera` is a likely field of theirs
    near = get_close_matches(given.lower()[:100], sorted(ours), 1, cutoff=0.85)
    if near and not ORDINARY.search(given):
        raise ValueError(f"{where}: field {short(given)} is nearly {near[0]!r}; write {near[0]!r}, or rename it if it "
                         "means something else")


def _given_name(name: str, record: dict) -> str:
    return next((given for given in record if ALPHADRIVE_FIELDS.get(given, given) == name), name)


def _check_presence(values: dict, where: str) -> None:
    if "decision" not in values:
        raise ValueError(f"{where}: field 'decision' (AlphaDrive: 'solution') is missing; add the plan, such as "
                         "'KEEP, STRAIGHT'; `python -m data.convert FILE OUT` reads other names")
    given = [name for name in ("image", "images", "scene") if name in values]
    if len(given) != 1:
        pair = given if given else ["image", "scene"]
        state = "both are given" if given else "both are missing"
        raise ValueError(f"{where}: fields {pair[0]!r} and {pair[1]!r}: {state}; give a picture file, several as "
                         "'images', or a scene's seed" + f"; {OF_A_RECORDING}" * ("scene" in given))
    for name in ("speed", "navigation"):
        if "prompt" not in values and name not in values:
            raise ValueError(f"{where}: field {name!r} is missing; give 'prompt' (AlphaDrive: 'problem'), or both "
                             "'speed' and 'navigation'")


def _check_no_other_picture(extra: dict, where: str) -> None:
    """Raises: ValueError for a picture file beside `scene`, which a built-in drawing would silently replace."""
    for name, value in extra.items():
        values = value if isinstance(value, list) else [value]
        texts = [text for text in values if isinstance(text, str) and text.strip()]
        if (PICTURE_FILE.search(repr(value)) or any(map(PICTURE_IN_TEXT.match, texts))
                or (texts and PICTURE_NAME.search(name))):
            raise ValueError(f"{where}: field 'scene' asks for a built-in drawing, and field {short(name)} names a "
                             f"picture; call it 'image' (data.convert: --rename {name:.80}=image), and "
                             f"{OF_A_RECORDING}")


def divisor_of(unit: str) -> str | None:
    """What a speed is divided by to be in m/s, if a text names km/h, mph, knots, ft/s or cm/s."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unit[:100])         # speedKmPerHour; the bound is for the patterns
    return next((divisor for divisor, pattern in OTHER_UNITS.items() if re.search(pattern, words, re.I)), None)


def _is_metres_a_second(unit: str) -> bool:
    return METRES_A_SECOND.fullmatch(re.sub(r"[\s_.·\[\]()]", "", unit)) is not None


def _stated_units(fields: dict) -> Iterator[tuple[str, str, object]]:
    """(field, what is measured, its unit) of fields such as `units`, `speed_unit` and `meta: {speed_unit}`. What is
    empty where the name does not say it; such a field inside an object is about the object, and is left out."""
    for name, value in fields.items():
        nested, states = isinstance(value, dict), "unit" in name.lower()
        for part, unit in value.items() if nested else [(name, value)]:
            if nested and isinstance(unit, dict):           # meta: {units: {speed: km/h}}
                inside = _stated_units({part: unit}) if "unit" in part.lower() else ()
                yield from ((name, what, inner) for _, what, inner in inside)
                continue
            what = re.sub(r"units?|of|system|\W|_", "", str(part), flags=re.I)
            if states or (what and "unit" in str(part).lower()):
                yield name, what, unit


def _check_unit(values: dict, extra: dict, where: str) -> None:
    """Raises: ValueError for a speed beside a field such as `speed_unit` or `units` that names no metres a second."""
    for name, what, unit in _stated_units(extra) if "speed" in values else ():
        of_speed = OF_THE_CAR.fullmatch(what.lower())
        if not isinstance(unit, str) or not unit.strip() or (what and not of_speed):
            continue                                        # the unit of something else
        divisor = divisor_of(unit)
        if divisor or (of_speed and not _is_metres_a_second(unit)):
            remedy = f"divide it by {divisor}" if divisor else "convert it"
            raise ValueError(f"{where}: field {name!r} says {short(unit)}, and 'speed' is in m/s; {remedy}, and leave "
                             f"out {name!r}")


def _pictures_of(read: dict, where: str, places: "PicturePlaces") -> dict:
    """The fields image, images and cameras: absolute paths, several of them as `images`, and one name for each."""
    field = "images" if "images" in read else "image"
    files, names = read.get(field) or ((), None)
    names = read.get("cameras", names)
    found = tuple(places.find(file, f"{where}: field {field!r}") for file in files)
    unknown = [name for name in names or () if "scene" in read and name not in VIEWS]
    if unknown:
        raise ValueError(f"{where}: field 'cameras': a built-in scene has no camera {unknown[0]!r}, only "
                         f"{', '.join(VIEWS)}")
    if names and found and len(names) != len(found):
        raise ValueError(f"{where}: field 'cameras': {len(names)} names for {len(found)} pictures; give one name for "
                         "each picture, or leave the field out")
    if names and len(names) == 1 and (found or names == VIEWS[:1]):             # one picture needs no name
        names = None
    return {"image": found[0] if len(found) == 1 else None, "images": found if len(found) > 1 else None,
            "cameras": names}


def _check_agreement(inside: str, given: str | None, where: str) -> None:
    if given is not None and given.split() != inside.split():
        raise ValueError(f"{where}: its <think> block says {short(inside)} and the field for the reason says "
                         f"{short(given)}; keep one of them")


def is_alphadrive(prompt: str) -> bool:
    """Whether a question has AlphaDrive's wording, which the compact style shortens without a loss."""
    return FACTS.search(prompt) is not None


def _facts_in(prompt: str) -> dict:
    """Speed and navigation from a prompt in AlphaDrive's wording, for the compact style."""
    found = FACTS.search(prompt)
    if not found:
        return {}
    try:
        return {"speed": _speed(found[1], "prompt"), "navigation": parse_navigation(found[2])}
    except ValueError:
        return {}


def _check_asked_unit(read: dict, where: str) -> None:
    """Raises: ValueError for a field `speed` beside a question that says another speed, in km/h or another unit."""
    found = ASKED_SPEED.search(read["prompt"])
    divisor = divisor_of(found[2]) if found else None
    if divisor and "speed" in read and abs(float(found[1]) / float(divisor) - read["speed"]) > MOST_ROUNDING:
        raise ValueError(f"{where}: the question says {found[1]} {found[2]}, and the field 'speed' says "
                         f"{read['speed']} m/s; divide it by {divisor}")


def _agreeing(asked: dict, read: dict, where: str) -> dict:
    """Speed and navigation that the question says, where the fields do not say others. Raises: ValueError."""
    said = {name: (asked[name], read[name]) for name in asked if name in read}
    speeds, courses = said.get("speed", (0.0, 0.0)), said.get("navigation", ("", ""))
    if abs(speeds[0] - speeds[1]) > MOST_ROUNDING:
        raise ValueError(f"{where}: the question says {speeds[0]} m/s and the field 'speed' says {speeds[1]}; keep one")
    if len({" ".join(str(course).casefold().split()) for course in courses}) > 1:
        raise ValueError(f"{where}: the question says {short(courses[0])} and the field 'navigation' says "
                         f"{short(courses[1])}; keep one")
    return asked


def without_placeholder(prompt: str, where: str, pictures: int = 1) -> tuple[str, bool]:
    """The question without `<image>` (or the vision tokens) before or after it, and whether there was one.

    The pictures always come before the question, so one such mark for each stands for them. Raises: ValueError for
    other marks.
    """
    marks = PLACEHOLDER.findall(prompt)
    if not marks:
        return _plain_text(prompt, where), False
    if len(marks) != pictures:
        raise ValueError(f"{where}: the question holds {len(marks)} marks of pictures, first {marks[0]!r}, and the "
                         f"example has {pictures}; name every picture in 'images', or remove the marks")
    parts = [part.strip() for part in PLACEHOLDER.split(prompt) if part.strip()]
    if len(parts) > 1:
        raise ValueError(f"{where}: {marks[0]!r} is inside the question; remove it or move it to the start")
    return _plain_text("".join(parts), where), True


def parse_navigation(text: str) -> Navigation:
    """A navigation command typed by a person: AlphaDrive's dictionary form or free text.

    Raises: ValueError for empty text, or a dictionary that is not text -> text.
    """
    text = text.strip()
    if not text:
        raise ValueError("navigation is empty: say for example 'Go straight' or \"{'100m': 'Straight'}\"")
    if len(text) > MAX_NAVIGATION:
        raise ValueError(f"navigation: {short(text)} has {len(text):,} characters, at most {MAX_NAVIGATION:,} are "
                         "read; shorten it")
    return _navigation(text, "navigation")


def _dictionary(text: str, where: str) -> object:
    """The value of a dictionary in text form. Raises: ValueError."""
    if len(text) > MAX_NAVIGATION:
        raise ValueError(f"{where}: {short(text)} has {len(text):,} characters, at most {MAX_NAVIGATION:,} are read; "
                         "shorten it")
    try:
        return value_in(text)
    except ValueError:
        raise ValueError(f"{where} {text!r} opens a dictionary but is not one: write \"{{'100m': 'Straight'}}\" or "
                         "plain words") from None


def value_in(text: str) -> object:
    """The value of a text in JSON, or of a short list or dictionary as Python prints it. Raises: ValueError."""
    with suppress(ValueError, RecursionError):
        return json.loads(text, parse_constant=str, object_pairs_hook=named_once)
    if text.startswith(("{", "[")) and len(text) <= MAX_NAVIGATION:
        with suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            if len(keys := _keys(text)) == len(set(keys)):
                return json.loads(json.dumps(ast.literal_eval(text), allow_nan=False))
    raise ValueError(f"{short(text)} is not valid JSON")


def _keys(text: str) -> list[object]:
    """The keys of a dictionary as Python prints it, of which it would keep the last of two equal ones."""
    body = ast.parse(text, mode="eval").body
    return [ast.dump(key) for key in body.keys if key] if isinstance(body, ast.Dict) else []


def named_once(pairs: list[tuple[str, object]]) -> dict:
    """An object. Raises: ValueError for a field that is given twice, of which json would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} is given twice")
    return found


# ---------------------------------------------------------------- where pictures may be

@dataclass(frozen=True)
class PicturePlaces:
    """The data file's folder and the folder that holds all pictures; `trusted`: links may leave it,
    because the user named it.

    Without trust a link that leads out of the folder is refused: a stranger's file could name any picture.
    """
    folder: str
    root: str
    trusted: bool

    def find(self, image: str, where: str) -> str:
        """The absolute path of a picture, which starts at the root, or at the file's folder where that one exists.

        Raises: ValueError for what is not a path, and for a path outside the root.
        """
        check_is_path(image, where)
        paths = [os.path.abspath(os.path.join(start, image)) for start in (self.root, self.folder)]
        inside = [path for path in paths if _inside(path, self.root)]
        if not inside:
            raise ValueError(f"{where}: {image!r:.300} lies outside {self.root}; if that is right, name the folder "
                             "that holds all pictures: --image-root DIR (load_examples: root)")
        path = next(filter(os.path.exists, inside), inside[0]) if self.root != self.folder else inside[0]
        if not self.trusted and not _inside(os.path.realpath(path), os.path.realpath(self.root)):
            raise ValueError(f"{where}: {image!r:.300} lies outside {self.root}; a link leads there. If that is right, "
                             "trust the links of this folder by naming it: --image-root DIR (load_examples: root)")
        return path


def _inside(path: str, folder: str) -> bool:
    return path.startswith(os.path.join(folder, ""))


def _check_is_no_data(image: str, where: str) -> None:
    if PICTURE_IN_TEXT.match(image):
        raise ValueError(f"{where}: {image[:40]!r} is a picture in text form; save it as a file and give its path")


def check_is_path(image: str, where: str) -> None:
    """Raises: ValueError with the remedy for an address, `~`, backslashes or a video."""
    _check_is_no_data(image, where)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", image)
    if scheme and scheme[1].lower() == "file":
        raise ValueError(f"{where}: {image!r:.300}: write the plain path, without file://")
    if scheme and image[scheme.end():].startswith("//"):
        raise ValueError(f"{where}: {image!r:.300} is an address, and nothing is downloaded; download the picture and "
                         "give the path of the file")
    if re.match(r"~\w*/", image):
        raise ValueError(f"{where}: {image!r:.300}: ~ is not expanded; write the whole path")
    if "\\" in image:
        raise ValueError(f"{where}: {image!r:.300}: separate folders by / and not by backslashes")
    if image.lower().endswith(VIDEO_ENDINGS):
        raise ValueError(f"{where}: {image!r:.300} is a video; extract a frame and give that picture")


# ---------------------------------------------------------------- one reader per field: value, where -> value or error

def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text that is not empty, got {short(value)}")
    if len(value) > MAX_TEXT:
        raise ValueError(f"{where}: a text of {len(value):,} characters, at most {MAX_TEXT:,} are read; cut it")
    return value


def _plain_text(value: object, where: str) -> str:
    """A text without tokens that structure a chat, because a model would be given their letters."""
    text = _text(value, where)
    if found := SPECIAL_TOKEN.search(text):
        raise ValueError(f"{where}: holds {found[0]!r}, which would be read as letters; remove it")
    return text


def _told_text(value: object, where: str) -> str:
    """A plain text that is not what tables write for an absent value."""
    text = _plain_text(value, where)
    if text.strip().casefold() in EMPTY_CELLS:
        raise ValueError(f"{where}: {value!r} is how tables write an empty cell; give null, or leave the field out")
    return text


def _name(value: object, where: str) -> str:
    """A text that is safe in messages and file names."""
    text = _text(value, where)
    if CONTROL.search(text) or "\n" in text or len(text) > MAX_NAME:
        raise ValueError(f"{where}: expected one line of at most {MAX_NAME:,} characters without control characters, "
                         f"got {short(text)}")
    return text


def _split(value: object, where: str) -> str:
    return _name(value, where).strip()


def _id(value: object, where: str) -> str:
    number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
    return _name(str(value) if number else value, where)


def _image(value: object, where: str) -> tuple[tuple[str, ...], None]:
    """One path, or a list of paths. -> paths, no names."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None:
        value = value["path"]                               # as `datasets` writes a picture that stayed a file
    return _images(value if isinstance(value, list) else [value], where)


def _images(value: object, where: str) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """A list of paths, or an object of camera names and paths. -> paths, names."""
    if isinstance(value, dict):
        value = {name: path for name, path in value.items() if path is not None}
    if not isinstance(value, list | dict) or not 1 <= len(value) <= MOST_PICTURES:
        raise ValueError(f"{where}: expected a list of 1 to {MOST_PICTURES} picture files, or an object such as "
                         f"{{'front': 'a.jpg', 'front_left': 'b.jpg'}}, got {short(value)}")
    named = isinstance(value, dict)
    paths = tuple(_path(path, where) for path in (value.values() if named else value))
    return paths, camera_names(list(value), where) if named else None


def _path(value: object, where: str) -> str:
    if isinstance(value, dict):
        raise ValueError(f"{where}: expected one path, got {short(value)}; save a picture inside the record as a file, "
                         "and give its path")
    if isinstance(value, str):
        _check_is_no_data(value, where)                     # of any length
    return _name(value, where)


def camera_names(value: object, where: str) -> tuple[str, ...]:
    """Names of cameras, each once: they become words of the question."""
    known = isinstance(value, list) and 1 <= len(value) <= MOST_PICTURES
    if not known or not all(isinstance(name, str) and CAMERA.fullmatch(name) for name in value):
        raise ValueError(f"{where}: expected names of cameras such as ['front', 'front_left'], at most 40 letters, "
                         f"digits, blanks, _ and - each, got {short(value)}")
    if len(set(value)) < len(value):
        raise ValueError(f"{where}: a camera is named twice in {short(value)}; name each once")
    return tuple(value)


def _seed(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: expected a scene's seed, a whole number >= 0, got {short(value)}")
    return value


def _number_in(text: str, where: str) -> float | str:
    """The number of a speed as a text, with or without its unit; else the text. Raises: ValueError with the remedy."""
    if found := SPEED.fullmatch(text.strip()):
        if found[2] and not _is_metres_a_second(found[2]):
            raise ValueError(f"{where}: expected a speed in m/s, got {short(text)}, whose unit is unknown; write "
                             f"{found[1]} if it is in m/s")
        return float(found[1])
    if re.fullmatch(r"\d{1,9},\d{1,9}", text.strip()):
        raise ValueError(f"{where}: expected a speed in m/s, got {short(text)}; write it with a point: "
                         f"{text.strip().replace(',', '.')}")
    return text


def _speed(value: object, where: str) -> float:
    if isinstance(value, str) and (divisor := divisor_of(value)):
        raise ValueError(f"{where}: {short(value)} is not in m/s; divide it by {divisor}")
    number = _number_in(value, where) if isinstance(value, str) else value
    if not isinstance(number, int | float) or isinstance(number, bool) or not LEAST_SPEED <= number <= MAX_SPEED:
        raise ValueError(f"{where}: expected a speed in m/s, a number >= 0, got {short(value)} (at most "
                         f"{MAX_SPEED:g} is read)")
    return float(number) + 0.0                                                  # -0.0 becomes 0.0


def _navigation(value: object, where: str) -> Navigation:
    """Words, or a dictionary of distances and courses, which is put in the order of the distances."""
    if isinstance(value, str):
        text = _told_text(value, where).strip()
        return _navigation(_dictionary(text, where), where) if text.startswith(("{", "[")) else text
    courses = {key: word for key, word in value.items() if word is not None} if isinstance(value, dict) else {}
    words = [word for pair in courses.items() for word in pair]
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"{where}: expected words or a dictionary such as {{'100m': 'Straight'}}, got {short(value)}")
    for word in words:
        _name(_told_text(word, where), where)
    metres = {key: re.fullmatch(r"(\d{1,9}(\.\d{1,9})?) ?m", key) for key in courses}
    if not all(metres.values()):
        return courses
    return {key: courses[key] for key in sorted(courses, key=lambda key: float(metres[key][1]))}


def _plan_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: a plan is one text 'SPEED, PATH', got {short(value)}")
    return _text(value, where).strip()


def _plan(value: object, where: str, actions: Actions) -> Decision:
    """`KEEP, STRAIGHT`, with or without <answer> tags around it and end tokens after it."""
    text = usual_tags(_plan_text(value, where))
    for token in END_TOKENS:
        text = text.removesuffix(token).strip()
    decision = parse_plan(text if "<answer>" in text else f"<answer> {text} </answer>", actions)
    if decision is None:
        raise ValueError(f"{where}: {short(value)} is not one plan 'SPEED, PATH'; SPEED is one of "
                         f"{', '.join(actions.speeds)} and PATH one of {', '.join(actions.paths)}; lists of your own: "
                         "--actions FILE.json (docs/own.md)")
    if "<answer>" in text and not (text.startswith("<answer>") and text.endswith("</answer>")):
        raise ValueError(f"{where}: {short(value)} holds text outside its <think> and <answer> blocks; give a "
                         "reason as 'reasoning' (AlphaDrive: 'thinking')")
    return decision


def _decision(value: object, where: str, actions: Actions) -> tuple[Decision, str | None]:
    """The plan, and the reason if the value is a whole answer that begins with a <think> block."""
    text = usual_tags(_plan_text(value, where))
    if not text.startswith("<think>"):
        return _plan(value, where, actions), None
    reason, closed, rest = text.partition("</think>")
    if not closed:
        raise ValueError(f"{where}: {short(value)}: the <think> block has no end; add </think>")
    return _plan(rest, where, actions), _reasoning(reason, where)


def usual_tags(text: str) -> str:
    """A text in which `<THINK>`, `<thinking>` and `<reasoning>` are `<think>`, and `<ANSWER>` is `<answer>`."""
    return ANSWER_TAG.sub(r"<\1answer>", THINK_TAG.sub(r"<\1think>", text))


def _reasoning(value: object, where: str) -> str | None:
    """The reason without its tags; None if it is empty."""
    if isinstance(value, str) and not THINK_TAG.sub("", value).strip():
        return None
    text = re.sub(r"^\s*<think>|</think>\s*$", "", usual_tags(_told_text(value, where))).strip()
    if re.search(r"</?(think|answer)>", text):
        raise ValueError(f"{where}: expected one plain explanation, got {short(value)}; remove inner <think> and "
                         "<answer> tags")
    return _told_text(text, where)


def _acceptable(value: object, where: str, actions: Actions) -> tuple[Decision, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: expected a list of plans such as ['KEEP, STRAIGHT'], got {short(value)}")
    plans = tuple(_plan(plan, where, actions) for plan in value)
    if len(set(plans)) < len(plans):
        raise ValueError(f"{where}: a plan is listed twice in {short(value)}; list each once")
    return plans


def read_trajectory(value: object, where: str) -> tuple[tuple[float, float], ...]:
    if not isinstance(value, list) or len(value) != WAYPOINTS or not all(map(_is_point, value)):
        raise ValueError(f"{where}: expected {WAYPOINTS} way-points [x, y] in metres, at 0.5 to 4 s, got "
                         f"{short(value)} (at most {MAX_METRES:g} m are read); leave the field out where fewer are "
                         "known")
    return tuple((float(x), float(y)) for x, y in value)


def _is_point(value: object) -> bool:
    numbers = value if isinstance(value, list) and len(value) == 2 else [None]
    return all(isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= MAX_METRES
               for number in numbers)


def _factors(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object of named facts, got {short(value)}")
    return _json_value(value, where)


def _json_value(value: object, where: str) -> object:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError(f"{where}: holds NaN or Infinity, which JSON does not have; give null or leave the fact "
                         "out") from None
    return value


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


FIELD_READERS = {"id": _id, "image": _image, "images": _images, "cameras": camera_names, "scene": _seed,
                 "prompt": _text, "speed": _speed, "navigation": _navigation, "decision": _decision,
                 "reasoning": _reasoning, "acceptable": _acceptable, "split": _split, "factors": _factors,
                 "trajectory": read_trajectory}
PLAN_FIELDS = ("decision", "acceptable")        # their readers need the lists of actions
