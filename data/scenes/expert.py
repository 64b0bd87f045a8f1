"""The simulated expert: which plans are acceptable in a scene, and the exact distribution of its label.

    candidates  20 motions (rollout.py), gated (gates.py) and scored (scores.py); the best of each label counts
    acceptable  A = {c: gate 1, s(c) >= max s - 0.10}
    driver      a hidden style z favours slower or faster plans: q_z = softmax over A of (s + b_z) / 0.05
    label       q = 0.95 sum_z P(z) q_z + 0.04 a neighbour of such a plan + 0.01 any of the 20 plans

The expert uses only categories and four speeds (geometry.py), so equal situations have equal odds, which are cached.
"""
import random
from dataclasses import replace
from functools import lru_cache

import numpy as np

from data.scenes.geometry import expert_speed
from data.scenes.rollout import CANDIDATES, roll_out
from data.scenes.scores import scores
from data.scenes.world import Scene, pick, speed_band
from rewards import Decision

TOLERANCE = 0.10                         # largest gap to the best score of an acceptable plan
TEMPERATURE = 0.05
STYLES = {"cautious": (0.3, 0.08), "normal": (0.5, 0.0), "assertive": (0.2, -0.08)}      # P(z), bonus of slower plans
SLOWER = {"KEEP": 0, "ACCELERATE": -1, "DECELERATE": 1, "STOP": 1}
CONFUSED, CARELESS = 0.04, 0.01          # shares of labels that become a neighbouring plan, any plan
NEIGHBOURS = {"KEEP": "ACCELERATE", "ACCELERATE": "KEEP", "DECELERATE": "STOP", "STOP": "DECELERATE"}
NATURAL_NOISE = 0.03
NATURAL_SPEEDS = {"KEEP": .787, "ACCELERATE": .014, "DECELERATE": .009, "STOP": .19}     # Senna on nuScenes' val split
NATURAL_PATHS = {"STRAIGHT": .94, "LEFT_TURN": .01, "RIGHT_TURN": .01, "LEFT_CHANGE": .02, "RIGHT_CHANGE": .02}


def label_distribution(scene: Scene) -> dict[Decision, float]:
    """q(plan | scene), exact, over all 20 plans: the expert's odds with label noise; sums to 1.

    Under the natural prior, noise follows that prior's own shares. Otherwise neighbours of its many KEEP plans would
    outnumber ACCELERATE.
    """
    odds = plan_odds(scene)
    if scene.prior == "natural":
        return {plan: (1 - NATURAL_NOISE) * odds.get(plan, 0.0)
                + NATURAL_NOISE * NATURAL_SPEEDS[plan.speed] * NATURAL_PATHS[plan.path] for plan in CANDIDATES}
    q = {plan: (1 - CONFUSED - CARELESS) * odds.get(plan, 0.0) + CARELESS / len(CANDIDATES) for plan in CANDIDATES}
    for plan, share in odds.items():
        for other, part in neighbours(plan).items():
            q[other] += CONFUSED * share * part
    return q


def neighbours(plan: Decision) -> dict[Decision, float]:
    """Plans confused with `plan`: half the time another speed, half another path. A turn has no neighbouring path."""
    speed = Decision(NEIGHBOURS[plan.speed], plan.path)
    if plan.path.endswith("TURN"):
        return {speed: 1.0}
    paths = ("LEFT_CHANGE", "RIGHT_CHANGE") if plan.path == "STRAIGHT" else ("STRAIGHT",)
    return {speed: 0.5, **{Decision(plan.speed, path): 0.5 / len(paths) for path in paths}}


def acceptable_plans(scene: Scene) -> tuple[Decision, ...]:
    """Every plan the expert would take, likeliest first. Label noise adds none."""
    return tuple(plan_odds(scene))


def usual_plan(scene: Scene) -> Decision:
    """The expert's likeliest plan."""
    return acceptable_plans(scene)[0]


def draw_label(scene: Scene) -> Decision:
    """One draw from q, seeded by the scene, so that a scene always has the same label."""
    return pick(random.Random(f"label {scene.seed}"), label_distribution(scene))


def plan_odds(scene: Scene) -> dict[Decision, float]:
    """The expert's odds without label noise, likeliest plan first."""
    return situation_odds(situation(scene))


def situation(scene: Scene) -> Scene:
    """The scene reduced to what influences the plan, at the speed of its band."""
    return replace(scene, seed=0, night=False, weather="clear", speed=expert_speed(scene), prior="balanced")


@lru_cache(maxsize=100_000)
def situation_odds(scene: Scene) -> dict[Decision, float]:
    """sum_z P(z) softmax over A of (s + b_z) / T, the likeliest plan first."""
    accepted = acceptable_scores(plan_scores(scene))
    values = np.array(list(accepted.values()))                                  # (A,)
    slower = np.array([SLOWER[plan.speed] for plan in accepted])
    odds = sum(share * softmax((values + bonus * slower) / TEMPERATURE) for share, bonus in STYLES.values())
    order = sorted(zip(accepted, odds, strict=True), key=lambda pair: (-pair[1], CANDIDATES.index(pair[0])))
    return {plan: float(share) for plan, share in order}


def plan_scores(scene: Scene) -> dict[Decision, float]:
    """The best score per label among the candidates that pass every gate; the hardest braking if none does."""
    labels, total = roll_out(speed_band(scene.speed), scene.road).labels, scores(scene).total
    best: dict[Decision, float] = {}
    for plan, score in zip(labels, total, strict=True):
        if score > 0:
            best[plan] = max(score, best.get(plan, 0.0))
    return best or {labels[CANDIDATES.index(Decision("STOP", "STRAIGHT"))]: 0.0}


def acceptable_scores(best: dict[Decision, float]) -> dict[Decision, float]:
    return {plan: score for plan, score in best.items() if score >= max(best.values()) - TOLERANCE}


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()
