"""What the controls of `benchmarks/results.py` need between training and scoring.

    best PREDICTIONS FILE         the best of each scene's sampled answers by its reward, as examples to imitate (RAFT,
                                  arXiv:2304.06767)
    sharpen START GRPO FLAGS...   score with FLAGS at the temperature at which the start's plans have GRPO's entropy;
                                  START and GRPO are scorings of val, START with a sweep of temperatures
    noise SPLIT PERCENT FILE      scenes of a split, PERCENT of the labels replaced by another plan
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

import eval as scoring  # noqa: E402
from data.example import Example  # noqa: E402
from data.files import write_examples  # noqa: E402
from data.scenes import scene_examples  # noqa: E402
from evaluation.metrics import plan_entropy  # noqa: E402
from evaluation.predictions import read_predictions  # noqa: E402
from evaluation.text_metrics import think_text  # noqa: E402
from rewards import parse_plan, planning_rewards  # noqa: E402
from rewards.actions import ALPHADRIVE  # noqa: E402

SIZES = {"sft": 3000, "rl": 9000}       # scenes of the built-in training sets


def best_answers(rows: Sequence[dict], examples: Sequence[Example]) -> list[Example]:
    """Each scene with the reason and the plan of its best answer, the first of equals; unreadable ones are left out.

    Diversity says nothing about a single answer, so the reward leaves it out."""
    chosen = []
    for row, example in zip(rows, examples, strict=True):
        rewards = planning_rewards(row["samples"], example.decision, diversity=False)
        text = row["samples"][int(np.argmax([sum(parts) for parts in rewards]))]
        plan, reason = parse_plan(text), think_text(text)
        if plan and reason:
            chosen.append(replace(example, decision=plan, reasoning=reason, split="best"))
    return chosen


def matching_temperature(rows: Sequence[dict], entropy: float) -> float:
    """The temperature with this mean plan entropy, linear between the temperatures of a sweep."""
    heats = sorted(map(float, rows[0]["sweep"]))
    entropies = [np.mean([plan_entropy(row["sweep"][f"{heat:g}"]) for row in rows]) for heat in heats]
    return round(float(np.interp(entropy, entropies, heats)), 4)


def noisy_labels(examples: Sequence[Example], percent: int) -> list[Example]:
    """The examples with this share of labels replaced by another of the twenty plans; the reasons stay, because
    SFT leaves out examples without one."""
    mistaken = []
    for example in examples:
        rng = random.Random(f"label noise {example.scene}")
        wrong = rng.random() < percent / 100
        label = rng.choice([plan for plan in ALPHADRIVE.plans if plan != example.decision])
        mistaken.append(replace(example, decision=label) if wrong else example)
    return mistaken


def main(arguments: Sequence[str]) -> None:
    """Run one of the three."""
    kind, *rest = arguments
    if kind == "best":
        rows = read_predictions(Path(rest[0]))
        write_examples(best_answers(rows, scene_examples("rl", len(rows))), rest[1])
    elif kind == "noise":
        Path(rest[2]).parent.mkdir(parents=True, exist_ok=True)             # may be the first file of its seed
        write_examples(noisy_labels(scene_examples(rest[0], SIZES[rest[0]]), int(rest[1])), rest[2])
    else:
        start, trained = (read_predictions(Path(folder) / "predictions.jsonl") for folder in rest[:2])
        entropy = float(np.mean([plan_entropy(row["sample_decisions"]) for row in trained]))
        temperature = matching_temperature(start, entropy)
        scoring.main([*rest[2:], "--temperature", str(temperature)])


if __name__ == "__main__":
    main(sys.argv[1:])
