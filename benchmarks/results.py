"""The comparisons of docs/results.md, run one after the other: `python benchmarks/results.py` (make results).

Per seed: SFT, GRPO from it, SFT continued for as long as GRPO took, and SFT sampled at the temperature that has GRPO's
plan entropy. Once: models without the picture or without the text, the other reward modes from the same start, and GRPO
without SFT from a model that can only describe pictures.
Every finished part is kept and skipped when the script is started again. Prints Markdown tables, writes JSON.
"""

import argparse
import json
import os
import platform
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.experiments import run_command  # noqa: E402
from benchmarks.measure import git_commit  # noqa: E402
from data.scenes import bayes_ceiling, scene_examples  # noqa: E402
from evaluation.metrics import paired_interval  # noqa: E402
from evaluation.scoring import table  # noqa: E402
from rewards import Decision, parse_plan, planning_rewards  # noqa: E402

SAMPLES = 8
SFT_STEPS, GRPO_STEPS = "500", "200"  # longer than the demo's
COMMON = ("--eval-examples", "500")


def train(out: Path, stage: str, *flags: str) -> Path:
    """Train unless it is done already. -> the run's directory."""
    if not (out / "done").exists():
        run_command(("train.py", "--stage", stage, "--preset", "demo", "--output", str(out), "--overwrite", *COMMON,
                     *flags), out.with_suffix(".log"))
        (out / "done").touch()
    return out


def evaluate(model: Path, name: str = "eval-test", *flags: str) -> dict:
    """Score unless it is done already. -> metrics.json."""
    out = model / name
    if not (out / "metrics.json").exists():
        run_command(("eval.py", "--model", str(model / "model"), "--output", str(out), "--samples", str(SAMPLES),
                     *flags, "--overwrite"), model.with_suffix(".log"))
    return json.loads((out / "metrics.json").read_text())


def per_scene(directory: Path) -> dict[str, np.ndarray]:
    """Per test scene: greedy right, share of samples right, mean sample reward (mode `repaired`), and acceptables."""
    rows = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    columns: dict[str, list[float]] = {"greedy": [], "sampled": [], "reward": [], "acceptable": [],
                                       "acceptable_sampled": []}
    for row in rows:
        decided = [plan == row["truth"] for plan in row["sample_decisions"]]
        rewards = planning_rewards(row["samples"], parse_plan(f"<answer> {row['truth']} </answer>"))
        columns["greedy"].append(row["decision"] == row["truth"])
        columns["sampled"].append(np.mean(decided))
        columns["reward"].append(np.mean([sum(parts) for parts in rewards]))
        columns["acceptable"].append(row["decision"] in row["acceptable"])
        columns["acceptable_sampled"].append(np.mean([p in row["acceptable"] for p in row["sample_decisions"]]))
    return {name: np.array(values, dtype=float) for name, values in columns.items()}


def seconds_per_step(out: Path) -> tuple[float, float]:
    """Median seconds of a step, and seconds of the whole training, from metrics.jsonl."""
    seconds = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return float(np.median(seconds)), float(np.sum(seconds))


def matching_temperature(sft: Path, entropy: float) -> float:
    """The temperature at which the SFT model's plans on val have this entropy, by bisection."""
    low, high = 0.1, 1.0
    for _ in range(6):
        middle = (low + high) / 2
        metrics = evaluate(sft, f"val-T{middle:.4f}", "--split", "val", "--limit", "300",
                           "--temperature", f"{middle:.4f}")
        low, high = (middle, high) if metrics["sampled"]["plan_entropy"] < entropy else (low, middle)
    return round((low + high) / 2, 4)


def one_seed(runs: Path, seed: int) -> dict:
    """All arms of one seed. -> paths and facts."""
    sft = train(runs / f"sft-{seed}", "sft", "--seed", str(seed), "--steps", SFT_STEPS)
    grpo = train(runs / f"grpo-{seed}", "grpo", "--model", str(sft / "model"), "--seed", str(seed),
                 "--steps", GRPO_STEPS, "--eval-every", "100")
    grpo_seconds = seconds_per_step(grpo)[1]
    steps = round(grpo_seconds / seconds_per_step(sft)[0])
    more = train(runs / f"continued-{seed}", "sft", "--model", str(sft / "model"), "--seed", str(seed + 100),
                 "--steps", str(steps))
    for arm in (sft, grpo, more):
        evaluate(arm)
    entropy = evaluate(grpo, "eval-val", "--split", "val", "--limit", "300")["sampled"]["plan_entropy"]
    temperature = matching_temperature(sft, entropy)
    evaluate(sft, "eval-sharpened", "--temperature", str(temperature))
    return {"seed": seed, "continued_steps": steps, "grpo_seconds": grpo_seconds,
            "sharpened_temperature": temperature, "sft_seconds": seconds_per_step(sft)[1]}


def without(runs: Path, what: str, seed: int) -> None:
    """A model that never sees the picture, or never speed and route: what one input alone can do."""
    evaluate(train(runs / f"no-{what}", "sft", "--hide", what, "--steps", SFT_STEPS, "--seed", str(seed)))


def other_rewards(runs: Path, mode: str, seed: int) -> None:
    """GRPO from the same start with another reward mode."""
    evaluate(train(runs / f"mode-{mode}", "grpo", "--model", str(runs / f"sft-{seed}/model"), "--seed", str(seed),
                   "--steps", GRPO_STEPS, "--eval-every", "100", "--reward-mode", mode))


