"""One record of another program in the fields of ours: chats, questions with answers, labels in other words.

    LLaVA, ShareGPT    conversations: [{from: human, value}, {from: gpt, value}], image
    OpenAI             messages: [{role: user, content: text or parts}, {role: assistant, content}]
    ms-swift           messages + images; query, response, images, history; conversation: [{human, assistant}]
    LLaMA-Factory      messages or conversations + images; instruction, input, output, images, history
    others             question, answer, image; our own and AlphaDrive's fields

Only names and shapes change here. fields.py checks every value, and keeps fields that nobody knows.
"""
import re
import shlex
import unicodedata
from collections import Counter
from urllib.parse import unquote

from data.fields import ALPHADRIVE_FIELDS, END_TOKENS, FIELD_NAMES, divisor_of, is_absent, short, usual_tags
from rewards import parse_plan
from rewards.actions import ALPHADRIVE, Actions

CHATS = ("conversations", "messages", "conversation")
QUESTIONS = ("query", "question", "instruction")
ANSWERS = ("response", "answer", "output")
# Every name that this file or fields.py reads; a cell of another one may hold any JSON value
KNOWN_FIELDS = frozenset((*FIELD_NAMES, *ALPHADRIVE_FIELDS, *CHATS, *QUESTIONS, *ANSWERS, "images", "system", "history",
                          "input"))
REASONS = ("reasoning_content", "reasoning", "thinking")         # beside the content of an answer
TURN_KEYS = ("role", "from", "content", "value", "human", "assistant")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
         "chatgpt": "assistant", "system": "system", "developer": "system"}
MARKED_PICTURE = re.compile(r"(?:Picture \d{1,3}: *)?<img>([^<]*)</img>")      # Qwen-VL writes paths into the question
NEEDED = {"decision": ("plan", {"decision", "solution"}),
          "image": ("picture", {"image", "images", "scene", "video", "videos"})}
NO_PATHS = ("type", "detail", "format")             # texts beside the path of a picture
SYSTEM_NOTE = "a system prompt was left out; the model is given its own"
LONGEST_LABEL = 60                  # characters; a longer text is an answer in words, not a label
ONE_ROUND = "an example is one question and one answer; write each round as a record of its own"


class UnknownLabel(ValueError):
    """An answer whose label is neither a plan nor in the map of labels."""

    def __init__(self, where: str, label: str) -> None:
        remedy = (f"say what it means: {as_flag(label)}" if is_short(label) else
                  "give the plan in an <answer> block, or a short label for --map")
        super().__init__(f"{where}: {short(label)} is not a plan; {remedy}")
        self.label = label


def is_short(label: str) -> bool:
    """Whether --map can give a label its meaning."""
    return 0 < len(label) <= LONGEST_LABEL


def as_flag(label: str) -> str:
    """The flag that gives a label its meaning, for a shell."""
    return f"--map {shlex.quote(f'{label}=SPEED, PATH')}"


def as_record(foreign: object, where: str, names: dict[str, str], labels: dict[str, str],
              actions: Actions = ALPHADRIVE) -> tuple[dict, list[str]]:
    """A record in our fields, and notes on what was left out. `names`: their field -> ours; `labels`: see `with_plan`.

    Raises: ValueError naming the place, the field, the value and the remedy; UnknownLabel for an answer that is no
    plan.
    """
    check_shape(foreign, where)
    foreign = {composed(name): value for name, value in foreign.items()}
    record = renamed(foreign, where, names)
    own = [*record]
    record |= numbers_as_text(record)
    notes = read_notes("field", {name: ours for name, ours in names.items() if foreign.get(name) is not None})
    notes += [SYSTEM_NOTE] * bool(record.pop("system", None))
    if earlier := record.pop("history", None):
        raise ValueError(f"{where}: field 'history': earlier rounds, {short(earlier)}; {ONE_ROUND}")
    record |= named_cameras(record.get("images"))
    pictures = own_pictures(record)
    found, shown, said = conversation(record, where)
    pictures = agreed(pictures, shown, "chat", where)
    for name, text in found.items():
        if given := {name, ALPHADRIVE_FIELDS[name]} & record.keys():
            raise ValueError(f"{where}: the chat and the field {min(given)!r} both give the {name}; keep one of them")
        record[name] = text
    pictures = agreed(pictures, taken_out(record), "question", where)
    if pictures:
        record |= {"image": pictures[0]} if len(pictures) == 1 else {"images": pictures}
    check_needed(record, own, where)
    used = {spelling(taken_apart(answer)[1]) for answer in answers_of(record)}
    said += read_notes("label", {name: plan for name, plan in labels.items() if name in used})
    return with_plans(record, where, labels, actions), notes + said


