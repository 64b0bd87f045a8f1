"""Three cameras beside the front one alone, on the same worlds: `python benchmarks/cameras.py`.

Every arm trains and is scored on the scenes of `--camera-count 3`, in a quarter of which a side view alone shows what
decides. The arms `front` are given the front picture of the same scenes (--hide sides): for as many steps, and for as
long as three cameras took. Finished parts are kept; --table only reads them. Writes benchmarks/results/cameras.json and
prints the table of docs/benchmark.md.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.experiments import Part, finished, run_parts  # noqa: E402
from benchmarks.measure import cpu_name, git_commit  # noqa: E402
from data.scenes import bayes_ceiling, scene_examples  # noqa: E402
from evaluation.metrics import paired_interval  # noqa: E402
from evaluation.scoring import table  # noqa: E402

STEPS = 200
LONG = 290                              # steps with one camera in the time of STEPS with three; see seconds
SCENES = 1000                           # of the test split
SETTINGS = ("--preset", "demo", "--camera-count", "3", "--scene-size", "112x56", "--reasoning", "off", "--batch-size",
            "32", "--scenes", "6000", "--eval-examples", "1", "--threads", "1")
# arm -> steps, further flags
ARMS = {"three": (STEPS, ()), "front": (STEPS, ("--hide", "sides")), "front long": (LONG, ("--hide", "sides"))}
GROUPS = ("all", "side view decides", "no side fact", "car", "cyclist", "beside")


def arm_part(folder: Path, arm: str, seed: int) -> Part:
    """Train and score one arm."""
    steps, flags = ARMS[arm]
    run = folder / f"{arm.replace(' ', '-')}-{seed}"
    train = ("train.py", "--stage", "sft", "--model", "tiny", "--seed", str(seed), "--steps", str(steps), "--output",
             str(run), "--overwrite", *SETTINGS, *flags)
    score = ("eval.py", "--model", str(run / "model"), "--limit", str(SCENES), "--samples", "0", "--threads", "1",
             "--output", str(run / "eval-test"), "--overwrite")
    return Part(run.name, (train, score))


def all_parts(folder: Path, seeds: list[int]) -> list[Part]:
    """Every arm of every seed, seed by seed."""
    return [arm_part(folder, arm, seed) for seed in seeds for arm in ARMS]


def right_answers(run: Path) -> dict[str, tuple[str, bool]]:
    """Per test scene, its side fact and whether the greedy plan is the label."""
    rows = map(json.loads, (run / "eval-test/predictions.jsonl").read_text().splitlines())
    return {row["id"]: (row["factors"]["side"], row["decision"] == row["truth"]) for row in rows}


def chosen(sides: list[str], group: str) -> np.ndarray:
    """Which scenes belong to a group, (N,) bool."""
    if group == "all":
        return np.full(len(sides), True)
    named = {"side view decides": lambda side: side != "none", "no side fact": lambda side: side == "none"}
    return np.array([named.get(group, lambda side: side.startswith(group))(side) for side in sides])


def summarise(folder: Path, seeds: list[int]) -> dict:
    """Per group of scenes: the accuracy of each arm (mean over seeds), three cameras minus the others with the paired
    95 % interval over scenes, and the same for each seed."""
    found = {arm: [right_answers(folder / arm_part(folder, arm, seed).name) for seed in seeds] for arm in ARMS}
    names = sorted(found["three"][0])
    sides = [found["three"][0][name][0] for name in names]
    right = {arm: np.array([[one[name][1] for name in names] for one in ones], float) for arm, ones in found.items()}
    groups = {}
    for group in GROUPS:
        where = chosen(sides, group)
        if not where.any():
            continue
        scores = {arm: values[:, where] for arm, values in right.items()}       # (seeds, scenes)
        groups[group] = {"scenes": int(where.sum()), **{arm: float(values.mean()) for arm, values in scores.items()},
                         "minus": {arm: difference(scores["three"], scores[arm]) for arm in ("front", "front long")}}
    seconds = {arm: [sum(json.loads(line)["seconds"] for line in
                         (folder / f"{arm.replace(' ', '-')}-{seed}/metrics.jsonl").read_text().splitlines())
                     for seed in seeds] for arm in ARMS}
    return {"commit": git_commit(), "cpu": cpu_name(), "python": platform.python_version(), "seeds": seeds,
            "steps": {arm: steps for arm, (steps, _) in ARMS.items()}, "settings": SETTINGS, "seconds": seconds,
            "bayes_ceiling": bayes_ceiling(scene_examples("test", SCENES, cameras=3)), "groups": groups}


def difference(first: np.ndarray, second: np.ndarray) -> dict:
    """The mean over seeds with its interval, and each seed's. Shapes: (seeds, scenes)."""
    low, high = paired_interval(first.mean(0), second.mean(0), seed=0)
    each = [float((one - other).mean()) for one, other in zip(first, second, strict=True)]
    return {"mean": float((first - second).mean()), "interval": [low, high], "seeds": each}


def print_table(record: dict) -> None:
    """What docs/benchmark.md shows."""
    rows = [(group, str(one["scenes"]), *(f"{one[arm]:.3f}" for arm in ARMS),
             *("{:+.3f} ({:+.3f} to {:+.3f})".format(part["mean"], *part["interval"])
               for part in one["minus"].values())) for group, one in record["groups"].items()]
    print(table(("scenes", "number", *ARMS, "three - front", "three - front long"), rows))
    print(f"Bayes ceiling {record['bayes_ceiling'][0]:.3f}; seconds {record['seconds']}")


def main() -> None:
    """Run what is missing, then collect the seeds whose arms have all finished."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/cameras")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="parts run side by side, one thread each")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no part after so many seconds")
    parser.add_argument("--table", action="store_true", help="only collect what has finished")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/cameras.json")
    options = parser.parse_args()
    if not options.table:
        run_parts(options.runs, all_parts(options.runs, options.seeds), options.jobs, options.seconds)
    done = [seed for seed in options.seeds
            if all(finished(options.runs, part.name) for part in all_parts(options.runs, [seed]))]
    if not done:
        sys.exit("no seed has finished; run the same command again")
    record = summarise(options.runs, done)
    options.output.write_text(json.dumps(record, indent=1))
    print_table(record)


if __name__ == "__main__":
    main()
