"""Compare scored runs on the scenes that all of them answered: `python eval.py --compare A B`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.metrics import braking_cost, mcnemar, paired_interval
from evaluation.predictions import actions_of, find_predictions, read_lines, read_object, read_predictions
from evaluation.scoring import built_in, paper_table, sampled_accuracy, score
from evaluation.trajectories import compare_trajectories, trajectory_metrics, trajectory_summary
from rewards.actions import ALPHADRIVE, Actions

DRAWN = {"temperature": "temperature", "samples_per_example": "samples per scene"}        # fields of metrics.json
DRIVEN = {"plan": "plan", "trajectories_per_scene": "trajectories per scene", "best_of": "best of", "seed": "seed",
          "eta": "eta", "noise_floor": "noise floor", "guidance": "guidance"}
WORLD = {"metre_noise": "metre noise"}                      # where it differs, built-in scenes are not the same
FEWEST = 30                                                 # scenes that brake, for a verdict


def compare(paths: Sequence[str]) -> str:
    """The paper's table for the given runs, and the paired difference of each later run from the first."""
    if len(paths) < 2 or len(set(paths)) < len(paths):
        raise ValueError("--compare needs two or more different directories or predictions files")
    driven = [find_trajectories(path) for path in paths]
    if all(driven):
        return compare_driven(dict(zip(paths, driven, strict=True)))
    files = {path: find_predictions(path) for path in paths}
    actions = {path: actions_of(file.parent) for path, file in files.items()}
    about = {path: samples_of(file.parent) for path, file in files.items()}
    runs = {path: read_predictions(file, actions=actions[path]) for path, file in files.items()}
    common = common_scenes(runs)
    base, *others = paths
    lines = [how_many(common, runs), paper_table({path: score(rows, actions[path]) for path, rows in common.items()})]
    return "\n".join([*lines, *(difference_text(path, base, paired_difference(
        common[base], common[path], unequal_samples(about[base], about[path]))) for path in others)])


def compare_driven(files: Mapping[str, Path]) -> str:
    """Summary of each run's trajectories, and the paired differences of each later run from the first."""
    runs = {path: read_lines(file, ("id", "truth", "trajectories", "greedy")) for path, file in files.items()}
    common = common_scenes(runs)
    metrics = {path: trajectory_metrics(rows) for path, rows in common.items()}
    about = {path: {**read_object(file.parent / "metrics.json"), **metrics[path]} for path, file in files.items()}
    base, *others = runs
    lines = [how_many(common, runs), *(f"{path}: {trajectory_summary(found)}" for path, found in metrics.items())]
    for other in others:
        if built_in(common[other]) and (gap := unequal(about[base], about[other], WORLD)):
            lines.append(f"{other} minus {base}, not compared: {gap}")
            continue
        if gap := unequal(about[base], about[other], DRIVEN):
            lines.append(f"note: {base} and {other} were not driven alike: {gap}")
        found = compare_trajectories(common[base], common[other])
        lines += [f"{other} minus {base}, {part['scenes']} scenes: {name.replace('_', ' ')} {part['difference']:+.3f} "
                  f"(95 % {part['interval'][0]:+.3f} to {part['interval'][1]:+.3f})" for name, part in found.items()]
    return "\n".join(lines)


def find_trajectories(path: str) -> Path | None:
    """The file of driven trajectories, given itself, its directory or the directory of its run; None without one."""
    places = (Path(path), Path(path, "trajectories.jsonl"), Path(path, "eval-test/trajectories.jsonl"))
    return next((file for file in places if file.is_file() and file.name.startswith("trajectories")), None)


def how_many(common: Mapping[str, Sequence], runs: Mapping[str, Sequence]) -> str:
    """The number of scenes that are compared, and of how many."""
    count, most = len(next(iter(common.values()))), max(map(len, runs.values()))
    return f"{count} scenes" + (f" that all runs answered, of up to {most}" if count < most else "")


def unequal(base: Mapping, other: Mapping, fields: Mapping[str, str]) -> str:
    """Where two metrics.json differ in fields that both know: `temperature 1 and 0.5`; an empty text if nowhere."""
    pairs = [(word, base.get(field), other.get(field)) for field, word in fields.items()]
    return ", ".join(f"{word} {one} and {two}" for word, one, two in pairs if None not in (one, two) and one != two)


def samples_of(folder: Path) -> dict:
    """How the samples of a scoring were drawn: its metrics.json, or config.json where that is missing."""
    config = read_object(folder / "config.json")
    return read_object(folder / "metrics.json") or {"temperature": config.get("temperature"),
                                                    "samples_per_example": config.get("samples"),
                                                    "sampled": config.get("samples")}


def unequal_samples(base: Mapping, other: Mapping) -> str:
    """Why the samples of two metrics.json cannot be compared; an empty text if they can, or one has none."""
    return unequal(base, other, DRAWN) if base.get("sampled") and other.get("sampled") else ""


def common_scenes(runs: Mapping[str, Sequence[Mapping]]) -> dict[str, list[Mapping]]:
    """The predictions of each run for the scenes that all runs answered, joined on `id`, in the order of the first run.

    Raises: ValueError if there is no such scene, an id occurs twice in a file, or two files disagree on the truth.
    """
    tables = {name: {row["id"]: row for row in rows} for name, rows in runs.items()}
    for name, rows in runs.items():
        if len(tables[name]) < len(rows):
            raise ValueError(f"{name} answers some id twice: score that model again")
    first = next(iter(runs))
    ids = [row["id"] for row in runs[first] if all(row["id"] in table for table in tables.values())]
    if not ids:
        raise ValueError(f"{' and '.join(runs)} have no scene in common: score them on the same split and prior")
    for key in ids:
        truths = {name: table[key]["truth"] for name, table in tables.items()}
        if len(set(truths.values())) > 1:
            raise ValueError(f"scene {key} has different truths: {truths}; score the runs on the same data")
        shown = {name: picture_of(table[key]) for name, table in tables.items()}
        if len(set(shown.values()) - {""}) > 1:
            raise ValueError(f"example {key} has different pictures: {shown}; score the runs on the same data")
    return {name: [table[key] for key in ids] for name, table in tables.items()}


