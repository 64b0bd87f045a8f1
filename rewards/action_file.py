"""A list of actions of your own: `--actions FILE.json` (docs/own.md), and the same record beside a saved model."""

import dataclasses
import json
from pathlib import Path

from rewards.actions import Actions

FIELDS = tuple(field.name for field in dataclasses.fields(Actions))
REQUIRED = ("speeds", "paths")
MAX_BYTES = 2**20
KINDS = {str: "a text", list: "a list of names such as [\"KEEP\", \"STOP\"]",
         dict: "an object from name to value such as {\"STOP\": 1.0}"}


def read_actions(file: str | Path) -> Actions:
    """The actions of a JSON file. Raises: ValueError that names file, key, value and remedy."""
    try:
        data = Path(file).read_bytes()
    except OSError as fault:
        raise ValueError(f"{file} cannot be read ({fault.strerror}); name a JSON file with lists of actions, such as "
                         "the one in docs/own.md") from fault
    if len(data) > MAX_BYTES:
        raise ValueError(f"{file}: {len(data):,} bytes are no list of actions; at most {MAX_BYTES:,} are read")
    try:
        record = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_named_once)
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{file}: not valid JSON ({fault}); write an object with the keys {', '.join(FIELDS)}, of "
                         "which speeds and paths are needed") from None
    return actions_from(record, str(file))


def actions_from(record: object, where: str) -> Actions:
    """A JSON object with the fields of `Actions` -> Actions. Raises: ValueError that names place, key and value."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: {record!r:.80} is no object; write one with the keys {', '.join(FIELDS)}")
    if unknown := [key for key in record if key not in FIELDS]:
        raise ValueError(f"{where}: the key {unknown[0]!r:.80} is not known; use {', '.join(FIELDS)}")
    if missing := [key for key in REQUIRED if key not in record]:
        raise ValueError(f"{where}: the key {missing[0]!r} is missing; list the {missing[0]}, such as "
                         f"\"{missing[0]}\": [\"{'KEEP' if missing[0] == 'speeds' else 'STRAIGHT'}\"]")
    try:
        return Actions(**{key: _typed(key, value) for key, value in record.items()})
    except ValueError as fault:
        raise ValueError(f"{where}: {fault}") from None


def as_record(actions: Actions) -> dict:
    """What `actions_from` reads back: lists and tables for JSON."""
    return {key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(actions).items()}


def _typed(key: str, value: object) -> object:
    """A JSON list as a tuple, a JSON object or text as it is."""
    kind = {"prompt": str, **dict.fromkeys(("speeds", "paths", "going", "braking"), list)}.get(key, dict)
    if not isinstance(value, kind):
        raise ValueError(f"{key}: expected {KINDS[kind]}, got {value!r:.80}")
    return tuple(value) if kind is list else value


def _named_once(pairs: list[tuple[str, object]]) -> dict:
    """An object. Raises: ValueError for a key that is given twice, of which json would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found
