"""Reading the small files of a model directory, which may be a stranger's. Writing: storage.py."""

import json
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
