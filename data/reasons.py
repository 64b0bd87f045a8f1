"""Which examples keep their reasons, and what stands in a reason's place: the controls of "does reasoning help?".

Every function takes examples and gives new ones in the same order. Decisions, pictures and questions stay as they are.
"""
import random
import re
from collections import defaultdict
from dataclasses import replace

from data.example import Example

CHOICES = ("random", "balanced")
CONTROLS = ("shuffled", "filler", "posthoc")
FILLER = ("so", "the", "and", "I", "is", "a", "then", "my")     # frequent in reasons, hence short in tokens too


def choose_reasons(examples: list[Example], share: float, how: str = "random", seed: int = 0) -> list[Example]:
    """The examples, of whose reasons only a share is kept: round(share * examples that have one).

    random:   each reason is as likely to be kept as any other, so common plans keep most.
    balanced: plan by plan in turn, so that every plan keeps equally many until it has no more.
    A larger share of the same seed keeps all that a smaller one keeps.

    Raises: ValueError for a share outside 0 to 1, or an unknown `how`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of reasons {share}: give a number from 0 to 1")
    if how not in CHOICES:
        raise ValueError(f"choice of reasons {how!r}: use one of {', '.join(CHOICES)}")
    order = [index for index, example in enumerate(examples) if example.reasoning is not None]
    random.Random(f"choose {seed}").shuffle(order)
    if how == "balanced":
        order = in_turn(order, examples)
    kept = set(order[:round(share * len(order))])
    return [example if index in kept else replace(example, reasoning=None) for index, example in enumerate(examples)]


def in_turn(order: list[int], examples: list[Example]) -> list[int]:
    """The same indices, first of each plan the first one, then of each the second, and so on."""
    groups = by_plan(order, examples)
    rank = {index: place for group in groups for place, index in enumerate(group)}
    return sorted(order, key=rank.get)


def by_plan(order: list[int], examples: list[Example]) -> list[list[int]]:
    groups = defaultdict(list)
    for index in order:
        groups[examples[index].decision].append(index)
    return list(groups.values())


def control_reasons(examples: list[Example], kind: str, seed: int = 0) -> list[Example]:
    """The examples with another text in the place of each reason, to tell what in a reason helps.

    shuffled: the reason of another example with the same decision: well-formed and in line with the answer, but of
              another scene. An example that is alone with its decision loses its reason.
    filler:   as many words as the reason has, always the same ones in turn: room to compute, nothing said.
    posthoc:  the decision first, then what led to it, so that the reason can no longer help to find it.

    Raises: ValueError for an unknown kind.
    """
    if kind not in CONTROLS:
        raise ValueError(f"control of reasons {kind!r}: use one of {', '.join(CONTROLS)}")
    if kind == "shuffled":
        return shuffled(examples, seed)
    rewrite = filler if kind == "filler" else posthoc
    return [example if example.reasoning is None else replace(example, reasoning=rewrite(example))
            for example in examples]


def shuffled(examples: list[Example], seed: int) -> list[Example]:
    """Within each decision, in a random order, everyone takes the reason of the next; the last that of the first."""
    order = [index for index, example in enumerate(examples) if example.reasoning is not None]
    random.Random(f"shuffle {seed}").shuffle(order)
    given: dict[int, str | None] = {}
    for group in by_plan(order, examples):
        reasons = [examples[index].reasoning for index in (*group[1:], group[0])]
        given |= dict(zip(group, reasons if len(group) > 1 else [None], strict=True))
    return [replace(example, reasoning=given.get(index)) for index, example in enumerate(examples)]


def filler(example: Example) -> str:
    """As many words as the reason has."""
    return " ".join(FILLER[place % len(FILLER)] for place in range(len(example.reasoning.split())))


def posthoc(example: Example) -> str:
    """`The light is red, so I stop.` -> `I stop, because the light is red.`; other forms get the plan before them."""
    found = re.fullmatch(r"(.+), (?:so|hence) (I .+)\.", example.reasoning)
    if found is None:
        return f"{example.decision}, because: {example.reasoning}"
    cause = found[1] if found[1].startswith("I ") else found[1][0].lower() + found[1][1:]
    return f"{found[2]}, because {cause}."
