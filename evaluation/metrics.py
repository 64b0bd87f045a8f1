"""Scores of a planner on many scenes: accuracies, per-action F1, confusion, safety, multimodality, statistics.

A prediction is a Decision, or None for an answer that states no single plan. None always counts as wrong and is never
left out. Results are plain dicts and floats that json can write; an undefined value is None.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from rewards.actions import ALPHADRIVE, Actions, Decision, parse_plan

INVALID = "invalid"

INVALID_CAUSES = ("several_answers", "truncated", "no_answer", "several_plans", "unknown_word", "missing_action",
                  "malformed")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def planning_metrics(truths: Sequence[Decision], predictions: Sequence[Decision | None],
                     acceptable: Sequence[Collection[Decision] | None] | None = None,
                     actions: Actions = ALPHADRIVE) -> dict:
    """Scores of one prediction per scene, as fractions of all scenes.

    planning_accuracy (speed and path right), speed_accuracy, path_accuracy, invalid_rate; acceptable_accuracy over the
    scenes whose acceptable plans are known (None if there are none); "unambiguous": accuracy and count of the scenes
    with a single acceptable plan; "speed", "path": {action: precision, recall, f1, support}; speed_macro_f1,
    path_macro_f1 and macro_f1 (all actions): mean F1 of the actions with support; speed_, path_ and
    joint_confusion: counts[truth][prediction] with a prediction "invalid"; the joint table has the plans that occur;
    "paper": `paper_metrics`, if the actions have a merge; "safety": `safety_errors`.
    Raises: ValueError if the lists are empty or differ in length.
    """
    known = [None] * len(truths) if acceptable is None else acceptable
    _check_lengths(truths, predictions=predictions, acceptable=known)
    right = [truth == prediction for truth, prediction in zip(truths, predictions, strict=True)]
    result = {"count": len(truths), "planning_accuracy": _mean(right),
              "invalid_rate": _mean([prediction is None for prediction in predictions]),
              "acceptable_accuracy": _mean([plan in plans for plan, plans in zip(predictions, known, strict=True)
                                            if plans]),
              "unambiguous": subset_accuracy(right, [len(set(plans or ())) == 1 for plans in known])}
    for part, named in (("speed", actions.speeds), ("path", actions.paths)):
        result |= _part_metrics(part, named, _names(truths, part), _names(predictions, part))
    result["macro_f1"] = _macro_f1(result["speed"], result["path"])
    occurring = [str(plan) for plan in actions.plans if plan in {*truths, *predictions}]
    result["joint_confusion"] = confusion([str(truth) for truth in truths],
                                          [INVALID if p is None else str(p) for p in predictions], occurring)
    paper = {"paper": paper_metrics(truths, predictions, actions)} if actions.merge else {}
    return result | paper | {"safety": safety_errors(truths, predictions, actions)}


def paper_metrics(truths: Sequence[Decision], predictions: Sequence[Decision | None],
                  actions: Actions = ALPHADRIVE) -> dict:
    """The 7 classes of AlphaDrive's tables: four speeds and the paths STRAIGHT, LEFT, RIGHT; or those of another merge.

    A lane change counts as its side, in truth and prediction (`Actions.merge`): LEFT_CHANGE answered
    LEFT_TURN is right.
    planning_accuracy, path_accuracy, "path": {action: precision, recall, f1, support}, path_macro_f1,
    path_confusion; macro_f1 over all of them. Speed scores are those of `planning_metrics`.
    """
    _check_lengths(truths, predictions=predictions)
    speeds, predicted_speeds = _names(truths, "speed"), _names(predictions, "speed")
    paths, predicted_paths = ([actions.merge.get(name, name) for name in _names(plans, "path")]
                              for plans in (truths, predictions))
    pairs = zip(speeds, paths, predicted_speeds, predicted_paths, strict=True)
    result = {"planning_accuracy": _mean([(speed, path) == (s, p) for speed, path, s, p in pairs])}
    result |= _part_metrics("path", actions.classes, paths, predicted_paths)
    speed_scores = _part_metrics("speed", actions.speeds, speeds, predicted_speeds)["speed"]
    return result | {"macro_f1": _macro_f1(speed_scores, result["path"])}


def safety_errors(truths: Sequence[Decision], predictions: Sequence[Decision | None],
                  actions: Actions = ALPHADRIVE) -> dict[str, float | int | None]:
    """Answers that do not brake where the label brakes: STOP or DECELERATE answered KEEP or ACCELERATE. In general, a
    speed of `actions.braking` answered by one of `actions.going`.

        weight = steps between truth and answer on ACCELERATE < KEEP < DECELERATE < STOP, divided by 3:
                 STOP -> ACCELERATE 1, STOP -> KEEP 2/3, DECELERATE -> ACCELERATE 2/3, DECELERATE -> KEEP 1/3, else 0

    support: scenes whose truth brakes; count: such answers; rate = count / support; cost = sum of the
    weights / support, in [0, 1]; both None without support. Invalid answers do not count here: see invalid_rate.
    The weights are our choice, not a measured risk.
    """
    caution = actions.going + actions.braking                                   # from the least cautious speed on
    brakes = [(truth, plan) for truth, plan in zip(truths, predictions, strict=True) if truth.speed in actions.braking]
    steps = [caution.index(truth.speed) - caution.index(plan.speed) for truth, plan in brakes
             if plan is not None and plan.speed in actions.going]
    support = len(brakes)
    return {"support": support, "count": len(steps), "rate": len(steps) / support if support else None,
            "cost": sum(steps) / (len(caution) - 1) / support if support else None}


def braking_cost(truth: Decision, plan: Decision | None, actions: Actions = ALPHADRIVE) -> float:
    """The weight of one answer in `safety_errors`: 0 if it brakes, states no plan, or the label does not brake."""
    return safety_errors([truth], [plan], actions)["cost"] or 0.0


def invalid_cause(text: str, truncated: bool = False, actions: Actions = ALPHADRIVE) -> str | None:
    """Why `parse_plan` finds no plan in a completion, None if it finds one; the first of INVALID_CAUSES that applies.

    several_answers   more than one opening or closing answer tag
    truncated         no answer block, and the text ends inside a block or a tag, or `truncated` is True
    no_answer         no answer block, or only one inside the reasoning
    several_plans     two speeds or two paths in the block (a hedge)
    unknown_word      a word in the block that is not an action
    missing_action    no speed or no path in the block; it may be empty
    malformed         one speed and one path, but repeated, or with signs other than commas and a final full stop
    """
    if parse_plan(text, actions) is not None:
        return None
    if max(text.count("<answer>"), text.count("</answer>")) > 1:
        return "several_answers"
    head, _, rest = text.partition("<answer>")
    block, closing, tail = rest.partition("</answer>")
    # A block inside the reasoning is not read, whatever it contains: test this with a valid plan in its place.
    if not closing or parse_plan(f"{head}<answer>{actions.sample}</answer>{tail}", actions) is None:
        return "truncated" if truncated or _ends_inside(text) else "no_answer"
    return _block_cause(block, actions)


def invalid_causes(texts: Sequence[str], truncated: Sequence[bool] | None = None,
                   actions: Actions = ALPHADRIVE) -> dict[str, float]:
    """{cause: share of all completions} for every cause; the sum of the shares is the invalid rate."""
    if not texts:
        raise ValueError("no completion to classify: texts is empty")
    flags = [False] * len(texts) if truncated is None else truncated
    counts = Counter(invalid_cause(text, bool(flag), actions) for text, flag in zip(texts, flags, strict=True))
    return {cause: counts[cause] / len(texts) for cause in INVALID_CAUSES}


def subset_accuracy(right: Sequence[float], members: Sequence[bool]) -> dict[str, float | int | None]:
    """Mean of `right` (0 or 1 per scene, or a share of its samples) over the member scenes: accuracy and count."""
    values = [float(value) for value, member in zip(right, members, strict=True) if member]
    return {"count": len(values), "accuracy": _mean(values)}


def factor_accuracy(right: Sequence[float],
                    factors: Sequence[Mapping | None]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Accuracy and count per scene factor and value: {"light": {"red": {"count": 40, "accuracy": 0.8}, ...}, ...}.

    Factors are the facts that the data give for a scene. Values of other types than text, int and bool are ignored, and
    those that occur once, such as an identifier. Show the count beside the accuracy: small counts are noise.
    """
    groups = defaultdict(lambda: defaultdict(list))
    for value, known in zip(right, factors, strict=True):
        for name, level in (known or {}).items():
            if isinstance(level, str | int):
                groups[name][str(level)].append(value)
    found = {name: {level: subset_accuracy(values, [True] * len(values)) for level, values in sorted(levels.items())
                    if len(values) > 1} for name, levels in sorted(groups.items())}
    return {name: levels for name, levels in found.items() if levels}


