"""Every algorithm from the same start, with the same compute: `python benchmarks/algorithms.py --starts DIR`.

Per seed one SFT model (`benchmarks/results.py` makes them), from it a run of each algorithm with its documented
settings and the demo preset. Equal compute: the median seconds of a step are measured first, one algorithm after the
other in turns, and each gets as many steps as fit the time of `--grpo-steps` steps of GRPO. Beside it: how noisy each
method's gradient is on the same prompts, and what a training process needs in memory.
Finished parts are kept and skipped when the script is started again. Prints Markdown tables, writes JSON.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.measure import git_commit  # noqa: E402
from benchmarks.results import evaluate, per_scene, run  # noqa: E402
from data.dataset import open_image  # noqa: E402
from data.scenes import scene_examples  # noqa: E402
from evaluation.metrics import paired_interval  # noqa: E402
from evaluation.scoring import table  # noqa: E402
from grpo.config import ALGORITHMS  # noqa: E402
from grpo.credit import assign_credit  # noqa: E402
from grpo.engine.checkpoint import load_policy  # noqa: E402
from grpo.engine.flags import GRPOFlags, resolve  # noqa: E402
from grpo.engine.prompts import encode_example  # noqa: E402
from grpo.engine.rewards import make_reward_fn  # noqa: E402
from grpo.fast import FAST  # noqa: E402
from grpo.fast.sampler import Sampler  # noqa: E402
from grpo.groups import PromptBatch, sample_groups  # noqa: E402
from grpo.objective import denominators, objective  # noqa: E402
from grpo.step import Learner, fixed_values, micro_batch, pack_branches  # noqa: E402
from models.fast.recomputed import use_recomputed  # noqa: E402

SCENES, SAMPLES = "1000", "4"  # test scenes and answers per scene (over --samples of results)
NOISE_BATCHES = 24
EVALUATION = ("--limit", SCENES, "--samples", SAMPLES)
EXTRA = {"ppo, shared trunk": ("--algorithm", "ppo", "--value-trunk", "shared")}  # memory only


def flags_of(name: str) -> tuple[str, ...]:
    """Command-line flags of an algorithm, or of one of the variants that only the memory table shows."""
    return EXTRA.get(name, ("--algorithm", name))


def step_cost(runs: Path, start: Path, name: str, turn: int) -> dict[str, float]:
    """Median seconds of steps 2 to 6, and the process's peak memory in MB, alone on the machine."""
    out = runs / f"cost-{name.replace(', ', '-').replace(' ', '-')}-{turn}"
    found = out.with_suffix(".json")
    if not found.exists():
        out.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "train.py", "--stage", "grpo", "--preset", "demo", "--model", str(start),
                   "--output", str(out), "--overwrite", "--eval-examples", "1", "--steps", "6", *flags_of(name)]
        with open(out.with_suffix(".log"), "w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command} failed; see {out.with_suffix('.log')}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        found.write_text(json.dumps({"seconds": float(np.median([row["seconds"] for row in rows[1:]])),
                                     "peak_rss_mb": usage.ru_maxrss / 1024}))
    return json.loads(found.read_text())


def train_and_score(runs: Path, start: Path, name: str, seed: int, steps: int) -> Path:
    """One run from the seed's SFT model, scored on test. -> its evaluation."""
    out = runs / f"{name}-{seed}"
    if not (out / "done").exists():
        run("train.py", "--stage", "grpo", "--preset", "demo", "--model", str(start), "--output", str(out),
            "--overwrite", "--eval-examples", "100", "--eval-every", "0", "--seed", str(seed), "--steps", str(steps),
            *flags_of(name), log=out.with_suffix(".log"))
        (out / "done").touch()
    evaluate(out, "eval-test", *EVALUATION)
    return out / "eval-test"


def gradient_noise(start: Path, names: list[str]) -> dict[str, float]:
    """Noise to signal of the policy gradient: E|g - E g|^2 / |E g|^2 over fresh answers to the same 16 scenes.

    All methods see the same answers; only their advantages, ratios and reductions differ. A ratio of r means that r
    batches must be averaged before the true gradient is as long as the error. |E g|^2 is the unbiased estimate
    |mean g|^2 - var / batches.
    """
    policy, processor, settings = load_policy(str(start), torch.float32, "cpu", 0, 0)
    use_recomputed(policy)
    configs = {name: resolve(GRPOFlags, "grpo", {"algorithm": name, "updates_per_rollout": 1, "dynamic_sampling": 0},
                             {}, True) for name in names}
    any_config = next(iter(configs.values()))
    examples = scene_examples("rl", any_config.prompts_per_step)
    batch = PromptBatch(range(len(examples)), examples,
                        [encode_example(e, open_image(e), processor, policy.config, settings) for e in examples])
    sampler = Sampler(policy, processor, any_config.temperature, any_config.max_new_tokens)
    parameters, reward_fn = list(policy.parameters()), make_reward_fn(any_config)
    gradients: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for step in range(NOISE_BATCHES):
        scored = sample_groups(sampler, lambda _: batch, reward_fn, any_config, step)
        for name, config in configs.items():
            packed = pack_branches(scored, [], config)
            reference = policy if config.needs_reference else None          # the start IS the reference: its KL is 0
            learner = Learner(policy, reference, None, sampler, None, None, kernels=FAST)
            fixed = fixed_values(learner, packed, scored.rollout, config)
            credit = assign_credit(scored.components, scored.rollout, fixed["ref_logprobs"], None, config)
            parts = [micro_batch(rows, scored.rollout, fixed, credit, [], config) for rows in packed]
            counts, weights = denominators(parts, config), config.term_weights(0.0, {})
            for part in parts:
                objective(policy, None, part, counts, weights, config, FAST, {})[0].backward()
            gradients[name].append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))
            policy.zero_grad(set_to_none=True)
    return {name: noise_to_signal(torch.stack(rows)) for name, rows in gradients.items()}


