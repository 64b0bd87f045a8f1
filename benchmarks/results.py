"""AlphaDrive's tables on the built-in scenes: `python benchmarks/results.py` (make results, make results-full).

One line per arm says from which arm's model it starts and with which flags. Every arm runs once per seed and is scored
on the same test scenes. Finished parts are kept in runs/results; the script goes on where it stopped. Parts run side by
side, one thread each. Numbers of steps are fixed and not times, so a busy machine changes no result.
Writes benchmarks/results/tables.json, the tables of docs/results.md and docs/results-full.md, and their figures.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import figures, tables  # noqa: E402
from benchmarks.experiments import Part, finished, run_parts  # noqa: E402
from benchmarks.tables import DEMO, FIRST, PAGES, RECORD, SAMPLES, SCENES  # noqa: E402
from storage import write_json, write_text  # noqa: E402

BATCH = 16                              # prompts of a GRPO step
SFT, CAPTION, GRPO = 300, 200, 40       # steps of the starts, and of every GRPO arm
# Seconds on one thread, measured in turns from one start with the machine free. Equal time means equal by these.
SECONDS = {"step of GRPO": 1.28, "step of SFT": 0.98, "eight answers to a scene": 0.04}
MORE = 52                               # steps of SFT in the time of GRPO: 40 * 1.28 / 0.98
DRAWN = BATCH * GRPO                    # scenes whose best of eight answers are imitated: as many as GRPO sees
IMITATED = 26                           # steps on them: (40 * 1.28 - 640 * 0.04) / 0.98
WARM = ("--warmup-steps", "10")         # of further SFT, as GRPO's; the preset's 50 are meant for a new model
SWEEP = {"grpo": (70, ("5e-5", "1e-4", "2e-4")), "sft": (91, ("5e-4", "1e-3", "2e-3"))}     # steps, learning rates
RULE = "highest mean of greedy and sampled set-valued accuracy on 300 scenes of val, seed 0"
ALL, SHARPENED, IMITATION = "all rewards", "SFT, T of GRPO's entropy", "SFT on own best of 8"
REWARDS = "benchmarks/paper_rewards.py:"
TOLD = ("--eval-every", "0", "--eval-examples", "100")


@dataclass(frozen=True)
class Arm:
    """One way to get and score a model. `start` is the arm whose model it starts from; none for a new one."""

    name: str
    stage: str                          # sft or grpo; eval: the start's model scored in another way
    steps: int
    flags: tuple[str, ...] = ()
    start: str = ""
    group: str = "short set"


def grpo(name: str, *flags: str, start: str = "SFT", group: str = "short set", steps: int = GRPO) -> Arm:
    return Arm(name, "grpo", steps, flags, start, group=group)


def sft(name: str, *flags: str, start: str = "", group: str = "short set", steps: int = SFT) -> Arm:
    return Arm(name, "sft", steps, flags, start, group=group)


def noisy(split: str, percent: str) -> tuple[str, ...]:
    return ("--data", f"{split}-noise-{percent}.jsonl", "--split", split)


def rescored(name: str, start: str, group: str, *flags: str) -> Arm:
    return Arm(name, "eval", 0, flags, start, group)


# What `make results` runs; then, in its order, what `make results-full` adds
SHORT = (
    sft("SFT"),
    sft("caption base", "--task", "caption", steps=CAPTION),
    grpo("exact match", "--reward", REWARDS + "exact"),
    grpo("exact, format", "--reward", REWARDS + "exact_and_format"),
    grpo("F1, format", "--reward", REWARDS + "f1_and_format"),
    grpo("F1, format, weights", "--reward", REWARDS + "weighted"),
    grpo(ALL),
    sft("SFT continued", *WARM, start="SFT", steps=MORE),
    sft(IMITATION, *WARM, start="SFT", steps=IMITATED),
    rescored(SHARPENED, "SFT", "short set"),
    grpo("RL alone", start="caption base"),
)
FULL = (
    sft("SFT continued on the RL scenes", *WARM, "--split", "rl", "--scenes", "9000", start="SFT", group="controls",
        steps=MORE),
    grpo("official rewards", "--reward-mode", "official", group="Table 2"),
    sft("SFT without reasons", "--reasoning", "off", group="Table 3"),
    sft("caption base without reasons", "--task", "caption", "--reasoning", "off", group="Table 3", steps=CAPTION),
    grpo("RL alone without reasons", start="caption base without reasons", group="Table 3"),
    grpo("SFT and RL without reasons", start="SFT without reasons", group="Table 3"),
    *(arm for scenes, share in (("600", "1/5"), ("1500", "1/2")) for arm in (
        sft(f"SFT, {share} of the data", "--scenes", scenes, group="Table 4"),
        grpo(f"SFT and RL, {share} of the data", "--scenes", str(3 * int(scenes)), start=f"SFT, {share} of the data",
             group="Table 4"),
        grpo(f"RL alone, {share} of the data", "--scenes", str(3 * int(scenes)), start="caption base",
             group="Table 4"))),
    *(arm for noise in ("15", "30") for arm in (
        sft(f"SFT, {noise} % label noise", *noisy("sft", noise), group="label noise"),
        grpo(f"SFT and RL, {noise} % label noise", *noisy("rl", noise), start=f"SFT, {noise} % label noise",
             group="label noise"),
        sft(f"SFT continued, {noise} % label noise", *WARM, *noisy("sft", noise), start=f"SFT, {noise} % label noise",
            group="label noise", steps=MORE))),
    grpo("set-valued reward", "--reward-mode", "set", group="set-valued truth"),
    *(rescored(f"{name}, several temperatures", name, "Figure 3", "--limit", "500", "--samples", "8", "--temperatures",
               "0.25,0.5,0.75,1.25,1.5") for name in ("SFT", ALL, "F1, format, weights", "set-valued reward")),
    *(arm for steps in (100, 200) for arm in (
        sft(f"SFT, {steps} steps", group="other axes", steps=steps),
        grpo(f"SFT, {steps} steps, and RL", start=f"SFT, {steps} steps", group="other axes"),
        sft(f"SFT, {steps} steps, continued", *WARM, start=f"SFT, {steps} steps", group="other axes", steps=MORE))),
    sft("SFT, few reasons", "--reason-share", "0.0667", group="other axes"),
    grpo("SFT, few reasons, and RL", start="SFT, few reasons", group="other axes"),
    *(sft(f"SFT without the {what}", "--hide", what, group="other axes") for what in ("picture", "text")),
    grpo("safety as reward", "--reward", REWARDS + "safe", group="other axes"),
    *(rescored(f"{name}, long-tail test", name, "other axes", "--prior", "long_tail")
      for name in ("SFT", ALL, "SFT continued")),
    *(grpo(f"{name}, 2 updates", "--algorithm", name, "--updates-per-rollout", "2", group="algorithms")
      for name in ("reinforce", "rloo", "ppo", "grpo", "dapo", "dr_grpo", "gspo", "cispo")),
)
ARMS = {arm.name: arm for arm in (*SHORT, *FULL)}
GROUPS = {arm.name: arm.group for arm in ARMS.values()}


# ---------------------------------------------------------------- parts

def slug(name: str) -> str:
    """A folder's name for an arm."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower().replace(" %", "")).replace("--", "-")


