"""Stopping a run cleanly, unforeseen errors, warnings of a collapse, and records of batches that failed."""

import contextlib
import math
import os
import re
import select
import signal
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from data.example import Example, printable
from grpo.groups import RewardFn
from models.prompt import Prompt
from rewards.checked import RewardError, name_of
from rewards.processes import RewardFault
from storage import finite, save_file, write_json

TIME_IS_UP = 75                         # exit code of --max-time: start again (EX_TEMPFAIL of sysexits.h)
WINDOW = 10                             # steps over which a collapse is averaged
MAX_BATCHES = 20                        # bad batches kept for inspection

# metric: (above or below, limit, meaning)
COLLAPSES = {
    "entropy": ("below", 0.02, "{:.3g} nats per token: the policy samples nearly the same answer every time, so groups "
                               "have nothing to compare; try --ent-coef, a higher --temperature or a lower "
                               "--learning-rate"),
    "flat_groups": ("above", 0.95, "{:.0%} of the groups have equal rewards, which give no gradient; try harder data, "
                                   "--dynamic-sampling or a larger --group-size"),
    "completion_length": ("below", 5.0, "{:.3g} tokens per answer: too short for a plan and a reason; samples.jsonl "
                                        "shows which answers are rewarded"),
    "truncated": ("above", 0.5, "{:.0%} of the answers are truncated at --max-new-tokens and have no plan; raise "
                                "it, or try --length-margin"),
    "reward_format": ("below", 0.5, "{:.0%} of the format reward is reached: most answers are invalid, and an invalid "
                                    "answer is never right; warm up longer with --stage sft"),
}


# the second of these ends the process at once
AT_ONCE = (signal.SIGINT, signal.SIGTERM)
SIGNALS = tuple(getattr(signal, name) for name in (
    "SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGVTALRM", "SIGPROF",
    "SIGPWR") if hasattr(signal, name))


class Stopped(Exception):  # noqa: N818  a clean end, not an error
    """The run was asked to stop and has saved its state. `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Stop:
    """Whether to stop after the current step: on a signal, or when --max-time is nearly over.

    As a context manager it handles SIGINT and SIGTERM, and the other SIGNALS unless they are ignored (nohup) or taken.
    A second SIGINT or SIGTERM ends the process at once, unless it comes within `grace` seconds of the first: torchrun
    passes on signals that its processes have already had."""

    def __init__(self, max_seconds: float = math.inf, grace: float = 0.0) -> None:
        self.started, self.max_seconds, self.slowest = time.monotonic(), max_seconds, 0.0
        self.signal, self.signalled, self.grace = 0, 0.0, grace
        self.earlier: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():              # Python allows handlers only here
            free = {number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL}
            self.earlier = {number: signal.signal(number, self.note) for number in free | set(AT_ONCE)}
        return self

    def __exit__(self, *fault: object) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        again = self.signal in AT_ONCE and number in AT_ONCE and time.monotonic() - self.signalled >= self.grace
        if again:
            os._exit(128 + number)
        if not self.signal or number in AT_ONCE:
            self.signal, self.signalled = number, time.monotonic()
        mute_closed_streams()
        with contextlib.suppress(OSError):                  # print is not reentrant
            at_once = b"; a second Ctrl-C or SIGTERM exits at once" * (number in AT_ONCE)
            os.write(2, b"\nfinishing this step or batch, then saving" + at_once + b"\n")

    def code(self, seconds: float = 0.0) -> int:
        """0 to continue, else the exit code: 128 + the signal, or 75. `seconds` is the duration of the last step.

        The run stops if another step as slow as the slowest would exceed --max-time."""
        self.slowest = max(self.slowest, seconds)
        if self.signal:
            return 128 + self.signal
        return TIME_IS_UP if time.monotonic() - self.started + self.slowest > self.max_seconds else 0


def mute_closed_streams() -> None:
    """Send standard output and error to nowhere if their reader is gone, so that a lost terminal ends no saving."""
    for number in (1, 2):
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), number)


def unforeseen(fault: Exception, output: Path, remedy: str) -> str:
    """One line for an error that no message was written for; its traceback goes to OUTPUT/error.txt.

    remedy: what to do if memory is short."""
    message = printable(" ".join(str(fault).split()))
    if isinstance(fault, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in message:
        return f"out of memory ({message or type(fault).__name__}): {remedy}"
    if isinstance(fault, RuntimeError) and re.search("Connection (closed|reset) by peer|NCCL", message):
        return f"another process has ended, and its own message says why ({message:.80})"
    last, note = traceback.extract_tb(fault.__traceback__)[-1], ""
    with contextlib.suppress(OSError):
        file = output / "error.txt"
        if (output / "config.json").is_file():
            file.write_text("".join(traceback.format_exception(fault)), encoding="utf-8")
            note = f"; traceback in {file}"
    return f"{type(fault).__name__}: {message} ({last.filename}, line {last.lineno}{note})"


def collapsed(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Metric -> warning, for metrics whose mean over the last WINDOW records of GRPO is beyond its limit."""
    found = {}
    if not records or "reward" not in records[-1]:
        return found                                         # in SFT a low entropy is wanted
    for name, (side, limit, meaning) in COLLAPSES.items():
        values = [record[name] for record in records[-WINDOW:] if record.get(name) is not None]
        if len(values) < WINDOW:
            continue
        mean = sum(values) / len(values)
        if mean < limit if side == "below" else mean > limit:
            found[name] = f"{name} averaged {mean:.3g} over the last {WINDOW} steps: {meaning.format(mean)}"
    return found