def confusion(truths: Sequence[str], predictions: Sequence[str], actions: Sequence[str]) -> dict[str, dict[str, int]]:
    """counts[truth][prediction] over the actions; the last column counts the invalid answers."""
    counts = Counter(zip(truths, predictions, strict=True))
    return {truth: {name: counts[truth, name] for name in (*actions, INVALID)} for truth in actions}


def action_scores(table: dict[str, dict[str, int]], action: str) -> dict[str, float | int | None]:
    """Precision, recall, F1 and support of one action: tp / (tp + fp), tp / (tp + fn), 2 tp / (2 tp + fp + fn).

    An invalid answer is a false negative of the true action and a false positive of no action. Undefined values are
    None: precision of an action never predicted, recall and F1 of an action that is never the truth.
    """
    hits, support = table[action][action], sum(table[action].values())
    predicted = sum(row[action] for row in table.values())
    return {"precision": hits / predicted if predicted else None, "recall": hits / support if support else None,
            "f1": 2 * hits / (predicted + support) if support else None, "support": support}


def plan_entropy(plans: Sequence[Decision | None]) -> float:
    """Entropy, in nats, of the distribution of the plans sampled for one scene; None counts as an outcome."""
    return -sum(n / len(plans) * math.log(n / len(plans)) for n in Counter(plans).values()) + 0.0


