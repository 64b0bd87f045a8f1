"""The border between a reward function and the trainer: what a reward function must return, checked once per call.

A reward function gets an example and its sampled completions. It returns a list with one dict per completion, from
component name to number, with the same names in every dict.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real

LARGEST = 2.0**128 * (1 - 2.0**-24)                          # of float32, in which rewards are compared
LOGGED = ("accuracy",)                                       # a component that is logged and never paid


class RewardError(ValueError):
    """A message for the user about a reward function; it names the function."""


def checked_rewards(function: Callable, example_id: str, completions: Sequence[str],
                    returned: object) -> list[dict[str, float]]:
    """What `function` returned for one example, as floats. bool, int, numpy numbers and 0-d tensors are accepted.

    Raises: RewardError that names the function, the example, the completion and what was expected.
    """
    where = f"reward function {name_of(function)}, example {example_id!r}"
    if not isinstance(returned, list | tuple):
        raise RewardError(f"{where}: returned {_short(returned)}; expected a list of {len(completions)} dicts, one per "
                         "completion, such as {'speed': 1.0, 'path': 0.5}")
    if len(returned) != len(completions):
        raise RewardError(f"{where}: returned {len(returned)} dicts for {len(completions)} completions; expected one "
                         "per completion")
    rows = [_checked_row(row, f"{where}, completion {i} {text[:60]!r}")
            for i, (row, text) in enumerate(zip(returned, completions, strict=True))]
    for i, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise RewardError(f"{where}: completion {i} has the components {_list(row)}, completion 0 has "
                             f"{_list(rows[0])}; expected the same names for every completion")
    return rows


def check_paid(function: Callable, names: Collection[str], weights: Mapping[str, float]) -> None:
    """Every component needs a weight (but `accuracy`, which is logged only), and every weight a component.

    Raises: RewardError that names the function, the components and the weights.
    """
    unpaid = [name for name in names if name not in weights and name not in LOGGED]
    if unpaid:
        raise RewardError(f"reward function {name_of(function)}: no weight pays {_list(unpaid)}; the weights are for "
                         f"{_list(weights)}. Add its value to one of these, do not return it, or train with --reward, "
                         "which pays every component")
    missing = [name for name in weights if name not in names]
    if missing:
        raise RewardError(f"reward function {name_of(function)}: {_list(missing)} missing among its components "
                         f"{_list(names)}; the weights are for {_list(weights)}. Correct --reward-weights, or "
                         "return 0.0 for an unused one")


def _checked_row(row: object, where: str) -> dict[str, float]:
    if not isinstance(row, Mapping) or not row or not all(isinstance(name, str) for name in row):
        raise RewardError(f"{where}: got {_short(row)}; expected a dict from component name to number, such as "
                         "{'speed': 1.0, 'path': 0.5}")
    numbers = {name: _number(value) for name, value in row.items()}
    for name, number in numbers.items():
        if number is None or not abs(number) <= LARGEST:
            raise RewardError(f"{where}: component {name!r} is {_short(row[name])}; expected a finite number that "
                             "float32 can hold")
    return numbers


def _number(value: object) -> float | None:
    """A number as float; None if it is none. numpy numbers and tensors are told by `ndim` and unwrapped by `item`."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    try:
        return float(value) if isinstance(value, Real) else None
    except OverflowError:                                    # a whole number that no float can hold
        return math.inf


def name_of(function: Callable) -> str:
    """The name of a function; of a partial or an object with __call__, its type."""
    return getattr(function, "__name__", type(function).__name__)


def _list(names: Collection[str]) -> str:
    return ", ".join(names)


def _short(value: object) -> str:
    return f"{value!r:.80} ({type(value).__name__})"