def train(arm: Arm, out: Path, seed: int, *flags: str) -> tuple[str, ...]:
    """The command that trains an arm."""
    return ("train.py", "--stage", arm.stage, "--preset", "demo", "--seed", str(seed), "--output", str(out),
            "--overwrite", *TOLD, "--steps", str(arm.steps), *arm.flags, *flags)


def further(arm: Arm, start: Path, out: Path, seed: int, rate: str, *flags: str) -> tuple[str, ...]:
    """The command that trains an arm from another's model. Its data come in an order that the start has not seen."""
    return train(arm, out, seed + 100, "--model", str(start / "model"), "--learning-rate", rate, *flags)


def score(model: Path, out: Path, seed: int, *flags: str) -> tuple[str, ...]:
    """The command that scores a model on the test scenes. Of a flag that is given twice the last one counts."""
    return ("eval.py", "--model", str(model / "model"), "--limit", str(SCENES), "--samples", str(SAMPLES), "--seed",
            str(seed), "--output", str(out), "--overwrite", *flags)


def arm_part(folder: Path, seed: int, arm: Arm, rates: dict[str, str]) -> Part:
    """Train an arm and score it. rates: learning rate of each stage, for arms that start from another."""
    place = folder / f"seed-{seed}"
    out, start = place / slug(arm.name), place / slug(arm.start)
    needs = tuple(f"{place.name}/{slug(name)}" for name in (arm.start, *needed(arm)) if name)
    if arm.name == SHARPENED:
        commands = sharpen(start, place / slug(ALL), out, seed)
    elif arm.name == IMITATION:
        data = out.with_name(f"{out.name}-drawn") / "best.jsonl"
        commands = (*draw_best(start, data, seed),
                    further(arm, start, out, seed, rates[arm.stage], "--data", str(data), "--split", "best"))
    elif arm.stage == "eval":
        commands = (score(start, out / "eval", seed, *arm.flags),)
    elif arm.start:
        commands = (*noise(arm, place), further(located(arm, place), start, out, seed, rates[arm.stage]))
    else:
        commands = (*noise(arm, place), train(located(arm, place), out, seed))
    if arm.stage != "eval":
        commands += (score(out, out / "eval", seed, *(("--samples", "8") if arm.name == "SFT" else ())),)
    return Part(f"{place.name}/{out.name}", commands, needs)