def answered_by_both(base: Sequence[Mapping], other: Sequence[Mapping]) -> tuple[list[Mapping], list[Mapping]]:
    """The lines of both runs for the scenes that both answered with the same truth, in the order of the other one."""
    def key(row: Mapping) -> tuple:
        return row["id"], row["truth"], picture_of(row)

    earlier = {key(row): row for row in base}
    now = [row for row in other if key(row) in earlier]
    return [earlier[key(row)] for row in now], now


def picture_of(row: Mapping) -> str:
    """What was shown: the names of the files, which may have moved, or the number of the built-in scene.

    Records without ids get them by their place in the file, so equal ids alone do not mean equal examples."""
    files = row.get("images") or [row.get("image") or ""]
    return ", ".join(map(os.path.basename, files)) or ("" if row.get("scene") is None else f"scene {row['scene']}")


def relabelled(base: Sequence[Mapping], other: Sequence[Mapping]) -> int:
    """How many scenes both runs answered under different labels; `answered_by_both` leaves them out."""
    truths = {row["id"]: row["truth"] for row in base}
    return sum(truths.get(row["id"], row["truth"]) != row["truth"] for row in other)


def paired_difference(base: Sequence[Mapping], other: Sequence[Mapping], gap: str = "") -> dict:
    """Planning accuracy of `other` minus that of `base` on the same scenes, in the same order.

    "greedy": difference, interval (paired bootstrap over scenes), only_base, only_other and p_value of the exact
    McNemar test. "sampled": difference and interval of the share of correct samples; None if a run has no samples, or
    with a `gap`: the reason why the samples cannot be compared, which is kept.
    """
    right = [[float(row["decision"] == row["truth"]) for row in rows] for rows in (base, other)]
    test = mcnemar(*right)
    result = {"greedy": {**_difference(*right), "only_base": test["only_a"], "only_other": test["only_b"],
                         "p_value": test["p_value"]}, "sampled": None, "gap": gap}
    if not gap and all(row.get("sample_decisions") for row in (*base, *other)):
        result["sampled"] = _difference(*([sampled_accuracy(row) for row in rows] for rows in (base, other)))
    return result


def _difference(base: Sequence[float], other: Sequence[float]) -> dict:
    return {"difference": (sum(other) - sum(base)) / len(base), "interval": paired_interval(other, base, seed=0)}


def braking_difference(base: Sequence[Mapping], other: Sequence[Mapping], actions: Actions = ALPHADRIVE) -> dict | None:
    """Expected cost of missed braking, `other` minus `base`: the mean `braking_cost` of a scene's samples.

    Over the scenes whose label brakes; below 0 is better. -> scenes, difference, interval (paired bootstrap over
    scenes), unreadable: share of the samples without a plan, which cost nothing, of base and other. None without such
    scenes or without samples.
    """
    plans = {str(plan): plan for plan in actions.plans}                         # another name states no plan

    def cost(row: Mapping) -> float:
        truth, samples = plans[row["truth"]], row["sample_decisions"]
        return sum(braking_cost(truth, plans.get(name), actions) for name in samples) / len(samples)

    pairs = [pair for pair in zip(base, other, strict=True) if plans[pair[0]["truth"]].speed in actions.braking]
    if not pairs or not all(row.get("sample_decisions") for pair in pairs for row in pair):
        return None
    sides = list(zip(*pairs, strict=True))
    drawn = [[name for row in rows for name in row["sample_decisions"]] for rows in sides]
    return {"scenes": len(pairs), **_difference(*([cost(row) for row in rows] for rows in sides)),
            "unreadable": [sum(name not in plans for name in names) / len(names) for names in drawn]}


def braking_verdict(name: str, base: str, found: Mapping) -> str:
    """`braking_difference` in one line, with its verdict.

    Better is what still costs less if every further unreadable sample costs 1, the most that an answer can cost."""
    (low, high), (before, now) = found["interval"], found["unreadable"]
    if found["scenes"] < FEWEST or low <= 0 <= high:
        verdict = "cannot be told apart"
    elif low > 0:
        verdict = "worse"
    else:
        verdict = "better" if high + max(now - before, 0) < 0 else "better in cost, but unreadable rose"
    return (f"{name} against {base}: expected cost of missed braking {found['difference']:+.3f} (95 % {low:+.3f} to "
            f"{high:+.3f}, {found['scenes']} scenes): {verdict}; unreadable {100 * now:.1f} % against "
            f"{100 * before:.1f} %")


def difference_text(name: str, base: str, found: Mapping) -> str:
    """`paired_difference` in words, in points of planning accuracy."""
    def points(part: Mapping) -> str:
        low, high = (100 * end for end in part["interval"])
        return f"{100 * part['difference']:+.1f} (95 % {low:+.1f} to {high:+.1f})"
    greedy, sampled = found["greedy"], found["sampled"]
    lines = [f"{name} minus {base}, points of planning accuracy:",
             f"  greedy   {points(greedy)}; alone right: {name} in {greedy['only_other']} scenes, {base} in "
             f"{greedy['only_base']}; exact McNemar p = {greedy['p_value']:.2g}"]
    told = points(sampled) if sampled else f"not compared: {found['gap']}" if found["gap"] else ""
    return "\n".join([*lines, f"  sampled  {told}"] if told else lines)
