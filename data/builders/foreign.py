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
from collections import Counter

from data.fields import ALPHADRIVE_FIELDS, END_TOKENS, FIELD_NAMES, divisor_of, short
from rewards import parse_plan
from rewards.actions import ALPHADRIVE, Actions

CHATS = ("conversations", "messages", "conversation")
QUESTIONS = ("query", "question", "instruction")
ANSWERS = ("response", "answer", "output")
# Every name that this file or fields.py reads; a cell of another one may hold any JSON value
KNOWN_FIELDS = frozenset((*FIELD_NAMES, *ALPHADRIVE_FIELDS, *CHATS, *QUESTIONS, *ANSWERS, "images", "system", "history",
                          "input"))
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant",
         "chatgpt": "assistant", "system": "system"}
MARKED_PICTURE = re.compile(r"(?:Picture \d{1,3}: *)?<img>([^<]*)</img>")      # Qwen-VL writes paths into the question
SYSTEM_NOTE = "a system prompt was left out; the model is given its own"
LONGEST_LABEL = 60                  # characters; a longer text is an answer in words, not a label
ONE_ROUND = "an example is one question and one answer; write each round as a record of its own"


class UnknownLabel(ValueError):
    """An answer whose label is neither a plan nor in the map of labels."""

    def __init__(self, where: str, label: str) -> None:
        remedy = (f"say what it means: {as_flag(label)}" if len(label) <= LONGEST_LABEL else
                  "give the plan in an <answer> block, or a short label for --map")
        super().__init__(f"{where}: {short(label)} is no plan; {remedy}")
        self.label = label


def as_flag(label: str) -> str:
    """The flag that gives a label its meaning, for a shell."""
    return f"--map {shlex.quote(f'{label}=SPEED, PATH')}"


def as_record(foreign: object, where: str, names: dict[str, str], labels: dict[str, str],
              actions: Actions = ALPHADRIVE) -> tuple[dict, list[str]]:
    """A record in our fields, and notes on what was left out. `names`: their field -> ours; `labels`: see `with_plan`.

    Raises: ValueError naming the place, the field, the value and the remedy; UnknownLabel for an answer that is no
    plan.
    """
    if not isinstance(foreign, dict):
        raise ValueError(f"{where}: expected an object with named fields, got {short(foreign)}")
    record = renamed(foreign, where, names)
    notes = [SYSTEM_NOTE] * bool(record.get("system"))
    if record.get("history"):
        raise ValueError(f"{where}: field 'history': earlier rounds, {short(record['history'])}; {ONE_ROUND}")
    for name in ("system", "history"):
        record.pop(name, None)
    record |= named_cameras(record.get("images"))
    pictures = listed(record.pop("images", []))
    pictures += [picture for picture in listed(record.pop("image", None)) if picture and picture not in pictures]
    if chat := next((name for name in CHATS if name in record), None):
        found, shown, said = from_chat(record.pop(chat), f"{where}: field {chat!r}")
        pictures, notes = pictures or shown, notes + said
    else:
        found = from_pair(record)
    for name, text in found.items():
        if given := {name, ALPHADRIVE_FIELDS[name]} & record.keys():
            raise ValueError(f"{where}: the chat and the field {min(given)!r} both give the {name}; keep one of them")
        record[name] = text
    pictures += taken_out(record)
    if pictures:
        record |= {"image": path_of(pictures[0])} if len(pictures) == 1 else {"images": [*map(path_of, pictures)]}
    return with_plans(record, where, labels, actions), notes


def renamed(foreign: dict, where: str, names: dict[str, str]) -> dict:
    """The record with the fields of --rename under their new names, without fields that are null."""
    foreign = {name: value for name, value in foreign.items() if value is not None}
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


def named_cameras(images: object) -> dict[str, list]:
    """An object of our own form, camera -> picture, as two lists; nothing for anything else."""
    ours = isinstance(images, dict) and not {"path", "url", "bytes", "image"} & images.keys()
    return {"images": [*images.values()], "cameras": [*images]} if ours else {}


