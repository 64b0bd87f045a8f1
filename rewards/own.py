"""A reward function of your own: `FILE.py:FUNCTION`, read from its file and called for one group of completions.

    def FUNCTION(example, completions) -> list of one dict per completion, component name: number
    def FUNCTION(example, completions, plans): the same; plans[i] is the plan of completions[i], None if it has none
"""

import functools
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from rewards.actions import ALPHADRIVE, Actions, parse_plan
from rewards.checked import RewardError, checked_rewards


def load_reward(reward: str, actions: Actions = ALPHADRIVE) -> Callable:
    """`FILE.py:FUNCTION` -> a function of example and completions whose result is checked.

    Raises: RewardError that names what is missing or wrong, and the remedy.
    """
    file, name = split_name(reward)
    module = load_module(file, reward)
    function = vars(module).get(name)
    if not inspect.isfunction(function):
        found = [other for other, value in vars(module).items() if inspect.isfunction(value)]
        raise RewardError(f"--reward {reward}: {file} has no function {name}; it has {', '.join(found) or 'none'}")
    signature = inspect.signature(function)
    names = list(signature.parameters)
    plain = all(parameter.kind <= parameter.POSITIONAL_OR_KEYWORD for parameter in signature.parameters.values())
    if not plain or names[2:] not in ([], ["plans"]) or len(names) < 2 or names[0] == "completions":
        raise RewardError(f"--reward {reward}: its parameters are {signature}; they must be (example, completions) or "
                          "(example, completions, plans)")

    @functools.wraps(function)
    def rewards(example: object, completions: list[str]) -> list[dict[str, float]]:
        plans = [[parse_plan(text, actions) for text in completions]] if names[2:] else []
        with settings_kept():
            return checked_rewards(function, example.id, completions, function(example, list(completions), *plans))
    return rewards


@contextmanager
def settings_kept() -> Iterator[None]:
    """What a file of the user's changes for its own work holds for that work alone: the working directory, at which
    the run's paths start, torch's gradient mode and its default type."""
    here, torch = os.getcwd(), sys.modules.get("torch")       # not imported: it would take 2 s in each reward process
    if torch:
        mode_before, type_before = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        if torch:
            torch.set_grad_enabled(mode_before)
            torch.set_default_dtype(type_before)
        os.chdir(here)


def split_name(reward: str) -> tuple[Path, str]:
    """`FILE.py:FUNCTION` -> file, name."""
    file, _, name = reward.rpartition(":")
    return Path(file), name


def load_module(file: Path, reward: str) -> ModuleType:
    """Run a file as a module, once per process and contents; it may import its neighbours."""
    module_name = f"reward_{source_sign(file, reward)}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)                             # at the end, so that it hides no module of others
    spec = importlib.util.spec_from_file_location(module_name, file)
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        with settings_kept():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as fault:
        del sys.modules[module_name]
        raise RewardError(f"--reward {reward}: {file} cannot be run: {type(fault).__name__}: {fault}") from fault
    return module


def source_sign(file: Path, reward: str) -> str:
    """A short hash of a file's contents. Raises: RewardError if it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    except OSError as fault:
        raise RewardError(f"--reward {reward}: {file} cannot be read ({fault.strerror}); write FILE.py:FUNCTION with "
                          "the path from here") from fault
