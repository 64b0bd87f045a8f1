"""The rewards of AlphaDrive's Table 2, one idea more in each: `--reward benchmarks/paper_rewards.py:exact`.

    exact             1 for the right speed and 1 for the right path, if the answer names nothing else
    exact_and_format  the format reward, too
    f1_and_format     F1 of the named actions instead of exact match
    weighted          each action by its weight; with diversity this is `--reward planning`
    safe              minus the cost of not braking where the label brakes, and the format reward
    braking           that cost alone, to be paid beside others: --reward planning --reward ...:braking
"""

from data.example import Example
from evaluation.metrics import braking_cost
from rewards import planning_rewards
from rewards.actions import ALPHADRIVE

EQUAL = dict.fromkeys(ALPHADRIVE.names, 1.0)


def scored(example: Example, completions: list[str], accuracy: str, weights: dict[str, float] | None) -> list[dict]:
    """Speed, path and format without the diversity factor; weights None: those of the actions."""
    rows = planning_rewards(completions, example.decision, accuracy=accuracy, weights=weights, diversity=False)
    return [{"speed": speed, "path": path, "format": form} for speed, path, form in rows]


def exact(example: Example, completions: list[str]) -> list[dict]:
    """Exact match alone."""
    return [{"speed": row["speed"], "path": row["path"]} for row in scored(example, completions, "exact", EQUAL)]


def exact_and_format(example: Example, completions: list[str]) -> list[dict]:
    """Exact match and format."""
    return scored(example, completions, "exact", EQUAL)


def f1_and_format(example: Example, completions: list[str]) -> list[dict]:
    """F1 and format."""
    return scored(example, completions, "f1", EQUAL)


def weighted(example: Example, completions: list[str]) -> list[dict]:
    """F1 times action weight, and format."""
    return scored(example, completions, "f1", None)


def safe(example: Example, completions: list[str], plans: list) -> list[dict]:
    """Minus the safety-weighted cost of each plan, and format."""
    return [{"cost": paid["braking"], "format": row["format"]} for paid, row in zip(
        braking(example, completions, plans), scored(example, completions, "f1", EQUAL), strict=True)]


def braking(example: Example, completions: list[str], plans: list) -> list[dict]:
    """Minus the safety-weighted cost of each plan: 0 to -1, 0 where the label does not brake."""
    return [{"braking": -braking_cost(example.decision, plan)} for plan in plans]
