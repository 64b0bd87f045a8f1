"""Does the demo's GRPO miss fewer brakes than its SFT? `python benchmarks/demo_gain.py`: `make demo` on five seeds.

Writes benchmarks/results/demo_gain.json, whose table `benchmarks/results.py --table` puts into its page: per seed the
seconds of the whole command, the scores of the three models, and the paired differences that report.py prints. Only the
seconds need an idle machine.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measure import machine_record  # noqa: E402
from benchmarks.tables import DEMO  # noqa: E402
from evaluation.comparison import braking_difference, joined  # noqa: E402
from evaluation.page.runs import Run, read_runs  # noqa: E402
from storage import write_json  # noqa: E402

RUNS = ("sft", "sft-continued", "grpo")


def main(arguments: Sequence[str]) -> None:
    """Run the demo on every seed; write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    record = {**machine_record(torch.device("cpu")), "seeds": {}}
    for seed in parser.parse_args(arguments).seeds:
        began = time.monotonic()
        subprocess.run(["make", "demo", f"SEED={seed}"], cwd=ROOT, check=True)
        record["seeds"][str(seed)] = {"seconds": round(time.monotonic() - began), **outcome(seed)}
        write_json(record, DEMO)


def outcome(seed: int) -> dict:
    """Scores of the three models, and how GRPO compares with both others.

    Raises: ValueError if the runs are not of this seed."""
    runs = dict(zip(RUNS, read_runs([str(ROOT / "runs" / name) for name in RUNS]), strict=True))
    if runs["sft"].config["seed"] != seed:
        raise ValueError(f"runs/sft has seed {runs['sft'].config['seed']}, not {seed}")
    pairs = {"grpo - sft": ("sft", "grpo"), "grpo - sft-continued": ("sft-continued", "grpo"),
             "sft-continued - sft": ("sft", "sft-continued")}
    return {"scores": {name: scores(run) for name, run in runs.items()}, "braking": {
        name: braking_difference(*joined(runs[base].predictions, runs[other].predictions))
        for name, (base, other) in pairs.items()}}


def scores(run: Run) -> dict[str, float]:
    """What the table of report.py shows of a run."""
    metrics, sampled = run.metrics, run.metrics["sampled"]
    greedy = metrics["planning_accuracy"]
    return {"greedy": greedy, "of_ceiling": greedy / metrics["bayes_ceiling"],
            "acceptable": metrics["acceptable_accuracy"], "sampled": sampled["planning_accuracy"],
            "acceptable_sampled": sampled["acceptable_accuracy"], "braking_cost": sampled["safety"]["cost"],
            "invalid_sampled": sampled["invalid_rate"], "seconds": sum(step["seconds"] for step in run.steps)}


if __name__ == "__main__":
    main(sys.argv[1:])
