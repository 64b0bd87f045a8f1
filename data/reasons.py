"""Experiments on "does reasoning help?": keep a share of the reasons, or replace each reason by a control text.

Every function returns new examples in the same order. Decisions, pictures and questions do not change.
"""
import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from data.example import Example

CHOICES = ("random", "balanced")
CONTROLS = ("shuffled", "filler", "posthoc")
FILLER = ("so", "the", "and", "I", "is", "a", "then", "my")     # frequent in reasons, hence few tokens


def choose_reasons(examples: list[Example], share: float, how: str = "random", seed: int = 0) -> list[Example]:
    """The examples with only round(share * number of reasons) of their reasons kept.

    random:   every reason is equally likely to be kept.
    balanced: plans take turns, so that every plan keeps equally many as long as it has any left.
    With the same seed, a larger share keeps everything that a smaller one keeps.

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
    """The indices reordered: the first of each plan, then the second of each, and so on."""
    groups = by_plan(order, examples)
    rank = {index: place for group in groups for place, index in enumerate(group)}
    return sorted(order, key=rank.get)


def by_plan(order: Iterable[int], examples: list[Example]) -> list[list[int]]:
    groups = defaultdict(list)
    for index in order:
        groups[examples[index].decision].append(index)
    return list(groups.values())


def control_reasons(examples: list[Example], kind: str, seed: int = 0) -> list[Example]:
    """The examples with a control text in place of each reason, to find what in a reason helps.

    shuffled: the reason of another example with the same decision: consistent with the answer, but from another scene.
              The only example of a decision loses its reason.
    filler:   as many words as the reason, always the same ones in turn: room to compute without content.
    posthoc:  the decision first, then its causes, so that the reason cannot help to find the decision.

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
    """Within each decision, in random order, every example takes the reason of the next one, cyclically."""
    order = [index for index, example in enumerate(examples) if example.reasoning is not None]
    random.Random(f"shuffle {seed}").shuffle(order)
    given: dict[int, str | None] = {}
    for group in by_plan(order, examples):
        reasons = [examples[index].reasoning for index in (*group[1:], group[0])]
        given |= dict(zip(group, reasons if len(group) > 1 else [None], strict=True))
    return [replace(example, reasoning=given.get(index)) for index, example in enumerate(examples)]


def filler(example: Example) -> str:
    """As many filler words as the reason has words."""
    return " ".join(FILLER[place % len(FILLER)] for place in range(len(example.reasoning.split())))


def posthoc(example: Example) -> str:
    """`The light is red, so I stop.` -> `I stop, because the light is red.`; other sentences get the plan in front."""
    found = re.fullmatch(r"(.+), (?:so|hence) (I .+)\.", example.reasoning)
    if found is None:
        return f"{example.decision}, because: {example.reasoning}"
    cause = found[1] if found[1].startswith("I ") else found[1][0].lower() + found[1][1:]
    return f"{found[2]}, because {cause}."
