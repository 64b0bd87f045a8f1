"""What a run rewards: AlphaDrive's planning rewards, functions of the user's own, or both, through one door.

`make_reward_fn` makes the function that scores a group, `Scoring` calls it for every group of a step.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from data.example import Example
from grpo.config import GRPOConfig
from grpo.engine.checkpoint import chosen_actions
from grpo.engine.flags import GRPOFlags
from grpo.engine.progress import Progress
from grpo.groups import RewardFn
from machine import on_every_core
from rewards import parse_plan, planning_rewards
from rewards.actions import ALPHADRIVE, Actions
from rewards.checked import LOGGED, RewardError, checked_rewards
from rewards.own import load_reward, source_sign, split_name
from rewards.processes import RewardProcesses
from rewards.waypoints import parse_waypoints, waypoint_reward, without_waypoints
from trajectory.written import written_pdms

SLOW = 5.0                              # seconds after which the scoring of a step shows its progress
SLOWER = 30.0                           # seconds after which --reward-processes is suggested


def make_reward_fn(config: GRPOFlags, actions: Actions | None = None) -> RewardFn:
    """The components of every --reward, and `accuracy` (strict, against the label), which is logged and not paid.

    actions: the run's lists if they are not given. Raises: RewardError for a function that cannot be loaded."""
    actions = chosen_actions(config) if actions is None else actions
    if not config.own_rewards:
        return planning_reward(config, actions)
    processes = config.reward_processes and RewardProcesses(config.reward_processes, config.reward_timeout,
                                                            on_every_core)
    load = processes.function if processes else load_reward
    functions = {reward: planning_reward(config, actions) if reward == "planning" else load(reward, actions)
                 for reward in config.rewards}
    return together(functions, ("std", "length") if config.length_margin else ("std",), actions)


def planning_reward(config: GRPOConfig, actions: Actions = ALPHADRIVE) -> RewardFn:
    """AlphaDrive's rewards as named components; `accuracy` is logged."""
    def planning(example: Example, completions: list[str]) -> list[dict[str, float]]:
        rows = planning_rewards(completions, example.decision, example.acceptable, config.reward_mode,
                                accuracy=config.reward_accuracy, diversity=config.diversity,
                                reasoning=config.reasoning, actions=actions)
        return [{"speed": speed, "path": path, "format": form,
                 "accuracy": float(parse_plan(text, actions) == example.decision)}
                for text, (speed, path, form) in zip(completions, rows, strict=True)]
    return planning if config.answer == "plan" else add_waypoint_reward(planning, config)


def add_waypoint_reward(plan_reward: RewardFn, config: GRPOConfig) -> RewardFn:
    """The plan's rewards without the block of way-points, and the component of the way-points; format needs both."""
    (name,) = config.waypoint_component

    def planning(example: Example, completions: list[str]) -> list[dict[str, float]]:
        rows = plan_reward(example, [without_waypoints(text) for text in completions])
        scores = (written_pdms(example, completions) if name == "pdms" else
                  [waypoint_reward(text, example.trajectory) for text in completions])
        return [{**row, "format": row["format"] * (parse_waypoints(text) is not None), name: value}
                for text, row, value in zip(completions, rows, scores, strict=True)]
    return planning


def together(functions: Mapping[str, RewardFn], taken: Sequence[str], actions: Actions) -> RewardFn:
    """One function that returns the components of all. taken: names that the logs use for something else."""
    first: list[str] = []                                   # the names that the first call returned

    def rewards(example: Example, completions: list[str]) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = [{} for _ in completions]
        for reward, function in functions.items():
            own = checked_rewards(function, example.id, completions, function(example, completions))
            check_names(reward, [*own[0]], {*taken, *rows[0]} - {*LOGGED})
            rows = [{**row, **more} for row, more in zip(rows, own, strict=True)]
        names = list(rows[0])
        if {*names} != {*(first or names)}:
            raise RewardError(f"the rewards of example {example.id!r} have the components {', '.join(names)}, those of "
                              f"an earlier one {', '.join(first)}; return the same names for every example")
        first[:] = first or names
        rows = [{name: row[name] for name in first} for row in rows]
        return [{**row, "accuracy": row.get("accuracy", float(parse_plan(text, actions) == example.decision))}
                for row, text in zip(rows, completions, strict=True)]
    rewards.__name__ = ", ".join(functions)
    return rewards


def check_names(reward: str, names: Sequence[str], taken: set[str]) -> None:
    """Raise RewardError for a component whose name is taken or does not fit into --reward-weights."""
    for name in names:
        if name in taken:
            raise RewardError(f"--reward {reward}: the component {name!r} has the name of another; rename it")
        if not name.isidentifier():
            raise RewardError(f"--reward {reward}: the component {name!r} is not a valid name; use letters, "
                              "digits and _")


def reward_signs(config: GRPOFlags) -> list[str]:
    """What identifies each --reward: `planning`, or the function's name and a hash of its file."""
    named = [(reward, *split_name(reward)) for reward in config.rewards]
    return [reward if reward == "planning" else f"{name} of source {source_sign(file, reward)}"
            for reward, file, name in named]


class Scoring:
    """Calls a reward function for every group, as `map` does; with processes, for as many groups at a time.

    It shows progress when that takes long. `seconds` are those of the last step; `take_seconds` sets them back.
    on_all makes an error on one rank one of all ranks (`Distributed.on_all`)."""

    def __init__(self, processes: int, on_all: Callable[[Callable], Any] = lambda action: action()) -> None:
        self.processes, self.on_all, self.seconds, self.told = processes, on_all, 0.0, False

    def __call__(self, reward_fn: RewardFn, examples: Sequence[Example],
                 texts: Sequence[list[str]]) -> list[list[dict[str, float]]]:
        return self.on_all(lambda: self.score(reward_fn, examples, texts))

    def score(self, reward_fn: RewardFn, examples: Sequence[Example],
              texts: Sequence[list[str]]) -> list[list[dict[str, float]]]:
        """The rewards of every group."""
        began, progress, rows = time.monotonic(), Progress("rewards", len(examples)), []
        with ExitStack() as stack:
            each = stack.enter_context(ThreadPoolExecutor(self.processes)).map if self.processes else map
            for row in each(reward_fn, examples, texts):
                rows.append(row)
                if time.monotonic() - began > SLOW:
                    progress.show(len(rows), seconds=time.monotonic() - began)
        self.seconds += time.monotonic() - began
        if self.seconds > SLOWER and not (self.processes or self.told):
            self.told = True
            print(f"note: the rewards of {len(examples)} groups took {self.seconds:.0f} s; --reward-processes N "
                  "computes N groups at a time", file=sys.stderr, flush=True)
        return rows

    def take_seconds(self) -> float:
        """The seconds since the last call of this."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
