"""From scored runs to the tables of the results' pages: a record of sums over blocks of scenes, intervals, verdicts.

    hierarchical bootstrap    resample seeds and, crossed with them, blocks of scenes; all arms of a seed are scored on
                              the same scenes, so a difference is paired
    Holm                      over the claims of a family (benchmarks/claims.py)

`python benchmarks/results.py --table` writes record, tables and figures.
"""

import json
import platform
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.claims import CLAIMS, FAMILIES, MATTERS, Claim  # noqa: E402
from data.scenes.reader import read_reason  # noqa: E402
from evaluation.metrics import braking_cost, plan_entropy  # noqa: E402
from evaluation.predictions import as_plan  # noqa: E402
from evaluation.text_metrics import think_text  # noqa: E402

RECORD = ROOT / "benchmarks/results/tables.json"
DEMO = ROOT / "benchmarks/results/demo_gain.json"
FIRST = ROOT / "benchmarks/results/tables_first.json"       # an earlier run of the short set
PAGES = (ROOT / "docs/results.md", ROOT / "docs/results-full.md")
SCENES, SAMPLES = 1000, 4               # per arm and seed
BLOCK = 10                              # scenes whose scores are summed in the record
DRAWS = 10_000
SHOWN = {"acceptable_sampled": "sampled", "acceptable": "greedy", "right_sampled": "label, sampled",
         "right": "label, greedy", "cost": "missed braking", "invalid": "invalid", "entropy": "entropy",
         "covered": "covered", "faithful": "faithful"}


# ---------------------------------------------------------------- scores

def scene_scores(row: Mapping) -> dict[str, float]:
    """Scores of one scene, from its line of predictions.jsonl; the first SAMPLES answers count.

    acceptable, right     the greedy plan is one of the scene's acceptable plans, is the label; _sampled: of samples
    cost       mean over the samples of the steps between label and plan where the label brakes and the plan does not,
               divided by 3 (evaluation/metrics.py: safety_errors), here over all scenes
    invalid    share of the samples that state no single plan
    entropy    of the samples' plans, in nats
    covered    acceptable plans among the samples, as a share of those that SAMPLES samples can hold, in scenes with
               two or more; 0 in others
    faithful   the greedy answer's reason supports its plan
    """
    plans, good = row["sample_decisions"][:SAMPLES], row["acceptable"]
    read = read_reason(think_text(row["text"])) if row["decision"] else None
    return {"acceptable_sampled": float(np.mean([plan in good for plan in plans])),
            "acceptable": float(row["decision"] in good),
            "right_sampled": float(np.mean([plan == row["truth"] for plan in plans])),
            "right": float(row["decision"] == row["truth"]),
            "cost": float(np.mean([missed_brakes(row["truth"], plan) for plan in plans])),
            "invalid": float(np.mean([plan is None for plan in plans])), "entropy": plan_entropy(plans),
            "covered": len({*plans} & {*good}) / min(len(good), SAMPLES) if len(good) > 1 else 0.0,
            "faithful": float(read is not None and as_plan(row["decision"]) in read.supported)}


def missed_brakes(truth: str, plan: str | None) -> float:
    """0 to 1: how far a plan is from braking where the label brakes; 0 if it brakes, is unreadable, or need not."""
    return braking_cost(as_plan(truth), as_plan(plan))


def blocks(rows: Sequence[Mapping]) -> dict[str, str]:
    """Sums of `scene_scores` over blocks of scenes in the order of the data, numbers with blanks between."""
    scores = [scene_scores(row) for row in rows]
    return {name: " ".join(f"{sum(score[name] for score in scores[start:start + BLOCK]):.4g}"
                           for start in range(0, len(scores), BLOCK)) for name in SHOWN}


# ---------------------------------------------------------------- statistics

