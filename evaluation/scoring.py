"""From predictions to numbers: metrics.json, the row of AlphaDrive's Table 1, and planners side by side.

Everything here is a function of the lines of predictions.jsonl, which `eval.py: prediction` writes: a file that was
kept can be scored again, and several can be compared, without a model. docs/evaluation.md explains each number.
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
    mcnemar,
    multimodality,
    paired_interval,
    plan_entropy,
    planning_metrics,
)
from evaluation.text_metrics import bleu4, cider, meteor, think_text
from rewards import Decision

SPEEDS = {"KEEP": "keep", "ACCELERATE": "acc.", "DECELERATE": "dec.", "STOP": "stop"}
PATHS = {"STRAIGHT": "straight", "LEFT": "left", "RIGHT": "right"}
TEXTS = {"bleu4": "BLEU-4", "cider": "CIDEr", "meteor": "METEOR"}


def score(rows: Sequence[dict]) -> dict:
    """Lines of predictions.jsonl -> metrics.json: greedy answers at the top level, samples under `sampled`."""
    truths, acceptable = [as_plan(row["truth"]) for row in rows], acceptable_plans(rows)
    metrics = planning_metrics(truths, [as_plan(row["decision"]) for row in rows], acceptable)
    right = [float(row["decision"] == row["truth"]) for row in rows]
    metrics["planning_accuracy_interval"] = bootstrap_interval(right, seed=0)
    metrics["majority"] = majority(rows)
    metrics["invalid_causes"] = invalid_causes([row["text"] for row in rows],
                                               [row.get("truncated", False) for row in rows])
    metrics["factors"] = factor_accuracy(right, [row.get("factors") for row in rows])
    metrics["text"] = score_reasons(rows)
    if rows[0].get("sample_decisions"):
        metrics["sampled"] = score_samples(rows)
    metrics["multimodality"] = curve(rows)
    if all(row.get("scene") is not None for row in rows):
        metrics["bayes_ceiling"], metrics["bayes_ceiling_sampled"] = bayes_ceiling(
            [Example(id=row["id"], scene=row["scene"], decision=truth)
             for row, truth in zip(rows, truths, strict=True)])
    return metrics


def majority(rows: Sequence[dict]) -> dict:
    """The commonest label of these scenes, and how often who always answers it is right."""
    plan, count = Counter(row["truth"] for row in rows).most_common(1)[0]
    return {"plan": plan, "accuracy": count / len(rows)}


def as_plan(name: str | None) -> Decision | None:
    """`STOP, STRAIGHT` -> Decision."""
    return None if name is None else Decision(*name.split(", "))


def acceptable_plans(rows: Sequence[dict]) -> list[list[Decision] | None]:
    """Of each scene, None where the data do not say."""
    return [[as_plan(name) for name in row["acceptable"]] if row.get("acceptable") else None for row in rows]


def score_samples(rows: Sequence[dict]) -> dict:
    """Metrics over all samples; intervals are over examples, since one example's samples go together."""
    flat = [(row, name) for row in rows for name in row["sample_decisions"]]
    metrics = planning_metrics([as_plan(row["truth"]) for row, _ in flat], [as_plan(name) for _, name in flat],
                               acceptable_plans([row for row, _ in flat]))
    size = len(flat) // len(rows)
    metrics["planning_accuracy_interval"] = bootstrap_interval(
        [row["sample_decisions"].count(row["truth"]) / size for row in rows], seed=0)
    cut = [flag for row in rows for flag in row.get("samples_truncated", [False] * size)]
    metrics["invalid_causes"] = invalid_causes([text for row in rows for text in row["samples"]], cut)
    entropies = [plan_entropy(row["sample_decisions"]) for row in rows]
    metrics["plan_entropy"] = sum(entropies) / len(entropies) if size > 1 else None  # one sample has no spread
    return metrics


