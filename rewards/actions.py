"""The actions that a planner may answer, and the two readers of a completion: strict `parse_plan`, lenient
`find_actions`.

A completion is `<think> why </think> <answer> SPEED, PATH </answer>`. Every reader splits the text once at its tags,
so its time is linear in the length of the text. Malformed text is data: no reader raises.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field

from rewards.action_checks import (
    PLACE,
    check_caution,
    check_lists,
    check_merge,
    check_prompt,
    check_weights,
    check_words,
)

SPEED_ACTIONS = ("KEEP", "ACCELERATE", "DECELERATE", "STOP")
PATH_ACTIONS = ("STRAIGHT", "RIGHT_CHANGE", "LEFT_CHANGE", "RIGHT_TURN", "LEFT_TURN")

# AlphaDrive's released question (data_tools/example.json), with the places that `Actions.question` fills.
ALPHADRIVE_PROMPT = (
    "You are an expert driving assistant. Your current speed is {speed}m/s, the navigation command is "
    "'{navigation}', based on the understanding of the driving scene and the navigation information, what is your "
    "driving plan for the next three seconds? {request} Planning answer consists of SPEED plan and PATH plan, SPEED "
    "includes {speeds}. PATH includes {paths}. For example, a correct answer format is like '{sample}'.")

_TAG = re.compile(r"(</?(?:think|answer)>)")
_END_TOKEN = re.compile(r"<\|im_end\|>|<\|endoftext\|>")


@dataclass(frozen=True)
class Actions:
    """The speed actions and the path actions of a planner, and everything that depends on their names.

    weights: safety weight of a name in the rewards; 1 where none is given.
    going, braking: speeds from the least to the most cautious. An answer from `going` where the label is in `braking`
            is a safety error; without these two, none is counted.
    merge:  path -> class of the merged tables, such as LEFT_CHANGE -> LEFT; others stay. Empty: no merged tables.
    words:  name -> what a teacher model is told; the name in lower case where none is given.
    prompt: the question, with the places {speed}, {navigation}, {request}, {speeds}, {paths} and {sample}.
    Raises: ValueError that begins with the field, and names value and remedy.
    """

    speeds: tuple[str, ...]
    paths: tuple[str, ...]
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    going: tuple[str, ...] = ()
    braking: tuple[str, ...] = ()
    merge: Mapping[str, str] = field(default_factory=dict, hash=False)
    words: Mapping[str, str] = field(default_factory=dict, hash=False)
    prompt: str = ALPHADRIVE_PROMPT

    def __post_init__(self) -> None:
        check_lists(self.speeds, self.paths)
        check_caution(self.speeds, self.going, self.braking)
        check_weights(self.weights, self.names)
        check_words(self.words, self.names)
        check_merge(self.merge, self.paths)
        check_prompt(self.prompt, self.speeds, self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, speeds first."""
        return self.speeds + self.paths

    @property
    def plans(self) -> tuple["Decision", ...]:
        """Every speed with every path."""
        return tuple(Decision(speed, path, self) for speed in self.speeds for path in self.paths)

    @property
    def sample(self) -> str:
        """The plan that the question shows as an example."""
        return f"{self.speeds[0]}, {self.paths[-1]}"

    def covers(self, other: "Actions") -> bool:
        """Whether every plan of the other lists is a plan of these."""
        return {*other.speeds} <= {*self.speeds} and {*other.paths} <= {*self.paths}

    def weight(self, name: str) -> float:
        """The safety weight of an action."""
        return self.weights.get(name, 1.0)

    @property
    def classes(self) -> tuple[str, ...]:
        """The path classes of the merged tables."""
        return tuple(dict.fromkeys([*self.merge.values(), *(path for path in self.paths if path not in self.merge)]))

    def spoken(self, name: str) -> str:
        """An action in words."""
        return self.words.get(name, name.replace("_", " ").lower())

    def question(self, speed: str, navigation: str, request: str, sample: str) -> str:
        """The question with its places filled. One pass, so that braces of a navigation are left alone."""
        values = {"speed": speed, "navigation": navigation, "request": request, "speeds": listed(self.speeds),
                  "paths": listed(self.paths), "sample": sample}
        return PLACE.sub(lambda place: values[place[1]], self.prompt)


def listed(names: Sequence[str]) -> str:
    """`KEEP, ACCELERATE, and STOP`."""
    *others, last = names
    return last if not others else f"{', '.join(others)}{',' * (len(others) > 1)} and {last}"


