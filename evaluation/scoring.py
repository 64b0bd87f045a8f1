"""From predictions to numbers: metrics.json, its summary, and the row of AlphaDrive's Table 1.

Every function here reads the lines of predictions.jsonl, so a kept file can be scored again without a model.
docs/evaluation.md explains each number.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from data.example import Example
from data.scenes import bayes_ceiling, label_distribution, sample_scene
from data.scenes.reader import factor_scores, read_reason
from evaluation.metrics import (
    bootstrap_interval,
    factor_accuracy,
    invalid_causes,
    multimodality,
    plan_entropy,
    planning_metrics,
)
from evaluation.predictions import as_plan
from evaluation.text_metrics import bleu4, cider, meteor, think_text
from evaluation.waypoints import waypoint_metrics
from rewards import Decision
from rewards.actions import ALPHADRIVE, Actions

SHORT = {"ACCELERATE": "acc.", "DECELERATE": "dec."}         # in the table's columns; other names in lower case
TEXTS = {"bleu4": "BLEU-4", "cider": "CIDEr", "meteor": "METEOR"}


def score(rows: Sequence[dict], actions: Actions = ALPHADRIVE) -> dict:
    """Lines of predictions.jsonl -> metrics.json: greedy answers at the top level, samples under `sampled`."""
    truths = [as_plan(row["truth"], actions) for row in rows]
    metrics = planning_metrics(truths, [as_plan(row["decision"], actions) for row in rows],
                               acceptable_plans(rows, actions), actions)
    right = [float(row["decision"] == row["truth"]) for row in rows]
    metrics["planning_accuracy_interval"] = bootstrap_interval(right, seed=0)
    metrics["majority"] = majority(rows)
    metrics["invalid_causes"] = invalid_causes([row["text"] for row in rows],
                                               [row.get("truncated", False) for row in rows], actions)
    metrics["factors"] = factor_accuracy(right, [row.get("factors") for row in rows])
    metrics["text"] = score_reasons(rows, actions)
    if rows[0].get("sample_decisions"):
        metrics["sampled"] = score_samples(rows, actions)
    metrics["multimodality"] = temperature_curve(rows, actions)
    if "trajectory" in rows[0]:
        metrics["waypoints"] = score_waypoints(rows)
    if built_in(rows):
        metrics["bayes_ceiling"], metrics["bayes_ceiling_sampled"] = bayes_ceiling(
            [Example(id=row["id"], scene=row["scene"], decision=truth)
             for row, truth in zip(rows, truths, strict=True)])
    return metrics


def built_in(rows: Sequence[dict]) -> bool:
    """True if all rows are built-in scenes, whose facts and label odds are known."""
    return all(row.get("scene") is not None for row in rows)


def majority(rows: Sequence[dict]) -> dict:
    """The most frequent label of these scenes, and the accuracy of always answering it."""
    plan, count = Counter(row["truth"] for row in rows).most_common(1)[0]
    return {"plan": plan, "accuracy": count / len(rows)}


def acceptable_plans(rows: Sequence[dict], actions: Actions = ALPHADRIVE) -> list[list[Decision] | None]:
    """The acceptable plans of each scene, None where the data do not list them."""
    return [[as_plan(name, actions) for name in row["acceptable"]] if row.get("acceptable") else None for row in rows]


def sampled_accuracy(row: Mapping) -> float:
    """Share of a scene's samples that equal the label."""
    return row["sample_decisions"].count(row["truth"]) / len(row["sample_decisions"])


def score_samples(rows: Sequence[dict], actions: Actions = ALPHADRIVE) -> dict:
    """Metrics over all samples. Intervals resample examples, because the samples of one example are not independent."""
    flat = [(row, name) for row in rows for name in row["sample_decisions"]]
    metrics = planning_metrics([as_plan(row["truth"], actions) for row, _ in flat],
                               [as_plan(name, actions) for _, name in flat],
                               acceptable_plans([row for row, _ in flat], actions), actions)
    size = len(flat) // len(rows)
    metrics["planning_accuracy_interval"] = bootstrap_interval([sampled_accuracy(row) for row in rows], seed=0)
    if texts := [text for row in rows for text in row.get("samples") or ()]:    # a file may hold the plans alone
        cut = [flag for row in rows for flag in row.get("samples_truncated", [False] * size)]
        metrics["invalid_causes"] = invalid_causes(texts, cut, actions)
    entropies = [plan_entropy(row["sample_decisions"]) for row in rows]
    metrics["plan_entropy"] = sum(entropies) / len(entropies) if size > 1 else None     # undefined for one sample
    return metrics


def temperature_curve(rows: Sequence[dict], actions: Actions = ALPHADRIVE) -> list[dict]:
    """Multimodality at each temperature; the true label odds are known for built-in scenes."""
    truths, acceptable = [as_plan(row["truth"], actions) for row in rows], acceptable_plans(rows, actions)
    odds = [label_distribution(sample_scene(row["scene"])) for row in rows] if built_in(rows) else None
    return [{"temperature": float(heat), **multimodality(
        truths, [[as_plan(name, actions) for name in row["sweep"][heat]] for row in rows], acceptable, odds)}
        for heat in rows[0].get("sweep") or ()]


def score_reasons(rows: Sequence[dict], actions: Actions = ALPHADRIVE) -> dict | None:
    """The greedy answers' reasons against the reference reasons; for built-in scenes also against the scene."""
    rows = [row for row in rows if row.get("reason")]
    if not rows:
        return None
    said, meant = [think_text(row["text"]) for row in rows], [row["reason"] for row in rows]
    scores = {"count": len(rows), "bleu4": bleu4(said, meant), "cider": cider(said, meant),
              "meteor": meteor(said, meant)}
    if built_in(rows):
        scores["factors"] = factor_scores(said, meant, [sample_scene(row["scene"]) for row in rows])
        pairs = [(read_reason(reason), as_plan(row["decision"], actions))
                 for reason, row in zip(said, rows, strict=True)]
        scores["faithfulness"] = sum(plan in reading.supported for reading, plan in pairs) / len(rows)
        scores["consistency"] = sum(plan == reading.announced for reading, plan in pairs if plan) / len(rows)
    return scores


