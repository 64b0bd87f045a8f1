"""Splits of a data set: their usual names, what a clip is, and a division that keeps clips whole."""
import random
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from data.example import Example

USUAL_NAMES = {"train": "train", "training": "train", "val": "val", "validation": "val", "valid": "val", "dev": "val",
               "test": "test", "testing": "test"}
# Fields, in `factors` or of the user's own, that usually name the recording that a picture comes from
CLIPS = ("clip", "clip_id", "clip_token", "scene", "scene_token", "scene_name", "sequence", "sequence_id", "segment",
         "segment_id", "recording", "recording_id", "log", "log_id", "log_token", "video_id", "drive", "drive_id")


def same_split(name: str | None, other: str | None) -> bool:
    """Whether two names mean one split: `Training` means `train`, `testing` `test`, and `validation`, `valid` and `dev`
    mean `val`, in any case. Other names are compared as they are."""
    usual = USUAL_NAMES.get((name or "").lower())
    return name == other or (usual is not None and usual == USUAL_NAMES.get((other or "").lower()))


def clip_of(example: Example, field: str = "") -> str | None:
    """What tells an example's recording apart: `FIELD=VALUE` of the named field, by default of the first known one.

    The field `folder` stands for the folder of the first picture. None if the example has no such field.
    """
    if field == "folder":
        return str(Path(example.pictures[0]).parent) if example.pictures else None
    facts = {**(example.factors or {}), **example.extra}
    named = (name for name in ([field] if field else CLIPS) if isinstance(facts.get(name), str | int | float))
    return next((f"{name}={_clip_name(facts[name])}" for name in named), None)


def _clip_name(value: str | float) -> str:
    """1 and 1.0 are one clip: pandas writes whole numbers as floats where a column has gaps."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def tied(keys: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """The places that share a key, directly or over others, together; in order of their first place."""
    parents, first = list(range(len(keys))), {}

    def top(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]        # halves the way of the next call
            place = parents[place]
        return place

    for place, own in enumerate(keys):
        for key in own:
            one, other = sorted((top(first.setdefault(key, place)), top(place)))
            parents[other] = one
    groups = {}
    for place in range(len(keys)):
        groups.setdefault(top(place), []).append(place)
    return list(groups.values())


def divide(examples: list[Example], keys: Sequence[Sequence[Hashable]], shares: dict[str, float],
           seed: int) -> list[Example]:
    """The examples in their order, each with a split. Those that share a key are in one split.

    Groups are taken in an order drawn from the seed, large ones first. Each goes to the split that lacks most examples.
    """
    groups = tied(keys)
    random.Random(f"divide {seed}").shuffle(groups)
    total = sum(shares.values())
    lacking = {name: share / total * len(examples) for name, share in shares.items()}
    splits = {}
    for group in sorted(groups, key=len, reverse=True):
        name = max(lacking, key=lacking.get)
        lacking[name] -= len(group)
        splits |= dict.fromkeys(group, name)
    return [replace(example, split=splits[place]) for place, example in enumerate(examples)]
