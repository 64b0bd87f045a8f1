"""Driving meta-actions and the two readers of a completion: strict `parse_plan`, lenient `find_actions`.

A completion is `<think> why </think> <answer> SPEED, PATH </answer>`. Every reader splits the text once at its tags,
so its time is linear in the length of the text. Malformed text is data: no reader raises.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

SPEED_ACTIONS = ("KEEP", "ACCELERATE", "DECELERATE", "STOP")
PATH_ACTIONS = ("STRAIGHT", "RIGHT_CHANGE", "LEFT_CHANGE", "RIGHT_TURN", "LEFT_TURN")

_TAG = re.compile(r"(</?(?:think|answer)>)")
_END_TOKEN = re.compile(r"<\|im_end\|>|<\|endoftext\|>")


@dataclass(frozen=True)
class Decision:
    """One plan: a speed action and a path action, written "STOP, STRAIGHT".

    Raises: ValueError if a name is not one of SPEED_ACTIONS or PATH_ACTIONS (upper case).
    Source: AlphaDrive, arXiv:2503.07608; lane changes from the released prompt.
    """

    speed: str
    path: str

    def __post_init__(self) -> None:
        if self.speed not in SPEED_ACTIONS:
            raise ValueError(f"unknown speed action {self.speed!r}: use one of {', '.join(SPEED_ACTIONS)}")
        if self.path not in PATH_ACTIONS:
            raise ValueError(f"unknown path action {self.path!r}: use one of {', '.join(PATH_ACTIONS)}")

    def __str__(self) -> str:
        return f"{self.speed}, {self.path}"


def parse_plan(text: str) -> Decision | None:
    """The plan of a completion that states exactly one, else None. Every evaluation uses this reader.

    The completion must have one `<answer>` block outside the think block, with one speed and one path action and
    nothing else: any case, either order, separated by commas or white space, a final full stop allowed. Other text is
    ignored (`follows_format` judges it). An answer that names several actions is a hedge and gives None.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    answers = _answers(text)
    words = answers[0].strip().removesuffix(".").replace(",", " ").split() if answers else []
    speeds, paths = _known_actions(words)
    return Decision(speeds[0], paths[0]) if len(words) == 2 and speeds and paths else None


def find_actions(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All (speeds, paths) actions inside the answer, each once, in order of appearance. The rewards use this reader.

    Case, punctuation, line breaks and other words are ignored ("keep,straight." is read), but only whole words count
    ("KEEPING" does not). The words of several answer blocks are pooled, so that a second block is a hedge and not a
    free guess. Without a closed `<answer>` block nothing is found; the think block is never read.
    """
    return _known_actions(word for answer in _answers(text) for word in re.findall(r"\w+", answer))


def has_reasoning(text: str) -> bool:
    """True if the completion starts its tags with a closed, non-blank `<think>` block and has no other."""
    pieces = _TAG.split(text)                                                   # text, tag, text, tag, ..., text
    tags = pieces[1::2]
    only_one = tags.count("<think>") == tags.count("</think>") == 1
    return only_one and tags[:2] == ["<think>", "</think>"] and bool(pieces[2].strip())


def follows_format(text: str, reasoning: bool = True) -> bool:
    """True if the completion is `<think> why </think> <answer> plan </answer>` and nothing else.

    "why" must not be blank and `parse_plan` must accept the plan; white space around the blocks and end-of-text tokens
    are allowed. Without `reasoning` the completion is the answer block alone.
    Source: AlphaDrive, arXiv:2503.07608, planning format reward. Deviation: the released pattern also accepts an
    empty think block and any answer, and rejects a final line break.
    """
    pieces = _TAG.split(text)                                                   # text, tag, text, tag, ..., text
    pieces[-1] = _END_TOKEN.sub("", pieces[-1])
    expected = ["<think>", "</think>", "<answer>", "</answer>"] if reasoning else ["<answer>", "</answer>"]
    in_shape = pieces[1::2] == expected and not "".join(pieces[0::4]).strip()   # every fourth text is outside a block
    return in_shape and (not reasoning or has_reasoning(text)) and parse_plan(text) is not None


def _answers(text: str) -> list[str]:
    """Contents of the `<answer>` blocks: opening tags directly followed by their closing tag, outside the reasoning."""
    pieces = _TAG.split(text)                                                   # text, tag, text, tag, ..., text
    last_close = max((i for i, piece in enumerate(pieces) if piece == "</think>"), default=-1)
    answers, thinking = [], False
    for i in range(1, len(pieces), 2):
        if pieces[i] in ("<think>", "</think>"):
            thinking = pieces[i] == "<think>" and i < last_close                # an unclosed block hides nothing
        elif pieces[i] == "<answer>" and pieces[i + 2:i + 3] == ["</answer>"] and not thinking:
            answers.append(pieces[i + 1])
    return answers


def _known_actions(words: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The speed and the path actions among the words, any case, without repetition."""
    # isascii: "\u017f" (long s) is not S, although its upper() is "S"
    names = dict.fromkeys(word.upper() for word in words if word.isascii())
    return tuple(n for n in names if n in SPEED_ACTIONS), tuple(n for n in names if n in PATH_ACTIONS)