# The weights are the released ones; the paper gives none. AlphaDrive's tables (arXiv:2503.07608) have three paths and
# no lane change: a lane change counts as its side.
ALPHADRIVE = Actions(
    SPEED_ACTIONS, PATH_ACTIONS,
    weights={"KEEP": 0.8, "ACCELERATE": 0.9, "DECELERATE": 1.0, "STOP": 1.0,
             "STRAIGHT": 0.8, "RIGHT_CHANGE": 1.0, "LEFT_CHANGE": 1.0, "RIGHT_TURN": 1.0, "LEFT_TURN": 1.0},
    going=("ACCELERATE", "KEEP"), braking=("DECELERATE", "STOP"),
    merge={"STRAIGHT": "STRAIGHT", "LEFT_CHANGE": "LEFT", "LEFT_TURN": "LEFT", "RIGHT_CHANGE": "RIGHT",
           "RIGHT_TURN": "RIGHT"},
    words={"KEEP": "keep the speed", "ACCELERATE": "accelerate", "DECELERATE": "slow down",
           "STOP": "stop or stay stopped", "STRAIGHT": "go straight on in the own lane", "LEFT_TURN": "turn left",
           "RIGHT_TURN": "turn right", "LEFT_CHANGE": "change to the lane on the left",
           "RIGHT_CHANGE": "change to the lane on the right"})


@dataclass(frozen=True)
class Decision:
    """One plan: a speed action and a path action, written "STOP, STRAIGHT".

    Raises: ValueError if a name is not in the lists of `actions` (upper case).
    Source: AlphaDrive, arXiv:2503.07608; lane changes from the released prompt.
    """

    speed: str
    path: str
    actions: InitVar[Actions] = ALPHADRIVE      # only checked against, not kept

    def __post_init__(self, actions: Actions) -> None:
        if self.speed not in actions.speeds:
            raise ValueError(f"unknown speed action {self.speed!r}: use one of {', '.join(actions.speeds)}")
        if self.path not in actions.paths:
            raise ValueError(f"unknown path action {self.path!r}: use one of {', '.join(actions.paths)}")

    def __str__(self) -> str:
        return f"{self.speed}, {self.path}"


def parse_plan(text: str, actions: Actions = ALPHADRIVE) -> Decision | None:
    """The plan of a completion that states exactly one, else None. Every evaluation uses this reader.

    The completion must have one `<answer>` block outside the think block, with one speed and one path action and
    nothing else: any case, either order, separated by commas or white space, a final full stop allowed. Other text is
    ignored (`follows_format` judges it). An answer that names several actions is a hedge and gives None.
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    answers = _answers(text)
    words = answers[0].strip().removesuffix(".").replace(",", " ").split() if answers else []
    speeds, paths = _known_actions(words, actions)
    return Decision(speeds[0], paths[0], actions) if len(words) == 2 and speeds and paths else None


def find_actions(text: str, actions: Actions = ALPHADRIVE) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All (speeds, paths) actions inside the answer, each once, in order of appearance. The rewards use this reader.

    Case, punctuation, line breaks and other words are ignored ("keep,straight." is read), but only whole words count
    ("KEEPING" does not). The words of several answer blocks are pooled, so that a second block is a hedge and not a
    free guess. Without a closed `<answer>` block nothing is found; the think block is never read.
    """
    return _known_actions((word for answer in _answers(text) for word in re.findall(r"\w+", answer)), actions)


def has_reasoning(text: str) -> bool:
    """True if the completion starts its tags with a closed, non-blank `<think>` block and has no other."""
    pieces = _TAG.split(text)                                                   # text, tag, text, tag, ..., text
    tags = pieces[1::2]
    only_one = tags.count("<think>") == tags.count("</think>") == 1
    return only_one and tags[:2] == ["<think>", "</think>"] and bool(pieces[2].strip())


def follows_format(text: str, reasoning: bool = True, actions: Actions = ALPHADRIVE) -> bool:
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
    return in_shape and (not reasoning or has_reasoning(text)) and parse_plan(text, actions) is not None


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


def _known_actions(words: Iterable[str], actions: Actions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The speed and the path actions among the words, any case, without repetition."""
    # isascii: "\u017f" (long s) is not S, although its upper() is "S"
    names = dict.fromkeys(word.upper() for word in words if word.isascii())
    return tuple(n for n in names if n in actions.speeds), tuple(n for n in names if n in actions.paths)
