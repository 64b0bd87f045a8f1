"""End a GRPO run at random moments and compare the result with that of an undisturbed run: `make soak`.

The tiny model first learns a little (SFT), so that its answers earn different rewards. Then the same GRPO command runs
once undisturbed, and once with `--resume auto` through a number of endings, which take turns:

    SIGKILL, SIGHUP, SIGUSR1   sent at a random moment; a fifth of them during start-up
    OutOfMemory                raised by a random backward pass, before or after the first update of its step
    ENOSPC                     RLIMIT_FSIZE below the size of a state: the next state cannot be written

Every line of metrics.jsonl and samples.jsonl (except times), the model and the last state must be equal to the bit.
Prints JSON: endings survived by kind, how many came while a state was being written or before a step, memory growth.
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
ENDINGS = "SIGKILL,SIGHUP,SIGUSR1,OutOfMemory,ENOSPC"
FILE_LIMIT = 2**21                                          # bytes; the parameters of a state have more
# train.py with a fault of its own: python -c INJECTED KIND NUMBER [flags of train.py]
INJECTED = f"""
import resource, sys
import torch, train
kind, number = sys.argv[1], int(sys.argv[2])
backward, calls = torch.Tensor.backward, []
def failing(*given, **named):
    calls.append(1)
    if len(calls) == number:
        raise torch.OutOfMemoryError("injected")
    return backward(*given, **named)
if kind == "OutOfMemory":
    torch.Tensor.backward = failing
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_LIMIT}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
train.main(sys.argv[3:])
"""
GRPO = ("--stage", "grpo", "--preset", "demo", "--scenes", "64", "--prompts-per-step", "2", "--group-size", "4",
        "--max-new-tokens", "16", "--eval-examples", "4", "--eval-every", "50", "--updates-per-rollout", "2",
        "--dynamic-sampling", "1", "--beta", "0.01", "--ent-coef", "0.01", "--samples-every", "10", "--keep", "2",
        "--device", "cpu", "--threads", "1")


def start(log: Path, *flags: str, fault: tuple[str, ...] = ()) -> subprocess.Popen:
    """train.py, perhaps with an injected fault, as a process of its own; its output is added to a log file."""
    script = ["-c", INJECTED, *fault] if fault else ["train.py"]
    with open(log, "a") as stream:
        return subprocess.Popen([sys.executable, *script, *flags], cwd=ROOT, stdout=stream, stderr=stream,
                                preexec_fn=heed_hangups)


def heed_hangups() -> None:
    """Let SIGHUP reach train.py even if this script runs under nohup, which would have it ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
    """Run through all endings, then to the last step. -> how many there were of each kind, and when they came.

    Their moments are chosen so that all can come before the last step."""
    chance, kinds = random.Random(options.seed), options.endings.split(",")  # noqa: S311  nothing secret
    struck = {"kills": 0, **dict.fromkeys(kinds, 0), "while_writing": 0, "before_a_step": 0, "starts": 0}
    while True:
        done, left = lines(out / "metrics.jsonl"), options.kills - struck["kills"]
        kind = kinds[struck["kills"] % len(kinds)] if left else ""
        share = (options.steps - done) / (left + 1)
        fault = () if not kind or kind.startswith("SIG") else (kind, str(chance.randint(1, 2 + int(3 * share))))
        process = start(log, *flags, "--output", str(out), "--resume", "auto", "--overwrite", fault=fault)
        struck["starts"] += 1
        if kind.startswith("SIG"):
            starting = chance.random() < 0.2
            wait_for(process, out, 0 if starting else done + chance.uniform(0, 1.5 * share))
            time.sleep(chance.uniform(0, calm["start_seconds"] if starting else 3 * calm["step_seconds"]))
            if process.poll() is None:
                process.send_signal(signal.Signals[kind])
        if ended(process, kind, log):
            return struck
        struck["kills"] += 1
        struck[kind] += 1
        struck["while_writing"] += any((out / "state").glob("*.tmp"))
        struck["before_a_step"] += lines(out / "metrics.jsonl") <= done


def ended(process: subprocess.Popen, kind: str, log: Path) -> bool:
    """Whether the run reached its last step, not the ending. Raises: RuntimeError for an exit code of neither."""
    code = process.wait()
    if kind.startswith("SIG"):
        number = signal.Signals[kind].value
        wanted = (-number, 128 + number)                    # the first during start-up
    else:
        wanted = (1,) if kind else ()
    if code not in (0, *wanted):
        raise RuntimeError(f"train.py ended with {code} after {kind or 'nothing'}; see {log}")
    return code == 0


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
    newest = max((one / "state").iterdir())                 # an ending leaves states that an undisturbed run has not
    states = [str(path.relative_to(one)) for path in newest.glob("*.safetensors")]
    return found + [name for name in ("model/model.safetensors", *states)
                    if not (two / name).is_file() or (one / name).read_bytes() != (two / name).read_bytes()]


def main(arguments: list[str]) -> None:
    """Parse, run both, compare, print JSON; exit code 1 if anything differs or too few endings came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="GRPO steps (default: 2000)")
    parser.add_argument("--kills", type=int, default=20, help="number of endings (default: 20)")
    parser.add_argument("--endings", default=ENDINGS, help=f"kinds, which take turns (default: {ENDINGS})")
    parser.add_argument("--save-every", type=int, default=5, help="steps between two states (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
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
