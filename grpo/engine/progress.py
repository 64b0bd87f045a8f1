"""A progress line: rewritten in place on a terminal, printed every few seconds to a log file."""

import os
import shutil
import sys
import time
from typing import TextIO


def clock(seconds: float) -> str:
    """Seconds -> `1:02:03` or `2:03`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Prints `label step/total  name value ...  time left`: every step on a terminal, every `seconds` in a file.

    It writes to standard error, so that standard output holds only results."""

    def __init__(self, label: str, total: int, start: int = 0, stream: TextIO | None = None,
                 seconds: float = 15.0) -> None:
        self.label, self.total, self.start, self.stream = label, total, start, stream or sys.stderr
        self.rewrites = self.stream.isatty() and os.environ.get("TERM") != "dumb"           # without such codes
        self.seconds = 0.1 if self.rewrites else seconds
        self.started = self.shown = time.monotonic()

    def show(self, done: int, **values: float) -> None:
        """Show `done` of total steps and the named numbers."""
        now = time.monotonic()
        if now - self.shown < self.seconds and done not in (self.start + 1, self.total):
            return
        self.shown = now
        left = (now - self.started) / max(done - self.start, 1) * (self.total - done)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        start, end = f"{self.label} {done}/{self.total}  {numbers}", f"  left {clock(left)}"
        if self.rewrites:                                   # in one row: a second one could not be erased
            room = max(0, shutil.get_terminal_size().columns - 1 - len(end))
            self.stream.write(f"\r\033[K{start[:room]}{end}" + ("\n" if done == self.total else ""))
        else:
            self.stream.write(f"{start}{end}\n")
        self.stream.flush()
