"""A public driving environment as yardstick: `python benchmarks/highway.py COMMAND` with COMMAND write, run or table.

highway-env (Farama) has pictures, five meta actions and a reward of its own: speed, lane, no collision. `write` makes
examples of it; the return of an action is what the environment pays in five seconds if the car idles after the action.
`run` trains and scores on them through --data, --actions and --reward alone: SFT on the best actions, then GRPO on the
environment's return or SFT for equal time; a small convolutional network is the reference. Finished parts are kept.
`table` writes benchmarks/results/highway.json and prints the table of docs/benchmark.md.

Needs the packages of benchmarks/requirements.txt, in the Python that runs this file; SDL_VIDEODRIVER must not be dummy.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.experiments import Part, finished, run_parts  # noqa: E402
from benchmarks.highway_reward import ACTIONS, WORLD, action_return, new_world  # noqa: E402
from benchmarks.measure import cpu_name, git_commit  # noqa: E402
from benchmarks.tables import BLOCK, SAMPLES, hierarchical, markdown, points  # noqa: E402
from storage import write_json, write_text  # noqa: E402

RECORD = ROOT / "benchmarks/results/highway.json"
SPLITS = {"test": (600, 0), "sft": (3000, 100_000), "rl": (1000, 200_000)}      # scenes, seed of the first world
# Equal time: a step of GRPO takes 2.0 s, 1.6 of them in the environment, a step of SFT 0.42; measured in turns. In the
# runs GRPO then took 1.83 s (step_seconds of the record), so SFT had 80 s and GRPO 73
STEPS = {"SFT": 400, "GRPO": 40, "SFT continued": 190}
RATES = {"grpo": "1e-4", "sft": "1e-3"}  # the best of benchmarks/results.py's sweep; none was made here
EPOCHS = 8                              # of the convolutional network
ARMS = (*STEPS, "CNN")
# Written before any model was scored on these scenes. Levels are shares, differences points, each by SCORES
EXPECTED = {
    "CNN": "greedy .58 to .72: it sees places and lanes, but not the speeds of others",
    "SFT": "greedy .48 to .60, above the majority's .44 and below CNN; return, greedy .65 to .75",
    "GRPO - SFT": "sampled +3 to +8, return sampled +4 to +10: sharpening, and away from crashes, which a label does "
                  "not tell from other errors; greedy -1 to +2, return greedy 0 to +4",
    "GRPO - SFT continued": "sampled 0 to +5, return sampled +2 to +6; greedy -3 to +1, return greedy 0 to +3",
}
MARGIN = 0.02                           # below the best return: acceptable. One lane to the right is worth 0.03
SCORES = {"acceptable": "greedy", "acceptable_sampled": "sampled", "share": "return, greedy",
          "share_sampled": "return, sampled"}


# ---------------------------------------------------------------- examples

def labels(returns: Sequence[float]) -> tuple[str, list[str]]:
    """The best plan, idling if it is as good, and the acceptable ones. returns: one per action."""
    best = max(ACTIONS, key=lambda plan: (round(returns[ACTIONS[plan]], 3), plan == "KEEP, STRAIGHT"))
    return best, [plan for plan, action in ACTIONS.items() if returns[action] >= max(returns) - MARGIN]


def new_example(world: int, pictures: Path) -> dict | None:
    """The scene after one to four random actions; None after a crash, or if all actions are acceptable."""
    random = np.random.default_rng(world)
    env, past = new_world(world), []
    for _ in range(random.integers(1, 5)):
        past.append(int(random.choice(env.get_available_actions())))
        if env.step(past[-1])[2]:
            return None
    returns = [round(action_return(env, action), 5) for action in ACTIONS.values()]
    best, acceptable = labels(returns)
    if len(acceptable) == len(ACTIONS):
        return None
    Image.fromarray(env.render()).save(pictures / f"{world}.png")
    return {"id": str(world), "image": f"{pictures.name}/{world}.png", "speed": round(float(env.vehicle.speed), 1),
            "navigation": "Straight", "decision": best, "acceptable": acceptable, "world": world, "past": past,
            "returns": returns}


def write_examples(folder: Path) -> None:
    """One file per split and actions.json; splits that are there are kept."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    write_json({"speeds": ["FASTER", "KEEP", "SLOWER"], "paths": ["STRAIGHT", "LEFT", "RIGHT"]},
               folder / "actions.json")
    for split, (count, world) in SPLITS.items():
        rows: list[dict] = []
        while len(rows) < count and not (folder / f"{split}.jsonl").is_file():
            rows += filter(None, [new_example(world, folder / "pictures")])
            world += 1
        if rows:
            write_text(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        print(split, Counter(row["decision"] for row in read_rows(folder / f"{split}.jsonl")), flush=True)


def read_rows(file: Path) -> list[dict]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


# ---------------------------------------------------------------- the reference

def pixels(folder: Path, rows: Sequence[Mapping]) -> torch.Tensor:
    """Pictures in [-0.5, 0.5] with the speed as fourth channel, (N, 4, 56, 224)."""
    images = np.stack([np.asarray(Image.open(folder / row["image"]), np.float32) / 255 - 0.5 for row in rows])
    speeds = torch.tensor([row["speed"] / 10 - 2.5 for row in rows])[:, None, None, None]
    return torch.cat([torch.from_numpy(images).permute(0, 3, 1, 2), speeds.expand(-1, 1, *images.shape[1:3])], 1)


def new_cnn() -> nn.Module:
    """Three convolutions of stride 2 and two layers."""
    return nn.Sequential(nn.Conv2d(4, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
                         nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 7 * 28, 128), nn.ReLU(),
                         nn.Linear(128, len(ACTIONS)))


def train_cnn(folder: Path, out: Path, seed: int) -> None:
    """Learn the labels of both training splits; write answers to the test scenes in the form of predictions.jsonl."""
    torch.manual_seed(seed)
    rows, test = [*read_rows(folder / "sft.jsonl"), *read_rows(folder / "rl.jsonl")], read_rows(folder / "test.jsonl")
    inputs, targets = pixels(folder, rows), torch.tensor([ACTIONS[row["decision"]] for row in rows])
    net = new_cnn()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    batches = [batch for _ in range(EPOCHS) for batch in torch.randperm(len(rows)).split(64)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        loss = nn.functional.cross_entropy(net(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        chances = net(pixels(folder, test)).softmax(-1)                         # (N, actions)
    plans, drawn = list(ACTIONS), chances.multinomial(SAMPLES, replacement=True)
    answers = [{"id": row["id"], "decision": plans[best], "sample_decisions": [plans[action] for action in some]}
               for row, best, some in zip(test, chances.argmax(-1).tolist(), drawn.tolist(), strict=True)]
    (out / "eval").mkdir(parents=True, exist_ok=True)
    write_text(out / "eval/predictions.jsonl", "".join(json.dumps(answer) + "\n" for answer in answers))


# ---------------------------------------------------------------- the runs

def train(folder: Path, out: Path, stage: str, split: str, seed: int, steps: int, *flags: str) -> tuple[str, ...]:
    """The command that trains a model on a split."""
    return ("train.py", "--stage", stage, "--preset", "demo", "--data", str(folder / f"{split}.jsonl"), "--seed",
            str(seed), "--steps", str(steps), "--max-new-tokens", "24", "--output", str(out), "--overwrite", *flags)


def score(folder: Path, out: Path, seed: int) -> tuple[str, ...]:
    """The command that scores a model on the test scenes."""
    return ("eval.py", "--model", str(out / "model"), "--data", str(folder / "test.jsonl"), "--samples", str(SAMPLES),
            "--seed", str(seed), "--output", str(out / "eval"), "--overwrite")


def first(folder: Path, out: Path, seed: int, steps: int) -> tuple[str, ...]:
    """SFT of a new model."""
    return train(folder, out, "sft", "sft", seed, steps, "--model", "tiny", "--actions", str(folder / "actions.json"),
                 "--reasoning", "off")


def further(folder: Path, start: Path, out: Path, stage: str, seed: int, steps: int) -> tuple[str, ...]:
    """GRPO on the environment's return or more SFT, from a model, on scenes that are new to it."""
    own = ("--reward", "benchmarks/highway_reward.py:driven") if stage == "grpo" else ("--warmup-steps", "10")
    return train(folder, out, stage, "rl", seed + 100, steps, "--model", str(start / "model"), "--learning-rate",
                 RATES[stage], *own)


def seed_parts(folder: Path, seed: int) -> list[Part]:
    """Every arm of a seed."""
    place = folder / f"seed-{seed}"
    start, cnn = place / slug("SFT"), place / slug("CNN")
    parts = [Part(f"{place.name}/{start.name}", (first(folder, start, seed, STEPS["SFT"]), score(folder, start, seed)))]
    for arm, stage in (("GRPO", "grpo"), ("SFT continued", "sft")):
        out = place / slug(arm)
        commands = (further(folder, start, out, stage, seed, STEPS[arm]), score(folder, out, seed))
        parts.append(Part(f"{place.name}/{out.name}", commands, (parts[0].name,)))
    return [*parts, Part(f"{place.name}/{cnn.name}", (("benchmarks/highway.py", "cnn", "--runs", str(folder), "--seeds",
                                                       str(seed)),))]


def slug(arm: str) -> str:
    """A folder's name for an arm."""
    return arm.lower().replace(" ", "-")


def step_seconds(runs: Sequence[Path]) -> float:
    """Median of the seconds of all steps but each run's first."""
    seconds = [row["seconds"] for run in runs for row in read_rows(run / "metrics.jsonl")[1:] if "seconds" in row]
    return round(statistics.median(seconds), 3)


# ---------------------------------------------------------------- the record

def scene_scores(answer: Mapping, row: Mapping) -> dict[str, float]:
    """Scores of one scene: whether a plan is acceptable, and its return as a share from the worst action's to the best
    one's; of the greedy plan and in the mean of the samples."""
    plans = answer["sample_decisions"]
    return {"acceptable": float(answer["decision"] in row["acceptable"]),
            "acceptable_sampled": float(np.mean([plan in row["acceptable"] for plan in plans])),
            "share": share(answer["decision"], row["returns"]),
            "share_sampled": float(np.mean([share(plan, row["returns"]) for plan in plans]))}


def share(plan: str | None, returns: Sequence[float]) -> float:
    """0 for the worst action to 1 for the best; 0 for what is no action of the environment."""
    low, high = min(returns), max(returns)
    return (returns[ACTIONS[plan]] - low) / (high - low) if plan in ACTIONS else 0.0


def block_means(answers: Sequence[Mapping], rows: Sequence[Mapping]) -> dict[str, list[float]]:
    """Every score in the mean of BLOCK scenes."""
    by_id = {answer["id"]: answer for answer in answers}
    scores = [scene_scores(by_id[row["id"]], row) for row in rows]
    return {name: [round(float(np.mean([one[name] for one in scores[start:start + BLOCK]])), 4)
                   for start in range(0, len(scores), BLOCK)] for name in SCORES}


def collect(folder: Path, seeds: Sequence[int]) -> dict:
    """The record of the seeds whose arms have all finished."""
    test, learnt = read_rows(folder / "test.jsonl"), [*read_rows(folder / "sft.jsonl"), *read_rows(folder / "rl.jsonl")]
    (usual, _), = Counter(row["decision"] for row in learnt).most_common(1)
    always = [{"id": row["id"], "decision": usual, "sample_decisions": [usual]} for row in test]
    arms = {arm: {seed: block_means(read_rows(folder / f"seed-{seed}/{slug(arm)}/eval/predictions.jsonl"), test)
                  for seed in seeds} for arm in ARMS}
    places = {arm: [folder / f"seed-{seed}/{slug(arm)}" for seed in seeds] for arm in STEPS}
    return {"commit": git_commit(), "cpu": cpu_name(), "expected": EXPECTED, "world": WORLD, "rates": RATES,
            "scenes": {name: count for name, (count, _) in SPLITS.items()}, "block": BLOCK, "samples": SAMPLES,
            "labels": Counter(row["decision"] for row in test), "steps": STEPS,
            "step_seconds": {arm: step_seconds(runs) for arm, runs in places.items()},
            "majority": {"plan": usual, **means([block_means(always, test)])}, "arms": arms}


def means(seeds: Sequence[Mapping]) -> dict[str, float]:
    """Every score in the mean of seeds and blocks."""
    return {name: round(float(np.mean([blocks[name] for blocks in seeds])), 4) for name in SCORES}


def table(record: Mapping) -> list[str]:
    """The means of the arms, then differences in points with intervals over seeds and blocks of scenes."""
    rows = [("", *SCORES.values()), ("majority", *(f"{record['majority'][name]:.3f}" for name in SCORES))]
    rows += [(arm, *(f"{means([*seeds.values()])[name]:.3f}" for name in SCORES))
             for arm, seeds in record["arms"].items()]
    for than in ("SFT", "SFT continued"):
        one, other = (record["arms"][arm].values() for arm in ("GRPO", than))
        gaps = {name: np.array([a[name] for a in one]) - np.array([b[name] for b in other]) for name in SCORES}
        rows.append((f"GRPO - {than}", *("{} ({} to {})".format(*map(points, hierarchical(gap)[:3]))
                                         for gap in gaps.values())))
    return markdown(rows)


def main() -> None:
    """One command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "run", "table", "cnn"))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/highway", help="folder of examples and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    folder = options.runs.resolve()
    if options.command == "write":
        write_examples(folder)
    elif options.command == "run":
        parts = [part for seed in options.seeds for part in seed_parts(folder, seed)]
        failed = run_parts(folder, sorted(parts, key=lambda part: part.name.endswith(slug("CNN"))), 1)
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    elif options.command == "cnn":
        for seed in options.seeds:
            train_cnn(folder, folder / f"seed-{seed}/cnn", seed)
    else:
        done = [seed for seed in options.seeds
                if all(finished(folder, part.name) for part in seed_parts(folder, seed))]
        record = collect(folder, done)
        write_json(record, RECORD)
        print("\n".join(table(json.loads(RECORD.read_text()))))


if __name__ == "__main__":
    main()
