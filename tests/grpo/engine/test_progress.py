"""The progress line: one row of a terminal, whole lines elsewhere."""

import io

import pytest

from grpo.engine.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("term", "shown"), [
    ("xterm", "\r\033[Kstep 1/1  reward 0.5  len  left 0:00\n"),              # 36 of 37 columns, and the time stays
    ("dumb", "step 1/1  reward 0.5  length 1234  left 0:00\n")])
def test_the_line_fits_the_terminal(monkeypatch, term, shown):
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("COLUMNS", "37")
    stream = Terminal()
    Progress("step", 1, stream=stream).show(1, reward=0.5, length=1234.4)
    assert stream.getvalue() == shown