def naming_the_culprit(reward_fn: RewardFn) -> RewardFn:
    """The same rewards; if they raise, the error names the function, the example and the completion.

    The function gets a copy of the completions, so that it cannot change what is logged."""
    def rewards(example: Example, completions: list[str]) -> list[dict[str, float]]:
        try:
            return reward_fn(example, list(completions))
        except RewardError:
            raise                                           # it names them already
        except (Exception, SystemExit) as fault:
            culprit = next((text for text in completions if raises(reward_fn, example, text)), completions)
            last = traceback.extract_tb(fault.__traceback__)[-1]
            said = str(fault) if isinstance(fault, RewardFault) else (
                f"raised {type(fault).__name__} ({fault}) in line {last.lineno} of {last.filename}")
            raise ValueError(f"reward function {rewards.__name__}: the rewards of example {example.id} "
                             f"{' '.join(said.split())} for completion {culprit!r}") from fault
    rewards.__name__ = name_of(reward_fn)
    return rewards


def raises(reward_fn: RewardFn, example: Example, text: str) -> bool:
    """Whether the rewards raise for this completion alone."""
    with contextlib.suppress(Exception, SystemExit):
        reward_fn(example, [text])
        return False
    return True


def save_batch(folder: str | Path, step: int, prompts: Sequence[Prompt], completions: Sequence[Tensor],
               record: Mapping[str, Any]) -> None:
    """Save a batch whose loss or gradient is not finite to FOLDER/step-N.json and, if it has prompts or completions,
    step-N.safetensors; at most 20 per run.

    Tensors: `prompt.0.input_ids`, `prompt.0.pixel_values` ..., `completion.0` ... in the order of the record's ids."""
    folder = Path(folder)
    if len(list(folder.glob("*.json"))) >= MAX_BATCHES:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"prompt.{i}.{name}": value for i, prompt in enumerate(prompts)
               for name, value in vars(prompt).items() if isinstance(value, Tensor)}
    tensors |= {f"completion.{i}": ids for i, ids in enumerate(completions)}
    if tensors:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
                  folder / f"step-{step:08d}.safetensors")
    write_json(finite({"step": step, **record}), folder / f"step-{step:08d}.json")