def sample_metrics(samples: Sequence[Decision | None], acceptable: Collection[Decision]) -> dict[str, float | None]:
    """How well K sampled plans of one scene cover its acceptable set A.

    validity: share of the samples in A; coverage: share of A among the samples; f_mode: their harmonic mean;
    evenness: entropy of the samples inside A divided by log |A|, None if |A| < 2 or no sample is inside.
    A higher temperature raises coverage: compare curves over temperatures, not single points.
    """
    if not samples or not acceptable:
        raise ValueError(f"need samples and acceptable plans, got {len(samples)} and {len(acceptable)}")
    members = set(acceptable)
    inside = [plan for plan in samples if plan in members]
    validity, coverage = len(inside) / len(samples), len(set(inside)) / len(members)
    f_mode = 2 * validity * coverage / (validity + coverage) if inside else 0.0
    evenness = plan_entropy(inside) / math.log(len(members)) if inside and len(members) > 1 else None
    return {"validity": validity, "coverage": coverage, "f_mode": f_mode, "evenness": evenness}


def multimodality(truths: Sequence[Decision], groups: Sequence[Sequence[Decision | None]],
                  acceptable: Sequence[Collection[Decision] | None],
                  distributions: Sequence[Mapping[Decision, float]] | None = None, modes: int = 2,
                  ks: Sequence[int] = (1, 2, 4, 8, 16)) -> dict:
    """Means over the scenes with at least `modes` acceptable plans A, of K samples each: one point of the curve.

    scenes: number of these scenes. validity, coverage, f_mode, evenness: `sample_metrics`; entropy: of the samples
    inside A, in nats; pass_at_k: {"acceptable": {"1": ...}, "label": {...}} for k <= K; total_variation: distance to
    the true label distributions. Undefined values are None.
    A model is better only if its curve of validity and coverage over temperatures lies above the other model's.
    """
    rows = [row for row in zip(truths, groups, acceptable, distributions or [None] * len(truths), strict=True)
            if len(set(row[2] or ())) >= modes]
    scenes = [_scene_modes(*row[1:]) for row in rows]
    names = ("validity", "coverage", "f_mode", "entropy", "evenness", "total_variation")
    result = {name: _mean([s[name] for s in scenes if s[name] is not None]) for name in names}
    passed = {"acceptable": {}, "label": {}}
    for k in [k for k in ks if rows and k <= min(len(row[1]) for row in rows)]:
        passed["acceptable"][str(k)] = _mean([pass_at_k(len(g), sum(p in a for p in g), k) for _, g, a, _ in rows])
        passed["label"][str(k)] = _mean([pass_at_k(len(g), sum(p == t for p in g), k) for t, g, _, _ in rows])
    return {"scenes": len(rows), **result, "pass_at_k": passed}


