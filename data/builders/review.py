"""Judging a teacher's reasons: the automatic filter, and a page where a person accepts or rejects them."""
import base64
import hashlib
import html
import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.dataset import open_image
from data.example import Example, prompt_text
from rewards import Decision

WORDS = (6, 80)                          # fewest and most words of a reason; AlphaDrive's released example has 59
THUMBNAIL_SIDE = 448
UNUSABLE = ("empty", "holds tags")       # never a training target, even if a person accepts them

TAGS = re.compile(r"</?\s*(?:think|answer)\s*>|<\|", re.IGNORECASE)
REFUSAL = re.compile(
    r"\b(?:can ?not|can't|could not|couldn't|won't|unable to|not able to)"
    r" (?:assist|help|comply|provide|fulfil|answer|(?:see|view|open|access|analy[sz]e|process) (?:the|this|your|any) "
    r"(?:image|picture|photo))|\bas an ai\b|\blanguage model\b|\b(?:i am|i'm) sorry\b|^sorry\b|\bi apologi[sz]e\b"
    r"|\bno (?:image|picture|photo) (?:is|was|has been)\b")
ENGLISH = frozenset("the is are and to of my i so this with there ahead because for at".split())

# Words for each action of the driver, for text in lower case.
SPEED_WORDS = {
    "STOP": r"stop(?:s|ping|ped)?\b(?! (?:line|sign|light|lamp))|halt\w*|come to rest|wait(?:s|ing)?\b|stationary"
            r"|(?:stay|remain)\w* (?:still|put)",
    "DECELERATE": r"decelerat\w*|slow(?: \w+){0,2} down|slow(?:s|ing)\b|brak(?:e|es|ing)\b(?! (?:light|lamp))"
                  r"|(?:reduc|lower|decreas)\w* (?:\w+ ){0,2}(?:speed|pace)|hold\w* back|ease off",
    "KEEP": r"(?:keep|maintain|hold)\w* (?:\w+ ){0,3}(?:speed|pace|place)|cruis\w+"
            r"|(?:same|constant|steady|current) (?:speed|pace)",
    "ACCELERATE": r"accelerat\w*|speed(?:s|ing)? up|(?:pick|gain|build)\w* (?:up )?speed|pull\w* away|go(?:ing)? faster"
                  r"|(?:increas|rais)\w* (?:\w+ ){0,2}(?:speed|pace)|(?:pull|move|drive|set)s? off"
                  r"|start(?:s|ing)?\b(?! (?:to|brak\w+|slow\w*|stop\w*|decel\w+))",
}
PATH_WORDS = {
    "STRAIGHT": r"straight|(?:keep|stay|remain)\w* (?:in|to|within) (?:\w+ ){0,2}lane"
                r"|(?:continu|go|driv|proceed)\w* (?:ahead|forward)|follow\w* (?:the|this|my) (?:road|lane|bend|curve)",
    **{f"{side.upper()}_TURN": rf"turn(?:s|ing)? (?:to the )?{side}"
       rf"|(?:make|making|take|taking|execut\w+|begin\w*) (?:\w+ )?{side}[- ]turn" for side in ("left", "right")},
    **{f"{side.upper()}_CHANGE": rf"(?:chang|mov|merg|shift|switch|swerv)\w* (?:\w+ ){{0,4}}?{side}"
       rf"|{side} lane[- ]change" for side in ("left", "right")},
}
SPEED_PATTERNS = {name: re.compile(rf"\b(?:{words})") for name, words in SPEED_WORDS.items()}
PATH_PATTERNS = {name: re.compile(rf"\b(?:{words})") for name, words in PATH_WORDS.items()}
BESIDES = {"STOP": ("DECELERATE",)}      # to stop is to slow down first

CLAUSE_END = re.compile(r"[.;:!?,]|\b(?:so|hence|therefore|thus|because|since|while|but|although|though)\b")
# Words before an action of the driver, as opposed to one of the car ahead.
OWN = re.compile(
    r"\b(?:i|we|me|us|ego|(?:my|our) (?:car|vehicle)|should|must|needs? to|decision|deci(?:de|ded|ding)|safe to|"
    r"necessary|appropriate|requir\w+|allow\w*|enabl\w*|permit\w*|prompt\w*|warrant\w*|calls? for|(?:best|right) to)\b")
