"""What lists of actions must fulfil. Every message begins with the field, and names the value and the remedy."""

import re
from collections.abc import Mapping, Sequence

NAME = re.compile("[A-Z][A-Z0-9_]{0,39}")
PLACE = re.compile(r"\{(\w*)\}")
PLACES = ("speed", "navigation", "request", "speeds", "paths", "sample")
MAX_NAMES = 100                     # in each list
MAX_WEIGHT = 1000.0
MAX_WORDS = 200                     # characters of one entry of `words`
MAX_PROMPT = 20_000                 # characters


def check_lists(speeds: Sequence[str], paths: Sequence[str]) -> None:
    """Raise ValueError for an empty list, for what is no plain word, and for a name that occurs twice."""
    for key, names in (("speeds", speeds), ("paths", paths)):
        if not 0 < len(names) <= MAX_NAMES:
            raise ValueError(f"{key}: {len(names)} names; list from 1 to {MAX_NAMES}, such as [\"KEEP\", \"STOP\"]")
        for name in names:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise ValueError(f"{key}: {name!r:.80} is not a valid name; use capital letters, digits and _, without "
                                 "blanks or commas, a letter first, at most 40, such as LEFT_TURN")
            if names.count(name) > 1:
                raise ValueError(f"{key}: {name} is listed twice; list each name once")
    if both := [name for name in paths if name in speeds]:
        raise ValueError(f"paths: {both[0]} is also one of the speeds; rename one of the two")


def check_caution(speeds: Sequence[str], going: Sequence[str], braking: Sequence[str]) -> None:
    """Raise ValueError unless both lists hold different speeds, or are both empty."""
    for key, names in (("going", going), ("braking", braking)):
        for name in names:
            if name not in speeds:
                raise ValueError(f"{key}: {name!r:.80} is not one of the speeds; use {', '.join(speeds)}")
            if [*going, *braking].count(name) > 1:
                raise ValueError(f"{key}: {name} occurs twice in going and braking; list it once")
    if bool(going) != bool(braking):
        raise ValueError(f"{'going' if braking else 'braking'}: the list is empty; give both lists, or none of them")


def check_known(key: str, table: Mapping, known: Sequence[str]) -> None:
    """Raise ValueError for a table about a name that is not known."""
    if unknown := [name for name in table if name not in known]:
        raise ValueError(f"{key}: {unknown[0]!r:.80} is not listed; use {', '.join(known)}")


def check_weights(weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Raise ValueError for a weight of an unknown name, or one that is negative, NaN or no number."""
    check_known("weights", weights, names)
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"weights: {name} is {weight!r:.80}; give a number from 0 to {MAX_WEIGHT:g}")


def check_words(words: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ValueError for words of an unknown name, or what is no text of one line."""
    check_known("words", words, names)
    for name, text in words.items():
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_WORDS or not text.isprintable():
            raise ValueError(f"words: {name} is {text!r:.80}; give a text of one line, at most {MAX_WORDS} characters")


def check_merge(merge: Mapping[str, str], paths: Sequence[str]) -> None:
    """Raise ValueError for an unknown path, or what is not the name of a class."""
    check_known("merge", merge, paths)
    for path, merged in merge.items():
        if not isinstance(merged, str) or not NAME.fullmatch(merged):
            raise ValueError(f"merge: {path} is {merged!r:.80}; give the name of a class, such as LEFT")


def check_prompt(prompt: str, speeds: Sequence[str], paths: Sequence[str]) -> None:
    """Raise ValueError for a question with unknown places, or without the facts, the request and every action."""
    if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
        raise ValueError(f"prompt: {prompt!r:.80} is no text of at most {MAX_PROMPT:,} characters")
    if unknown := [place for place in PLACE.findall(prompt) if place not in PLACES]:
        raise ValueError(f"prompt: {{{unknown[0]:.40}}} is no place; use "
                         + ", ".join(f"{{{place}}}" for place in PLACES))
    for place in ("speed", "navigation", "request"):
        if f"{{{place}}}" not in prompt:
            raise ValueError(f"prompt: {{{place}}} is missing; write it where the question says it")
    for place, names in (("speeds", speeds), ("paths", paths)):
        if f"{{{place}}}" not in prompt and (missing := [name for name in names if name not in prompt]):
            raise ValueError(f"prompt: {missing[0]} is not named; name every action, or write {{{place}}}")
    if mark := re.search(r"<\|\w*\|>|<image>|<video>", prompt):
        raise ValueError(f"prompt: holds {mark[0]!r:.80}, which would be read as letters; remove it")
