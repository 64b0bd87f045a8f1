"""TensorBoard event files for `--tensorboard`: every number of metrics.jsonl, step by step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"
FLUSH_SECONDS = 10                                          # how old what a browser shows may be


def require_tensorboard() -> None:
    """Raise ValueError if the package is not installed; a run should not learn it after loading a model."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as fault:
        raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard, or leave the flag out "
                         "(metrics.jsonl and report.py need nothing)") from fault


class EventWriter:
    """Writes the numbers of each step's record to OUTPUT/tensorboard. Its file begins with the first record."""

    def __init__(self, output: Path) -> None:
        self.folder, self.writer = str(output / FOLDER), None

    def __call__(self, step: int, record: Mapping[str, Any]) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter
            # of an interrupted run, TensorBoard hides what was written for this step and later ones
            self.writer = SummaryWriter(self.folder, purge_step=step, flush_secs=FLUSH_SECONDS)
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)
