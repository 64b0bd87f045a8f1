"""Our label rule beside Senna's on simulated drives: `python benchmarks/senna.py`, as Markdown.

Senna's rules are restated from what its released converter computes (data_tools/senna_qa_utils.py and
senna_nusc_data_converter.py): six positions at 2 Hz for the plan and twelve for the route, in the axes of the lidar,
x to the right and y forward. Its route rule compares x as if it pointed forward and y as if it pointed left.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from data.meta_action import (  # noqa: E402
    LaneChange,
    MetaAction,
    Track,
    lane_changes,
    make_track,
    meta_action,
    navigation,
    positions_at,
    route_length,
    turns_ahead,
)

BEFORE, AFTER = 4.0, 10.0                # s of each drive before and after the moment that is labelled
RATE = 12                                # pictures of the front camera per second


@dataclass(frozen=True)
class Drive:
    """A name, the group it belongs to, what a person would say, and the motion: speed m/s and turn rate rad/s of t."""
    group: str
    name: str
    truth: str
    speed: Callable[[float], float]
    turn_rate: Callable[[float], float]


def steady(value: float) -> Callable[[float], float]:
    return lambda t: value


def ramp(speed: float, acceleration: float) -> Callable[[float], float]:
    """The speed that changes from t = 0 on and never falls below 0."""
    return lambda t: max(speed + acceleration * max(t, 0.0), 0.0)


def arc(speed: float, radius: float, degrees: float) -> Callable[[float], float]:
    """The turn rate of a bend by `degrees`; a negative radius bends to the right."""
    lasting = math.radians(degrees) * abs(radius) / speed
    return lambda t: speed / radius if 0 <= t < lasting else 0.0


def shift(metres: float, speed: float, seconds: float, start: float = 0.0) -> Callable[[float], float]:
    """The turn rate of a quintic shift by `metres` to the left: y = metres (10 u^3 - 15 u^4 + 6 u^5)."""
    def rate(t: float) -> float:
        u = (t - start) / seconds
        slope = 30 * metres * (u ** 2 - 2 * u ** 3 + u ** 4) / (seconds * speed)          # dy/dx
        bend = 60 * metres * (u - 3 * u ** 2 + 2 * u ** 3) / (seconds ** 2 * speed)       # its change per second
        return bend / (1 + slope ** 2) if 0 <= u <= 1 else 0.0
    return rate


def wave(rate: float, seconds: float) -> Callable[[float], float]:
    """The turn rate of an S-bend: `seconds` to the left, then as long to the right."""
    return lambda t: rate if 0 <= t < seconds else -rate if seconds <= t < 2 * seconds else 0.0


def drives() -> list[Drive]:
    """The labelled moment is t = 0; what happens begins there, unless its name says otherwise."""
    straight = steady(0.0)
    return [
        Drive("straight", "5 m/s", "KEEP, STRAIGHT", steady(5), straight),
        Drive("straight", "10 m/s", "KEEP, STRAIGHT", steady(10), straight),
        Drive("straight", "15 m/s", "KEEP, STRAIGHT", steady(15), straight),
        Drive("straight", "1.5 m/s, in a queue", "KEEP, STRAIGHT", steady(1.5), straight),
        Drive("speed", "from rest at 1.2 m/s2", "ACCELERATE, STRAIGHT", ramp(0, 1.2), straight),
        Drive("speed", "from rest at 0.6 m/s2", "ACCELERATE, STRAIGHT", ramp(0, 0.6), straight),
        Drive("speed", "from 8 m/s at 0.8 m/s2", "ACCELERATE, STRAIGHT", ramp(8, 0.8), straight),
        Drive("speed", "from 8 m/s at -0.8 m/s2", "DECELERATE, STRAIGHT", ramp(8, -0.8), straight),
        Drive("speed", "from 12 m/s at -2 m/s2", "DECELERATE, STRAIGHT", ramp(12, -2.0), straight),
        Drive("curve", "left, R 100 m, 10 m/s", "KEEP, STRAIGHT", steady(10), arc(10, 100, 60)),
        Drive("curve", "right, R 200 m, 15 m/s", "KEEP, STRAIGHT", steady(15), arc(15, -200, 45)),
        Drive("curve", "left, R 60 m, 8 m/s", "KEEP, STRAIGHT", steady(8), arc(8, 60, 60)),
        Drive("turn", "left, R 12 m, 5 m/s", "KEEP, LEFT_TURN", steady(5), arc(5, 12, 90)),
        Drive("turn", "right, R 8 m, 4 m/s", "KEEP, RIGHT_TURN", steady(4), arc(4, -8, 90)),
        Drive("turn", "right, R 15 m, 6 m/s", "KEEP, RIGHT_TURN", steady(6), arc(6, -15, 90)),
        Drive("turn", "right, R 8 m, 2 m/s", "KEEP, RIGHT_TURN", steady(2), arc(2, -8, 90)),
        Drive("lane change", "left, 6 m/s, 4 s", "KEEP, LEFT_CHANGE", steady(6), shift(3.5, 6, 4)),
        Drive("lane change", "left, 10 m/s, 4 s", "KEEP, LEFT_CHANGE", steady(10), shift(3.5, 10, 4)),
        Drive("lane change", "right, 15 m/s, 5 s", "KEEP, RIGHT_CHANGE", steady(15), shift(-3.5, 15, 5)),
        Drive("lane change", "left, 15 m/s, 5 s, half done", "KEEP, LEFT_CHANGE", steady(15),
              shift(3.5, 15, 5, start=-2.5)),
        Drive("S-bend", "R 150 m twice, 10 m/s", "KEEP, STRAIGHT", steady(10), wave(10 / 150, 2)),
        Drive("stop", "from 8 m/s at -3.5 m/s2", "STOP, STRAIGHT", ramp(8, -3.5), straight),
        Drive("stop", "from 12 m/s at -3.5 m/s2", "DECELERATE, STRAIGHT", ramp(12, -3.5), straight),
        Drive("stop", "from 4 m/s at -1.5 m/s2", "STOP, STRAIGHT", ramp(4, -1.5), straight),
        Drive("stop", "standing", "STOP, STRAIGHT", steady(0), straight),
    ]


def track_of(drive: Drive) -> Track:
    """The drive as a camera's poses: integrated in steps of 1 ms, kept at 12 Hz; at t = 0 at the origin, along x."""
    fine = np.arange(-BEFORE, AFTER + 5e-4, 1e-3)
    speeds, rates = (np.array([of(t) for t in fine]) for of in (drive.speed, drive.turn_rate))
    headings = np.concatenate([[0.0], np.cumsum(rates[:-1] + rates[1:]) / 2 * 1e-3])
    steps = speeds[:, None] * np.stack([np.cos(headings), np.sin(headings)], -1) * 1e-3
    positions = np.concatenate([[[0.0, 0.0]], np.cumsum((steps[:-1] + steps[1:]) / 2, axis=0)])
    now = len(fine[fine < -1e-9])
    turn = -headings[now]
    frame = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    positions, headings = (positions - positions[now]) @ frame, headings - headings[now]
    times = np.arange(-BEFORE * RATE, AFTER * RATE + 1) / RATE
    return make_track(times, np.stack([np.interp(times, fine, axis) for axis in positions.T], -1),
                      np.interp(times, fine, headings))