def score_waypoints(rows: Sequence[dict]) -> dict:
    """Way-points behind the plans: `waypoint_metrics` of the greedy answers, and of the samples under `sampled`."""
    scores = waypoint_metrics(rows, [[row["text"]] for row in rows])
    if rows[0].get("samples"):
        scores["sampled"] = waypoint_metrics(rows, [row["samples"] for row in rows])
    return scores


# ---------------------------------------------------------------- for people

def summary(metrics: dict) -> str:
    """metrics.json in a few lines."""
    low, high = metrics["planning_accuracy_interval"]
    lines = [f"greedy      planning accuracy {metrics['planning_accuracy']:.4f} (95 % {low:.4f} to {high:.4f}), speed "
             f"{metrics['speed_accuracy']:.4f}, path {metrics['path_accuracy']:.4f}, invalid "
             f"{metrics['invalid_rate']:.4f}"]
    if "sampled" in metrics:
        sampled = metrics["sampled"]
        spread = "" if sampled["plan_entropy"] is None else f", plan entropy {sampled['plan_entropy']:.3f} nats"
        lines.append(f"sampled     planning accuracy {sampled['planning_accuracy']:.4f} at T = "
                     f"{metrics['temperature']:g}, {metrics['samples_per_example']} per example{spread}")
    if "majority" in metrics:
        lines.append(f"baseline    {metrics['majority']['accuracy']:.4f} by always answering "
                     f"{metrics['majority']['plan']}, the most frequent label")
    if "bayes_ceiling" in metrics:
        lines.append(f"ceiling     {metrics['bayes_ceiling']:.4f} (Bayes; sampling the true odds gives "
                     f"{metrics['bayes_ceiling_sampled']:.4f}); the greedy answers reach "
                     f"{metrics['planning_accuracy'] / metrics['bayes_ceiling']:.3f} of it")
    if metrics.get("acceptable_accuracy") is not None:
        lines.append(f"acceptable  {metrics['acceptable_accuracy']:.4f} of the greedy answers")
    if "waypoints" in metrics:
        lines.append(waypoint_line(metrics["waypoints"]))
    for part in ("speed", "path"):
        f1 = "  ".join(f"{name} {row['f1']:.3f}" for name, row in metrics[part].items() if row["f1"] is not None)
        lines.append(f"F1 {part:<8} {f1}")
    return "\n".join(lines)


def waypoint_line(scores: Mapping) -> str:
    """`waypoint_metrics` of the greedy answers in one line."""
    found = "no readable way-points of which the expert's are known" if scores["ade"] is None else (
        f"ADE {scores['ade']:.2f} m (95 % {scores['ade_interval'][0]:.2f} to {scores['ade_interval'][1]:.2f}), FDE "
        f"{scores['fde']:.2f} m")
    driven = f", PDMS-like {scores['pdms']:.4f}" if "pdms" in scores else ""
    return (f"way-points  {found}{driven}; {scores['well_formed']:.4f} well-formed, {scores['agreement']:.4f} agree "
            "with their plan")


def coverage(metrics: Mapping) -> str:
    """How many of how many examples were scored: `2,000 of 5,312 examples scored; --limit 0 scores all`."""
    count, available, skipped = metrics["count"], metrics.get("available"), metrics.get("skipped", 0)
    scored = f"{count:,} built-in scenes scored" if available is None else f"{count:,} of {available:,} examples scored"
    left_out = f"; {skipped:,} skipped, see skipped.jsonl" if skipped else ""
    return scored + left_out + ("; --limit 0 scores all" if available and count + skipped < available else "")


def paper_row(metrics: Mapping) -> dict[str, float | None]:
    """Column -> value of AlphaDrive's Table 1 (arXiv:2503.07608), from a metrics.json; fractions, CIDEr 0 to 10.

    Paths are the paper's three: a lane change counts as its side. Other actions have the columns of their own names.
    Acc. is of the full plan with nine actions, so that it is comparable with the Bayes ceiling beside it. None where
    nothing was measured.
    """
    paths, texts = metrics.get("paper", metrics)["path"], metrics.get("text") or {}
    return {"Acc.": metrics["planning_accuracy"], "ceiling": metrics.get("bayes_ceiling"),
            **{f"{part} {SHORT.get(action, action.lower())}": row["f1"]
               for part, scores in (("path", paths), ("speed", metrics["speed"])) for action, row in scores.items()},
            **{name: texts.get(key) for key, name in TEXTS.items()}}


def paper_table(runs: Mapping[str, Mapping]) -> str:
    """Name -> metrics.json as a Markdown table: `paper_row` x 100, with the interval of the accuracy."""
    rows = []
    for name, metrics in runs.items():
        cells = {column: "-" if value is None else f"{100 * value:.1f}" for column, value in paper_row(metrics).items()}
        low, high = metrics["planning_accuracy_interval"]
        cells["Acc."] += f" ({100 * low:.1f} to {100 * high:.1f})"
        rows.append({"run": name, "scenes": str(metrics["count"]), **cells})
    columns = tuple(dict.fromkeys(column for row in rows for column in row))    # runs may have different actions
    return table(columns, [tuple(row.get(column, "-") for column in columns) for row in rows])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
                     for line in lines)