def without_sft(runs: Path, seed: int) -> None:
    """GRPO alone, from a base model that describes pictures and has met no label: AlphaDrive's arm "RL only"."""
    base = train(runs / "base", "sft", "--task", "caption", "--steps", SFT_STEPS, "--seed", str(seed))
    grpo = train(runs / "rl-only", "grpo", "--model", str(base / "model"), "--seed", str(seed), "--steps", GRPO_STEPS,
                 "--eval-every", "100")
    for model in (base, grpo):
        evaluate(model)


def arms_of(runs: Path, seed: int) -> dict[str, Path]:
    """Evaluation directories by arm."""
    return {"SFT": runs / f"sft-{seed}/eval-test", "GRPO from it": runs / f"grpo-{seed}/eval-test",
            "SFT continued, same time": runs / f"continued-{seed}/eval-test",
            "SFT, T with GRPO's entropy": runs / f"sft-{seed}/eval-sharpened"}


def pooled(runs: Path, seeds: list[int]) -> dict[str, dict[str, np.ndarray]]:
    """Per arm and measure, the per-scene mean over seeds."""
    scores = {seed: {arm: per_scene(path) for arm, path in arms_of(runs, seed).items()} for seed in seeds}
    return {arm: {name: np.mean([scores[seed][arm][name] for seed in seeds], axis=0)
                  for name in scores[seeds[0]][arm]} for arm in scores[seeds[0]]}


def differences(scores: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, list[float]]]:
    """Arm minus SFT: mean and paired 95 % interval over scenes, per measure."""
    return {arm: {name: [float((parts[name] - scores["SFT"][name]).mean()),
                         *paired_interval(parts[name], scores["SFT"][name], seed=0)] for name in parts}
            for arm, parts in scores.items() if arm != "SFT"}


def majority(scenes: int = 2000) -> float:
    """Accuracy of always answering the commonest plan of the training split."""
    best: Decision = Counter(e.decision for e in scene_examples("sft", 3000)).most_common(1)[0][0]
    return float(np.mean([e.decision == best for e in scene_examples("test", scenes)]))


def print_tables(result: dict) -> None:
    """What docs/results.md shows."""
    names = ("greedy", "sampled", "reward", "acceptable", "acceptable_sampled")
    rows = [(arm, *(f"{parts[name]:.3f}" for name in names)) for arm, parts in result["means"].items()]
    print(table(("arm (mean of seeds)", *names), rows) + "\n")
    rows = [(arm, *("{:+.3f} ({:+.3f} to {:+.3f})".format(*parts[name]) for name in names[:3]))
            for arm, parts in result["differences"].items()]
    print(table(("minus SFT (95 %)", *names[:3]), rows) + "\n")
    for seed, parts in result["differences_by_seed"].items():
        rows = [(arm, *("{:+.3f} ({:+.3f} to {:+.3f})".format(*part[name]) for name in names[:3]))
                for arm, part in parts.items()]
        print(table((f"seed {seed}, minus SFT", *names[:3]), rows) + "\n")
    rows = [(name, *(f"{parts[key]:.3f}" for key in ("greedy", "sampled", "entropy", "acceptable_sampled", "invalid")))
            for name, parts in result["singles"].items()]
    print(table(("one seed", "greedy", "sampled", "plan entropy", "acceptable, sampled", "invalid"), rows))
    print(f"\nmajority {result['majority']:.3f}, Bayes ceiling {result['bayes_ceiling']}")


def single(metrics: dict) -> dict[str, float]:
    """The few numbers of a one-seed arm."""
    return {"greedy": metrics["planning_accuracy"], "sampled": metrics["sampled"]["planning_accuracy"],
            "entropy": metrics["sampled"]["plan_entropy"], "invalid": metrics["invalid_rate"],
            "acceptable_sampled": metrics["sampled"]["acceptable_accuracy"]}


def main() -> None:
    """Run what is missing, then collect."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="parts run side by side, one thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/results.json")
    options = parser.parse_args()
    runs, first = options.runs, options.seeds[0]
    with ThreadPoolExecutor(options.jobs) as pool:
        parts = [pool.submit(one_seed, runs, seed) for seed in options.seeds]
        parts += [pool.submit(without, runs, what, first) for what in ("picture", "text")]
        facts = [part.result() for part in parts[:len(options.seeds)]]
        parts += [pool.submit(other_rewards, runs, mode, first) for mode in ("paper", "official", "set")]
        parts += [pool.submit(without_sft, runs, first)]
        for part in parts:
            part.result()
    singles = {name: single(evaluate(runs / place)) for name, place in {
        "SFT": f"sft-{first}", "SFT without the picture": "no-picture", "SFT without speed and route": "no-text",
        "GRPO, rewards repaired": f"grpo-{first}", "GRPO, rewards paper": "mode-paper",
        "GRPO, rewards official": "mode-official", "GRPO, rewards set": "mode-set",
        "base model (captions)": "base", "GRPO from the base model, no SFT": "rl-only"}.items()}
    scores = pooled(runs, options.seeds)
    result = {"commit": git_commit(), "python": platform.python_version(), "cores": os.cpu_count(), "seeds": facts,
              "bayes_ceiling": bayes_ceiling(scene_examples("test", 2000)), "majority": majority(),
              "means": {arm: {name: float(v.mean()) for name, v in parts.items()} for arm, parts in scores.items()},
              "differences": differences(scores),
              "differences_by_seed": {seed: differences(pooled(runs, [seed])) for seed in options.seeds},
              "singles": singles}
    options.output.write_text(json.dumps(result, indent=1))
    print_tables(result)


if __name__ == "__main__":
    main()