def hierarchical(gaps: np.ndarray, seed: int = 0) -> tuple[float, float, float, float]:
    """-> mean, ends of the 95 % interval, two-sided p-value of a mean of 0. Shapes: gaps (seeds, blocks).

    A draw resamples the seeds and the blocks with replacement and takes the mean over both, because the scenes are the
    same for all seeds. With three seeds the seeds' part of the interval is up to 2.7 times too narrow, and p is close
    to 0 whenever the seeds agree in sign; `seeds_p` is the other extreme.
    """
    rows, columns = resampled(gaps.shape, seed)
    means = np.einsum("ds,sb,db->d", rows, gaps, columns)
    low, high = np.quantile(means, (0.025, 0.975))
    beyond = min((means <= 0).sum(), (means >= 0).sum())
    return float(gaps.mean()), float(low), float(high), min(1.0, 2 * float(beyond + 1) / (DRAWS + 1))


@cache
def resampled(shape: tuple[int, int], seed: int) -> tuple[np.ndarray, ...]:
    """The weights of seeds and blocks in every draw, the same for all comparisons of one shape. (DRAWS, n) each."""
    generator = np.random.default_rng(seed)
    return tuple(generator.multinomial(n, np.full(n, 1 / n), DRAWS) / n for n in shape)


def seeds_p(by_seed: Sequence[float]) -> float:
    """Two-sided p-value of a mean of 0 by a t-test over three seeds alone: 1 - |t| / sqrt(t^2 + 2).

    Raises: ValueError for another number of seeds."""
    if len(by_seed) != 3:
        raise ValueError(f"{len(by_seed)} seeds; the formula holds for three")
    spread = float(np.std(by_seed, ddof=1))
    t = abs(float(np.mean(by_seed))) * 3**0.5 / spread if spread else float("inf")
    return 1 - t / (t * t + 2) ** 0.5 if t < float("inf") else 0.0


def holm(values: Sequence[float]) -> list[float]:
    """Corrected p-values: the k-th smallest of n times (n - k + 1), made non-decreasing. Source: Holm (1979)."""
    order, corrected, largest = np.argsort(values, kind="stable"), [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, values[place] * (len(values) - rank)))
        corrected[place] = largest
    return corrected


def verdict(claim: Claim, interval: tuple[float, float], by_seed: Sequence[float], p: float) -> str:
    """The rule of benchmarks/claims.py."""
    if len(by_seed) < 3:
        return f"none: {len(by_seed)} of 3 seeds"
    if p < 0.05 and min(claim.sign * gap for gap in by_seed) > 0:
        return "reproduces"
    largest = max(claim.sign * end for end in interval)
    return "does not reproduce" if largest < MATTERS.get(claim.score, 0.01) else "inconclusive"


# ---------------------------------------------------------------- the record

def collect(folder: Path, seeds: Sequence[int], arms: Mapping[str, str], before: Mapping, about: Mapping) -> dict:
    """The record: what `before` holds and, over it, every finished part. arms: name -> folder name."""
    record = {**before, **about, "python": platform.python_version(), "scenes": SCENES, "samples": SAMPLES,
              "block": BLOCK, "arms": {name: dict(rows) for name, rows in before.get("arms", {}).items()}}
    for name, place in arms.items():
        for seed in seeds:
            part = folder / f"parts/seed-{seed}/{place}.json"
            predictions = folder / f"seed-{seed}/{place}/eval/predictions.jsonl"
            if part.is_file():
                rows = [json.loads(line) for line in predictions.read_text().splitlines()]
                done = json.loads(part.read_text())
                record["arms"].setdefault(name, {})[str(seed)] = {
                    **{key: done[key] for key in ("seconds", "commit", "cpu")}, "blocks": blocks(rows),
                    "several": round(float(np.mean([len(row["acceptable"]) > 1 for row in rows])), 4),
                    **extras(folder / f"seed-{seed}/{place}/eval/metrics.json", rows)}
    return record


