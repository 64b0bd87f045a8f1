"""What every benchmark shares: the machine's record, its measured ceiling, peak memory, phases, fair repetition.

    record    which commit, torch, device and how many threads a number belongs to
    ceiling   the rate of a large matrix product and of a large copy, measured on this machine, not taken from a sheet
    phases    seconds, tokens and patches of each part of a step, taken by wrapping functions from outside
    repeat    two sides in turns, with repetitions dropped and counted when another process had the processor

Only torch and the standard library: the peers' processes import this file too.
"""

import gc
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DISTURBED = 0.03    # share of the machine's processor time that other processes may take during a repetition
ATTEMPTS = 3        # rounds tried at most, as a multiple of the rounds asked for


# ---------------------------------------------------------------- record

def machine_record(device: torch.device) -> dict[str, Any]:
    """What a number depends on beside the code: commit, torch, device, threads."""
    cuda = device.type == "cuda"
    return {"commit": git_commit(), "torch": torch.__version__, "python": platform.python_version(),
            "device": torch.cuda.get_device_name(device) if cuda else f"cpu ({cpu_name()})",
            "cpus": os.cpu_count(), "threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision()}


def git_commit() -> str:
    """The commit of this tree, `-dirty` behind it if files differ from it; `unknown` outside git."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    return done.stdout.strip() or "unknown"


def cpu_name() -> str:
    """The processor's own name and its widest instructions where Linux tells them, else the machine type."""
    info = Path("/proc/cpuinfo")
    lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.is_file() else {}
    told = {name.strip(): value.split() for name, value in lines.items()}
    widest = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in told.get("flags", ())][:1]
    return ", ".join([" ".join(told.get("model name", [platform.machine()])), *widest])


def choose_device(name: str, threads: int) -> torch.device:
    """auto | cpu | cuda -> device; sets the thread count (0: torch's choice)."""
    if threads:
        torch.set_num_threads(threads)
    if name == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda, but torch sees no CUDA device here; use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def parse_image(text: str) -> tuple[int, int]:
    """`448x252` -> (448, 252). Raises: ValueError."""
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"--image is {text!r}; it must be WIDTHxHEIGHT in pixels, for example 448x252")
    return int(width), int(height)


def write_record(record: Mapping[str, Any], output: Path | None) -> None:
    """To the file if one is named, and as one JSON object on the last line."""
    if output:
        output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record), flush=True)


# ---------------------------------------------------------------- memory

def reset_peak(device: torch.device) -> None:
    """Forget the peak so far: from now on it is the peak of the work, not of loading or of a warm-up."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")       # 5: set the resident peak back to the resident size


def peak_mb(device: torch.device) -> float:
    """Peak memory in MiB since the last reset: reserved on the device, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    status = Path("/proc/self/status")
    if not status.is_file():                                # no reset either: the peak of the whole life
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 2**10


def peak_name(device: torch.device) -> str:
    return "peak_gpu_mb" if device.type == "cuda" else "peak_rss_mb"


# ---------------------------------------------------------------- ceiling

def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU is never ahead."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_rate(device: torch.device, dtype: torch.dtype, size: int = 0, repeats: int = 7) -> float:
    """FLOP/s of the best of some square matrix products (8192 on cuda, 2048 on a CPU)."""
    size = size or (8192 if device.type == "cuda" else 2048)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: a @ b, device, repeats)


def copy_rate(device: torch.device, size: int = 0, repeats: int = 7) -> float:
    """Bytes/s of the best of some copies, what is read and what is written both counted (4 GiB on cuda, 256 MiB)."""
    size = size or (2**32 if device.type == "cuda" else 2**28)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / best_seconds(lambda: target.copy_(source), device, repeats)


