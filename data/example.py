"""The Example record and the two texts made from it: the prompt and the target."""
import re
from dataclasses import dataclass, field, replace

from rewards import Decision
from rewards.actions import ALPHADRIVE, Actions
from rewards.waypoints import write_waypoints

Navigation = dict[str, str] | str

# AlphaDrive's released wording (data_tools/example.json), in the pieces that "reasoning off" exchanges.
REQUEST_REASONING = ("Output the planning reasoning process in <think> </think> and final planning answer in <answer> "
                     "</answer> tags, respectively.")
REQUEST_ANSWER = "Output the final planning answer in <answer> </answer> tags."
SAMPLE_REASON = "<think> planning reasoning process here </think>"
ANSWER_ONLY = "Give only the final answer in <answer> </answer> tags, without any reasoning."

ANSWERS = ("plan", "trajectory")    # the plan alone, or the plan and way-points behind it
REQUEST_WAYPOINTS = (
    "Behind the answer, output the car's positions in 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5 and 4.0 seconds in "
    "<trajectory> </trajectory> tags: eight pairs x,y in metres with one decimal, x forward and y to the left, for "
    "example '<trajectory> 2.1,0.0 4.2,0.0 6.3,0.1 8.4,0.1 10.5,0.2 12.6,0.3 14.7,0.4 16.8,0.5 </trajectory>'.")
COMPACT_WAYPOINTS = "Way-points."

PROMPT_STYLES = ("alphadrive", "compact")
SCENE_SIZE = "224x112"              # default picture size of a built-in scene
PICTURE_EDGES = (28, 4096)          # shortest and longest edge of a drawn picture
VIEWS = ("front", "front_left", "front_right")      # cameras of a built-in scene: the first, or all
CAMERA_COUNTS = (1, len(VIEWS))

# Characters that control a terminal: control characters except tab and line feed, and marks of writing direction. Also
# lone surrogates, which neither a file nor a tokenizer accepts.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One planning question and its answer.

    The picture is a file (`image`) or a built-in scene (`scene`, its seed). Several pictures of one moment are
    `images`; `cameras` names them in the same order, or the views of a built-in scene. The question is a verbatim
    `prompt`, or is made from `speed` and `navigation`. `acceptable` lists every correct plan, if known. `trajectory` is
    the expert's motion: the car's origin at 0.5, 1.0, ..., 4.0 s in its present frame, x forward, y left. `extra` holds
    the record's other fields as they are, for a reward function of your own.

    Units: speed in m/s, trajectory in m. navigation is AlphaDrive's {'100m': 'Straight', '200m': 'Turn left'} or free
    text.
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
    trajectory: tuple[tuple[float, float], ...] | None = field(default=None, repr=False)    # see dataset.data_sign
    extra: dict = field(default_factory=dict, repr=False, hash=False)
    images: tuple[str, ...] | None = field(default=None, repr=False)        # two or more, in place of `image`
    cameras: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def pictures(self) -> tuple[str, ...]:
        """Its picture files in order; none for a built-in scene."""
        return self.images or (() if self.image is None else (self.image,))


def front_view(example: Example) -> Example:
    """The example with one picture alone: that of the camera `front`, or the first of cameras without names.

    `CAM_FRONT` and `front_camera` are `front` too. Raises: ValueError if none of several named cameras is."""
    names = [re.sub(r"^cam(era)?_|_cam(era)?$", "", name.lower()) for name in example.cameras or ()]
    if names and "front" not in names:
        raise ValueError(f"example {example.id!r}: --hide sides keeps the camera `front`, and the cameras are "
                         f"{', '.join(example.cameras)}; name one of them `front`")
    place = names.index("front") if names else 0
    image = example.images[place] if example.images else example.image
    return replace(example, image=image, images=None, cameras=None)


def views_record(example: Example) -> dict[str, list[str]]:
    """What the record of an answer says of several pictures; nothing for one."""
    return {name: list(value) for name in ("images", "cameras") if (value := getattr(example, name))}


def picture_size(text: str) -> tuple[int, int] | None:
    """`448x224` -> (448, 224), width and height in pixels; None for other text or a size that cannot be drawn."""
    found = re.fullmatch("([0-9]{2,4})x([0-9]{2,4})", text) if isinstance(text, str) else None
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    return size if all(PICTURE_EDGES[0] <= edge <= PICTURE_EDGES[1] for edge in size) else None