def total_variation(samples: Sequence[Decision | None], distribution: Mapping[Decision, float]) -> float:
    """Distance in [0, 1] of the samples' frequencies from the true label distribution q: 1/2 sum_c |frequency - q(c)|.

    An invalid sample is an outcome with q = 0. K samples drawn from q itself do not reach 0: compare values of equal K
    only.
    Raises: ValueError without samples, or if q does not sum to 1.
    """
    if not samples or abs(sum(distribution.values()) - 1) > 1e-6:
        raise ValueError(f"need samples and chances that sum to 1, got {len(samples)} and {sum(distribution.values())}")
    counts = Counter(samples)
    plans = {*counts, *distribution}                         # fsum: the same sum in whatever order a set comes
    return math.fsum(abs(counts[plan] / len(samples) - distribution.get(plan, 0.0)) for plan in plans) / 2


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that k of the samples, drawn without replacement, contain a correct one: 1 - C(n - c, k) / C(n, k).

    Source: Chen et al., arXiv:2107.03374, eq. 1.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"need 0 <= correct <= samples and 1 <= k <= samples, got {correct}, {samples}, k = {k}")
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def bootstrap_interval(values: Sequence[float], seed: int, draws: int = 2000,
                       level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the mean of one value per scene.

    For several samples per scene pass their mean: scenes are the independent units, not samples.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"values must be one finite number per scene, got shape {values.shape}")
    generator = np.random.default_rng(seed)
    many = max(1, 2**14 // len(values))                      # draws at a time; the result does not depend on it
    means = [values[generator.integers(len(values), size=(min(many, draws - done), len(values)))].mean(axis=1)
             for done in range(0, draws, many)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson_interval(hits: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval (low, high) of a share: unlike a bootstrap's, it has a width if all or none are hits.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    z = 1.959964                                             # of the normal distribution, 97.5 %
    middle, half = hits + z**2 / 2, z * math.sqrt(hits * (count - hits) / count + z**2 / 4)
    return (middle - half) / (count + z**2), (middle + half) / (count + z**2)


def paired_interval(a: Sequence[float], b: Sequence[float], seed: int, draws: int = 2000,
                    level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of mean(a) - mean(b) for two planners on the same scenes, from per-scene differences."""
    if len(a) != len(b):
        raise ValueError(f"a and b must score the same scenes, got {len(a)} and {len(b)} values")
    return bootstrap_interval(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), seed, draws, level)


def mcnemar(a: Sequence[float], b: Sequence[float]) -> dict[str, float | int]:
    """Exact two-sided McNemar test of two planners on the same scenes; a and b are 1 where right, else 0.

    Only scenes where one planner alone is right count: p_value = min(1, 2 P(X <= min(only_a, only_b))), where X is
    binomial with only_a + only_b trials of probability 1/2.
    Raises: ValueError if the lengths differ or a value is not 0 or 1.
    Source: McNemar, Psychometrika 12 (1947), with the binomial instead of the chi-squared distribution.
    """
    if len(a) != len(b) or not {*a, *b} <= {0, 1}:
        raise ValueError(f"a and b must be 0 or 1 for the same scenes, got {len(a)} and {len(b)} values")
    only_a = sum(x > y for x, y in zip(a, b, strict=True))
    only_b = sum(x < y for x, y in zip(a, b, strict=True))
    tosses = only_a + only_b
    tail = sum(math.comb(tosses, i) for i in range(min(only_a, only_b) + 1))
    return {"only_a": only_a, "only_b": only_b, "p_value": min(1.0, 2 * tail / 2 ** tosses)}


def _part_metrics(part: str, actions: Sequence[str], truths: Sequence[str], predictions: Sequence[str]) -> dict:
    """Accuracy, scores per action, their mean F1 and the confusion table of the speeds or of the paths."""
    table = confusion(truths, predictions, actions)
    scores = {action: action_scores(table, action) for action in actions}
    return {f"{part}_accuracy": sum(table[action][action] for action in actions) / len(truths), part: scores,
            f"{part}_macro_f1": _macro_f1(scores), f"{part}_confusion": table}


def _macro_f1(*scores: Mapping[str, Mapping]) -> float | None:
    return _mean([row["f1"] for part in scores for row in part.values() if row["support"]])


def _names(plans: Sequence[Decision | None], part: str) -> list[str]:
    return [INVALID if plan is None else getattr(plan, part) for plan in plans]


def _block_cause(block: str, actions: Actions) -> str:
    """Why the content of an answer block is not a plan."""
    words = [word.upper() if word.isascii() else word for word in re.findall(r"\w+", block)]
    speeds, paths = set(words) & {*actions.speeds}, set(words) & {*actions.paths}
    if len(speeds) > 1 or len(paths) > 1:
        return "several_plans"
    if set(words) - speeds - paths:
        return "unknown_word"
    return "malformed" if speeds and paths else "missing_action"


def _ends_inside(text: str) -> bool:
    """True if the text stops inside a think or answer block, or inside a tag."""
    inside = any(text.rfind(f"<{name}>") > text.rfind(f"</{name}>") for name in ("think", "answer"))
    return inside or any(text.endswith(tag[:length]) for tag in TAGS for length in range(1, len(tag)))


def _scene_modes(samples: Sequence[Decision | None], acceptable: Collection[Decision],
                 distribution: Mapping[Decision, float] | None) -> dict[str, float | None]:
    inside = [plan for plan in samples if plan in acceptable]
    return {**sample_metrics(samples, acceptable), "entropy": plan_entropy(inside) if inside else None,
            "total_variation": total_variation(samples, distribution) if distribution is not None else None}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _check_lengths(truths: Sequence, **others: Sequence) -> None:
    if not truths:
        raise ValueError("no scene to score: truths is empty")
    for name, values in others.items():
        if len(values) != len(truths):
            raise ValueError(f"{name} has {len(values)} entries for {len(truths)} truths")
