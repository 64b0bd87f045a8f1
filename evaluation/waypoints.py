"""Scores of the way-points behind plans: distance to the expert's, share of readable ones, agreement with the plan."""

from collections.abc import Mapping, Sequence

import numpy as np

from data.example import Example
from data.meta_action import CHANGE_SHIFT, HORIZON, make_track, meta_action
from evaluation.metrics import bootstrap_interval
from evaluation.predictions import as_plan
from rewards import Decision, parse_plan
from rewards.waypoints import SPACING, WAYPOINTS, Points, displacement_errors, parse_waypoints
from trajectory.written import judge_written

SEED = 0                                                    # of the bootstrap
CHUNK = 256                                                 # scenes that are driven at once
TIMES = SPACING * np.arange(WAYPOINTS + 1)                  # (9,) s, the present included
SHORTEST_CHORD = 1.0                                        # m; a shorter one has no direction: one decimal is 0.05 m


def waypoint_metrics(rows: Sequence[Mapping], groups: Sequence[Sequence[str]]) -> dict:
    """Scores of one group of completions per line of predictions.jsonl; a greedy answer is a group of one.

    well_formed: share of completions whose way-points can be read; ade, fde: over the well-formed ones of a scene whose
    expert's way-points are known, then over scenes, in m; ade_interval: bootstrap over scenes; ade_scenes: number of
    these scenes; min_ade: mean over these scenes of the best ADE of the group; agreement: share of completions whose
    way-points drive the plan that they name. On built-in scenes also the factors of `driven_scores`. Undefined values
    are None.
    """
    read = [[parse_waypoints(text) for text in texts] for texts in groups]
    plans = [[parse_plan(text) for text in texts] for texts in groups]
    flat = [points for found in read for points in found]
    scores = {"well_formed": sum(points is not None for points in flat) / len(flat),
              **distances(read, [row.get("trajectory") for row in rows])}
    if all(row.get("scene") is not None for row in rows):
        return scores | driven_scores(rows, read, plans)
    pairs = zip(flat, (plan for found in plans for plan in found), strict=True)
    return scores | {"agreement": sum(agrees(points, plan) for points, plan in pairs) / len(flat)}


def distances(read: Sequence[Sequence[Points | None]], experts: Sequence[Points | None]) -> dict:
    """Distances of well-formed way-points to the expert's."""
    errors = [[displacement_errors(points, expert) for points in found if points is not None] if expert else []
              for found, expert in zip(read, experts, strict=True)]
    known = [np.array(scene) for scene in errors if scene]                      # (well-formed, 2) each
    if not known:
        return {"ade": None, "fde": None, "ade_interval": None, "ade_scenes": 0, "min_ade": None}
    means = np.array([scene.mean(axis=0) for scene in known])                   # (scenes, 2)
    ade, fde = means.mean(axis=0)
    return {"ade": float(ade), "fde": float(fde), "ade_interval": bootstrap_interval(means[:, 0], SEED),
            "ade_scenes": len(known), "min_ade": float(np.mean([scene[:, 0].min() for scene in known]))}


def driven_scores(rows: Sequence[Mapping], read: Sequence[Sequence[Points | None]],
                  plans: Sequence[Sequence[Decision | None]]) -> dict:
    """Built-in scenes: the PDMS-like score of driving the way-points and its factors, 0 for those that cannot be read
    or driven, and the share that drives the named plan; means over completions. pdms_interval: bootstrap over scenes.
    """
    judged = [judge_written(
        [Example(id=str(row["id"]), scene=row["scene"], decision=as_plan(row["truth"])) for row in rows[part]],
        read[part], plans[part]) for part in (slice(i, i + CHUNK) for i in range(0, len(rows), CHUNK))]
    found = {name: np.concatenate([part[name] for part in judged]) for name in judged[0]}       # (scenes, G) each
    return {**{name: float(values.mean()) for name, values in found.items()},
            "pdms_interval": bootstrap_interval(found["pdms"].mean(axis=1), SEED)}


def agrees(points: Points | None, plan: Decision | None) -> bool:
    """Whether way-points of a log drive a plan; what cannot be read does not.

    The label rule of data/meta_action.py decides. Without a lane map it knows no lane change: one is driven if the car
    does not turn and is 1 m to that side after 3 s.
    """
    if points is None or plan is None:
        return False
    driven = driven_action(points)
    if plan.path.endswith("CHANGE"):
        aside = points[round(HORIZON / SPACING) - 1][1] * (1 if plan.path == "LEFT_CHANGE" else -1)
        return driven == Decision(plan.speed, "STRAIGHT") and aside >= CHANGE_SHIFT
    return driven == plan


def driven_action(points: Points) -> Decision:
    """The meta-action of a drive through these way-points.

    The heading at a point is the direction from the point before it to the one behind it; a chord below 1 m keeps the
    heading before.
    """
    positions = np.array([(0.0, 0.0), *points])                                 # (9, 2)
    headings = [0.0]
    for k in range(1, len(positions)):
        x, y = positions[min(k + 1, WAYPOINTS)] - positions[k - 1]
        headings.append(float(np.arctan2(y, x)) if np.hypot(x, y) >= SHORTEST_CHORD else headings[-1])
    return meta_action(make_track(TIMES, positions, np.array(headings))).decision
