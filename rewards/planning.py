"""AlphaDrive's planning rewards for one group: the completions sampled for one scene.

Speed and path are rewarded separately: reward = accuracy * weight * diversity. Accuracy is the F1 between the named
actions and the correct one; weight is the mean importance of the NAMED actions (the paper's W[speed]: the hedge
"KEEP, STOP" has (0.8 + 1.0) / 2); diversity reduces the reward of answers that repeat within the group. A third reward
is for the format.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from rewards.actions import ALPHADRIVE, Actions, Decision, find_actions, follows_format

MODES = ("repaired", "paper", "official", "set")

MAX_PENALTY = 0.2       # diversity is at least 0.8
OFFICIAL_BONUS = 0.4    # the released code adds or subtracts this instead
OFFICIAL_EPS = 1e-6
_OFFICIAL_MIDDLE = re.compile(r"</think>\s*<answer>")

Names = tuple[str, ...]
Reward = tuple[float, float, float]


def planning_rewards(completions: Sequence[str], decision: Decision, acceptable: Collection[Decision] | None = None,
                     mode: str = "repaired", weights: Mapping[str, float] | None = None, accuracy: str = "f1",
                     diversity: bool = True, reasoning: bool = True, actions: Actions = ALPHADRIVE) -> list[Reward]:
    """One (speed, path, format) reward per completion of one scene. An unreadable completion earns 0.

    repaired: diversity 1 - min(0.2, (count - 1) / G), count = completions of the group that name the same actions.
    paper:    diversity 1 - min(0.2, count / G), read as two passes; 0.8 for every answer up to G = 5.
    set:      as repaired, but against the plan of `acceptable` with the largest speed + path reward.
    official: the released functions, defects included (`_official_rewards`); reasoning and accuracy are ignored.
    accuracy: f1 | exact (1 if the correct action is the only one named). weights replace those of the actions.
    Except in official, permuting the completions permutes their rewards. Ranges: [0, 1] each with weights up
    to 1; official [-0.4, 1.4].
    Raises: ValueError for an unknown option, or mode set without acceptable plans.
    Source: AlphaDrive, arXiv:2503.07608, Alg. 1. Its counters do not work as printed, hence the modes.
    """
    _check_options(mode, accuracy, weights, acceptable, actions)
    importance = {**{name: actions.weight(name) for name in actions.names}, **(weights or {})}
    if mode == "official":
        return _official_rewards(completions, decision, importance, diversity, actions)
    answers = [find_actions(completion, actions) for completion in completions]
    factors = diversity_factors(answers, mode) if diversity else [1.0] * len(answers)
    plans = _label_first(decision, acceptable) if mode == "set" else [decision]
    rewards = []
    for completion, answer, factor in zip(completions, answers, factors, strict=True):
        speed, path = max((_judge(answer, plan, importance, accuracy) for plan in plans), key=sum)  # first of equals
        rewards.append((speed * factor, path * factor, float(follows_format(completion, reasoning, actions))))
    return rewards


def diversity_factors(answers: Sequence[tuple[Names, Names]], mode: str = "repaired") -> list[float]:
    """The diversity factor of every answer of a group; count = answers of the group that name the same actions.

    repaired, set: 1 - min(0.2, (count - 1) / G): 1 if no other answer is the same; paper: 1 - min(0.2, count / G).
    Example with G = 2: equal answers 0.8, 0.8, different answers 1, 1 (paper: 0.8 in both cases).
    """
    pairs = [(frozenset(speeds), frozenset(paths)) for speeds, paths in answers]
    counts, own = Counter(pairs), 0 if mode == "paper" else 1
    return [1 - min(MAX_PENALTY, (counts[pair] - own) / len(pairs)) for pair in pairs]


def f1_score(named: Collection[str], right: str) -> float:
    """F1 of the n named actions against the one correct action: 2 / (n + 1) if it is among them, else 0."""
    return 2 / (len(set(named)) + 1) if right in named else 0.0


def _judge(answer: tuple[Names, Names], plan: Decision, weights: Mapping[str, float],
           accuracy: str) -> tuple[float, float]:
    """(speed, path) accuracy times weight of one answer against one plan."""
    scores = []
    for named, right in zip(answer, (plan.speed, plan.path), strict=True):
        correct = float(named == (right,)) if accuracy == "exact" else f1_score(named, right)
        scores.append(correct * (sum(weights[action] for action in named) / max(len(named), 1)))
    return scores[0], scores[1]


def _label_first(decision: Decision, acceptable: Collection[Decision]) -> list[Decision]:
    """The acceptable plans, the label first, in an order independent of the data file."""
    return sorted(set(acceptable), key=lambda plan: (plan != decision, str(plan)))


def _official_rewards(completions: Sequence[str], decision: Decision, weights: Mapping[str, float],
                      diversity: bool, actions: Actions) -> list[Reward]:
    """The arithmetic of the released reward functions, for comparison only.

    reward = F1 * mean weight + 0.4 if each named action is new among the completions so far, else - 0.4, with 1e-6
    added to every denominator. Defects: the order of the completions matters, an answer without any action gets the
    bonus, and the second of two equal correct answers earns less than a wrong one. diversity off drops the 0.4.
    Source: github.com/hustvl/AlphaDrive, commit bb4104c, src/r1-v/src/open_r1/grpo.py.
    """
    columns = []
    for vocabulary, right in ((actions.speeds, decision.speed), (actions.paths, decision.path)):
        seen, column = Counter(), []
        for completion in completions:
            named = _official_actions(completion, vocabulary)
            seen.update(named)
            bonus = OFFICIAL_BONUS if all(seen[action] == 1 for action in named) else -OFFICIAL_BONUS
            weight = sum(weights[action] for action in named) / (len(named) + OFFICIAL_EPS)
            column.append(_official_f1(named, right) * weight + (bonus if diversity else 0.0))
        columns.append(column)
    return list(zip(*columns, map(_official_format, completions), strict=True))


def _official_f1(named: Sequence[str], right: str) -> float:
    hits = float(right in named)
    precision, recall = hits / (len(named) + OFFICIAL_EPS), hits / (1 + OFFICIAL_EPS)
    return 2 * precision * recall / (precision + recall + OFFICIAL_EPS)


def _official_actions(completion: str, vocabulary: Sequence[str]) -> list[str]:
    """Actions among the exact pieces between ", " of the first one-line answer block, else of the whole text."""
    for line in completion.split("\n"):
        _, opened, rest = line.partition("<answer>")
        content, closed, _ = rest.partition("</answer>")
        if opened and closed:
            pieces = content.strip().split(", ")
            break
    else:
        pieces = completion.replace("<answer>", "").replace("</answer>", "").split(", ")
    return [action for action in vocabulary if action in pieces]


def _official_format(completion: str) -> float:
    """1 if the text starts with <think>, ends with </answer> and has </think> <answer> in between.

    Accepts the same texts as the released pattern, whose time is quadratic in the number of tags.
    """
    start, end = len("<think>"), len(completion) - len("</answer>")
    framed = completion.startswith("<think>") and completion.endswith("</answer>")
    return float(framed and _OFFICIAL_MIDDLE.search(completion, start, max(end, 0)) is not None)


def _check_options(mode: str, accuracy: str, weights: Mapping[str, float] | None,
                   acceptable: Collection[Decision] | None, actions: Actions) -> None:
    if mode not in MODES:
        raise ValueError(f"unknown reward mode {mode!r}: use one of {', '.join(MODES)}")
    if accuracy not in ("f1", "exact"):
        raise ValueError(f"unknown accuracy {accuracy!r}: use f1 or exact")
    unknown = sorted(set(weights or ()) - set(actions.names))
    if unknown:
        raise ValueError(f"weights name unknown actions {unknown}: use {', '.join(actions.names)}")
    if mode == "set" and not acceptable:
        raise ValueError("mode 'set' needs the acceptable plans of the scene: use mode 'repaired' if only the label is "
                         "known")
