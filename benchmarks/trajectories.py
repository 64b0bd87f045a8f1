"""The study of docs/trajectories.md: `python benchmarks/trajectories.py` (make trajectories-full).

Per seed: cloning, cloning for three quarters of the time of cloning and GRPO (on all and on safe demonstrations),
ranked SFT, best-of-16, GRPO, and one arm for each choice of the method, 150 steps each. All decoders drive the same
1,000 test scenes, 16 trajectories each. Finished parts are kept; --table only reads them, --main leaves the arms of 150
steps out. Writes benchmarks/results/trajectories.json and the table of docs/trajectories.md; arms that were not run
stay in both.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.experiments import Part, finished, run_parts  # noqa: E402
from benchmarks.tables import markdown, with_tables  # noqa: E402
from evaluation.metrics import bootstrap_interval  # noqa: E402
from evaluation.trajectories import scene_scores  # noqa: E402

SCENES, SAMPLES = "1000", "16"
STEPS, SHORT = 400, 150                 # of GRPO: the main arm, every other arm
CLONING = 4500                          # steps that the rule of --rounds gave with seed 0
LONG = 12000                            # cloning steps: three quarters of the time of CLONING and STEPS (302 of 399 s)
FLOORS = ("0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.4")
SHOWN = ("pdms", "greedy_pdms", "no_collision", "on_road", "progress", "comfort", "validity", "modes_covered",
         "min_ade", "diversity", "best_pdms")
COMPARED = ("cloning", "cloning long", "safe long", "grpo 150", "planner cloning")
# arm -> flags of --stage trajectory-grpo beside --steps
ARMS = {
    "grpo 150": (),
    "no KL": ("--beta", "0"),
    "group std": ("--scale-rewards", "group"),
    "no std": ("--scale-rewards", "none"),
    **{f"floor {floor}": ("--noise-floor", floor) for floor in FLOORS},
    "complexity": ("--noise-adapt", "complexity"),
    "validity": ("--noise-adapt", "validity"),
    "guidance 2": ("--guidance", "2"),
    "drop": ("--reject", "drop"),
    "resample": ("--reject", "resample"),
    "penalise": ("--reject", "penalise"),
    "cloning weight 0.1": ("--bc-coef", "0.1"),
    "cloning weight 1": ("--bc-coef", "1"),
    "3 updates": ("--updates-per-rollout", "3"),
    "mean ratio": ("--ratio-reduce", "mean"),
    "eta 0": ("--eta", "0"),
}


def slug(arm: str) -> str:
    """A folder's name for an arm."""
    return arm.replace(" ", "-").replace(".", "")


def plan_parts(folder: Path, seeds: list[int], planner: str, only_main: bool = False) -> list[Part]:
    """Every part of the study, the main arms of all seeds first."""
    main, others = [], []
    for seed in seeds:
        main += main_parts(folder / f"seed-{seed}", seed, planner)
        others += [grpo_part(folder / f"seed-{seed}", seed, arm, SHORT, flags) for arm, flags in ARMS.items()]
    return main if only_main else main + others


def main_parts(out: Path, seed: int, planner: str) -> list[Part]:
    """Cloning in its forms, GRPO, and both on a planner's hidden states."""
    facts = ("--condition", "facts")
    parts = [cloning_part(out, seed, "cloning", ("--steps", str(CLONING), *facts)),
             grpo_part(out, seed, "grpo", STEPS, ()),
             cloning_part(out, seed, "cloning long", ("--steps", str(LONG), *facts)),
             cloning_part(out, seed, "safe long", ("--steps", str(LONG), "--demonstrations", "safe", *facts)),
             Part(f"{out.name}/best-of-16", (drive(out / "cloning", out / "best-of-16", "--best-of", "16"),),
                  (f"{out.name}/cloning",)),
             Part(f"{out.name}/ranked", (
                 cloning(out / "ranked", seed, "--steps", str(CLONING), "--ranked", str(out / "cloning/model"), *facts),
                 drive(out / "ranked", out / "ranked/eval")), (f"{out.name}/cloning",))]
    if planner:
        parts += [cloning_part(out, seed, "planner cloning", ("--steps", str(CLONING), "--model", planner)),
                  grpo_part(out, seed, "planner grpo", STEPS, (), "planner cloning")]
    return parts


