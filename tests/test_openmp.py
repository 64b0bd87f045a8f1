"""OpenMP's variables: what the scripts set, what they leave alone, and that they do so before torch is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.dataset import prepared_ahead
from openmp import settings

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
