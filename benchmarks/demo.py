"""The demo's steps and its evaluation, in this tree and in an earlier one in turns.

    git worktree add ../before 39fd720
    python benchmarks/demo.py --before ../before --rounds 7 --output benchmarks/results/demo_speed.json

Each round runs the demo's commands in both trees, with fewer steps: SFT and GRPO from one SFT model of this tree, and
`eval.py --limit 1000`, which counts from start to exit. A step's time is the median over the steps of a run but the
first three. Page faults and processor time are those of the whole process. The ratios are taken round by round.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measure import machine_record, write_record  # noqa: E402

FIRST = {"sft": 48, "grpo": 3}     # steps that a run's median leaves out; SFT: the first pass over its 3,000 scenes
STEPS = {"sft": 56, "grpo": 14}
PARTS = {"SFT step": "step", "GRPO step": "step", "evaluation": "seconds"}      # and which time of `measure` counts
WARM_UP = 300                       # SFT steps of the model that GRPO starts from and eval.py scores


def run(tree: Path, *arguments: str) -> dict[str, float]:
    """Run one of a tree's scripts. -> seconds, processor seconds of the user and of the kernel, page faults."""
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], cwd=tree, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"`python {' '.join(arguments)}` failed in {tree}")
    return {"seconds": time.perf_counter() - began, "user": used.ru_utime, "kernel": used.ru_stime,
            "page_faults": used.ru_minflt}


def train(tree: Path, stage: str, out: Path, *flags: str) -> dict[str, float]:
    """Some steps of a stage. -> `run`, and `step`, the median seconds of a step."""
    found = run(tree, "train.py", "--stage", stage, "--steps", str(STEPS[stage]), "--eval-every", "0",
                "--eval-examples", "32", "--output", str(out), "--overwrite", *flags)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {**found, "step": statistics.median(record["seconds"] for record in records[FIRST[stage]:])}


def measure(tree: Path, start: Path, out: Path, parts: Sequence[str]) -> dict[str, dict[str, float]]:
    """One round in one tree."""
    found = {"SFT step": lambda: train(tree, "sft", out / "sft"),
             "GRPO step": lambda: train(tree, "grpo", out / "grpo", "--model", str(start)),
             "evaluation": lambda: run(tree, "eval.py", "--model", str(start), "--limit", "1000", "--output",
                                       str(out / "eval"), "--overwrite")}
    return {part: found[part]() for part in parts}


def interval(ratios: Sequence[float]) -> list[float]:
    """95 % interval of the median, by resampling the rounds."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(4000))
    return [round(medians[100], 3), round(medians[3899], 3)]


def summary(rounds: Sequence[dict[str, dict]]) -> dict[str, dict]:
    """Medians of both trees, and the ratio of the times, round by round."""
    found = {}
    for part in rounds[0]["now"]:
        key = PARTS[part]
        ratios = [turn["before"][part][key] / turn["now"][part][key] for turn in rounds]
        found[part] = {
            **{tree: {name: round(statistics.median(turn[tree][part][name] for turn in rounds), 3)
                      for name in rounds[0][tree][part]} for tree in ("before", "now")},
            "times_faster": round(statistics.median(ratios), 3), "interval": interval(ratios)}
    return found


def main(arguments: Sequence[str]) -> None:
    """Warm up, measure in turns, print the record."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the earlier commit")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/demo-speed", help="folder of all runs")
    parser.add_argument("--output", type=Path, help="write the record to this file too")
    options = parser.parse_args(arguments)
    trees, folder = {"before": options.before.resolve(), "now": ROOT}, options.runs.resolve()
    start = folder / "start/model"
    if not start.is_dir() and options.parts != ["SFT step"]:
        run(ROOT, "train.py", "--stage", "sft", "--steps", str(WARM_UP), "--output", str(start.parent), "--overwrite")
    rounds = []
    for turn in range(options.rounds):
        order = list(trees) if turn % 2 else list(trees)[::-1]
        rounds.append({name: measure(trees[name], start, folder / name, options.parts) for name in order})
        shutil.rmtree(folder / "before", ignore_errors=True)
        print(f"round {turn + 1}: " + ", ".join(f"{part} {found['times_faster']}"
                                                for part, found in summary(rounds[-1:]).items()), flush=True)
    before = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=trees["before"], capture_output=True,
                            text=True, check=True).stdout.strip()
    write_record({"benchmark": "demo", **machine_record(torch.device("cpu")), "before": before,
                  "rounds": options.rounds, "steps": STEPS, **summary(rounds)}, options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
