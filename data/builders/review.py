"""Judging a teacher's reasons: the automatic filter, and a page where a person accepts or rejects them."""
import base64
import hashlib
import html
import io
import json
import os
import re
from pathlib import Path
from string import Template
from typing import NamedTuple

from PIL import Image

from data.dataset import open_images
from data.example import Example, prompt_text
from rewards import Decision

WORDS = (6, 80)                          # fewest and most words of a reason; AlphaDrive's released example has 59
THUMBNAIL_SIDE = 448
UNUSABLE = ("empty", "holds tags")       # never a training target, even if a person accepts them

TAGS = re.compile(r"</?\s*(?:think|answer)\s*>|<\|", re.IGNORECASE)
MARKUP = re.compile("|".join((
    r"\*\*|__|(?<!\w)\*\w[^*]*\w\*(?!\w)",                  # bold, italic
    r"`[^`]+`|\]\(",                                        # code, links
    r"^\s*(?:#{1,6}|[-+*]|\d+[.)])\s+[a-z]",                # headings, lists
    r"</?(?:a|b|br|code|div|em|h\d|i|img|li|ol|p|pre|script|span|strong|u|ul)(?:\s+[a-z-]+=[^<>]*)?\s*/?>",
    r"&(?:amp|gt|lt|nbsp|quot|#\d+);")), re.IGNORECASE | re.MULTILINE)
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

CLAUSE_END = re.compile(r"[.;:!?,]|\b(?:so|hence|therefore|thus|because|since|while|but|although|though)\b")
# Words before an action of the driver, as opposed to one of the car ahead.
OWN = re.compile(
    r"\b(?:i|we|me|us|ego|(?:my|our) (?:car|vehicle)|should|must|needs? to|decision|deci(?:de|ded|ding)|safe to|"
    r"necessary|appropriate|requir\w+|allow\w*|enabl\w*|permit\w*|prompt\w*|warrant\w*|calls? for|(?:best|right) to)\b")
NEGATION = re.compile(r"\b(?:no|not|never|nothing|without|avoid\w*|cannot|instead of|rather than)\b|n't\b")


class Judged(NamedTuple):
    """A teacher's reason for an example, and why it was rejected (None: accepted)."""
    example: Example
    reason: str
    rejected: str | None


# ---------------------------------------------------------------- the automatic filter