# ---------------------------------------------------------------- Senna's rules

def lidar_axes(track: Track, count: int) -> np.ndarray:
    """`count` positions at 2 Hz after t = 0, (count, 2): x to the right, y forward."""
    ahead = positions_at(track, 0.5 * np.arange(1, count + 1))                  # (count, 2): x forward, y left
    return np.stack([-ahead[:, 1], ahead[:, 0]], -1)


def senna_plan(track: Track) -> str:
    """Speed from the first and the last of five steps, path from the end point's side and angle; 3 s."""
    way = lidar_axes(track, 6)
    speeds = np.hypot(*np.diff(way, axis=0).T) / 0.5                            # (5,) m/s, the first from 0.5 s on
    gained = speeds[-1] - speeds[0]
    speed = ("STOP" if speeds.max() < 2 else "ACCELERATE" if gained >= 3 else "DECELERATE" if gained <= -3 else "KEEP")
    aside, angle = way[-1, 0], math.degrees(math.atan2(way[-1, 1], way[-1, 0])) - 90
    if -4 < aside <= 4:
        return f"{speed}, STRAIGHT"
    side = "RIGHT" if aside > 4 else "LEFT"
    turns = angle <= -5 if side == "RIGHT" else angle >= 5
    return f"{speed}, {side}_TURN" if turns else f"{speed}, {side}_CHANGE" if abs(angle) < 5 else f"{speed}, STRAIGHT"


