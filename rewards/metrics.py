"""Scores of a planner on many scenes: accuracies, per-action F1, confusion, multimodality, confidence intervals.

Predictions are the strict parser's: a Decision, or None for an answer that states no single plan. That is always wrong
and never left out. Results are plain dicts and floats that json can write; a value that is undefined is None.
"""

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from rewards.actions import PATH_ACTIONS, SPEED_ACTIONS, Decision

INVALID = "invalid"


def planning_metrics(truths: Sequence[Decision], predictions: Sequence[Decision | None],
                     acceptable: Sequence[Collection[Decision] | None] | None = None) -> dict:
    """Scores of one prediction per scene, as fractions of all scenes.

    planning_accuracy (speed and path right), speed_accuracy, path_accuracy, invalid_rate; acceptable_accuracy over
    the scenes whose acceptable plans are known (None if there are none); "speed" and "path": {action: precision,
    recall, f1, support}; speed_macro_f1, path_macro_f1: mean F1 of the actions with support; speed_confusion and
    path_confusion: counts[truth][prediction], prediction "invalid" included.
    Raises: ValueError if the lists are empty or differ in length.
    """
    _check_lengths(truths, predictions, acceptable)
    right = [truth == prediction for truth, prediction in zip(truths, predictions, strict=True)]
    result = {"count": len(truths), "planning_accuracy": _mean(right), "speed_accuracy": 0.0, "path_accuracy": 0.0,
              "invalid_rate": _mean([prediction is None for prediction in predictions]),
              "acceptable_accuracy": _acceptable_accuracy(predictions, acceptable)}
    for part, actions in (("speed", SPEED_ACTIONS), ("path", PATH_ACTIONS)):
        names = [INVALID if prediction is None else getattr(prediction, part) for prediction in predictions]
        table = confusion([getattr(truth, part) for truth in truths], names, actions)
        scores = {action: action_scores(table, action) for action in actions}
        result[f"{part}_accuracy"] = sum(table[action][action] for action in actions) / len(truths)
        result[part] = scores
        result[f"{part}_macro_f1"] = _mean([s["f1"] for s in scores.values() if s["support"]])
        result[f"{part}_confusion"] = table
    return result


def confusion(truths: Sequence[str], predictions: Sequence[str], actions: Sequence[str]) -> dict[str, dict[str, int]]:
    """counts[truth][prediction] over the actions; the last column holds the invalid answers."""
    counts = Counter(zip(truths, predictions, strict=True))
    return {truth: {name: counts[truth, name] for name in (*actions, INVALID)} for truth in actions}


def action_scores(table: dict[str, dict[str, int]], action: str) -> dict[str, float | int | None]:
    """Precision, recall, F1 and support of one action: tp / (tp + fp), tp / (tp + fn), 2 tp / (2 tp + fp + fn).

    An invalid answer is a miss of the true action and a false positive of none. Undefined values are None: precision
    of an action never predicted, recall and F1 of an action that is never the truth.
    """
    hits, support = table[action][action], sum(table[action].values())
    predicted = sum(row[action] for row in table.values())
    return {"precision": hits / predicted if predicted else None, "recall": hits / support if support else None,
            "f1": 2 * hits / (predicted + support) if support else None, "support": support}


def plan_entropy(plans: Sequence[Decision | None]) -> float:
    """Entropy, in nats, of the empirical distribution of plans sampled for one scene; None is one more outcome."""
    return -sum(n / len(plans) * math.log(n / len(plans)) for n in Counter(plans).values()) + 0.0


def sample_metrics(samples: Sequence[Decision | None], acceptable: Collection[Decision]) -> dict[str, float | None]:
    """How well K sampled plans of one scene cover its acceptable set A.

    validity: share of the samples in A; coverage: share of A among the samples; f_mode: their harmonic mean;
    evenness: entropy of the samples inside A divided by log |A|, None if |A| < 2 or no sample is inside.
    Coverage can be bought by temperature: compare curves over temperatures, never single points.
    """
    if not samples or not acceptable:
        raise ValueError(f"need samples and acceptable plans, got {len(samples)} and {len(acceptable)}")
    members = set(acceptable)
    inside = [plan for plan in samples if plan in members]
    validity, coverage = len(inside) / len(samples), len(set(inside)) / len(members)
    f_mode = 2 * validity * coverage / (validity + coverage) if inside else 0.0
    evenness = plan_entropy(inside) / math.log(len(members)) if inside and len(members) > 1 else None
    return {"validity": validity, "coverage": coverage, "f_mode": f_mode, "evenness": evenness}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a correct one: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al., arXiv:2107.03374, eq. 1.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"need 0 <= correct <= samples and 1 <= k <= samples, got {correct}, {samples}, k = {k}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def bootstrap_interval(values: Sequence[float], seed: int, draws: int = 2000,
                       level: float = 0.95) -> tuple[float, float]:
    """Percentile interval (low, high) of the mean of one value per scene: scenes are drawn again with replacement.

    Give a scene with several samples its mean, so that scenes and not samples are the independent units.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"values must be one finite number per scene, got shape {values.shape}")
    generator = np.random.default_rng(seed)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(a: Sequence[float], b: Sequence[float], seed: int, draws: int = 2000,
                    level: float = 0.95) -> tuple[float, float]:
    """Interval of mean(a) - mean(b) for two planners scored on the same scenes: bootstrap of per-scene differences."""
    if len(a) != len(b):
        raise ValueError(f"a and b must score the same scenes, got {len(a)} and {len(b)} values")
    return bootstrap_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), seed, draws, level)


def _acceptable_accuracy(predictions: Sequence[Decision | None],
                         acceptable: Sequence[Collection[Decision] | None] | None) -> float | None:
    pairs = zip(predictions, acceptable or [None] * len(predictions), strict=True)
    return _mean([prediction in plans for prediction, plans in pairs if plans])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _check_lengths(truths: Sequence, predictions: Sequence, acceptable: Sequence | None) -> None:
    if not truths:
        raise ValueError("no scene to score: truths is empty")
    lengths = {"predictions": len(predictions), "acceptable": len(truths if acceptable is None else acceptable)}
    for name, length in lengths.items():
        if length != len(truths):
            raise ValueError(f"{name} has {length} entries for {len(truths)} truths")