# ---------------------------------------------------------------- texts

def printable(text: str) -> str:
    """Foreign text made safe for a terminal: control characters are spelled out, tabs and line feeds stay. The sequence
    that clears the screen becomes the seven characters `\\x1b[2J`."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def prompt_text(example: Example, style: str = "alphadrive", reasoning: bool = True, answer: str = "plan",
                actions: Actions = ALPHADRIVE) -> str:
    """The user's question in one of two styles.

    alphadrive: the wording of `actions`, or the verbatim `example.prompt`. With reasoning off, the request for a
                <think> block and the sample answer lose that block; one sentence is appended to other wordings.
    compact:    `speed 4.2 m/s. straight, then left.` for small models, followed by ` Answer.` with reasoning off. A
                prompt without known speed and navigation is treated as in the alphadrive style.
    answer:     trajectory appends the request for way-points to either.
    Several pictures whose cameras have names are named in order before either.

    Raises: ValueError for an unknown style.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"prompt style {style!r}: choose one of {', '.join(PROMPT_STYLES)}")
    short = style == "compact" and example.speed is not None and example.navigation is not None
    text = _compact_question(example, reasoning) if short else _question(example, reasoning, actions)
    text = text if answer == "plan" else f"{text} {COMPACT_WAYPOINTS if short else REQUEST_WAYPOINTS}"
    return named_views(example, short) + text


def named_views(example: Example, short: bool = False) -> str:
    """`The pictures show, in this order: front, front left. `; nothing for one picture or cameras without names."""
    names = ", ".join(example.cameras or ()).replace("_", " ")
    return "" if not names else f"{names}. " if short else f"The pictures show, in this order: {names}. "


def _compact_question(example: Example, reasoning: bool) -> str:
    text = f"speed {example.speed:.1f} m/s. {_compact_navigation(example.navigation)}"
    return text if reasoning else text + " Answer."


def _question(example: Example, reasoning: bool, actions: Actions) -> str:
    if example.prompt is not None:
        return example.prompt if reasoning else without_reasoning(example.prompt, actions)
    if example.speed is None or example.navigation is None:
        raise ValueError(f"example {example.id!r} has neither a prompt nor both speed and navigation: give one of them")
    return actions.question(f"{example.speed:.1f}", str(example.navigation),
                            REQUEST_REASONING if reasoning else REQUEST_ANSWER, sample_answer(reasoning, actions))


def sample_answer(reasoning: bool, actions: Actions = ALPHADRIVE) -> str:
    """The answer that a question shows as an example."""
    answer = f"<answer> {actions.sample} </answer>"
    return f"{SAMPLE_REASON} {answer}" if reasoning else answer


def without_reasoning(prompt: str, actions: Actions = ALPHADRIVE) -> str:
    """The same question, asking only for the answer block."""
    text = prompt.replace(REQUEST_REASONING, REQUEST_ANSWER)
    text = text.replace(sample_answer(True, actions), sample_answer(False, actions))
    return f"{text.rstrip()} {ANSWER_ONLY}" if text == prompt or "<think>" in text else text


def target_text(example: Example, reasoning: bool = True, answer: str = "plan") -> str:
    """The completion to learn: `<think> why </think> <answer> SPEED, PATH </answer>`, or only the answer block; with
    answer trajectory, the block of way-points behind it.

    Raises: ValueError if reasoning or way-points are asked for and the example has none.
    """
    text = f"<answer> {example.decision} </answer>"
    if answer == "trajectory":
        if example.trajectory is None:
            raise ValueError(f"example {example.id!r} has no way-points: use --answer plan or add a 'trajectory' field")
        text = f"{text} {write_waypoints(example.trajectory)}"
    if not reasoning:
        return text
    if example.reasoning is None:
        raise ValueError(f"example {example.id!r} has no reasoning: turn reasoning off or add a 'reasoning' field")
    return f"<think> {example.reasoning} </think> {text}"


def _compact_navigation(navigation: Navigation) -> str:
    """The courses in order without their distances; free text unchanged."""
    if isinstance(navigation, str):
        return navigation if navigation.endswith((".", "!", "?")) else navigation + "."
    return ", then ".join(course.lower().removeprefix("turn ") for course in navigation.values()) + "."
