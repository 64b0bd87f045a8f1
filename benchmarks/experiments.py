"""A resumable set of experiments: commands of this project that need each other, run a few at a time.

A finished part leaves NAME.json with its command, seconds, commit and processor beside its log and is skipped when the
set is started again; a part whose needs failed is left out. Nothing of a part is read before it has finished.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import cpu_name, git_commit  # noqa: E402
from storage import write_json  # noqa: E402


@dataclass(frozen=True)
class Part:
    """One or several commands of the project, run one after the other."""

    name: str                           # also the name of its log below the set's folder
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()         # names of parts that must have finished


def finished(folder: Path, name: str) -> bool:
    """Whether a part has finished in this or an earlier run of the set."""
    return (folder / "parts" / f"{name}.json").is_file()


def run_command(command: Sequence[str], log: Path) -> None:
    """One command of the project on one thread, its output kept in a log. Raises: RuntimeError that names the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as stream:
        stream.write(f"$ python {' '.join(command)}\n")
        stream.flush()
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT,
                              env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        raise RuntimeError(f"`python {' '.join(command)}` failed; see {log}")


def run_part(folder: Path, part: Part) -> float:
    """Run a part. -> seconds. Raises: RuntimeError that names the log."""
    log, began = folder / "parts" / f"{part.name}.log", time.monotonic()
    log.unlink(missing_ok=True)
    for command in part.commands:
        run_command(command, log)
    seconds = time.monotonic() - began
    write_json({"commands": part.commands, "seconds": round(seconds, 1), "commit": git_commit(), "cpu": cpu_name()},
               log.with_suffix(".json"))
    return seconds


def run_parts(folder: Path, parts: Sequence[Part], jobs: int, seconds: float = float("inf")) -> list[str]:
    """Run what has not finished, `jobs` at a time, in the given order as far as needs allow. -> names of failed parts.

    No part is started after `seconds`; a later call goes on."""
    began, failed = time.monotonic(), []
    waiting = [part for part in parts if not finished(folder, part.name)]
    print(f"{len(parts) - len(waiting)} of {len(parts)} parts are done", flush=True)
    running: dict[Future, Part] = {}
    with ThreadPoolExecutor(jobs) as workers:
        while waiting or running:
            ready = [part for part in waiting if all(finished(folder, name) for name in part.needs)]
            if time.monotonic() - began > seconds:
                ready = []
            for part in ready[:jobs - len(running)]:
                waiting.remove(part)
                running[workers.submit(run_part, folder, part)] = part
            if not running:                                 # time is up, or what is left needs a part that has not run
                print(f"not run: {', '.join(part.name for part in waiting)}", flush=True)
                break
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                part = running.pop(done)
                if done.exception():
                    failed.append(part.name)
                    print(f"{part.name}: {done.exception()}", flush=True)
                else:
                    print(f"{part.name}: {done.result():.0f} s, {len(waiting)} parts to go", flush=True)
    return failed