def check_shape(foreign: object, where: str) -> None:
    """Raises: ValueError for what is no record: no object, a table written by columns, or objects alone."""
    if not isinstance(foreign, dict):
        raise ValueError(f"{where}: expected an object with named fields, got {short(foreign)}")
    if not foreign or not all(isinstance(value, dict) for value in foreign.values()):
        return
    if all(name.isdigit() for value in foreign.values() for name in value):
        raise ValueError(f"{where}: a table by columns; write one object per row, for example with pandas: "
                         ".to_json(OUT, orient='records', lines=True)")
    raise ValueError(f"{where}: field {short(next(iter(foreign)))} holds a whole scene; write one record per question")


def check_needed(record: dict, own: list[str], where: str) -> None:
    """Raises: ValueError with the record's `own` fields if none of them gives the plan or the picture."""
    for field, (what, names) in NEEDED.items():
        if not names & record.keys():
            raise ValueError(f"{where}: field {field!r}, the {what}, is missing; the record has "
                             f"{', '.join(map(short, own[:12])) or 'none'}; if one of these gives it: "
                             f"--rename THEIRS={field}")
    if isinstance(scene := record.get("scene"), str) and {"image", "images"} & record.keys():
        raise ValueError(f"{where}: field 'scene' is the number of a built-in scene, got {short(scene)}; keep the name "
                         "of a recording under another name: --rename scene=scene_name")


def renamed(foreign: dict, where: str, names: dict[str, str]) -> dict:
    """The record with the fields of --rename under their new names, without fields that say nothing."""
    foreign = {name: value for name, value in foreign.items() if not is_absent(name, value)}
    written = Counter(names.get(name, name) for name in foreign)
    if clash := [name for name, count in written.items() if count > 1]:
        raise ValueError(f"{where}: --rename would write {clash[0]!r} twice; rename or leave out one of the two")
    for name in foreign:
        if names.get(name) == "speed" and (divisor := divisor_of(name)):
            raise ValueError(f"{where}: --rename {name}=speed: 'speed' is in m/s; divide {name!r} by {divisor} in the "
                             "data")
    for name, value in foreign.items():
        inner = value[0] if isinstance(value, list) and value and name not in CHATS else None
        if isinstance(inner, dict) and {"decision", "solution", "response", *CHATS} & inner.keys():
            raise ValueError(f"{where}: field {short(name)} holds whole records; write them as a list, or one per "
                             "line, without anything around them")
    return {names.get(name, name): value for name, value in foreign.items()}


def read_notes(what: str, names: dict[str, str]) -> list[str]:
    """A note for each name, of a field or a label, that the user translates."""
    return [f"{what} {theirs!r} was read as {ours!r}" for theirs, ours in names.items()]


def named_cameras(images: object) -> dict[str, list]:
    """An object of our own form, camera -> picture, as two lists; nothing for anything else."""
    one = isinstance(images, dict) and (images.keys() == {"image"} or {"path", "url", "bytes"} & images.keys())
    return {"images": [*images.values()], "cameras": [*images]} if isinstance(images, dict) and not one else {}


def listed(value: object) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def own_pictures(record: dict) -> list:
    """The pictures of the fields `images` and `image`, removed from the record; those in both are named once."""
    pictures = [*map(path_of, listed(record.pop("images", [])))]
    return pictures + [picture for picture in map(path_of, listed(record.pop("image", None)))
                       if picture and picture not in pictures]


def agreed(given: list, shown: list, place: str, where: str) -> list:
    """The pictures of a record, which its chat or its question may name too. Raises: ValueError if those are others."""
    if given and shown and given != shown:
        raise ValueError(f"{where}: the record's pictures are {short(given)} and those of the {place} {short(shown)}; "
                         "give them once, in one order")
    return given or shown


def path_of(picture: object) -> object:
    """The path of a picture that is given as a text or address of a file, as {path: ...} or as {url: ...}. Anything
    else, such as bytes or several texts, stays and is refused by fields.py."""
    if isinstance(picture, dict) and picture.get("bytes") is None:
        texts = {name: value for name, value in picture.items() if isinstance(value, str) and name not in NO_PATHS}
        picture = next(iter(texts.values())) if len(texts) == 1 and {"path", "url", "image"} & texts.keys() else picture
    if isinstance(picture, str) and picture.startswith("file://"):
        picture = unquote(picture.removeprefix("file://").removeprefix("localhost"))
    return picture


