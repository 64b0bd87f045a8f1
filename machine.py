"""Settings of OpenMP and of the C library's allocator for the command-line scripts. Importing this file makes them, so
it comes before torch. No setting changes a number. docs/performance.md has the measurements.

OpenMP: a step of the tiny model runs thousands of short parallel regions. At the end of each, the threads spin until
the last one arrives. If other processes use the cores, a thread may spin for a whole time slice while its partner waits
for a core: a step can become forty times slower. Two settings prevent this and cost nothing on a free machine: threads
spin for about a millisecond and then sleep, and each thread stays on its own core. Threads are bound to cores only if
one process uses all cores: with --threads, OMP_NUM_THREADS or torchrun, several would be bound to the same ones.

Allocator: glibc hands freed blocks back to the kernel, which clears their pages anew when they are used again, tens of
thousands of times a step. Blocks of up to 32 MB are kept instead, up to a gigabyte in all.

Values that are set already are kept.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SPINS = "30000"                     # libgomp's default is 300,000; 10,000 costs 8 % on a free machine
CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()  # before any thread is bound
KEPT = {-3: 32 << 20, -1: 1 << 30}  # M_MMAP_THRESHOLD, the largest that glibc takes, and M_TRIM_THRESHOLD: bytes


def settings(environment: dict[str, str], arguments: list[str]) -> dict[str, str]:
    """The variables to set, given those that are set and the command line."""
    chosen = {}
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        chosen["GOMP_SPINCOUNT"] = SPINS
    threads_given = any(word.partition("=")[0] == "--threads" for word in arguments)
    several = environment.keys() & {"OMP_NUM_THREADS", "OMP_PLACES", "GOMP_CPU_AFFINITY", "WORLD_SIZE"}
    if "OMP_PROC_BIND" not in environment and not several and not threads_given:
        chosen["OMP_PROC_BIND"] = "true"
    return chosen


def keep_freed_memory(environment: dict[str, str]) -> bool:
    """Tell glibc to keep freed blocks. -> whether it does; other C libraries have no such function."""
    chosen = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in environment)
    if chosen or not sys.platform.startswith("linux") or not hasattr(library := ctypes.CDLL(None), "mallopt"):
        return False
    return all([library.mallopt(parameter, size) for parameter, size in KEPT.items()])


def leave_core() -> None:
    """Let the calling thread run on every core again: a thread inherits the core of the one that starts it."""
    if CORES:
        os.sched_setaffinity(0, CORES)


@contextmanager
def on_every_core() -> Iterator[None]:
    """Processes that are started here may run on every core; then the calling thread returns to its own."""
    own = os.sched_getaffinity(0) if CORES else set()
    leave_core()
    try:
        yield
    finally:
        if own:
            os.sched_setaffinity(0, own)


if "torch" not in sys.modules:
    os.environ |= settings(dict(os.environ), sys.argv)
    keep_freed_memory(dict(os.environ))
