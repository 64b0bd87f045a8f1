"""Put runs side by side: `python report.py RUN [RUN ...]` prints a table from each RUN/eval-test/metrics.json."""

import json
import sys
from pathlib import Path

HEADER = ("run", "greedy accuracy (95 %)", "T = 1 accuracy", "acceptable", "invalid", "plan entropy", "of ceiling")


def main(arguments: list[str]) -> None:
    """Print the table, or say what is missing."""
    if not arguments:
        sys.exit(f"{__doc__}\nerror: name at least one run directory, e.g. runs/sft runs/grpo")
    try:
        rows = [row(Path(run)) for run in arguments]
    except (FileNotFoundError, ValueError) as fault:
        sys.exit(f"error: {fault}")
    print(table(HEADER, rows))


def row(run: Path) -> tuple[str, ...]:
    """One run's cells. Raises: FileNotFoundError naming what to do when the run was never scored."""
    file = run / "eval-test" / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: run `python eval.py --model {run / 'model'}` first")
    try:
        metrics = json.loads(file.read_text())
    except json.JSONDecodeError as fault:
        raise ValueError(f"{file} is no JSON ({fault}): score the run again") from fault
    low, high = metrics["planning_accuracy_interval"]
    sampled = metrics.get("sampled", {})
    ceiling = metrics.get("bayes_ceiling")
    return (str(run), f"{metrics['planning_accuracy']:.3f} ({low:.3f} to {high:.3f})",
            number(sampled.get("planning_accuracy")), number(metrics.get("acceptable_accuracy")),
            number(metrics["invalid_rate"]), number(sampled.get("plan_entropy")),
            number(metrics["planning_accuracy"] / ceiling if ceiling else None))


def number(value: float | None) -> str:
    """Three decimals; a dash for what is not known."""
    return "-" if value is None else f"{value:.3f}"


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
                     for line in lines)


if __name__ == "__main__":
    main(sys.argv[1:])