def sharpen(start: Path, trained: Path, out: Path, seed: int) -> tuple[tuple[str, ...], ...]:
    """Score the start at the temperature at which its plans have the entropy of GRPO's, found on val."""
    val = ("--split", "val", "--limit", "300")
    return (score(start, out / "start", seed, *val, "--temperatures", "0.3,0.4,0.5,0.6,0.7,0.85"),
            score(trained, out / "grpo", seed, *val),
            ("benchmarks/controls.py", "sharpen", str(out / "start"), str(out / "grpo"),
             *score(start, out / "eval", seed)[1:]))


def draw_best(start: Path, data: Path, seed: int) -> tuple[tuple[str, ...], ...]:
    """Sample eight answers to as many RL scenes as GRPO sees, and write the best of each to a data file."""
    return (score(start, data.parent / "eval", seed, "--split", "rl", "--limit", str(DRAWN), "--samples", "8"),
            ("benchmarks/controls.py", "best", str(data.parent / "eval/predictions.jsonl"), str(data)))


def noise(arm: Arm, place: Path) -> tuple[tuple[str, ...], ...]:
    """The command that writes the data of an arm with wrong labels; none for others."""
    if "--data" not in arm.flags:
        return ()
    file = arm.flags[arm.flags.index("--data") + 1]
    split, _, percent = file.removesuffix(".jsonl").split("-")
    return (("benchmarks/controls.py", "noise", split, percent, str(place / file)),)


def located(arm: Arm, place: Path) -> Arm:
    """The arm with the whole path of its data."""
    return replace(arm, flags=tuple(str(place / flag) if flag.endswith(".jsonl") else flag for flag in arm.flags))


# ---------------------------------------------------------------- the sweep of the learning rates

def sweep_parts(folder: Path) -> list[Part]:
    """GRPO and continued SFT with three learning rates each, from seed 0's start, scored on val."""
    parts, start = [], folder / "seed-0" / slug("SFT")
    for stage, (steps, rates) in SWEEP.items():
        for rate in rates:
            out = folder / "seed-0" / f"sweep-{stage}-{rate}"
            commands = (further(Arm(out.name, stage, steps), start, out, 0, rate),
                        score(out, out / "eval", 0, "--split", "val", "--limit", "300", "--samples", "8"))
            parts.append(Part(f"seed-0/{out.name}", commands, (f"seed-0/{start.name}",)))
    return parts


