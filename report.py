"""Compare runs: `python report.py RUN [RUN ...]` prints a table, a verdict for each earlier run (which misses
braking less often), and writes LAST_RUN/report.html.

The page is about the last run; earlier ones, such as runs/sft, are shown for comparison. It is a single file without
external parts, made from what train.py and eval.py wrote. Missing files are named. It works while a run is going on:
make it again and reload the page.
"""

import sys

from evaluation.page.build import build_page
from evaluation.page.runs import Run, read_runs, unfinished
from evaluation.page.scores import verdicts
from evaluation.page.trajectories import text_table
from evaluation.scoring import table
from storage import write_text

HEADER = ("run", "greedy accuracy (95 %)", "sampled accuracy", "sampled braking cost", "greedy acceptable",
          "greedy invalid", "sampled plan entropy", "greedy, of ceiling")


def main(arguments: list[str]) -> None:
    """Print the table and write the page, or say what is missing."""
    if {"-h", "--help"} & {*arguments}:
        print(__doc__)
        return
    if not arguments:
        sys.exit(f"{__doc__}\nerror: name at least one run directory, e.g. runs/sft runs/grpo")
    try:
        runs = read_runs(arguments)
        page = runs[-1].folder / "report.html"
        write_text(page, build_page(runs))
        told = [line for run in runs[:-1] for line in verdicts(runs[-1], run)]
    except (OSError, ValueError) as fault:
        sys.exit(f"error: {fault}")
    if runs[-1].drives:
        print(table(*text_table(runs)))
    else:
        print("\n".join([table(HEADER, [row(run) for run in runs]), *told]))
    for run in runs:
        if so_far := unfinished(run):
            print(f"{run.folder} is at {so_far}")
    print(f"written to {page}")


def row(run: Run) -> tuple[str, ...]:
    """The cells of one run; dashes where nothing was measured."""
    metrics, sampled = run.metrics, run.metrics.get("sampled", {})
    accuracy, ceiling = metrics.get("planning_accuracy"), metrics.get("bayes_ceiling")
    low, high = metrics.get("planning_accuracy_interval", (None, None))
    greedy = number(accuracy) + (f" ({low:.3f} to {high:.3f})" if low is not None else "")
    heat = metrics.get("temperature") if sampled else None
    drawn = number(sampled.get("planning_accuracy")) + ("" if heat in (None, 1) else f" (T = {heat:g})")
    return (str(run.folder), greedy, drawn,
            number(sampled.get("safety", {}).get("cost")), number(metrics.get("acceptable_accuracy")),
            number(metrics.get("invalid_rate")), number(sampled.get("plan_entropy")),
            number(accuracy / ceiling if ceiling else None))


def number(value: float | None) -> str:
    """Three decimals; a dash for None."""
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")        # a terminal may lack the letters of a model or a path
    main(sys.argv[1:])