NEGATION = re.compile(r"\b(?:no|not|never|nothing|without|avoid\w*|cannot|instead of|rather than)\b|n't\b")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A teacher's reason for an example, and why it was rejected (None: accepted)."""
    example: Example
    reason: str
    rejected: str | None


# ---------------------------------------------------------------- the automatic filter

def rejection(reason: str, decision: Decision, finish_reason: str | None = "stop") -> str | None:
    """Why a reason is rejected, or None.

    In this order: empty, tags or special tokens, cut off by the token limit, a refusal, not English, too short or long
    (WORDS), about another decision (`contradiction`).
    """
    text = reason.lower().replace("\u2019", "'")
    words = re.findall(r"[a-z0-9'-]+", text)
    if not reason.strip():
        return UNUSABLE[0]
    if TAGS.search(reason):
        return UNUSABLE[1]
    if finish_reason == "length":
        return "cut off at the token limit"
    if finish_reason in ("refusal", "content_filter") or REFUSAL.search(text):
        return "a refusal"
    if not is_english(text, words):
        return "not English"
    if not WORDS[0] <= len(words) <= WORDS[1]:
        return f"{len(words)} words, wanted are {WORDS[0]} to {WORDS[1]}"
    return contradiction(text, decision)


def is_english(text: str, words: list[str]) -> bool:
    """At most 1 letter in 20 is not ASCII, and at least 2 words and 1 word in 10 are common English words."""
    letters = [character for character in text if character.isalpha()]
    foreign = sum(not character.isascii() for character in letters)
    common = sum(word in ENGLISH for word in words)
    return 20 * foreign <= len(letters) and common >= 2 and 10 * common >= len(words)


def contradiction(text: str, decision: Decision) -> str | None:
    """How the reason contradicts the decision, or None.

    Only clauses about the driver count ("so I brake", not "the car ahead brakes"), and no negated ones. A reason that
    names the decided action among others, or no action, does not contradict.
    """
    for patterns, name in ((SPEED_PATTERNS, decision.speed), (PATH_PATTERNS, decision.path)):
        told = own_actions(text.lower(), patterns)
        if told and not told & {name, *BESIDES.get(name, ())}:
            return f"says {' and '.join(sorted(told))}, the decision is {name}"
    return None


def own_actions(text: str, patterns: dict[str, re.Pattern]) -> set[str]:
    """The actions that the driver takes according to the text, which is in lower case."""
    found = set()
    for clause in CLAUSE_END.split(text):
        own = OWN.search(clause)
        for name, pattern in patterns.items():
            match = pattern.search(clause, own.end() if own else 0)
            # without a subject, the action must begin the clause: "hence stopping here"
            if match and (own or len(clause[:match.start()].split()) <= 1) and not NEGATION.search(
                    clause, 0, match.start()):
                found.add(name)
    return found