def senna_route(track: Track, swapped: bool = True) -> str:
    """The command from the position after 6 s: as released (lidar axes read as forward, left), or with axes mended."""
    right, forward = lidar_axes(track, 12)[-1]
    ahead, left = (right, forward) if swapped else (forward, -right)
    if abs(left) < 10:
        return "go straight"
    side = "left" if left > 0 else "right"
    return f"go straight and turn {side}" if ahead >= 20 else f"turn {side}"


# ---------------------------------------------------------------- the table

def compare(drive: Drive) -> dict:
    """Everything both rules say about one drive."""
    track = track_of(drive)
    events: tuple[LaneChange, ...] = lane_changes(track)
    ours: MetaAction = meta_action(track)
    return {"group": drive.group, "drive": drive.name, "truth": drive.truth, "ours": str(ours.decision),
            "ambiguous": ours.ambiguous, "with_changes": str(meta_action(track, changes=events).decision),
            "senna": senna_plan(track), "route": navigation(turns_ahead(track), route_length(track)),
            "senna_route": senna_route(track), "senna_route_mended": senna_route(track, swapped=False)}


def agreement(rows: list[dict]) -> list[str]:
    """Per group: how many drives each rule labels as a person would, and how often ours and Senna's are the same."""
    lines = ["| drives | number | ours | ours, lane changes on | Senna | ours = Senna |", "|---|" + "---:|" * 5]
    groups = {row["group"]: None for row in rows}
    for group in (*groups, "all"):
        some = [row for row in rows if group in (row["group"], "all")]
        right = [sum(row[name] == row["truth"] for row in some) for name in ("ours", "with_changes", "senna")]
        same = sum(row["ours"] == row["senna"] for row in some)
        lines.append(f"| {group} | {len(some)} | {right[0]} | {right[1]} | {right[2]} | {same} |")
    return lines


def table(rows: list[dict]) -> list[str]:
    lines = ["| drive | a person says | ours | lane changes on | Senna |", "|---|---|---|---|---|"]
    for row in rows:
        labels = [row["truth"], row["ours"] + (" (near a threshold)" if row["ambiguous"] else ""),
                  row["with_changes"] if row["with_changes"] != row["ours"] else "", row["senna"]]
        lines.append(f"| {row['group']}: {row['drive']} | " + " | ".join(labels) + " |")
    return lines


def route_table(rows: list[dict]) -> list[str]:
    lines = ["| drive | our command | Senna, as released | Senna, axes mended |", "|---|---|---|---|"]
    return lines + [f"| {row['group']}: {row['drive']} | `{row['route']}` | {row['senna_route']} | "
                    f"{row['senna_route_mended']} |" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the rows as a JSON list to this file too")
    flags = parser.parse_args()
    rows = [compare(drive) for drive in drives()]
    print("\n".join([*agreement(rows), "", *table(rows), "", *route_table(rows)]))
    if flags.output:
        flags.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
