"""How lean and how fast `load_model` is: `python benchmarks/load.py --output benchmarks/results/load.json`.

Writes a checkpoint of Qwen2-VL-2B's shape with random bfloat16 weights (4.4 GB) into a temporary directory. Then, in
turns and each time in a fresh process, reads the file once with a 16 MiB buffer and loads it with dtype=bfloat16. With
an unchanged dtype the parameters are the file's own mapped pages, so two times are given: until load_model returns, and
until every page of every parameter has been read too. Prints one JSON object on its last line.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from models import load_model, save_model  # noqa: E402
from models.config import PRESETS  # noqa: E402
from models.qwen2_vl import Qwen2VL  # noqa: E402

PEAK_LIMIT, TIME_LIMIT = 1.15, 1.3
PAGE, BUFFER = 4096, 1 << 24


def main() -> None:
    """Run the whole comparison, or one of its steps in the process that was started for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="fresh processes of each kind")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="2b")
    parser.add_argument("--directory", help="where the temporary checkpoint goes (default: the system's)")
    parser.add_argument("--output", type=Path, help="write the JSON object to this file")
    parser.add_argument("--step", choices=sorted(STEPS), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.step:
        print(json.dumps(STEPS[flags.step](Path(flags.directory), flags.preset)))
        return
    with tempfile.TemporaryDirectory(dir=flags.directory) as folder:
        record = compare(Path(folder), flags.preset, flags.rounds)
    if flags.output:
        flags.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def compare(folder: Path, preset: str, rounds: int) -> dict:
    """Medians over the rounds. The first round of each kind warms the page cache and is not counted."""
    size = child("make", folder, preset)["bytes"]
    runs = {"read": [], "load": []}
    for _ in range(rounds + 1):
        for step, results in runs.items():
            results.append(child(step, folder, preset))
    reads, loads = runs["read"][1:], runs["load"][1:]

    def median(results: list[dict], name: str) -> float:
        return statistics.median(result[name] for result in results)

    read_s, peak = median(reads, "seconds"), max(result["peak_bytes"] for result in loads) / size
    record = {"preset": preset, "checkpoint_bytes": size, "rounds": rounds, "read_s": read_s,
              "load_s": median(loads, "seconds"), "load_and_touch_s": median(loads, "touched_seconds"),
              "all_reads_s": [result["seconds"] for result in reads],
              "all_load_and_touch_s": [result["touched_seconds"] for result in loads],
              "peak_over_size": peak, "start_over_size": median(loads, "start_bytes") / size}
    record["load_and_touch_over_read"] = record["load_and_touch_s"] / read_s
    record["passed"] = peak <= PEAK_LIMIT and record["load_and_touch_over_read"] <= TIME_LIMIT
    return {**record, "torch": torch.__version__, "python": platform.python_version(),
            "machine": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()}


def child(step: str, folder: Path, preset: str) -> dict:
    """One step in a process of its own, whose peak memory is therefore its own."""
    command = [sys.executable, __file__, "--step", step, "--directory", str(folder), "--preset", preset]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make(folder: Path, preset: str) -> dict:
    """Write the checkpoint: normal weights with std 1 / sqrt(inputs)."""
    with torch.device("meta"):
        model = Qwen2VL(PRESETS[preset]).to(torch.bfloat16)
    size = sum(parameter.nbytes for parameter in model.parameters())
    if (free := shutil.disk_usage(folder).free) < 1.1 * size:
        raise SystemExit(f"error: {folder} has {free / 1e9:.1f} GB free, the checkpoint needs {size / 1e9:.1f} GB; "
                         "name another place with --directory")
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    save_model(model, folder)
    return {"bytes": size}


def read(folder: Path, _preset: str) -> dict:
    """Read the file once into a small buffer: the least that any copying loader must do."""
    buffer = bytearray(BUFFER)
    start = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return {"seconds": time.perf_counter() - start}


def load(folder: Path, _preset: str) -> dict:
    """Load, then read one value of each page of each parameter."""
    start_bytes = peak_bytes()
    start = time.perf_counter()
    model = load_model(folder, dtype=torch.bfloat16)
    seconds = time.perf_counter() - start
    for parameter in model.parameters():
        parameter.detach().view(-1)[::PAGE // parameter.element_size()].sum()
    return {"seconds": seconds, "touched_seconds": time.perf_counter() - start, "start_bytes": start_bytes,
            "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """The largest resident memory this process ever had; Linux counts kilobytes, macOS bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


STEPS = {"make": make, "read": read, "load": load}

if __name__ == "__main__":
    main()