def cloning(out: Path, seed: int, *flags: str) -> tuple[str, ...]:
    """A command of stage trajectory-bc."""
    return ("train.py", "--stage", "trajectory-bc", "--seed", str(seed), "--rounds", "0", "--output", str(out),
            "--overwrite", *flags)


def drive(run: Path, out: Path, *flags: str) -> tuple[str, ...]:
    """A command that scores a run's decoder without a named plan."""
    return ("eval.py", "--trajectories", SAMPLES, "--limit", SCENES, "--plan", "none", "--decoder", str(run / "model"),
            "--output", str(out), "--overwrite", *flags)


def cloning_part(out: Path, seed: int, arm: str, flags: tuple[str, ...]) -> Part:
    """Clone and score."""
    run = out / slug(arm)
    return Part(f"{out.name}/{slug(arm)}", (cloning(run, seed, *flags), drive(run, run / "eval")))


def grpo_part(out: Path, seed: int, arm: str, steps: int, flags: tuple[str, ...], start: str = "cloning") -> Part:
    """GRPO from a cloned decoder, scored."""
    run = out / slug(arm)
    train = ("train.py", "--stage", "trajectory-grpo", "--seed", str(seed), "--steps", str(steps), "--model",
             str(out / slug(start) / "model"), "--output", str(run), "--overwrite", *flags)
    return Part(f"{out.name}/{slug(arm)}", (train, drive(run, run / "eval")), (f"{out.name}/{slug(start)}",))


# ---------------------------------------------------------------- records and table

def read_scores(folder: Path, seed: int, arm: str) -> dict[str, dict] | None:
    """Scene -> its scores, of one arm and seed; None where it has not finished."""
    part = f"seed-{seed}/{slug(arm)}"
    if not finished(folder, part):
        return None
    place = folder / part / ("." if arm == "best of 16" else "eval")
    lines = (place / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: scene_scores(row) for row in map(json.loads, lines)}


def summarise(folder: Path, seeds: list[int], earlier: dict) -> dict:
    """The record: per arm the means over seeds, the paired differences from cloning and from GRPO (150 steps).

    Arms that were not run keep what the earlier record says of them."""
    arms = ["cloning", "grpo", "cloning long", "safe long", "best of 16", "ranked", "planner cloning", "planner grpo",
            *ARMS]
    scores = {arm: {seed: found for seed in seeds if (found := read_scores(folder, seed, arm)) is not None}
              for arm in arms}
    record = {"scenes": int(SCENES), "samples": int(SAMPLES),
              "steps": {"cloning": CLONING, "long": LONG, "grpo": STEPS, "arms": SHORT},
              "arms": {arm: found for arm in arms if (found := earlier.get("arms", {}).get(arm))},
              "demonstrations": demonstrated(scores["cloning"]) or earlier.get("demonstrations", {})}
    for arm, by_seed in scores.items():
        if by_seed:
            record["arms"][arm] = {"seeds": len(by_seed), **part_facts(folder, by_seed, arm),
                                   **{name: mean_over(by_seed, name) for name in SHOWN},
                                   "minus": {"the demonstrations": paired(by_seed, by_seed, than="demonstration_pdms"),
                                             **{other: paired(by_seed, scores[other]) for other in COMPARED
                                                if other != arm and by_seed.keys() & scores[other].keys()}}}
    return record


def demonstrated(by_seed: dict[int, dict]) -> dict[str, float]:
    """Scores of the imitated driver on the test scenes."""
    names = ("pdms", "no_collision", "on_road", "progress", "comfort")
    return {name: mean_over(by_seed, f"demonstration_{name}") for name in names} if by_seed else {}


def mean_over(by_seed: dict[int, dict], name: str) -> float:
    """Mean over seeds and scenes."""
    return round(float(np.mean([[row[name] for row in rows.values()] for rows in by_seed.values()])), 4)


