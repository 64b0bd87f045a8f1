"""The files of a run, read once, and what the page derives from its predictions. Missing files give empty fields."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.predictions import PREDICTION_FIELDS, actions_of, check_plans, read_lines, read_object
from rewards.actions import ALPHADRIVE, Actions

OUTCOMES = ("unsafe", "invalid", "wrong", "acceptable", "right")         # worst first
COLOURS = 6                                                                 # of runs in page.css


@dataclass(frozen=True)
class Run:
    """One run directory. `steps` is metrics.jsonl, `groups` samples.jsonl; the others come from eval-test, or from the
    directory itself if eval.py wrote it."""

    name: str
    folder: Path
    config: dict
    steps: list[dict]
    groups: list[dict]
    metrics: dict
    predictions: list[dict]
    trajectories: list[dict]
    actions: Actions = ALPHADRIVE

    @property
    def stage(self) -> str:
        """sft, grpo or a trajectory stage, from config.json, else from the logged fields."""
        logged = "grpo" if any("reward" in step for step in self.steps) else "sft"
        return self.config.get("stage", logged)

    @property
    def drives(self) -> bool:
        """Whether it is a trajectory decoder."""
        return bool(self.trajectories) or self.stage.startswith("trajectory")


def unfinished(run: Run) -> str:
    """`step 12 of 400` for a run that has not done all its planned steps, else ""."""
    done, total = run.steps[-1]["step"] if run.steps else 0, run.config.get("planned_steps", run.config.get("steps"))
    return f"step {done} of {total}" if isinstance(total, int) and done < total else ""


def read_runs(folders: list[str]) -> list[Run]:
    """Read the runs in order, named by their last folder, or by their whole path where that name is not unique."""
    paths = [Path(folder) for folder in folders]
    last = [path.resolve().name for path in paths]
    return [read_run(path, name if last.count(name) == 1 else str(path))
            for path, name in zip(paths, last, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """The run so far: processes may still be writing its files.

    Raises: FileNotFoundError if there is neither a run that has begun nor a score; ValueError that names a broken file.
    """
    config = read_object(folder / "config.json")
    if not ("stage" in config or (folder / "metrics.jsonl").is_file() or
            (folder / "eval-test/metrics.json").is_file()):
        raise FileNotFoundError(f"{folder / 'eval-test/metrics.json'} and {folder / 'metrics.jsonl'} do not exist: "
                                f"train first, or run `python eval.py --model {folder / 'model'}`")
    scored = folder if config.get("stage") == "eval" else folder / "eval-test"
    actions = actions_of(scored if (scored / "config.json").is_file() else folder)
    plans = list(map(str, actions.plans))
    predictions = read_lines(scored / "predictions.jsonl", PREDICTION_FIELDS, growing=True)
    for number, row in enumerate(predictions, 1):
        check_plans({"truth": [row["truth"]], "decision": [row["decision"] or row["truth"]]},
                    f"{scored / 'predictions.jsonl'}, prediction {number}", plans)
    run = Run(name, folder, config, read_steps(folder / "metrics.jsonl", ("step",)), [],
              read_object(scored / "metrics.json"), predictions,
              read_lines(scored / "trajectories.jsonl", ("id", "scene", "trajectories"), growing=True), actions)
    fields = ("step", "id", "rewards", "advantages") + (() if run.drives else ("texts", "truth"))
    return replace(run, groups=read_steps(folder / "samples.jsonl", fields))


def read_steps(file: Path, fields: tuple[str, ...]) -> list[dict]:
    """The records of a log, each with its step. Raises: ValueError that names a broken one."""
    records = read_lines(file, fields, growing=True)
    for number, record in enumerate(records, 1):
        if not measured(record["step"]):
            raise ValueError(f"{file}, record {number}: step is {record['step']!r:.80}, which is no number; remove the "
                             "line")
    return records


def coloured(runs: list[Run]) -> list[tuple[int, Run]]:
    """Every run with its colour number; the last run has colour 0."""
    return [((len(runs) - 1 - i) % COLOURS, run) for i, run in enumerate(runs)]


def measured(value: object) -> bool:
    """True for a finite number; a log has null where nothing was measured."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def outcome(prediction: dict, actions: Actions = ALPHADRIVE) -> str:
    """The outcome of a greedy answer, one of OUTCOMES.

    right: the label. invalid: no single plan. acceptable: another plan that the data accept. unsafe: the label slows
    down or stops, the answer does neither and is not acceptable. wrong: everything else.
    """
    truth, decision = prediction["truth"], prediction["decision"]
    if decision == truth:
        return "right"
    if decision is None:
        return "invalid"
    if decision in (prediction.get("acceptable") or ()):
        return "acceptable"
    label, speed = (plan.partition(", ")[0] for plan in (truth, decision))
    return "unsafe" if label in actions.braking and speed in actions.going else "wrong"


def change(prediction: dict, before: dict | None) -> str | None:
    """Compared with an earlier run's answer to the same scene: improved, worse, both right or both wrong."""
    if before is None:
        return None
    now, then = (row["decision"] == row["truth"] for row in (prediction, before))
    if now == then:
        return "both right" if now else "both wrong"
    return "improved" if now else "worse"


def present_factors(prediction: dict) -> dict[str, str]:
    """The factors present in a scene, in words: {"light": "red", "night": "yes"}; without absent ones and floats."""
    there = {key: value for key, value in (prediction.get("factors") or {}).items()
             if value is not None and value is not False and value not in ("", "none") and not isinstance(value, float)}
    return {key.replace("_", " "): "yes" if value is True else str(value).replace("_", " ")
            for key, value in there.items()}
