"""What busy neighbours cost: `python benchmarks/neighbours.py --output benchmarks/results/neighbours.json`.

Times a sampling call of the tiny model alone, beside two and beside three processes that keep a core busy each, with
the OpenMP settings of the scripts (machine.py), without them, and with one thread. Every time is of a process of its
own; settings and neighbours alternate. Prints a table of medians, and the ratios to the default settings alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from machine import settings  # noqa: E402

NEIGHBOURS = (0, 2, 3)
DEFAULTS = {"GOMP_SPINCOUNT": "300000", "OMP_PROC_BIND": "false"}              # what libgomp does if nothing is set
BASE = "OpenMP's defaults"
CHOICES = {"scripts": settings({}, []), BASE: DEFAULTS, "one thread": {**DEFAULTS, "OMP_NUM_THREADS": "1"}}


def main() -> None:
    """Measure in turns and print the record; with --work, be the process that is timed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the JSON object to this file")
    parser.add_argument("--skip-defaults", action="store_true", help="OpenMP's defaults alone only: beside neighbours "
                                                                     "a call may take minutes")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.work:
        print(json.dumps(timed_call()))
        return
    times = {(name, count): [] for name in CHOICES for count in NEIGHBOURS
             if not (flags.skip_defaults and name == BASE and count)}
    for number in range(flags.rounds):
        for name, count in times:
            times[name, count].append(measure(CHOICES[name], count))
        print(f"round {number + 1} of {flags.rounds}", file=sys.stderr, flush=True)
    record = record_of(times)
    if flags.output:
        flags.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def timed_call() -> dict:
    """Seconds of one call: 16 prompts, 8 samples each, at most 48 tokens, an untrained tiny model."""
    import torch

    from data.dataset import open_image
    from data.scenes import scene_examples
    from grpo.engine.prompts import PromptSettings, encode_example
    from grpo.engine.setup import make_tiny
    from grpo.fast.sampler import Sampler
    from grpo.sampling import uniform_table

    policy, processor = make_tiny(0)
    examples, chosen = scene_examples("rl", 16), PromptSettings("compact", max_new_tokens=48)
    prompts = [encode_example(e, open_image(e), processor, policy.config, chosen) for e in examples]
    sampler, uniforms = Sampler(policy, processor, 1.0, 48), uniform_table(0, 0, range(16), 8, 48)
    sampler.sample(prompts, uniforms)                                           # warm-up
    began = time.monotonic()
    for _ in range(3):
        rollout = sampler.sample(prompts, uniforms)
    return {"seconds": (time.monotonic() - began) / 3, "threads": torch.get_num_threads(),
            "check": int(rollout.completion_ids.sum())}


def measure(environment: dict[str, str], count: int) -> dict:
    """One timed process beside `count` busy ones."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        done = subprocess.run([sys.executable, __file__, "--work"], env={**clean, **environment}, cwd=ROOT,
                              capture_output=True, text=True, check=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return json.loads(done.stdout.splitlines()[-1])


def record_of(times: dict[tuple[str, int], list[dict]]) -> dict:
    """Medians, spread, and ratios to OpenMP's defaults alone."""
    base = statistics.median(run["seconds"] for run in times[BASE, 0])
    rows = []
    for (name, count), runs in times.items():
        seconds = sorted(run["seconds"] for run in runs)
        rows.append({"settings": name, "variables": CHOICES[name], "neighbours": count,
                     "median": statistics.median(seconds), "least": seconds[0], "most": seconds[-1],
                     "ratio": statistics.median(seconds) / base, "threads": runs[0]["threads"]})
    same = len({run["check"] for (name, _), runs in times.items() for run in runs if name != "one thread"}) == 1
    model = next((line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if "model name" in line),
                 platform.processor())
    return {"benchmark": "neighbours", "cpu": model, "cores": os.cpu_count(), "samples_equal": same, "rows": rows}


def table(record: dict) -> str:
    """The record as Markdown."""
    lines = [f"{record['cpu']}, {record['cores']} cores; samples of both settings equal: {record['samples_equal']}", "",
             "| settings | neighbours | seconds | least to most | ratio |", "|---|---:|---:|---|---:|"]
    return "\n".join([*lines, *(f"| {row['settings']} | {row['neighbours']} | {row['median']:.2f} | "
                                f"{row['least']:.2f} to {row['most']:.2f} | {row['ratio']:.2f} |"
                                for row in record["rows"])])


if __name__ == "__main__":
    main()