def noise_to_signal(gradients: torch.Tensor) -> float:
    """Sample variance over unbiased squared length of the mean. Shapes: (batches, parameters) -> scalar."""
    variance = float(gradients.var(0).sum())
    signal = float(gradients.mean(0).square().sum()) - variance / len(gradients)
    return variance / signal if signal > 0 else float("inf")


def gains(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """After minus before per measure: mean and paired 95 % interval over scenes."""
    return {name: [float((after[name] - before[name]).mean()),
                   *paired_interval(after[name], before[name], seed=0)] for name in ("greedy", "sampled", "reward")}


def seed_mean(scores: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Per scene, the mean over seeds."""
    return {name: np.mean([score[name] for score in scores], axis=0) for name in scores[0]}


def print_tables(result: dict) -> None:
    """What docs/results.md shows."""
    names = ("greedy", "sampled", "reward")
    rows = [("SFT (start)", "", "", *(f"{result['start'][name]:.3f}" for name in names))]
    rows += [(name, str(part["steps"]), f"{part['seconds_per_step']:.2f}",
              *(f"{part['means'][measure]:.3f}" for measure in names)) for name, part in result["algorithms"].items()]
    print(table(("algorithm", "steps", "s/step", *names), rows) + "\n")
    rows = [(name, *("{:+.3f} ({:+.3f} to {:+.3f})".format(*part["gain"][measure]) for measure in names))
            for name, part in result["algorithms"].items()]
    print(table(("minus start (95 %)", *names), rows) + "\n")
    rows = [(name, *("{:+.3f} ({:+.3f} to {:+.3f})".format(*gain["reward"])
                     for gain in part["gain_by_seed"].values())) for name, part in result["algorithms"].items()]
    print(table(("reward minus start", *(f"seed {seed}" for seed in result["seeds"])), rows) + "\n")
    print(table(("same answers, same scenes", "noise / signal of the gradient"),
                [(name, f"{value:.1f}") for name, value in result["gradient_noise"].items()]) + "\n")
    print(table(("process", "peak memory, MB"),
                [(name, f"{value:.0f}") for name, value in result["peak_rss_mb"].items()]))


def main() -> None:
    """Run what is missing, then collect."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--starts", type=Path, default=ROOT / "runs/results", help="holds sft-SEED/model per seed")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/algorithms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--grpo-steps", type=int, default=80, help="the budget: the time of this many steps of GRPO")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/algorithms.json")
    options = parser.parse_args()
    runs, names = options.runs, list(ALGORITHMS)
    starts = {seed: options.starts / f"sft-{seed}/model" for seed in options.seeds}
    runs.mkdir(parents=True, exist_ok=True)

    cost = {name: [step_cost(runs, starts[options.seeds[0]], name, turn) for turn in range(3)]
            for name in (*names, *EXTRA)}
    seconds = {name: float(np.median([turn["seconds"] for turn in cost[name]])) for name in cost}
    steps = {name: round(options.grpo_steps * seconds["grpo"] / seconds[name]) for name in names}
    print({name: (steps[name], round(seconds[name], 2)) for name in names}, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        before = {seed: pool.submit(evaluate, start.parent, "eval-algorithms", *EVALUATION)
                  for seed, start in starts.items()}
        after = {(name, seed): pool.submit(train_and_score, runs, starts[seed], name, seed, steps[name])
                 for seed in options.seeds for name in names}
        for part in (*before.values(), *after.values()):
            part.result()
    noise = gradient_noise(starts[options.seeds[0]], [name for name in names if name != "ppo"])

    start = {seed: per_scene(starts[seed].parent / "eval-algorithms") for seed in options.seeds}
    scores = {key: per_scene(future.result()) for key, future in after.items()}
    pooled = {name: seed_mean([scores[name, seed] for seed in options.seeds]) for name in names}
    first = seed_mean(list(start.values()))
    result = {"commit": git_commit(), "cores": os.cpu_count(), "seeds": options.seeds, "scenes": int(SCENES),
              "samples": int(SAMPLES), "budget_grpo_steps": options.grpo_steps,
              "start": {name: float(values.mean()) for name, values in first.items()},
              "algorithms": {name: {
                  "steps": steps[name], "seconds_per_step": seconds[name],
                  "means": {measure: float(values.mean()) for measure, values in pooled[name].items()},
                  "gain": gains(first, pooled[name]),
                  "gain_by_seed": {seed: gains(start[seed], scores[name, seed]) for seed in options.seeds}}
                  for name in names},
              "gradient_noise": noise,
              "peak_rss_mb": {name: float(np.median([turn["peak_rss_mb"] for turn in cost[name]])) for name in cost}}
    options.output.write_text(json.dumps(result, indent=1))
    print_tables(result)


if __name__ == "__main__":
    main()