def paired(one: dict[int, dict], other: dict[int, dict], name: str = "pdms", than: str = "pdms") -> dict:
    """Difference over the seeds that both have, with the interval of scenes' mean differences and each seed's own."""
    seeds = sorted(one.keys() & other.keys())
    gaps = [np.array([one[seed][scene][name] - other[seed][scene][than] for scene in one[seed]]) for seed in seeds]
    low, high = bootstrap_interval(np.mean(gaps, axis=0).tolist(), seed=0)
    return {"difference": round(float(np.mean(gaps)), 4), "interval": [round(low, 4), round(high, 4)],
            "by_seed": [round(float(gap.mean()), 4) for gap in gaps]}


def part_facts(folder: Path, by_seed: dict[int, dict], arm: str) -> dict:
    """Median seconds of an arm's parts, scoring included; commit and processor of the last one."""
    parts = [json.loads((folder / f"parts/seed-{seed}/{slug(arm)}.json").read_text()) for seed in by_seed]
    return {"seconds": float(np.median([part["seconds"] for part in parts])),
            "commit": parts[-1]["commit"], "cpu": parts[-1]["cpu"]}


def table_lines(record: dict) -> list[str]:
    """The record as two Markdown tables: factors of the score; variety, and the paired difference of each arm."""
    factors = ("pdms", "greedy_pdms", "no_collision", "on_road", "progress", "comfort")
    first = [("policy", "seeds", "PDMS-like", "greedy", "no collision", "on road", "progress", "comfort"),
             ("the demonstrations", "", *(cell(record["demonstrations"], name) for name in factors))]
    variety = ("validity", "modes_covered", "min_ade", "diversity", "best_pdms")
    second = [("policy", "valid", "modes", "minADE", "spread", "best (true score)",
               "PDMS-like, paired difference (95 %)")]
    for arm, found in record["arms"].items():
        first.append((arm, str(found["seeds"]), *(cell(found, name) for name in factors)))
        second.append((arm, *(cell(found, name) for name in variety), against(arm, found["minus"])))
    return [*markdown(first), "", *markdown(second)]


def cell(scores: dict, name: str) -> str:
    """Three decimals, or nothing."""
    return f"{scores[name]:.3f}" if name in scores else ""


def against(arm: str, minus: dict) -> str:
    """The paired difference that an arm is about: from 150 steps of GRPO, its own decoder, or long cloning."""
    own = {"planner grpo": "planner cloning", "best of 16": "cloning"}
    other = "grpo 150" if arm in ARMS else own.get(arm, "cloning long")
    if other not in minus:
        return ""
    low, high = minus[other]["interval"]
    return f"{minus[other]['difference']:+.3f} ({low:+.3f} to {high:+.3f}) from {other}"


def main(arguments: list[str]) -> None:
    """Run what is missing, write record and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/trajectories", help="folder of all runs")
    parser.add_argument("--seeds", default="0,1,2", help="default: 0,1,2")
    parser.add_argument("--planner", default="", help="language model for the arms on hidden states; none: left out")
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time, one thread each (default: 2)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no part after this time")
    parser.add_argument("--main", action="store_true", help="leave out the arms of 150 steps of GRPO")
    parser.add_argument("--table", action="store_true", help="only read what has finished")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/trajectories.json")
    options = parser.parse_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    failed = [] if options.table else run_parts(options.runs.resolve(), plan_parts(
        options.runs.resolve(), seeds, options.planner, options.main), options.jobs, 60 * options.minutes)
    earlier = json.loads(options.output.read_text()) if options.output.is_file() else {}
    record = summarise(options.runs.resolve(), seeds, earlier)
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table_lines(record)))
    page = ROOT / "docs/trajectories.md"
    if page.is_file() and options.output.resolve().parent == ROOT / "benchmarks/results":
        page.write_text(with_tables(page.read_text(encoding="utf-8"), {"study": table_lines(record)}), encoding="utf-8")
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
