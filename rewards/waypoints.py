"""Way-points of a completion: where the car will be at 0.5, 1.0, ..., 4.0 s, written behind the plan.

    <answer> KEEP, STRAIGHT </answer> <trajectory> 2.1,0.0 4.2,0.0 6.3,-0.1 ... </trajectory>

Eight pairs x,y with white space between: metres with one decimal in the car's present frame, x forward, y left. The
readers of plans do not look at this block. Malformed text is data: no reader raises.
"""

import math
import re
from collections.abc import Sequence

WAYPOINTS = 8           # one every SPACING seconds
SPACING = 0.5           # s
REWARD_SCALE = 2.0      # m

OPENING, CLOSING = "<trajectory>", "</trajectory>"
_NUMBER = r"(-?(?:0|[1-9][0-9]{0,3})\.[0-9])"
_POINT = re.compile(f"{_NUMBER},{_NUMBER}")

Points = Sequence[Sequence[float]]      # (x, y) in m, one every SPACING seconds


def write_waypoints(points: Points) -> str:
    """The block of these way-points."""
    pairs = (",".join(f"{round(value, 1) + 0.0:.1f}" for value in point) for point in points)   # + 0.0: never -0.0
    return f"{OPENING} {' '.join(pairs)} {CLOSING}"


def parse_waypoints(text: str) -> tuple[tuple[float, float], ...] | None:
    """The eight way-points of a completion, or None.

    Strict: the completion ends with its only `<trajectory>` block, the block follows an `</answer>` tag, and it holds
    eight pairs as `write_waypoints` writes them (any white space between them) and nothing else.
    """
    before, _, rest = text.partition(OPENING)
    block, _, after = rest.partition(CLOSING)
    if text.count(CLOSING) != 1 or after.strip() or not before.rstrip().endswith("</answer>"):
        return None
    found = [_POINT.fullmatch(word) for word in block.split()]
    if len(found) != WAYPOINTS or not all(found):
        return None
    return tuple((float(point[1]) + 0.0, float(point[2]) + 0.0) for point in found)


def without_waypoints(text: str) -> str:
    """The completion up to its first `<trajectory>` tag: what an answer without way-points would be."""
    return text.partition(OPENING)[0].rstrip()


def displacement_errors(points: Points, expert: Points) -> tuple[float, float]:
    """ADE and FDE: the mean and the last distance between way-points at the same time, in m."""
    distances = [math.dist(ours, theirs) for ours, theirs in zip(points, expert, strict=True)]
    return sum(distances) / len(distances), distances[-1]


def waypoint_reward(text: str, expert: Points) -> float:
    """exp(-ADE / 2 m) of a completion's way-points against the expert's; 0 if they cannot be read."""
    points = parse_waypoints(text)
    return 0.0 if points is None else math.exp(-displacement_errors(points, expert)[0] / REWARD_SCALE)
