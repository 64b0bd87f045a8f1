"""The files of a scored run: predictions.jsonl, a JSON object per line, and single JSON objects."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from rewards import parse_plan

PREDICTION_FIELDS = ("id", "truth", "text", "decision")


def plan_name(text: str) -> str | None:
    """The plan of a completion as text, such as `STOP, STRAIGHT`; None if the completion states no single plan."""
    plan = parse_plan(text)
    return None if plan is None else str(plan)


def read_predictions(path: str) -> list[dict]:
    """Read a predictions file, given itself, its directory or the directory of its run. Raises: FileNotFoundError."""
    found = [file for file in (Path(path), Path(path, "predictions.jsonl"), Path(path, "eval-test/predictions.jsonl"))
             if file.is_file()]
    if not found:
        raise FileNotFoundError(f"{path} is not a predictions file and contains none: run python eval.py first")
    return read_lines(found[0], PREDICTION_FIELDS)


def read_object(file: Path) -> dict:
    """Read one JSON object; {} if the file does not exist."""
    try:
        value = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as fault:
        raise ValueError(f"{file} is no JSON ({fault}): make it again") from fault
    if not isinstance(value, dict):
        raise ValueError(f"{file} contains {type(value).__name__}, not a JSON object: create it again")
    return value


def read_lines(file: Path, fields: tuple[str, ...]) -> list[dict]:
    """Read one JSON object with at least `fields` per line; [] if the file does not exist."""
    records = []
    for number, line in enumerate(file.read_text().split("\n") if file.is_file() else [], 1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError as fault:
            raise ValueError(f"{file}, line {number} is no JSON ({fault}): remove the line") from fault
        if record is None:
            continue
        missing = [name for name in fields if name not in record] if isinstance(record, dict) else list(fields)
        if missing:
            raise ValueError(f"{file}, line {number} has no {', '.join(missing)}: make the file again")
        records.append(record)
    return records


def append_lines(file: Path, rows: Iterable[dict]) -> None:
    """Append one JSON object per line."""
    with open(file, "a") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows))


def replace_lines(file: Path, rows: Iterable[dict]) -> None:
    """Write the file anew, completely or not at all."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.unlink(missing_ok=True)                                           # left by an interrupted run
    append_lines(temporary, rows)
    os.replace(temporary, file)
