"""Scores of driven trajectories, from the lines of trajectories.jsonl alone.

A line holds one scene: `trajectories`, K of them, each with way-points (x forward, y left, in metres, at `seconds`),
the plan that it drives, and on built-in scenes the factors of its score. Intervals resample scenes, because
trajectories of one scene are not independent.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.metrics import bootstrap_interval, paired_interval
from trajectory.score import FACTORS

SEED = 0


def trajectory_metrics(rows: Sequence[dict]) -> dict:
    """Means over scenes, each with its 95 % interval; null where nothing is known.

        pdms and its factors   mean over a scene's trajectories; greedy_: of the one from z_T = 0; demonstration_: of
                               the imitated one; best_: the largest
        validity               share of a scene's trajectories that drive an acceptable plan
        modes_covered          share of its acceptable plans that are driven; modes: different plans driven
        ade, fde               mean and final distance to the demonstration, m; min_ade, min_fde: of the closest
        diversity              mean distance between two trajectories of a scene, m
        named_plan             share that drives the named plan, over scenes that name one
        violations             share of trajectories that break a kinematic limit, by kind
    """
    scenes = [scene_scores(row) for row in rows]
    names = [name for name in scenes[0] if any(scene[name] is not None for scene in scenes)]
    found = {"count": len(rows), "trajectories_per_scene": len(rows[0]["trajectories"])}
    for name in names:
        values = [scene[name] for scene in scenes if scene[name] is not None]
        found[name] = float(np.mean(values))
        found[f"{name}_interval"] = list(bootstrap_interval(values, SEED))
    return found | {"violations": violation_shares(rows)}


def scene_scores(row: Mapping) -> dict[str, float | None]:
    """Every number of one scene; None where the line does not hold what it needs."""
    drawn, greedy = row["trajectories"], row["greedy"]
    scores = {name: mean([one.get(name) for one in drawn]) for name in FACTORS}
    scores |= {f"greedy_{name}": greedy.get(name) for name in FACTORS}
    scores |= {f"demonstration_{name}": (row["demonstration"] or {}).get(name) for name in FACTORS}
    known = [one["pdms"] for one in drawn if one.get("pdms") is not None]
    return {**scores, "best_pdms": max(known) if known else None, **mode_scores(row), **distances(row)}


def mode_scores(row: Mapping) -> dict[str, float | None]:
    """Which plans the trajectories drive."""
    driven, acceptable = [one["driven"] for one in row["trajectories"]], set(row["acceptable"] or ())
    return {"validity": mean([plan in acceptable for plan in driven]) if acceptable else None,
            "modes_covered": len(acceptable & set(driven)) / len(acceptable) if acceptable else None,
            "modes": float(len(set(driven))),
            "named_plan": mean([plan == row["plan"] for plan in driven]) if row["plan"] else None}


def distances(row: Mapping) -> dict[str, float | None]:
    """Distances to the demonstration and among the trajectories, in metres."""
    points = np.array([one["waypoints"] for one in row["trajectories"]])        # (K, T, 2)
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1).mean(-1)    # (K, K)
    pairs = apart[np.triu_indices(len(points), 1)]
    found = {"diversity": float(pairs.mean()) if len(pairs) else None}
    if row["demonstration"] is None:
        return {**found, **dict.fromkeys(("ade", "fde", "min_ade", "min_fde"))}
    error = np.linalg.norm(points - np.array(row["demonstration"]["waypoints"]), axis=-1)       # (K, T)
    return {**found, "ade": float(error.mean()), "fde": float(error[:, -1].mean()),
            "min_ade": float(error.mean(1).min()), "min_fde": float(error[:, -1].min())}


def violation_shares(rows: Sequence[dict]) -> dict[str, float]:
    """Share of all trajectories that break a limit, by kind."""
    drawn = [one for row in rows for one in row["trajectories"]]
    kinds = sorted({kind for one in drawn for kind in one["violations"]})
    return {kind: sum(kind in one["violations"] for one in drawn) / len(drawn) for kind in kinds}


def compare_trajectories(base: Sequence[dict], other: Sequence[dict],
                         names: Sequence[str] = ("pdms", "no_collision", "progress", "ade")) -> dict[str, dict]:
    """Paired differences, other minus base, of the same scenes in the same order: difference and 95 % interval."""
    scores, found = [[scene_scores(row) for row in rows] for rows in (base, other)], {}
    for name in names:
        a, b = ([scene[name] for scene in scenes] for scenes in scores)
        if None in (*a, *b):
            continue                                        # not known, such as a score without boxes
        found[name] = {"difference": float(np.mean(b) - np.mean(a)), "interval": list(paired_interval(b, a, SEED)),
                       "scenes": len(base)}
    return found


def trajectory_summary(metrics: Mapping) -> str:
    """metrics.json in a few lines."""
    def with_interval(name: str) -> str:
        low, high = metrics[f"{name}_interval"]
        return f"{metrics[name]:.3f} ({low:.3f} to {high:.3f})"

    lines = [f"{metrics['count']:,} scenes, {metrics['trajectories_per_scene']} trajectories each (95 % interval)"]
    if "pdms" in metrics:
        factors = ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.3f}" for name in FACTORS[1:6])
        lines += [f"PDMS-like   {with_interval('pdms')}, greedy {metrics['greedy_pdms']:.3f}, best of "
                  f"{metrics['trajectories_per_scene']} {metrics['best_pdms']:.3f}", f"factors     {factors}",
                  f"driver      PDMS-like {metrics['demonstration_pdms']:.3f}",
                  f"plans       valid {metrics['validity']:.3f}, modes covered {metrics['modes_covered']:.3f}"]
    elif "comfort" in metrics:
        lines.append(f"comfort     {with_interval('comfort')}")
    if "ade" in metrics:
        lines.append(f"to the demonstration, m: ADE {metrics['ade']:.2f}, FDE {metrics['fde']:.2f}, closest ADE "
                     f"{metrics['min_ade']:.2f}, FDE {metrics['min_fde']:.2f}")
    if "diversity" in metrics:
        lines.append(f"diversity   {metrics['diversity']:.2f} m between two trajectories of a scene")
    if "named_plan" in metrics:
        lines.append(f"named plan  driven by {metrics['named_plan']:.3f}")
    broken = ", ".join(f"{kind} {share:.1%}" for kind, share in metrics["violations"].items()) or "none"
    return "\n".join([*lines, f"violations  {broken}"])


def mean(values: Sequence[float | bool | None]) -> float | None:
    """Mean of the values, None if one is missing."""
    return None if not values or any(value is None for value in values) else float(np.mean(values))