def extras(metrics: Path, rows: Sequence[Mapping]) -> dict:
    """Numbers of an arm without interval: F1 of two speeds, factors of the reasons, temperature, best of eight."""
    found = json.loads(metrics.read_text())
    more = {"temperature": found["temperature"],
            "f1": {name: round(found["speed"][name]["f1"] or 0.0, 4) for name in ("ACCELERATE", "DECELERATE")}}
    if found["text"]:
        more["factors"] = {name: round(value, 4) for name, value in found["text"]["factors"].items()
                           if isinstance(value, float)}
    if len(rows[0]["samples"]) == 8:
        more["best of 8"] = round(float(np.mean([row["truth"] in row["sample_decisions"] for row in rows])), 4)
    if found["multimodality"] and len(found["multimodality"]) > 1:
        more["curve"] = found["multimodality"]
    return more


def grid(record: Mapping, arm: str, seeds: Sequence[str], score: str) -> np.ndarray:
    """A score per scene, averaged in blocks. -> (seeds, blocks)."""
    rows = [record["arms"][arm][seed] for seed in seeds]
    shares = [row["several"] if score == "covered" else 1 for row in rows]      # of the scenes with several plans
    return np.array([row["blocks"][score].split() for row in rows], float) / np.array(shares)[:, None] / record["block"]


def compare(record: Mapping, claims: Sequence[Claim]) -> list[dict]:
    """What came out of each claim of one family; nothing for claims whose arms have no seed in common."""
    found = []
    for claim in claims:
        seeds = sorted(record["arms"].get(claim.arm, {}).keys() & record["arms"].get(claim.than, {}).keys())
        if not seeds:
            found.append({"claim": claim, "seeds": 0})
            continue
        gaps = grid(record, claim.arm, seeds, claim.score) - grid(record, claim.than, seeds, claim.score)
        mean, low, high, p = hierarchical(gaps)
        found.append({"claim": claim, "seeds": len(seeds), "mean": mean, "interval": (low, high), "p": p,
                      "by_seed": gaps.mean(1).tolist()})
    run = [row for row in found if row["seeds"]]
    for row, p in zip(run, holm([row["p"] for row in run]), strict=True):
        row["p"] = p
        row["verdict"] = verdict(row["claim"], row["interval"], row["by_seed"], p)
    return found


# ---------------------------------------------------------------- Markdown

def points(value: float) -> str:
    """A difference in percentage points."""
    return f"{100 * value:+.1f}"


def claim_table(record: Mapping, family: str) -> list[str]:
    """The claims of a family with our expectations as a list, and what came out as a table."""
    found = compare(record, [claim for claim in CLAIMS if claim.family == family])
    by_claim: dict[tuple[str, str, str], list[dict]] = {}
    for row in found:
        by_claim.setdefault((row["claim"].says, row["claim"].arm, row["claim"].than), []).append(row)
    listed, rows = [], [("", "arms", "score", "points (95 %)", "by seed", "verdict")]
    for number, ((says, arm, than), scores) in enumerate(by_claim.items(), 1):
        expected = "; ".join(f"*{SHOWN[row['claim'].score]}* {row['claim'].expected}" for row in scores)
        listed += textwrap.wrap(f"{number}. **{says[0].upper()}{says[1:]}.** Expected: {expected}.", 116,
                                subsequent_indent="   ")
        rows += [(f"{number}", difference(arm, than), SHOWN[row["claim"].score], *outcome(row)) for row in scores]
    return [*listed, "", *markdown(rows)]


def difference(arm: str, than: str) -> str:
    """`a - b`, or `a - b (setting)` for two arms of one setting, `a, setting` and `b, setting`; one word is none."""
    (a, _, setting), (b, _, other) = arm.rpartition(", "), than.rpartition(", ")
    return f"{a} - {b} ({setting})" if setting == other and " " in setting and a and b else f"{arm} - {than}"


