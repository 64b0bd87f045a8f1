"""--tensorboard, with a stand-in for the package."""

import sys
from types import SimpleNamespace

import pytest

from grpo.engine import events
from grpo.engine.events import EventWriter
from grpo.engine.loop import write_step


def test_the_numbers_of_a_step_are_written(monkeypatch, tmp_path):
    made, written = [], []
    stand_in = SimpleNamespace(SummaryWriter=lambda folder, **more: made.append((folder, more)) or SimpleNamespace(
        add_scalar=lambda *scalar: written.append(scalar)))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    write = EventWriter(tmp_path)
    assert made == []
    write(7, {"step": 7, "loss": 0.5, "val_accuracy": None, "kl": 0, "note": "text"})
    write(8, {"step": 8, "loss": 0.25})
    assert made == [(str(tmp_path / "tensorboard"), {"purge_step": 7, "flush_secs": 10})]
    assert written == [("loss", 0.5, 7), ("kl", 0, 7), ("loss", 0.25, 8)]


def test_every_logged_step_is_an_event(tmp_path):
    seen = []
    run = SimpleNamespace(output=tmp_path, events=lambda step, record: seen.append((step, record["loss"])))
    for step in (1, 2):
        write_step(run, step, {"step": step, "loss": 0.5 / step}, [])
    assert seen == [(1, 0.5), (2, 0.25)] and len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)           # importing it raises ImportError
    with pytest.raises(ValueError, match="--tensorboard needs the package tensorboard: pip install tensorboard"):
        events.require_tensorboard()
