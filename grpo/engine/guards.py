"""What ends a run in good order, and what warns of one that goes wrong."""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from data.example import Example
from grpo.groups import RewardFn
from models.prompt import Prompt

TIME_IS_UP = 75                         # exit code of --max-time: come again (sysexits.h calls it EX_TEMPFAIL)
WINDOW = 10                             # steps that a collapse must last
MAX_BATCHES = 20                        # bad batches kept for inspection

# metric: (above or below, limit, meaning)
COLLAPSES = {
    "entropy": ("below", 0.02, "nats per token: the policy writes nearly the same answer every time, so groups have "
                               "nothing to compare; try --ent-coef, a higher --temperature or a lower --learning-rate"),
    "flat_groups": ("above", 0.95, "of the groups have equal rewards, which give no gradient; try harder data, "
                                   "--dynamic-sampling or a larger --group-size"),
    "completion_length": ("below", 5.0, "tokens an answer: too short for a plan, let alone a reason; look at "
                                        "samples.jsonl for what the rewards pay for"),
    "truncated": ("above", 0.5, "of the answers are cut off at --max-new-tokens and cannot be read; raise it, or try "
                                "--length-margin"),
    "reward_format": ("below", 0.5, "of the format reward is earned: most answers are invalid, and only valid ones "
                                    "can be right; warm up longer with --stage sft"),
}


class Stopped(Exception):  # noqa: N818  an end in good order, not an error
    """The run was asked to end, and has saved. `code` is the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Stop:
    """Whether to end after the step at hand: SIGTERM, Ctrl-C, or the time allowed is nearly up.

    As a context it takes over the two signals; a second one ends the process at once."""

    def __init__(self, max_seconds: float = math.inf) -> None:
        self.started, self.max_seconds, self.slowest = time.monotonic(), max_seconds, 0.0
        self.signal = 0
        self.earlier: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():              # elsewhere Python allows no handlers
            self.earlier = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *fault: object) -> None:
        for number, handler in self.earlier.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        os.write(2, b"\nfinishing this step, then saving; a second signal ends at once\n")     # print is not reentrant

    def code(self, seconds: float = 0.0) -> int:
        """0 to go on, else the exit code: 128 + the signal, or 75. `seconds` is what the last step took.

        The run ends when another step as slow as the slowest would pass the time allowed."""
        self.slowest = max(self.slowest, seconds)
        if self.signal:
            return 128 + self.signal
        return TIME_IS_UP if time.monotonic() - self.started + self.slowest > self.max_seconds else 0


def collapsed(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Metric -> warning for what has been beyond its limit, on average, over the last WINDOW records of GRPO."""
    found = {}
    if not records or "reward" not in records[-1]:
        return found                                         # SFT is to grow sure of its wording
    for name, (side, limit, meaning) in COLLAPSES.items():
        values = [record[name] for record in records[-WINDOW:] if record.get(name) is not None]
        if len(values) < WINDOW:
            continue
        mean = sum(values) / len(values)
        if mean < limit if side == "below" else mean > limit:
            found[name] = f"{name} averaged {mean:.3g} over the last {WINDOW} steps: {mean:.3g} {meaning}"
    return found


def blaming(reward_fn: RewardFn) -> RewardFn:
    """The same rewards; when they raise, the error names the example and the completion."""
    def rewards(example: Example, completions: list[str]) -> list[dict[str, float]]:
        try:
            return reward_fn(example, completions)
        except Exception as fault:
            culprit = next((text for text in completions if raises(reward_fn, example, text)), completions)
            raise ValueError(f"the rewards of example {example.id} raised {type(fault).__name__} ({fault}) for "
                             f"completion {culprit!r}") from fault
    return rewards


def raises(reward_fn: RewardFn, example: Example, text: str) -> bool:
    """Whether the rewards raise for this completion alone."""
    with contextlib.suppress(Exception):
        reward_fn(example, [text])
        return False
    return True


def save_batch(folder: str | Path, step: int, prompts: Sequence[Prompt], completions: Sequence[Tensor],
               record: Mapping[str, Any]) -> None:
    """Keep a batch whose loss or gradient is not finite: FOLDER/step-N.safetensors and .json, the first 20 of a run.

    Tensors: `prompt.0.input_ids`, `prompt.0.pixel_values` ..., `completion.0` ... in the order of the record's ids."""
    folder = Path(folder)
    if len(list(folder.glob("*.json"))) >= MAX_BATCHES:
        return
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"prompt.{i}.{name}": value for i, prompt in enumerate(prompts)
               for name, value in vars(prompt).items() if isinstance(value, Tensor)}
    tensors |= {f"completion.{i}": ids for i, ids in enumerate(completions)}
    save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()},
              folder / f"step-{step:08d}.safetensors")
    (folder / f"step-{step:08d}.json").write_text(json.dumps(finite({"step": step, **record}), indent=1))


def finite(value: Any) -> Any:  # noqa: ANN401
    """The value with null for numbers that are not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
