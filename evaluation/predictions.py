"""The files of a scored run: predictions.jsonl, a JSON object per line, and single JSON objects."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from data.fields import read_trajectory
from rewards import Decision, parse_plan
from rewards.action_file import actions_from
from rewards.actions import ALPHADRIVE, Actions
from storage import append_json, json_line, replaced

PREDICTION_FIELDS = ("id", "truth", "text", "decision")


def as_plan(name: str | None, actions: Actions = ALPHADRIVE) -> Decision | None:
    """`STOP, STRAIGHT` -> Decision."""
    return None if name is None else Decision(*name.split(", "), actions)


def plan_name(text: str, actions: Actions = ALPHADRIVE) -> str | None:
    """The plan of a completion as text, such as `STOP, STRAIGHT`; None if the completion states no single plan."""
    plan = parse_plan(text, actions)
    return None if plan is None else str(plan)


# ---------------------------------------------------------------- reading

def find_predictions(path: str) -> Path:
    """The predictions file, given itself, its directory or the directory of its run. Raises: FileNotFoundError."""
    for file in (Path(path), Path(path, "predictions.jsonl"), Path(path, "eval-test/predictions.jsonl")):
        if file.is_file():
            return file
    raise FileNotFoundError(f"{path} is not a predictions file and contains none: run python eval.py first")


def actions_of(folder: Path) -> Actions:
    """The lists of actions of a run or a scoring: those in its config.json, else AlphaDrive's."""
    record = read_object(folder / "config.json").get("actions")
    return actions_from(record, f"{folder / 'config.json'}, actions") if record else ALPHADRIVE


def read_predictions(file: Path, fields: Collection[str] = (), actions: Actions = ALPHADRIVE) -> list[dict]:
    """The lines of a predictions file. Raises: ValueError naming prediction, field and value that cannot be scored."""
    rows = read_lines(file, (*PREDICTION_FIELDS, *fields))
    if not rows:
        raise ValueError(f"{file} is empty: run python eval.py again")
    for number, row in enumerate(rows, 1):
        where = f"{file}, prediction {number} (id {row['id']!r:.80})"
        check_prediction(row, where, actions)
        counts = sample_counts(row)
        if counts != sample_counts(rows[0]):
            raise ValueError(f"{where}: the numbers of samples are {counts}, in the first prediction "
                             f"{sample_counts(rows[0])}: score the model again")
        if counts["samples"] not in (0, counts["sample_decisions"]):
            raise ValueError(f"{where}: {counts['samples']} samples and {counts['sample_decisions']} sample_decisions; "
                             "each needs a plan, or null")
    return rows


def sample_counts(row: dict) -> dict[str, int]:
    """The number of sampled texts, of their plans, and of the plans at each temperature."""
    sweep = {f"sweep {heat}": len(plans) for heat, plans in (row.get("sweep") or {}).items()}
    return {**{name: len(row.get(name) or ()) for name in ("samples", "sample_decisions")}, **sweep}


def check_prediction(row: dict, where: str, actions: Actions = ALPHADRIVE) -> None:
    """Raise a ValueError that names field and value if a field is not what eval.py writes."""
    kinds = {"id": str | int, "text": str, "reason": str | None, "scene": int | None, "factors": dict | None,
             "acceptable": list | None, "samples": list | None, "sample_decisions": list | None, "sweep": dict | None}
    for name, kind in kinds.items():
        if not isinstance(row.get(name), kind):
            raise ValueError(f"{where}: {name} is {row.get(name)!r:.80}, not {getattr(kind, '__name__', kind)}")
    if row.get("trajectory") is not None:
        read_trajectory(row["trajectory"], f"{where}: trajectory")
    check_samples(row, where)
    names = list(map(str, actions.plans))
    check_plans({"truth": [row["truth"]], "acceptable": row.get("acceptable") or []}, where, names)
    sweep = {f"sweep {heat}": plans for heat, plans in (row.get("sweep") or {}).items()}
    check_plans({"decision": [row["decision"]], "sample_decisions": row.get("sample_decisions") or [], **sweep}, where,
                [*names, None])


def check_samples(row: dict, where: str) -> None:
    """Raise a ValueError if a sample is no text, or a temperature has no list of plans."""
    for text in row.get("samples") or ():
        if not isinstance(text, str):
            raise ValueError(f"{where}: samples contains {text!r:.80}, not str")
    for heat, plans in (row.get("sweep") or {}).items():
        if not isinstance(plans, list):
            raise ValueError(f"{where}: sweep {heat} is {plans!r:.80}, not a list of plans")


def check_plans(fields: dict[str, list], where: str, allowed: Collection[str | None]) -> None:
    """Raise a ValueError that names the first value that is not a plan."""
    for name, plans in fields.items():
        for plan in plans if isinstance(plans, list) else [plans]:
            if plan not in allowed:
                raise ValueError(f"{where}: {name} is {plan!r:.80}, which is not a plan such as 'STOP, STRAIGHT'")


def read_object(file: Path) -> dict:
    """Read one JSON object; {} if the file does not exist."""
    try:
        value = json.loads(decoded(file)) if file.is_file() else {}
    except (json.JSONDecodeError, RecursionError) as fault:
        raise ValueError(f"{file} is not valid JSON ({fault}): make it again") from fault
    if not isinstance(value, dict):
        raise ValueError(f"{file} contains {type(value).__name__}, not a JSON object: create it again")
    return value


def read_lines(file: Path, fields: Collection[str], growing: bool = False) -> list[dict]:
    """Read one JSON object with at least `fields` per line; [] if the file does not exist.

    growing: a process may be writing the file, so a last line without its line feed is left out."""
    content = decoded(file, growing) if file.is_file() else ""
    records = []
    for number, line in enumerate(content.split("\n"), 1):
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as fault:
            raise ValueError(f"{file}, line {number} is not valid JSON ({fault}): remove the line") from fault
        if record is None:
            continue
        missing = [name for name in fields if name not in record] if isinstance(record, dict) else fields
        if missing:
            raise ValueError(f"{file}, line {number} has no {', '.join(missing)}: make the file again")
        records.append(record)
    return records


def decoded(file: Path, whole_lines: bool = False) -> str:
    """The text of a UTF-8 file, or of its whole lines.

    Raises: ValueError that names the line with the first byte that is not UTF-8."""
    content = file.read_bytes()
    if whole_lines:
        content = content[:content.rfind(b"\n") + 1]
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = content[:fault.start].count(b"\n") + 1
        raise ValueError(f"{file}, line {line} is not UTF-8: save the file as UTF-8, or make it again") from None


# ---------------------------------------------------------------- writing

def append_lines(file: Path, rows: Iterable[dict]) -> None:
    """Append one JSON object per line, in readable UTF-8."""
    append_json(file, *rows)


def replace_lines(file: Path, rows: Iterable[dict]) -> None:
    """Write the file anew, completely or not at all."""
    with replaced(file) as stream:
        stream.writelines(json_line(row) for row in rows)