def rejection(reason: str, decision: Decision, finish_reason: str | None = "stop") -> str | None:
    """Why a reason is rejected, or None.

    In this order: empty, tags or special tokens, Markdown or HTML, cut off by the token limit, a refusal, not English,
    too short or long (WORDS), about another decision (`contradiction`).
    """
    text = reason.lower().replace("\u2019", "'")
    words = re.findall(r"[a-z0-9'-]+", text)
    if not reason.strip():
        return UNUSABLE[0]
    if TAGS.search(reason):
        return UNUSABLE[1]
    if MARKUP.search(reason):
        return "holds Markdown or HTML"
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
    names the decided action among others, or no action, does not contradict. Other actions than AlphaDrive's have no
    patterns and are not judged.
    """
    for patterns, name in ((SPEED_PATTERNS, decision.speed), (PATH_PATTERNS, decision.path)):
        told = own_actions(text.lower(), patterns)
        if name == "STOP" and "DECELERATE" in told:
            continue                                        # to stop is to slow down first
        if name in patterns and told and name not in told:
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

PAGE = Template("""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 script-src 'sha256-$digest'"><style>
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem }
header { position: sticky; top: 0; background: #fff; padding: .6rem 0 }
article { display: flex; gap: 1rem; padding: 1rem 0; border-top: 1px solid #ddd }
img, .missing { width: 448px; max-width: 45%; align-self: flex-start } .why { color: #a11 }
</style></head><body data-sheet="$sheet">
<header><strong>$title</strong> $numbers. <button>Save review.json</button></header>
$body<script>$script</script></body></html>
""")
ARTICLE = Template("""<article data-id="$id">$picture<div><p>$id: $question</p><p><strong>$decision</strong></p>
<p>$reason</p><p class="why">$why</p>$choice</div></article>
""")
CHOICE = Template('<label><input type="radio" name="$group" value="$value"> $value</label> ')
# The choices are kept in the browser's storage, which some browsers refuse to files: then until the page is closed.
SCRIPT = """
const store = "review " + document.body.dataset.sheet;
let choices = {};
try { choices = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { choices = {}; }
for (const radio of document.querySelectorAll("input")) {
  const id = radio.closest("article").dataset.id;
  radio.checked = choices[id] === radio.value;
  radio.onchange = () => {
    choices[id] = radio.value;
    try { localStorage.setItem(store, JSON.stringify(choices)); } catch (error) { return; }
  };
}
document.querySelector("button").onclick = () => {
  const chosen = value => Object.keys(choices).filter(id => choices[id] === value);
  const text = JSON.stringify({accepted: chosen("accept"), rejected: chosen("reject")}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  link.download = "review.json";
  link.click();
};
"""


def review_sheet(judged: list[Judged], count: int, title: str) -> str:
    """A self-contained HTML page of at most `count` rejected and `count` accepted reasons, rejected ones first.

    A person marks them and saves a JSON file for `read_review`. The selection depends on the ids alone, so it is the
    same every time. All texts are escaped, and the page can run no script but its own.
    """
    rejected, accepted = [j for j in judged if j.rejected], [j for j in judged if not j.rejected]
    shown = {"Rejected by the filter": sample(rejected, count), "Accepted": sample(accepted, count)}
    return PAGE.substitute(
        title=html.escape(title), script=SCRIPT, sheet=short_hash(repr([(j.example.id, j.reason) for j in judged])),
        digest=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        numbers=f"{len(rejected)} rejected, {len(accepted)} accepted; at most {count} of each are shown",
        body="".join(f"<h2>{name} ({len(some)} shown)</h2>" + "".join(map(article, some))
                     for name, some in shown.items()))


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample(judged: list[Judged], count: int) -> list[Judged]:
    """At most `count` of them, chosen by a hash of the id, in the given order."""
    chosen = set(sorted((j.example.id for j in judged), key=short_hash)[:count])
    return [j for j in judged if j.example.id in chosen]


def article(judged: Judged) -> str:
    """The HTML of one reason with its picture, question and decision."""
    try:
        picture = "".join(f'<img alt="" loading="lazy" src="{url}">'
                          for url in picture_urls(judged.example, THUMBNAIL_SIDE))
    except (OSError, ValueError):
        picture = '<span class="missing">(the picture cannot be read)</span>'
    example = judged.example
    words = {"id": example.id, "question": prompt_text(example, "compact"), "decision": str(example.decision),
             "reason": judged.reason, "why": judged.rejected or ""}
    safe = {name: html.escape(text) for name, text in words.items()}
    values = () if judged.rejected in UNUSABLE else ("accept", "reject")
    choice = "".join(CHOICE.substitute(group=short_hash(example.id), value=value) for value in values)
    return ARTICLE.substitute(safe, picture=picture, choice=choice)


def picture_urls(example: Example, side: int) -> list[str]:
    """The pictures as data URLs: JPEG of quality 85, the longer side at most `side` pixels, never enlarged.

    Raises: FileNotFoundError, ValueError for a picture that is missing or cannot be read.
    """
    return [picture_url(picture, side) for picture in open_images(example)]


def picture_url(picture: Image.Image, side: int) -> str:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)               # a new file without EXIF, so without place and time
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_review(path: str | os.PathLike) -> dict[str, bool]:
    """The file saved from a review sheet: example id -> accepted?

    Raises: FileNotFoundError; ValueError naming file, fault and remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; save it from the review sheet")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        accepted, rejected = document.pop("accepted", []), document.pop("rejected", [])
        valid = not document and all(isinstance(one, str) for one in [] + accepted + rejected)
    except (ValueError, RecursionError, AttributeError, TypeError):
        valid = False
    if not valid:
        raise ValueError(f'{path}: expected {{"accepted": [ids], "rejected": [ids]}}; save the file from the review '
                         "sheet again")
    if both := set(accepted) & set(rejected):
        raise ValueError(f"{path}: example {min(both)!r} is both accepted and rejected; keep one of them")
    return dict.fromkeys(accepted, True) | dict.fromkeys(rejected, False)