def curve(rows: Sequence[dict]) -> list[dict]:
    """Multimodality at each temperature; the true odds are known for built-in scenes."""
    odds = None
    if all(row.get("scene") is not None for row in rows):
        odds = [label_distribution(sample_scene(row["scene"])) for row in rows]
    return [{"temperature": float(heat), **multimodality(
        [as_plan(row["truth"]) for row in rows], [[as_plan(name) for name in row["sweep"][heat]] for row in rows],
        acceptable_plans(rows), odds)} for heat in rows[0].get("sweep") or ()]


def score_reasons(rows: Sequence[dict]) -> dict | None:
    """The greedy answers' reasons beside the references, where there is one; of built-in scenes what they say, too."""
    rows = [row for row in rows if row.get("reason")]
    if not rows:
        return None
    said, meant = [think_text(row["text"]) for row in rows], [row["reason"] for row in rows]
    scores = {"count": len(rows), "bleu4": bleu4(said, meant), "cider": cider(said, meant),
              "meteor": meteor(said, meant)}
    if all(row.get("scene") is not None for row in rows):
        scores["factors"] = factor_scores(said, meant, [sample_scene(row["scene"]) for row in rows])
        pairs = [(read_reason(reason), as_plan(row["decision"])) for reason, row in zip(said, rows, strict=True)]
        scores["faithfulness"] = sum(plan in reading.supported for reading, plan in pairs) / len(rows)
        scores["consistency"] = sum(plan == reading.announced for reading, plan in pairs if plan) / len(rows)
    return scores


def summary(metrics: dict) -> str:
    """A few lines for people."""
    low, high = metrics["planning_accuracy_interval"]
    lines = [f"planning accuracy {metrics['planning_accuracy']:.4f} greedy (95 % {low:.4f} to {high:.4f}), speed "
             f"{metrics['speed_accuracy']:.4f}, path {metrics['path_accuracy']:.4f}, invalid "
             f"{metrics['invalid_rate']:.4f}"]
    if "sampled" in metrics:
        sampled = metrics["sampled"]
        spread = "" if sampled["plan_entropy"] is None else f", plan entropy {sampled['plan_entropy']:.3f} nats"
        lines.append(f"                  {sampled['planning_accuracy']:.4f} at T = {metrics['temperature']:g}, "
                     f"{metrics['samples_per_example']} per example{spread}")
    if "majority" in metrics:
        lines.append(f"                  {metrics['majority']['accuracy']:.4f} has who always answers "
                     f"{metrics['majority']['plan']}, the commonest label")
    if "bayes_ceiling" in metrics:
        lines.append(f"                  {metrics['bayes_ceiling']:.4f} is the Bayes ceiling (sampled "
                     f"{metrics['bayes_ceiling_sampled']:.4f}); greedy reaches "
                     f"{metrics['planning_accuracy'] / metrics['bayes_ceiling']:.3f} of it")
    if metrics.get("acceptable_accuracy") is not None:
        lines.append(f"                  {metrics['acceptable_accuracy']:.4f} greedy answers are an acceptable plan")
    for part in ("speed", "path"):
        f1 = "  ".join(f"{name} {row['f1']:.3f}" for name, row in metrics[part].items() if row["f1"] is not None)
        lines.append(f"F1 {part}: {f1}")
    return "\n".join(lines)


# ---------------------------------------------------------------- tables and comparisons

def paper_row(metrics: Mapping) -> dict[str, float | None]:
    """Column -> value of AlphaDrive's Table 1 (arXiv:2503.07608), from a metrics.json; fractions, CIDEr 0 to 10.

    Paths are the paper's three: a lane change counts as its side. Acc. is of the full plan, speed and path of nine
    actions, because the Bayes ceiling beside it is; None where nothing was measured.
    """
    paths, texts = metrics["paper"]["path"], metrics.get("text") or {}
    return {"Acc.": metrics["planning_accuracy"], "ceiling": metrics.get("bayes_ceiling"),
            **{f"path {name}": paths[action]["f1"] for action, name in PATHS.items()},
            **{f"speed {name}": metrics["speed"][action]["f1"] for action, name in SPEEDS.items()},
            **{name: texts.get(key) for key, name in TEXTS.items()}}


