"""Settings of OpenMP and the allocator: what is set, what is left alone, and that it comes before torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.dataset import prepared_ahead
from machine import CORES, keep_freed_memory, settings
from models.processor import Processor

ROOT = Path(__file__).resolve().parent.parent
BOTH = {"GOMP_SPINCOUNT": "30000", "OMP_PROC_BIND": "true"}


@pytest.mark.parametrize(("environment", "arguments", "expected"), [
    ({}, ["train.py", "--stage", "sft"], BOTH),
    ({"GOMP_SPINCOUNT": "7"}, [], {"OMP_PROC_BIND": "true"}),
    ({"OMP_WAIT_POLICY": "ACTIVE", "OMP_PROC_BIND": "false"}, [], {}),
    # fewer threads than cores: a second run would be bound to the same cores
    ({"OMP_NUM_THREADS": "4"}, [], {"GOMP_SPINCOUNT": "30000"}),
    ({"WORLD_SIZE": "2"}, [], {"GOMP_SPINCOUNT": "30000"}),
    ({}, ["eval.py", "--threads", "1"], {"GOMP_SPINCOUNT": "30000"}),
    ({}, ["eval.py", "--threads=1"], {"GOMP_SPINCOUNT": "30000"})])
def test_settings_by_hand(environment, arguments, expected):
    assert settings(environment, arguments) == expected


@pytest.mark.parametrize("script", ["train", "eval"])
def test_the_variables_are_set_when_torch_is_imported(script):
    code = ("import builtins, os; real = builtins.__import__\n"
            "def noted(name, *rest):\n"
            "    if name == 'torch': print(os.environ.get('GOMP_SPINCOUNT')); raise SystemExit\n"
            "    return real(name, *rest)\n"
            f"builtins.__import__ = noted\nimport {script}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=False)
    assert done.stdout == "30000\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot bind threads to cores")
def test_the_thread_that_prepares_data_may_use_every_core():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})                  # as OpenMP binds the main thread
    try:
        (found,) = prepared_ahead(lambda _: os.sched_getaffinity(0), [0])
    finally:
        os.sched_setaffinity(0, before)
    assert found == before


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_an_allocator_that_is_set_already_is_left_alone(name):
    assert not keep_freed_memory({name: "1"})


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="page faults are counted on Linux only")
def test_freed_memory_is_used_again_without_page_faults():
    code = ("import {first}resource, torch\n"
            "for _ in range(20): torch.ones(4_000_000)\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
            "for _ in range(3): torch.ones(4_000_000)\n"           # 16 MB: 3,906 pages of 4 kB each time
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)")
    counts = [int(subprocess.run([sys.executable, "-c", code.format(first=first)], cwd=ROOT, capture_output=True,
                                 text=True, check=True).stdout) for first in ("", "machine, ")]
    if not keep_freed_memory({}):
        pytest.skip("this C library has no mallopt")
    assert counts[1] < 100


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted on Linux only")
def test_preparing_data_starts_no_threads_of_openmp(processor):
    """With more of its threads than cores, OpenMP stops spinning: sampling of the tiny model took twice as long."""
    def prepare(_):
        before = len(os.listdir("/proc/self/task"))
        pictures = [Image.new("RGB", (448, 224))] * 8                          # too small for threads one by one
        Processor(processor.tokenizer).encode([{"role": "user", "content": [{"type": "image"}] * 8}], pictures)
        return len(os.listdir("/proc/self/task")) - before

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [*prepared_ahead(prepare, [0, 1])] == [0, 0]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_reward_processes_have_every_core(tmp_path):
    """The trainer is bound to its first core; what it starts is not."""
    (tmp_path / "paid.py").write_text("import os\ndef f(example, completions):\n"
                                      "    return [{'n': float(len(os.sched_getaffinity(0)))}] * len(completions)\n")
    work = ("import machine, torch, os; torch.ones(9, 9) @ torch.ones(9, 9)\n"
            "from rewards.processes import RewardProcesses\nbound = os.sched_getaffinity(0)\n"
            "from data.scenes import scene_examples\n"
            "pool = RewardProcesses(1, 60.0, machine.on_every_core)\n"
            f"paid = pool.function('{tmp_path}/paid.py:f')(scene_examples('rl', 1)[0], ['a'])\n"
            "print(len(bound), paid[0]['n'], os.sched_getaffinity(0) == bound, flush=True)\nos._exit(0)")
    done = subprocess.run([sys.executable, "-c", work], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={name: value for name, value in os.environ.items() if not name.startswith("OMP")})
    assert done.stdout.split() == ["1", str(float(len(CORES))), "True"], done.stderr[-500:]
