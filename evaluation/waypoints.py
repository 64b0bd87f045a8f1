"""Scores of the way-points behind plans: distance to the expert's, share of readable ones, agreement with the plan."""

from collections.abc import Sequence

import numpy as np

from data.meta_action import CHANGE_SHIFT, HORIZON, make_track, meta_action
from evaluation.metrics import bootstrap_interval
from rewards import Decision, parse_plan
from rewards.waypoints import SPACING, WAYPOINTS, Points, displacement_errors, parse_waypoints

TIMES = SPACING * np.arange(WAYPOINTS + 1)                  # (9,) s, the present included
SHORTEST_CHORD = 1.0                                        # m; a shorter one has no direction: one decimal is 0.05 m


def waypoint_metrics(experts: Sequence[Points | None], groups: Sequence[Sequence[str]]) -> dict:
    """Scores of one group of completions per scene; a greedy answer is a group of one.

    well_formed: share of completions whose way-points can be read; ade, fde: means over the well-formed ones of scenes
    whose expert's way-points are known, in m; ade_interval: bootstrap over scenes; ade_scenes: number of these scenes;
    min_ade: mean over these scenes of the best ADE of the group; agreement: share of completions whose way-points drive
    the plan that they name. Undefined values are None.
    """
    read = [[parse_waypoints(text) for text in texts] for texts in groups]
    errors = [[displacement_errors(points, expert) for points in found if points is not None] if expert else []
              for found, expert in zip(read, experts, strict=True)]
    known = [np.array(scene) for scene in errors if scene]                      # (well-formed, 2) each
    pairs = [(points, parse_plan(text)) for found, texts in zip(read, groups, strict=True)
             for points, text in zip(found, texts, strict=True)]
    flat = np.concatenate(known) if known else None
    return {"well_formed": sum(points is not None for points, _ in pairs) / len(pairs),
            "ade": float(flat[:, 0].mean()) if known else None, "fde": float(flat[:, 1].mean()) if known else None,
            "ade_interval": bootstrap_interval([scene[:, 0].mean() for scene in known], seed=0) if known else None,
            "ade_scenes": len(known),
            "min_ade": float(np.mean([scene[:, 0].min() for scene in known])) if known else None,
            "agreement": sum(agrees(points, plan) for points, plan in pairs) / len(pairs)}


def agrees(points: Points | None, plan: Decision | None) -> bool:
    """Whether way-points drive a plan; what cannot be read does not.

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