def paper_table(runs: Mapping[str, Mapping]) -> str:
    """Name -> metrics.json of some runs, as a Markdown table: `paper_row`, x 100, with the interval of the accuracy."""
    rows = []
    for name, metrics in runs.items():
        cells = {column: "-" if value is None else f"{100 * value:.1f}" for column, value in paper_row(metrics).items()}
        low, high = metrics["planning_accuracy_interval"]
        cells["Acc."] += f" ({100 * low:.1f} to {100 * high:.1f})"
        rows.append({"run": name, "scenes": str(metrics["count"]), **cells})
    return table(tuple(rows[0]), [tuple(row.values()) for row in rows])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
                     for line in lines)


def common_scenes(runs: Mapping[str, Sequence[Mapping]]) -> dict[str, list[Mapping]]:
    """Each run's predictions of the scenes that all have, joined on `id` and in the order of the first run.

    Raises: ValueError if there is none, if a file holds an id twice, or if two files disagree on a scene's truth.
    """
    tables = {name: {row["id"]: row for row in rows} for name, rows in runs.items()}
    for name, rows in runs.items():
        if len(tables[name]) < len(rows):
            raise ValueError(f"{name} answers some id twice: score that model again")
    first = next(iter(runs))
    ids = [row["id"] for row in runs[first] if all(row["id"] in table for table in tables.values())]
    if not ids:
        raise ValueError(f"{' and '.join(runs)} have no scene in common: score them on the same split and "
                         "prior")
    for key in ids:
        truths = {name: table[key]["truth"] for name, table in tables.items()}
        if len(set(truths.values())) > 1:
            raise ValueError(f"scene {key} has different truths: {truths}; score the runs on the same data")
    return {name: [table[key] for key in ids] for name, table in tables.items()}


def paired_difference(base: Sequence[Mapping], other: Sequence[Mapping]) -> dict:
    """Planning accuracy of `other` minus that of `base` on the same scenes, in the same order.

    "greedy": difference, interval (paired bootstrap over scenes), only_base, only_other and p_value of the exact
    McNemar test. "sampled": difference and interval of the share of right samples; None where a run has no samples.
    """
    right = [[float(row["decision"] == row["truth"]) for row in rows] for rows in (base, other)]
    test = mcnemar(*right)
    result = {"greedy": {**_difference(*right), "only_base": test["only_a"], "only_other": test["only_b"],
                         "p_value": test["p_value"]}, "sampled": None}
    if all(row.get("sample_decisions") for row in (*base, *other)):
        shares = [[row["sample_decisions"].count(row["truth"]) / len(row["sample_decisions"]) for row in rows]
                  for rows in (base, other)]
        result["sampled"] = _difference(*shares)
    return result


def _difference(base: Sequence[float], other: Sequence[float]) -> dict:
    return {"difference": (sum(other) - sum(base)) / len(base), "interval": paired_interval(other, base, seed=0)}


def difference_text(name: str, base: str, found: Mapping) -> str:
    """`paired_difference` in words, in points of planning accuracy."""
    def points(part: Mapping) -> str:
        low, high = (100 * end for end in part["interval"])
        return f"{100 * part['difference']:+.1f} (95 % {low:+.1f} to {high:+.1f})"
    greedy, sampled = found["greedy"], found["sampled"]
    lines = [f"{name} minus {base}, points of planning accuracy:",
             f"  greedy   {points(greedy)}; right alone {greedy['only_other']} and {greedy['only_base']} scenes, exact "
             f"McNemar p = {greedy['p_value']:.2g}"]
    return "\n".join([*lines, f"  sampled  {points(sampled)}"] if sampled else lines)
