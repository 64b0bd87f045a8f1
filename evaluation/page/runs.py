"""What a run left behind, read once. Files that are not there leave their field empty."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

OUTCOMES = ("unsafe", "unreadable", "wrong", "acceptable", "right")         # worst first
SLOWING, GOING = ("STOP", "DECELERATE"), ("KEEP", "ACCELERATE")
COLOURS = 6                                                                 # of runs, in page.css


@dataclass(frozen=True)
class Run:
    """One run directory. `steps` is metrics.jsonl, `groups` samples.jsonl; the last two come from eval-test."""

    name: str
    folder: Path
    config: dict
    steps: list[dict]
    groups: list[dict]
    metrics: dict
    predictions: list[dict]

    @property
    def stage(self) -> str:
        """sft or grpo, from config.json or else from what was logged."""
        logged = "grpo" if any("reward" in step for step in self.steps) else "sft"
        return self.config.get("stage", logged)


def read_runs(folders: list[str]) -> list[Run]:
    """The runs, the main one last, named by their last folder, or by their whole path where two names are equal."""
    paths = [Path(folder) for folder in folders]
    last = [path.resolve().name for path in paths]
    return [read_run(path, name if last.count(name) == 1 else str(path))
            for path, name in zip(paths, last, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Raises: FileNotFoundError if there is neither a training log nor a score; ValueError naming a broken file."""
    if not (folder / "metrics.jsonl").is_file() and not (folder / "eval-test/metrics.json").is_file():
        raise FileNotFoundError(f"{folder / 'eval-test/metrics.json'} and {folder / 'metrics.jsonl'} do not exist: "
                                f"train first, or run `python eval.py --model {folder / 'model'}`")
    return Run(name, folder, read_object(folder / "config.json"), read_lines(folder / "metrics.jsonl", ("step",)),
               read_lines(folder / "samples.jsonl", ("step", "id", "truth", "texts", "rewards", "advantages")),
               read_object(folder / "eval-test/metrics.json"),
               read_lines(folder / "eval-test/predictions.jsonl", ("id", "truth", "text", "decision")))


def read_object(file: Path) -> dict:
    """A JSON object; {} if the file is not there."""
    try:
        value = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as fault:
        raise ValueError(f"{file} is no JSON ({fault}): make it again") from fault
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds {type(value).__name__}, not a JSON object: make it again")
    return value


def coloured(runs: list[Run]) -> list[tuple[int, Run]]:
    """Every run with the number of its colour; the main run has the first."""
    return [((len(runs) - 1 - i) % COLOURS, run) for i, run in enumerate(runs)]


def read_lines(file: Path, fields: tuple[str, ...]) -> list[dict]:
    """One JSON object with at least `fields` per line; [] if the file is not there."""
    records = []
    for place, line in enumerate(file.read_text().split("\n") if file.is_file() else [], 1):
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError as fault:
            raise ValueError(f"{file}, line {place} is no JSON ({fault}): remove the line") from fault
        if record is None:
            continue
        missing = [name for name in fields if name not in record] if isinstance(record, dict) else list(fields)
        if missing:
            raise ValueError(f"{file}, line {place} has no {', '.join(missing)}: make the file again")
        records.append(record)
    return records


def measured(value: object) -> bool:
    """True for a finite number; null in a log means that nothing was measured."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def outcome(prediction: dict) -> str:
    """How a greedy answer ends, one of OUTCOMES.

    right: the label. unreadable: no single plan. acceptable: another plan that the data accept. unsafe: the label slows
    down or stops, the answer does neither and is not acceptable. wrong: the rest.
    """
    truth, decision = prediction["truth"], prediction["decision"]
    if decision == truth:
        return "right"
    if decision is None:
        return "unreadable"
    if decision in (prediction.get("acceptable") or ()):
        return "acceptable"
    return "unsafe" if truth.startswith(SLOWING) and decision.startswith(GOING) else "wrong"


def change(prediction: dict, before: dict | None) -> str | None:
    """Against an earlier run's answer to the same scene: improved, worse, both right or both wrong."""
    if before is None:
        return None
    now, then = (row["decision"] == row["truth"] for row in (prediction, before))
    if now == then:
        return "both right" if now else "both wrong"
    return "improved" if now else "worse"


def missed_braking(metrics: dict) -> float | None:
    """Share of the scenes whose label slows down or stops that were answered by keeping or gaining speed."""
    if measured(metrics.get("safety", {}).get("rate")):
        return metrics["safety"]["rate"]
    braking = [metrics.get("speed_confusion", {}).get(truth, {}) for truth in SLOWING]
    total = sum(sum(row.values()) for row in braking)
    return sum(row.get(said, 0) for row in braking for said in GOING) / total if total else None


def present_factors(prediction: dict) -> dict[str, str]:
    """What there is in a scene, in words: {"light": "red", "night": "yes"}; nothing absent, no measured numbers."""
    there = {key: value for key, value in (prediction.get("factors") or {}).items()
             if value not in (None, False, "", "none") and not isinstance(value, float)}
    return {key.replace("_", " "): "yes" if value is True else str(value).replace("_", " ")
            for key, value in there.items()}