def listed(value: object) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def path_of(picture: object) -> object:
    """The path of a picture that is given as a text, as {path: ...} or as {url: ...}; what else it is stays."""
    if isinstance(picture, dict):
        picture = next((picture[key] for key in ("path", "url", "image") if isinstance(picture.get(key), str)), picture)
    return picture.removeprefix("file://") if isinstance(picture, str) else picture


# ---------------------------------------------------------------- questions and answers

def from_pair(record: dict) -> dict[str, str]:
    """Question and answer of a record without a chat, removed from it, where it does not have ours."""
    found = {}
    for ours, theirs in (("problem", QUESTIONS), ("solution", ANSWERS)):
        name = next((name for name in theirs if isinstance(record.get(name), str)), None)
        if name and not {ours, ALPHADRIVE_FIELDS[ours]} & record.keys():
            found[ours] = record.pop(name)
            if name == "instruction" and isinstance(more := record.pop("input", None), str) and more.strip():
                found[ours] += "\n" + more
    return found


def from_chat(turns: object, where: str) -> tuple[dict[str, str], list, list[str]]:
    """Question and answer of a chat, the pictures that it names, and notes. The last answer may be missing."""
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{where}: expected a list of turns, got {short(turns)}")
    spoken = [part for number, turn in enumerate(turns) for part in voices(turn, f"{where}: turn {number}")]
    notes = [SYSTEM_NOTE] * any(role == "system" for role, _ in spoken)
    spoken = [(role, content) for role, content in spoken if role != "system"]
    if [role for role, _ in spoken] not in (["user", "assistant"], ["user"]):
        raise ValueError(f"{where}: its turns are {', '.join(role for role, _ in spoken) or 'none'}; {ONE_ROUND}")
    pictures, found = [], {}
    for name, (_, content) in zip(("problem", "solution"), spoken, strict=False):
        found[name], shown = read_parts(content, where)
        pictures += shown
    return found, pictures, notes


def voices(turn: object, where: str) -> list[tuple[str, object]]:
    """(role, content) of one turn; ms-swift's `{human, assistant}` holds two."""
    if not isinstance(turn, dict):
        raise ValueError(f"{where}: expected an object, got {short(turn)}")
    if "human" in turn and "assistant" in turn:
        return [("user", turn["human"]), ("assistant", turn["assistant"])]
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: who speaks is {short(role)}; known in 'role' or 'from' are {', '.join(ROLES)}")
    return [(ROLES[role], content)]


def read_parts(content: object, where: str) -> tuple[str, list]:
    """Text and pictures of a turn: a text, or OpenAI's list of parts."""
    if isinstance(content, str):
        return content, []
    texts, pictures = [], []
    for part in content if isinstance(content, list) else [content]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            pictures += [part[name] for name in ("image_url", "image", "path", "url") if part.get(name)][:1]
        else:
            raise ValueError(f"{where}: a part of a turn is {short(part)}; known are texts and pictures, as "
                             "{'type': 'text', 'text': ...} and {'type': 'image_url', 'image_url': {'url': ...}}")
    return "\n".join(texts), pictures


def taken_out(record: dict) -> list[str]:
    """Paths that the question names in Qwen-VL's `<img>` tags, which become `<image>`."""
    name = next((name for name in ("problem", "prompt") if isinstance(record.get(name), str)), None)
    if name is None or not (found := MARKED_PICTURE.findall(record[name])):
        return []
    record[name] = MARKED_PICTURE.sub("<image>", record[name])
    return [path.strip() for path in found]


# ---------------------------------------------------------------- labels

def spelling(label: str) -> str:
    """A label as it is compared: case, spaces and a final full stop do not count."""
    return " ".join(label.casefold().split()).removesuffix(".").rstrip()


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

    Raises: UnknownLabel if the label is no plan and not in `labels`.
    """
    for token in END_TOKENS:
        answer = answer.strip().removesuffix(token)
    block = re.search(r"<answer>([^<]*)</answer>", answer)
    start, end = block.span(1) if block else (len(answer) - len(answer.rpartition("</think>")[2]), len(answer))
    label = answer[start:end].strip()
    if (plan := labels.get(spelling(label))) is None:
        if parse_plan(f"<answer> {label} </answer>", actions) is None and "<answer>" not in label:
            raise UnknownLabel(where, label)
        return answer
    return f"{answer[:start]} {plan} {answer[end:]}".strip()