def sweep_scores(folder: Path) -> dict[str, dict[str, float]]:
    """Stage -> learning rate -> its score by the RULE."""
    found = {}
    for stage, (_, rates) in SWEEP.items():
        for rate in rates:
            metrics = json.loads((folder / f"seed-0/sweep-{stage}-{rate}/eval/metrics.json").read_text())
            value = (metrics["acceptable_accuracy"] + metrics["sampled"]["acceptable_accuracy"]) / 2
            found.setdefault(stage, {})[rate] = round(value, 4)
    return found


def about(folder: Path) -> dict:
    """Settings that the record names once."""
    steps = {"SFT": SFT, "caption base": CAPTION, "GRPO": GRPO, "SFT continued": MORE, "SFT on own best": IMITATED,
             "scenes drawn for it": DRAWN}
    done = all(finished(folder, part.name) for part in sweep_parts(folder))
    return {"steps": steps, "seconds": SECONDS, "rule": RULE, **({"sweep": sweep_scores(folder)} if done else {})}


# ---------------------------------------------------------------- the runner

def wanted(full: bool, only: Sequence[str], record: dict) -> list[Arm]:
    """The arms to run: the short set; all that the record lacks; or the named arms and groups. With their starts."""
    if not full and not only:
        return list(SHORT)
    missing = [arm for arm in ARMS.values() if ({arm.name, arm.group} & {*only} if only else
                                                len(record.get("arms", {}).get(arm.name, {})) < 3)]
    return [ARMS[name] for name in dict.fromkeys(name for arm in missing for name in [*before(arm), arm.name])]


def before(arm: Arm) -> list[str]:
    """The arms that must have run before an arm: its start, the start of that, and so on."""
    return [name for first in (arm.start, *needed(arm)) if first for name in [*before(ARMS[first]), first]]


def needed(arm: Arm) -> Sequence[str]:
    """Arms that an arm needs beside its start."""
    return (ALL,) if arm.name == SHARPENED else ()


def run(folder: Path, arms: Sequence[Arm], seeds: Sequence[int], jobs: int, seconds: float,
        sweep: dict | None = None) -> list[str]:
    """The sweep on seed 0, unless the record has it; then arm after arm on all seeds. -> names of failed parts."""
    began = time.monotonic()
    first = [] if sweep else [arm_part(folder, 0, ARMS["SFT"], {}), *sweep_parts(folder)]
    failed = run_parts(folder, first, jobs, seconds)
    if not all(finished(folder, part.name) for part in first):
        return failed
    rates = {stage: max(scores, key=scores.get) for stage, scores in (sweep or sweep_scores(folder)).items()}
    parts = [arm_part(folder, seed, arm, rates) for arm in arms for seed in seeds]
    return run_parts(folder, parts, jobs, seconds - (time.monotonic() - began))


def main(arguments: Sequence[str]) -> None:
    """Run what is missing; write record, tables and figures."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="everything that the record lacks, in the issue's order")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[*ARMS, *GROUPS.values()],
                        help="arms and groups to run, with the arms they start from")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/results", help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time, one thread each")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no part after this time")
    parser.add_argument("--table", action="store_true", help="only read what has finished")
    options = parser.parse_args(arguments)
    folder = options.runs.resolve()
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    failed = [] if options.table else run(folder, wanted(options.full, options.only, record), options.seeds,
                                          options.jobs, 60 * options.minutes, record.get("sweep"))
    record = tables.collect(folder, options.seeds, {name: slug(name) for name in ARMS}, record, about(folder))
    write_json(record, RECORD)
    if record["arms"]:                                                     # some arm has finished
        found = tables.sections(record, GROUPS, *(json.loads(file.read_text()) for file in (FIRST, DEMO)))
        for page in PAGES:
            write_text(page, tables.with_tables(page.read_text(), found))
        figures.draw_results()
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