# ---------------------------------------------------------------- questions and answers

def conversation(record: dict, where: str) -> tuple[dict[str, str], list, list[str]]:
    """Question, answer and reason of a record's chat, or its question and answer, removed from it; the pictures that
    the chat names; and notes."""
    chats = [name for name in CHATS if name in record]
    if len(chats) > 1:
        raise ValueError(f"{where}: the fields {chats[0]!r} and {chats[1]!r} are two chats; keep one of them")
    if chats:
        return from_chat(record.pop(chats[0]), f"{where}: field {chats[0]!r}")
    return from_pair(record, where), [], []


def from_pair(record: dict, where: str) -> dict[str, str]:
    """Question and answer of a record without a chat, removed from it, where it does not have ours.

    Raises: ValueError for two questions, or two answers, that are not the same.
    """
    found = {}
    for ours, theirs in (("problem", QUESTIONS), ("solution", ANSWERS)):
        given = [name for name in (ours, ALPHADRIVE_FIELDS[ours], *theirs) if isinstance(record.get(name), str)]
        if other := next((name for name in given if spelling(record[name]) != spelling(record[given[0]])), None):
            raise ValueError(f"{where}: the fields {given[0]!r} and {other!r} both give the {ours}; keep one, or "
                             f"--rename {other}=other_{other}")
        if given and given[0] in theirs:
            found[ours] = record.pop(given[0])
            if given[0] == "instruction" and isinstance(more := record.pop("input", None), str) and more.strip():
                found[ours] += "\n" + more
    return found


def from_chat(turns: object, where: str) -> tuple[dict[str, str], list, list[str]]:
    """Question, answer and reason of a chat, the pictures that it names, and notes. The last answer may be missing."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: expected a list of turns, got {short(turns)}")
    spoken = [part for number, turn in enumerate(turns) for part in voices(turn, f"{where}: turn {number}")]
    notes = [SYSTEM_NOTE] * any(role == "system" for role, _ in spoken)
    spoken = [(role, content) for role, content in spoken if role != "system"]
    if [role for role, _ in spoken] not in (["user", "assistant"], ["user"]):
        raise ValueError(f"{where}: its turns are {', '.join(role for role, _ in spoken) or 'none'}; {ONE_ROUND}")
    pictures, found = [], {}
    for name, (_, content) in zip(("problem", "solution"), spoken, strict=False):
        found[name], shown = read_parts(content, where, may_show=name == "problem")
        pictures += shown
    reason, said = beside_content(turns, where)
    return found | reason, pictures, notes + said


def beside_content(turns: list[dict], where: str) -> tuple[dict[str, str], list[str]]:
    """The reason that a turn holds under a key of its own, and notes on other keys, which are left out."""
    others = [(name, value) for turn in turns for name, value in turn.items()
              if name not in TURN_KEYS and value not in (None, "", [])]
    reasons = list(dict.fromkeys(value for name, value in others if name in REASONS and isinstance(value, str)))
    if len(reasons) > 1:
        raise ValueError(f"{where}: two reasons, {short(reasons[0])} and {short(reasons[1])}; keep one")
    notes = [f"{short(name)} of a turn was left out" for name, value in others if value not in reasons]
    return {"thinking": reasons[0]} if reasons else {}, notes


def voices(turn: object, where: str) -> list[tuple[str, object]]:
    """(role, content) of one turn; ms-swift's `{human, assistant}` holds two."""
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: expected an object, got {short(turn)}")
    if "human" in turn and "assistant" in turn:
        return [("user", turn["human"]), ("assistant", turn["assistant"])]
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise ValueError(f"{where}: who speaks is {short(role)}; known in 'role' or 'from' are {', '.join(ROLES)}")
    return [(ROLES[role.lower()], content)]


