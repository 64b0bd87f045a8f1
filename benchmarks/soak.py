"""Kill a GRPO run at random moments and compare what comes out with a run left in peace: `make soak`.

The tiny model first learns a little (SFT), so that its answers earn different rewards. Then the same GRPO command runs
once undisturbed, and once under SIGKILL at random moments with `--resume auto`, until it is done. Every line of
metrics.jsonl and samples.jsonl (times aside), the model and the last state must be equal to the bit. Prints JSON: kills
survived, how many of them struck while a state was being written or before the first step, and the growth of memory.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ("metrics.jsonl", "samples.jsonl")
GRPO = ("--stage", "grpo", "--preset", "demo", "--scenes", "64", "--prompts-per-step", "2", "--group-size", "4",
        "--max-new-tokens", "16", "--eval-examples", "4", "--eval-every", "50", "--updates-per-rollout", "2",
        "--dynamic-sampling", "1", "--beta", "0.01", "--ent-coef", "0.01", "--samples-every", "10", "--keep", "2",
        "--device", "cpu", "--threads", "1")


def start(log: Path, *flags: str) -> subprocess.Popen:
    """train.py as a process of its own, its output added to a log file."""
    with open(log, "a") as stream:
        return subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT, stdout=stream, stderr=stream)


def finish(process: subprocess.Popen, log: Path) -> None:
    """Wait for the end. Raises: RuntimeError if it is an error."""
    if process.wait():
        raise RuntimeError(f"train.py ended with {process.returncode}; see {log}")


def lines(file: Path) -> int:
    """Whole lines of a log, 0 if there is none."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def resident(process: int) -> int:
    """Resident memory of a process in bytes, 0 once it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def undisturbed(out: Path, log: Path, flags: list[str]) -> dict[str, float]:
    """Run to the end -> seconds until the first step, seconds per step, growth of memory in the second half."""
    began, first, points = time.monotonic(), None, []
    process = start(log, *flags, "--output", str(out))
    while process.poll() is None:
        step, size = lines(out / "metrics.jsonl"), resident(process.pid)
        first = first or (time.monotonic() - began if step else None)
        points += [(step, size)] if step and size else []
        time.sleep(0.05)
    finish(process, log)
    steps, start_up = lines(out / "metrics.jsonl"), first or time.monotonic() - began
    late = [(step, size) for step, size in points if step >= steps / 2]
    return {"start_seconds": start_up, "step_seconds": (time.monotonic() - began - start_up) / steps,
            "rss_mb": max(size for _, size in points) / 1e6, "rss_slope_bytes_per_step": slope(late)}


def slope(points: list[tuple[int, int]]) -> float:
    """Least-squares slope; 0 for fewer than two different places."""
    middle = [sum(values) / len(points) for values in zip(*points, strict=True)] if points else [0, 0]
    spread = sum((x - middle[0])**2 for x, _ in points)
    return sum((x - middle[0]) * (y - middle[1]) for x, y in points) / spread if spread else 0.0


def disturbed(out: Path, log: Path, flags: list[str], options: argparse.Namespace,
              calm: dict[str, float]) -> dict[str, int]:
    """Run under SIGKILL at random moments until all kills have struck, then to the end. -> what they struck.

    A fifth of the kills strikes at a random moment of starting up, the others a random while after a random step,
    chosen so that all of them can strike before the last step."""
    chance = random.Random(options.seed)  # noqa: S311  nothing secret
    struck = {"kills": 0, "while_writing": 0, "before_a_step": 0, "starts": 0}
    while True:
        done = lines(out / "metrics.jsonl")
        process = start(log, *flags, "--output", str(out), "--resume", "auto", "--overwrite")
        struck["starts"] += 1
        left = options.kills - struck["kills"]
        if left:
            share = (options.steps - done) / (left + 1)
            starting = chance.random() < 0.2
            wait_for(process, out, 0 if starting else done + chance.uniform(0, 1.5 * share))
            time.sleep(chance.uniform(0, calm["start_seconds"] if starting else 3 * calm["step_seconds"]))
        if not left or process.poll() is not None:
            finish(process, log)                             # no kill left, or the run was faster than its killer
            return struck
        process.send_signal(signal.SIGKILL)
        process.wait()
        struck["kills"] += 1
        struck["while_writing"] += any((out / "state").glob("*.tmp"))
        struck["before_a_step"] += lines(out / "metrics.jsonl") <= done


def wait_for(process: subprocess.Popen, out: Path, step: float) -> None:
    """Until the run has logged a step, or has ended."""
    while process.poll() is None and lines(out / "metrics.jsonl") < step:
        time.sleep(0.02)


def records(file: Path) -> list[dict]:
    """The lines of a log, times aside."""
    return [{name: value for name, value in json.loads(line).items() if name not in ("seconds", "tokens_per_second")}
            for line in file.read_text().splitlines()]


def differences(one: Path, two: Path) -> list[str]:
    """What is not equal to the bit in two runs."""
    found = [name for name in LOGS if records(one / name) != records(two / name)]
    states = [str(path.relative_to(one)) for path in (one / "state").rglob("*.safetensors")]
    return found + [name for name in ("model/model.safetensors", *states)
                    if not (two / name).is_file() or (one / name).read_bytes() != (two / name).read_bytes()]


def main(arguments: list[str]) -> None:
    """Parse, run both, compare, print JSON; exit code 1 if anything differs or too few kills struck."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="GRPO steps (default: 2000)")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs (default: 20)")
    parser.add_argument("--save-every", type=int, default=5, help="steps between two states (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--output", default="runs/soak", help="directory of all runs, which must not exist yet")
    options = parser.parse_args(arguments)
    root, began = Path(options.output).resolve(), time.monotonic()
    root.mkdir(parents=True)
    log = root / "log.txt"
    finish(start(log, "--stage", "sft", "--output", str(root / "sft"), "--scenes", "256", "--steps", "40",
                 "--eval-examples", "4", "--max-new-tokens", "16", "--batch-size", "16", "--reasoning", "off",
                 "--device", "cpu"), log)
    flags = [*GRPO, "--model", str(root / "sft/model"), "--steps", str(options.steps),
             "--save-every", str(options.save_every)]
    calm = undisturbed(root / "calm", log, flags)
    struck = disturbed(root / "killed", log, flags, options, calm)
    wrong = differences(root / "calm", root / "killed")
    print(json.dumps({"steps": options.steps, **struck, "equal": not wrong, "differences": wrong, **calm,
                      "seconds": time.monotonic() - began}, indent=1))
    sys.exit(bool(wrong) or struck["kills"] < options.kills)


if __name__ == "__main__":
    main(sys.argv[1:])