def read_rate(device: torch.device, size: int = 0, repeats: int = 7) -> float:
    """Bytes/s of the best of some sums over a large array: what decoding does with weights, nothing written."""
    size = size or (2**32 if device.type == "cuda" else 2**28)
    source = torch.ones(size // 4, device=device)
    return size / best_seconds(lambda: source.sum(), device, repeats)


def best_seconds(work: Callable[[], Tensor], device: torch.device, repeats: int) -> float:
    """The shortest time of some runs: a ceiling is what the machine can do when nothing is in the way."""
    times = []
    for _ in range(repeats + 1):                            # the first one warms up; it is never the best
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def ceiling(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measured limits of the machine: GEMM in FLOP/s, bandwidth of copying and of reading in bytes/s."""
    found = {"gemm_flops": gemm_rate(device, dtype), "copy_bytes_s": copy_rate(device),
             "read_bytes_s": read_rate(device)}
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


# ---------------------------------------------------------------- phases

class Phases:
    """Exclusive seconds, and tokens and patches, of named phases; what no phase claims is `rest`.

    Functions are wrapped from outside for as long as the `with` block lasts, so the product holds no timers."""

    def __init__(self, device: torch.device, rest: str = "rest") -> None:
        self.device, self.rest, self.current, self.since = device, rest, rest, 0.0
        self.seconds, self.counts = Counter(), Counter()
        self.undo: list[tuple[object, str, Any]] = []

    def start(self) -> None:
        """Forget everything and begin with `rest`."""
        self.seconds.clear()
        self.counts.clear()
        self.current, self.since = self.rest, self.clock()

    def stop(self) -> dict[str, Any]:
        """-> total seconds, seconds by phase, tokens and patches by phase."""
        self.mark()
        work = {}
        for (phase, what), number in sorted(self.counts.items()):
            work.setdefault(phase, {})[what] = number
        return {"seconds": sum(self.seconds.values()), "phases": dict(self.seconds), "work": work}

    def clock(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def mark(self) -> None:
        """Book the time since the last mark on the current phase."""
        now = self.clock()
        self.seconds[self.current] += now - self.since
        self.since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time inside belongs to `name` and to no outer phase."""
        self.mark()
        outer, self.current = self.current, name
        try:
            yield
        finally:
            self.mark()
            self.current = outer

    def wrap(self, owner: object, name: str, phase: str | Callable[..., str]) -> None:
        """Time every call of owner.name; `phase` may choose its name from the call's arguments."""
        def timed(original: Callable, *arguments: object, **named: object) -> object:
            with self.phase(phase(*arguments, **named) if callable(phase) else phase):
                return original(*arguments, **named)

        self.replace(owner, name, timed)

    def count(self, owner: object, name: str, what: str, size: Callable[..., int]) -> None:
        """Add size(arguments) to the current phase's `what` at every call of owner.name."""
        def counted(original: Callable, *arguments: object, **named: object) -> object:
            self.counts[self.current, what] += size(*arguments, **named)
            return original(*arguments, **named)

        self.replace(owner, name, counted)

    def replace(self, owner: object, name: str, around: Callable) -> None:
        """Put `around(original, ...)` in the place of a function, a method of a class or of one object."""
        if not callable(getattr(owner, name, None)):
            raise ValueError(f"{owner!r} has no function {name!r} any more: name its successor in the benchmark")
        original, own = getattr(owner, name), name in vars(owner)
        self.undo.append((owner, name, vars(owner)[name] if own else None))
        plain = isinstance(owner, (type, ModuleType))

        @wraps(original)                                    # generate() looks at the signature of forward
        def replaced(*arguments: object, **named: object) -> object:
            return around(original, *arguments, **named)

        setattr(owner, name, replaced) if plain else owner.__dict__.__setitem__(name, replaced)

    def close(self) -> None:
        """Put everything back as it was."""
        for owner, name, original in reversed(self.undo):
            if isinstance(owner, (type, ModuleType)) and original is not None:
                setattr(owner, name, original)
            elif original is not None:
                owner.__dict__[name] = original
            else:
                delattr(owner, name)
        self.undo.clear()

    def __enter__(self) -> "Phases":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ---------------------------------------------------------------- repetition

def cpu_seconds(pids: Sequence[int]) -> tuple[float, float] | None:
    """Processor seconds used so far by the whole machine (stolen time too) and by these processes; None without /proc.
    """
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    tick = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, stat.read_text().splitlines()[0].split()[1:9])
    own = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own += int(fields[11]) + int(fields[12])            # utime and stime: fields 14 and 15, the name being the 2nd
    return (user + nice + system + irq + softirq + steal) / tick, own / tick


def others_share(before: tuple[float, float] | None, after: tuple[float, float] | None, wall: float,
                 cpus: int) -> float:
    """Share of the machine's processor time that other processes took between two readings; 0 if unknown.

    Units: 10 ms ticks are counted, so two ticks per process are forgiven."""
    if before is None or after is None or wall <= 0:
        return 0.0
    others = (after[0] - before[0]) - (after[1] - before[1]) - 0.04
    return max(0.0, others / (wall * cpus))


def interleaved(sides: Mapping[str, Callable[[], dict]], repeats: int, pids: Sequence[int],
                limit: float = DISTURBED) -> dict[str, Any]:
    """Rounds in which every side runs once, the order turned round each time; each side returns its `seconds`.

    A round during which other processes took more than `limit` of the machine is dropped whole and tried again, at most
    ATTEMPTS x repeats rounds in all. -> the kept results of each side, how many rounds were dropped, and whether the
    kept ones are `clean`: without a single clean round all are kept and the record says so.
    """
    kept, dropped = [], []
    while len(kept) < repeats and len(kept) + len(dropped) < ATTEMPTS * repeats:
        names = list(sides) if (len(kept) + len(dropped)) % 2 == 0 else list(reversed(sides))
        before, start = cpu_seconds(pids), time.perf_counter()
        found = {name: sides[name]() for name in names}
        share = others_share(before, cpu_seconds(pids), time.perf_counter() - start, os.cpu_count() or 1)
        (kept if share <= limit else dropped).append(found)
    rounds = kept or dropped
    return {"results": {name: [found[name] for found in rounds] for name in sides}, "repetitions": len(rounds),
            "dropped": len(dropped), "clean": bool(kept), "watched": cpu_seconds(pids) is not None}


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median and spread (largest - smallest, over the median) of the seconds; each phase's share of all seconds."""
    seconds = [result["seconds"] for result in results]
    middle = statistics.median(seconds)
    names = dict.fromkeys(name for result in results for name in result["phases"])
    shares = {name: sum(r["phases"].get(name, 0.0) for r in results) / sum(seconds) for name in names}
    return {"seconds": middle, "spread": (max(seconds) - min(seconds)) / middle, "all_seconds": seconds,
            "share_of_time": shares, "work": results[-1]["work"]}


# ---------------------------------------------------------------- the peer's process

class Peer:
    """benchmarks/peers.py in a process of its own that stays alive: its memory and its imports never touch ours."""

    def __init__(self, python: str, kind: str, settings: Mapping[str, Any]) -> None:
        self.log = tempfile.TemporaryFile(mode="w+")
        threads = {"OMP_NUM_THREADS": str(settings["threads"])} if settings["threads"] else {}
        self.process = subprocess.Popen(
            [python, str(ROOT / "benchmarks/peers.py"), kind, json.dumps(settings)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log, text=True, env={**os.environ, **threads, "HF_HUB_OFFLINE": "1"})
        self.about = self.read()

    def ask(self, command: str) -> dict[str, Any]:
        """Send one line, wait for the answer."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next answer. Raises: RuntimeError with the end of the peer's log if it has died."""
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError("the peer's process ended:\n" + "".join(self.log.readlines()[-15:]))
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.log.close()