# ---------------------------------------------------------------- the review sheet

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem; color: #1b1d22 }
header { position: sticky; top: 0; background: #fff; padding: .6rem 0; border-bottom: 1px solid #ccc }
article { display: flex; gap: 1rem; padding: 1rem 0; border-bottom: 1px solid #ddd }
img, .missing { width: 448px; max-width: 45%; align-self: flex-start }
article p { margin: 0 0 .5rem } .ask { color: #555 } .why { color: #a11 } label { margin-right: 1rem }
.reason { font-size: 1.1rem } button { font: inherit }
"""
SCRIPT = """
const store = "review " + document.body.dataset.sheet;
let choices = {};
try { choices = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { choices = {}; }
const radios = [...document.querySelectorAll("input[type=radio]")];
const idOf = radio => radio.closest("article").dataset.id;
const count = () => {
  document.getElementById("count").textContent = Object.keys(choices).length + " decided";
};
for (const radio of radios) {
  radio.checked = choices[idOf(radio)] === radio.value;
  radio.addEventListener("change", () => {
    choices[idOf(radio)] = radio.value;
    try { localStorage.setItem(store, JSON.stringify(choices)); } catch (error) { /* kept until the page is closed */ }
    count();
  });
}
document.getElementById("export").addEventListener("click", () => {
  const chosen = value => Object.keys(choices).filter(id => choices[id] === value);
  const text = JSON.stringify({accepted: chosen("accept"), rejected: chosen("reject")}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "review.json";
  link.click();
});
count();
"""


def review_sheet(judged: list[Judged], count: int, title: str) -> str:
    """A self-contained HTML page of at most `count` rejected and `count` accepted reasons, rejected ones first.

    A person marks them and saves a JSON file for `read_review`. The selection depends on the ids alone, so it is the
    same every time. All texts are escaped, and the page can run no script but its own.
    """
    rejected, accepted = [j for j in judged if j.rejected], [j for j in judged if not j.rejected]
    shown = {"Rejected by the filter": sample(rejected, count), "Accepted": sample(accepted, count)}
    numbers = f"{len(rejected)} rejected, {len(accepted)} accepted; at most {count} of each are shown"
    body = "".join(f"<h2>{name} ({len(some)} shown)</h2>" + "".join(map(article, some)) for name, some in shown.items())
    sheet = hashlib.sha256(repr([(j.example.id, j.reason) for j in judged]).encode()).hexdigest()[:16]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{STYLE}</style></head>'
            f'<body data-sheet="{sheet}"><header><strong>{html.escape(title)}</strong> {numbers}. '
            f'<span id="count"></span> <button id="export">Save review.json</button></header>{body}'
            f'<script>{SCRIPT}</script></body></html>\n')


def sample(judged: list[Judged], count: int) -> list[Judged]:
    """At most `count` of them, chosen by a hash of the id, in the given order."""
    keys = {j.example.id: hashlib.sha256(j.example.id.encode()).digest() for j in judged}
    chosen = set(sorted(keys, key=keys.__getitem__)[:count])
    return [j for j in judged if j.example.id in chosen]


def article(judged: Judged) -> str:
    """The HTML of one reason with its picture, question and decision."""
    try:
        picture = f'<img alt="" loading="lazy" src="{picture_url(judged.example, THUMBNAIL_SIDE)}">'
    except (OSError, ValueError):
        picture = '<span class="missing">(the picture cannot be read)</span>'
    example, name = judged.example, hashlib.sha256(judged.example.id.encode()).hexdigest()[:16]
    why = f'<p class="why">{html.escape(judged.rejected)}</p>' if judged.rejected else ""
    choice = "" if judged.rejected in UNUSABLE else "".join(
        f'<label><input type="radio" name="{name}" value="{value}"> {value}</label>' for value in ("accept", "reject"))
    return (f'<article data-id="{html.escape(example.id)}">{picture}<div><p class="ask">'
            f'{html.escape(example.id)}: {html.escape(prompt_text(example, "compact"))}</p>'
            f'<p><strong>{example.decision}</strong></p><p class="reason">{html.escape(judged.reason)}</p>{why}{choice}'
            f'</div></article>')


def picture_url(example: Example, side: int) -> str:
    """The picture as a data URL: JPEG of quality 85, its longer side at most `side` pixels, never enlarged.

    Raises: FileNotFoundError, ValueError for a picture that is missing or cannot be read.
    """
    picture = open_image(example)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)               # a new file without EXIF, so without place and time
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_review(path: str | os.PathLike) -> dict[str, bool]:
    """The file saved from a review sheet: example id -> accepted?

    Raises: FileNotFoundError; ValueError naming file, field and remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; save it from the review sheet")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); save the file from the review sheet again") from None
    if not isinstance(document, dict) or set(document) - {"accepted", "rejected"}:
        raise ValueError(f'{path}: expected {{"accepted": [ids], "rejected": [ids]}}')
    for name, ids in document.items():
        if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
            raise ValueError(f"{path}: field {name!r}: expected a list of example ids")
    accepted, rejected = document.get("accepted", []), document.get("rejected", [])
    if both := set(accepted) & set(rejected):
        raise ValueError(f"{path}: example {min(both)!r} is both accepted and rejected; keep one of them")
    return dict.fromkeys(accepted, True) | dict.fromkeys(rejected, False)