def outcome(row: Mapping) -> tuple[str, str, str]:
    """Difference with interval, differences by seed, verdict; with a star if the seeds differ too much for a t-test."""
    if not row["seeds"]:
        return "not run", "", "none: 0 of 3 seeds"
    low, high = map(points, row["interval"])
    star = "*" * (row["verdict"] == "reproduces" and len(row["by_seed"]) == 3 and seeds_p(row["by_seed"]) > 0.05)
    return f"{points(row['mean'])} ({low} to {high})", "/".join(map(points, row["by_seed"])), row["verdict"] + star


def arm_table(record: Mapping, groups: Mapping[str, str]) -> list[str]:
    """Means over seeds of every arm that has run."""
    rows = [("arm (seeds)", *SHOWN.values())]
    for arm in groups:
        if found := record["arms"].get(arm):
            rows.append((f"{arm} ({len(found)})", *(f"{grid(record, arm, sorted(found), name).mean():.3f}"
                                                    for name in SHOWN)))
    return markdown(rows)


def missing_table(record: Mapping, groups: Mapping[str, str]) -> list[str]:
    """The arms with fewer than three seeds, by group and count of seeds; a whole group is not spelled out."""
    rows = [("group", "seeds", "arms")]
    for group in dict.fromkeys(groups.values()):
        members = [arm for arm in groups if groups[arm] == group]
        for count in range(3):
            arms = [arm for arm in members if len(record["arms"].get(arm, {})) == count]
            told = [f"all {len(arms)}"] if arms == members else arms
            rows += [(group, f"{count}/3", arm) for arm in told]
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Header and rows as lines."""
    return [f"|{'|'.join(row)}|" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:])]


def again_table(first: Mapping, record: Mapping) -> list[str]:
    """The claims whose verdict was another one in an earlier run of the same arms."""
    rows = [("arms", "score", "first run", "verdict", "this run", "verdict")]
    for family in FAMILIES:
        claims = [claim for claim in CLAIMS if claim.family == family]
        for earlier, now in zip(compare(first, claims), compare(record, claims), strict=True):
            (before, _, its), (after, _, verdict) = outcome(earlier), outcome(now)
            if earlier["seeds"] and now["seeds"] and earlier["verdict"] != now["verdict"]:
                claim = earlier["claim"]
                rows.append((f"{claim.arm} - {claim.than}", SHOWN[claim.score], before, its, after, verdict))
    return markdown(rows)


def demo_table(record: Mapping) -> list[str]:
    """What benchmarks/demo_gain.py found: per seed, SFT's share of the ceiling, costs, and both differences."""
    def gap(part: Mapping) -> str:
        return f"{part['difference']:+.3f} ({part['interval'][0]:+.3f} to {part['interval'][1]:+.3f})"

    rows = [("seed", "SFT, of the ceiling", "cost: SFT", "more SFT", "GRPO", "GRPO - SFT (95 %)",
             "GRPO - more SFT (95 %)")]
    for seed, found in record["seeds"].items():
        scores, braking = found["scores"], found["braking"]
        costs = [f"{scores[name]['braking_cost']:.3f}" for name in ("sft", "sft-continued", "grpo")]
        rows.append((seed, f"{scores['sft']['of_ceiling']:.2f}", *costs, gap(braking["grpo - sft"]),
                     gap(braking["grpo - sft-continued"])))
    return markdown(rows)


def sections(record: Mapping, groups: Mapping[str, str], first: Mapping, demo: Mapping) -> dict[str, list[str]]:
    """Every table of the pages by the name of its marks. first, demo: the records FIRST and DEMO."""
    return {**{family: claim_table(record, family) for family in FAMILIES}, "arms": arm_table(record, groups),
            "missing": missing_table(record, groups), "again": again_table(first, record), "demo": demo_table(demo)}


def with_tables(page: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The page with each of its tables between its marks, `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    for name in re.findall(r"<!-- (\w+): begin -->", page):
        lines, begin, end = tables[name], f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = page.split(begin)
        page = before + "\n".join([begin, *lines, end]) + rest.split(end)[1]
    return page
