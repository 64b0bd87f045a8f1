"""Reading and writing the small files of a model directory."""

import json
import os
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 * 2**20         # per JSON file of a model directory; parsing can need 25 times as much memory


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from an untrusted file.

    Raises: ValueError naming the file if it is longer than MAX_JSON_BYTES, not valid JSON, or not an object."""
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, at most {MAX_JSON_BYTES:,} are read; copy it again from the "
                         "checkpoint")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:       # RecursionError: deeply nested brackets
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object; copy it again")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`write_text` of a JSON object."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """fsync a file, or the entries of a directory: without it a rename can reach the disk before the data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
