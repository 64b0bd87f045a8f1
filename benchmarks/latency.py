"""Latency of `eval.py --images -`: one request at a time, greedy and with 16 samples, median and range of 30.

    python benchmarks/latency.py --model runs/grpo/model          # -> benchmarks/results/latency.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import machine_record, write_record  # noqa: E402
from data.dataset import open_image  # noqa: E402
from data.scenes import scene_examples  # noqa: E402


def main() -> None:
    """Time a planner process that answers scenes of the test split, drawn as picture files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/grpo/model")
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/latency.json")
    flags = parser.parse_args()
    record = {"requests": flags.requests, "threads": flags.threads}
    with tempfile.TemporaryDirectory() as folder:
        requests = []
        for example in scene_examples("test", flags.requests + 1):
            open_image(example).save(f"{folder}/{example.id}.png")
            requests.append({"image": f"{example.id}.png", "speed": example.speed, "navigation": example.navigation})
        for samples in (1, 16):
            times = answered(folder, requests, samples, flags)[1:]      # the first one waits for the model's load
            low, *_, high = sorted(times)
            record[f"samples_{samples}"] = {"median": statistics.median(times), "least": low, "most": high}
            print(f"{samples} samples: median {statistics.median(times):.3f} s, {low:.3f} to {high:.3f} s")
    write_record({"benchmark": "latency", **record, **machine_record(torch.device("cpu"))}, flags.output)


def answered(folder: str, requests: list[dict], samples: int, flags: argparse.Namespace) -> list[float]:
    """Seconds from writing each request to reading its answer."""
    command = [sys.executable, ROOT / "eval.py", "--model", Path(flags.model).resolve(), "--images", "-", "--samples",
               str(samples), "--threads", str(flags.threads)]
    times = []
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as planner:
        for request in requests:
            started = time.monotonic()
            planner.stdin.write(json.dumps(request).encode() + b"\n")
            planner.stdin.flush()
            assert "plan" in json.loads(planner.stdout.readline())
            times.append(time.monotonic() - started)
        planner.stdin.close()
        planner.wait()
    return times


if __name__ == "__main__":
    main()