def read_parts(content: object, where: str, may_show: bool) -> tuple[str, list]:
    """Text and pictures of a turn: a text, or OpenAI's list of parts. A picture without a path is a mark for one of the
    record's."""
    if isinstance(content, str):
        return content, []
    parts = content if isinstance(content, list) else [content]
    kinds = [kind_of(part, where) for part in parts]
    texts = [part["text"] for part, kind in zip(parts, kinds, strict=True) if kind == "t"]
    marks = [part for part, kind in zip(parts, kinds, strict=True) if kind == "p"]
    if marks and not may_show:
        raise ValueError(f"{where}: a picture in the turn of the assistant; an answer is text alone")
    if not re.fullmatch("p*t*|t*p*", "".join(kinds)):
        raise ValueError(f"{where}: a picture between texts; move all pictures before the question")
    for number, mark in enumerate(marks):
        if mark.get("index") not in (None, number):
            raise ValueError(f"{where}: picture {number} of a turn has the index {short(mark['index'])}; list the "
                             "pictures in the order of the turn, and leave the index out")
    found = [next((mark[name] for name in ("image_url", "image", "path", "url") if mark.get(name)), None)
             for mark in marks]
    return "\n".join(texts), [path_of(picture) for picture in found if picture is not None]


def kind_of(part: object, where: str) -> str:
    """`t` for a text, `p` for a picture, nothing for a blank text. Raises: ValueError for other parts of a turn."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return "t" if part["text"].strip() else ""
    if kind in ("image", "image_url"):
        return "p"
    raise ValueError(f"{where}: a part of a turn is {short(part)}; known are texts and pictures, as "
                     "{'type': 'text', 'text': ...} and {'type': 'image_url', 'image_url': {'url': ...}}")


def taken_out(record: dict) -> list:
    """Paths that the question names in Qwen-VL's `<img>` tags, which become `<image>`."""
    name = next((name for name in ("problem", "prompt") if isinstance(record.get(name), str)), None)
    if name is None or not (found := MARKED_PICTURE.findall(record[name])):
        return []
    record[name] = MARKED_PICTURE.sub("<image>", record[name])
    return [path_of(path.strip()) for path in found]


# ---------------------------------------------------------------- labels

def composed(text: str) -> str:
    """A text in Unicode's composed form: macOS writes an accent as a character of its own."""
    return unicodedata.normalize("NFC", text)


def spelling(label: str) -> str:
    """A label as it is compared: case, spaces and a final full stop do not count."""
    return " ".join(composed(label).casefold().split()).removesuffix(".").rstrip()


def numbers_as_text(record: dict) -> dict:
    """The plans of a record whose labels are numbers, as the texts that a table would hold."""
    def text(label: object) -> object:
        return str(label) if isinstance(label, int | float) else label

    return {name: [*map(text, record[name])] if isinstance(record[name], list) else text(record[name])
            for name in ("solution", "decision", "acceptable") if name in record}


def answers_of(record: dict) -> list[str]:
    """The texts of a record that hold labels."""
    return [text for text in (record.get("solution"), record.get("decision"), *listed(record.get("acceptable")))
            if isinstance(text, str)]


def with_plans(record: dict, where: str, labels: dict[str, str], actions: Actions) -> dict:
    """The record whose labels are plans: those of the answer, and of `acceptable`."""
    for name in ("solution", "decision"):
        if isinstance(record.get(name), str):
            record[name] = with_plan(record[name], f"{where}: field {name!r}", labels, actions)
    if isinstance(plans := record.get("acceptable"), list):
        record["acceptable"] = [with_plan(plan, f"{where}: field 'acceptable'", labels, actions)
                                if isinstance(plan, str) else plan for plan in plans]
    return record


def with_plan(answer: str, where: str, labels: dict[str, str], actions: Actions = ALPHADRIVE) -> str:
    """An answer with the plan in place of its label, which is in its <answer> block, or behind the reason, or all of
    it. `labels`: spelling of a label -> plan.

    Raises: UnknownLabel if the label is not a plan and not in `labels`.
    """
    head, label, tail = taken_apart(answer)
    if plan := labels.get(spelling(label)):
        return f"{head} {plan} {tail}".strip()
    if parse_plan(f"<answer> {label.strip()} </answer>", actions) is None and "<answer>" not in label:
        raise UnknownLabel(where, label.strip())
    return head + label + tail


def taken_apart(answer: str) -> tuple[str, str, str]:
    """What is before the label of an answer, the label, and what is behind it; without end tokens."""
    answer = usual_tags(answer)
    for token in END_TOKENS:
        answer = answer.strip().removesuffix(token)
    block = re.search(r"<answer>([^<]*)</answer>", answer)
    start, end = block.span(1) if block else (len(answer) - len(answer.rpartition("</think>")[2]), len(answer))
    return answer[:start], answer[start:end], answer[end:]
