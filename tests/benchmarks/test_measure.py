"""The pieces that every benchmark shares, on clocks and counters that the tests wind themselves."""

import os
import sys
import time

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import Peer, Phases, cpu_seconds, interleaved, others_share, parse_image, summary

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """clock(1.5) lets time pass."""
    class Clock:
        now = 100.0

        def __call__(self, seconds):
            self.now += seconds
    hands = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: hands.now)
    return hands


class Machine:
    """Two functions to wrap."""

    def __init__(self, clock):
        self.clock = clock

    def outer(self, seconds):
        self.clock(seconds)
        self.inner(0.25)
        self.clock(1.0)

    def inner(self, seconds):
        self.clock(seconds)


def test_an_inner_phase_takes_its_time_from_the_outer_one(clock):
    machine = Machine(clock)
    with Phases(CPU) as phases:
        phases.count(Machine, "inner", "calls", lambda _self, seconds: 3)
        phases.wrap(Machine, "inner", "inner")
        phases.wrap(machine, "outer", lambda seconds: "long" if seconds > 1 else "short")
        phases.start()
        clock(0.5)
        machine.outer(2.0)
        machine.inner(4.0)
        found = phases.stop()
    # rest .5; long 2 + 1; inner .25 + 4; together 7.75. The counter was wrapped first, so it runs inside the phase.
    assert found == {"seconds": 7.75, "phases": {"rest": 0.5, "long": 3.0, "inner": 4.25},
                     "work": {"inner": {"calls": 6}}}


def test_wrapped_functions_come_back(clock):
    machine, original = Machine(clock), Machine.inner
    with Phases(CPU) as phases:
        phases.wrap(Machine, "inner", "a")
        phases.wrap(Machine, "inner", "b")
        phases.wrap(machine, "outer", "c")
        phases.wrap(measure, "parse_image", "d")
        assert Machine.inner is not original and "outer" in vars(machine)
    assert Machine.inner is original and "outer" not in vars(machine) and measure.parse_image is parse_image


def test_a_function_that_is_gone_is_named(clock):
    with Phases(CPU) as phases, pytest.raises(ValueError, match="no function 'decode_all' any more"):
        phases.wrap(Machine, "decode_all", "decode")


def test_others_share_by_hand():
    # the machine worked 3.00 s, we 2.00 s of them, .04 s are forgiven: .96 s of 2 processors x 2 s
    assert others_share((100.0, 10.0), (103.0, 12.0), 2.0, 2) == pytest.approx(0.24)
    assert others_share((100.0, 10.0), (102.03, 12.0), 2.0, 2) == 0.0       # .03 s: a tick or three, nobody
    assert others_share(None, (103.0, 12.0), 2.0, 2) == 0.0


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="Linux counts processor time there")
def test_processor_time_is_our_own():
    before, start = cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() - start < 0.2:
        pass
    after = cpu_seconds([os.getpid()])
    assert 0.15 < after[1] - before[1] < 0.4
    assert after[0] - before[0] > 0.15                                       # the whole machine's contains ours


def script_processor(monkeypatch, shares):
    """Rounds during which the others take these shares of the machine."""
    left = iter(shares)
    monkeypatch.setattr(measure, "cpu_seconds", lambda pids: (0.0, 0.0))
    monkeypatch.setattr(measure, "others_share", lambda *_: next(left))


def test_disturbed_rounds_are_dropped_and_tried_again(monkeypatch):
    script_processor(monkeypatch, [0.0, 0.5, 0.02, 0.9, 0.0])
    calls = []

    def side(name):
        def run():
            calls.append(name)
            return {"seconds": len(calls)}
        return run
    found = interleaved({"ours": side("a"), "peer": side("b")}, 3, [1])
    assert calls == list("ab" "ba" "ab" "ba" "ab")                           # turned round each time
    # rounds 1, 3 and 5 count; ours ran as 1st, 4th, 5th, 8th and 9th call, the peer as 2nd, 3rd, 6th, 7th and 10th
    assert [r["seconds"] for r in found["results"]["ours"]] == [1, 5, 9]
    assert [r["seconds"] for r in found["results"]["peer"]] == [2, 6, 10]
    assert (found["repetitions"], found["dropped"], found["clean"]) == (3, 2, True)


def test_a_machine_that_is_never_quiet_is_told(monkeypatch):
    script_processor(monkeypatch, [0.5] * 6)
    found = interleaved({"ours": lambda: {"seconds": 1.0}}, 2, [1])
    assert (found["repetitions"], found["dropped"], found["clean"]) == (6, 6, False)    # 3 x 2 attempts, then no more


def test_summary_by_hand():
    results = [{"seconds": s, "phases": {"a": a, "b": s - a}, "work": {"a": {"tokens": 7}}}
               for s, a in ((2.0, 1.0), (4.0, 1.0), (5.0, 4.0))]
    found = summary(results)
    assert found["seconds"] == 4.0 and found["spread"] == 0.75               # (5 - 2) / 4
    assert found["share_of_time"] == {"a": 6 / 11, "b": 5 / 11}              # 1 + 1 + 4 of 2 + 4 + 5 seconds
    assert found["work"] == {"a": {"tokens": 7}}


def test_peak_memory_can_be_forgotten():
    big = torch.ones(64 * 2**20 // 4)                                        # 64 MiB
    with_it = measure.peak_mb(CPU)
    del big
    measure.reset_peak(CPU)
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert measure.peak_mb(CPU) < with_it - 50
    assert measure.peak_mb(CPU) > 10


def test_rates_come_from_the_clock(monkeypatch):
    monkeypatch.setattr(measure, "best_seconds", lambda work, device, repeats: 0.5)
    assert measure.gemm_rate(CPU, torch.float32, size=10) == 4000.0          # 2 x 10^3 FLOP in .5 s
    assert measure.copy_rate(CPU, size=100) == 400.0                         # 100 bytes read, 100 written
    assert measure.read_rate(CPU, size=100) == 200.0


def test_the_best_run_counts(clock):
    durations = iter([9.0, 3.0, 2.0, 5.0])                                   # the first one warms up
    assert measure.best_seconds(lambda: clock(next(durations)), CPU, 3) == 2.0


def test_image_flag():
    assert parse_image("448x252") == (448, 252)
    for wrong in ("448", "448x", "axb", "0x20"):
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            parse_image(wrong)


def test_a_dead_peer_shows_its_last_words(tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no module named transformers')\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="no module named transformers"):
        Peer(str(python), "transformers", {"threads": 1})
