"""One rule for every source: the ego motion of the next 3 s as a (speed, path) meta-action.

A Track is a motion in any fixed frame of the plane: x and y in m, headings in rad counter-clockwise, times in s. Origin
and direction of the frame do not matter; a left turn increases the heading. docs/meta_actions.md explains the
thresholds.
"""
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rewards import Decision

STEP = 0.1                               # s, the time grid of the rule
HORIZON = 3.0                            # s ahead
SMOOTHING = 0.5                          # s, width of the window that a speed is averaged over
MOVING_SPEED = 0.6                       # m/s; slower motion has no curvature
STOP_END_SPEED = 0.5                     # m/s at the horizon
STOP_TOP_SPEED = 1.0                     # m/s, maximum within the horizon
SPEED_CHANGE = 1.0                       # m/s over the horizon ...
SPEED_CHANGE_SHARE = 0.15                # ... or this share of the present speed, whichever is larger
TURN_HEADING = 20.0                      # degrees over the horizon
TURN_CURVATURE = 0.025                   # 1/m, mean over the tightest second: a radius of 40 m
STOP_TURN_LENGTH = 2.0                   # m; a car that stops within this distance does not turn
CHANGE_SHIFT = 1.0                       # m of a lane change within the horizon
MARGIN = 0.15                            # a statistic this close to its threshold, relative to it, is ambiguous


@dataclass(frozen=True)
class Track:
    """A motion: N times (s, increasing), positions (N, 2) in m, headings (N,) in rad without jumps. See make_track."""
    times: np.ndarray
    positions: np.ndarray
    headings: np.ndarray


@dataclass(frozen=True)
class LaneChange:
    """A shift to a parallel line between two times (s). shift is in m, positive to the left; normal points left."""
    start: float
    end: float
    shift: float
    normal: tuple[float, float]


@dataclass(frozen=True)
class MetaAction:
    """A label, whether a statistic is near its threshold, and the statistics.

    Units: speed_start, speed_end, speed_top m/s; speed_change m/s, its threshold change_limit; length m;
    heading_change degrees, positive to the left; curvature 1/m.
    """
    decision: Decision
    ambiguous: bool
    statistics: dict[str, float]


# ---------------------------------------------------------------- motions

def make_track(times: np.ndarray, positions: np.ndarray, headings: np.ndarray) -> Track:
    """A validated Track; headings are unwrapped.

    Shapes: times (N,), positions (N, 2), headings (N,). Units: s, m, rad.
    Raises: ValueError for wrong shapes, fewer than two points, times that do not increase, or numbers not finite.
    """
    times, positions, headings = (np.asarray(values, dtype=float) for values in (times, positions, headings))
    count = times.size
    if count < 2 or (times.shape, positions.shape, headings.shape) != ((count,), (count, 2), (count,)):
        raise ValueError("a track needs times (N,), positions (N, 2) and headings (N,) with N >= 2, got "
                         f"{times.shape}, {positions.shape} and {headings.shape}")
    finite = all(np.isfinite(values).all() for values in (times, positions, headings))
    if not finite or (np.diff(times) <= 0).any():
        raise ValueError("a track needs finite numbers and increasing times; sort it and drop repeated times")
    return Track(times, positions, np.unwrap(headings))


def positions_at(track: Track, times: np.ndarray) -> np.ndarray:
    """Interpolated positions, (M, 2) for times (M,), constant beyond the ends."""
    return np.stack([np.interp(times, track.times, axis) for axis in track.positions.T], axis=-1)


def speeds_at(track: Track, times: np.ndarray) -> np.ndarray:
    """Speed at each time, (M,) in m/s: the chord over a window of SMOOTHING seconds, divided by its width.

    Near the ends the nearest whole window is extrapolated linearly, so a constant acceleration is exact everywhere. The
    chord keeps jitter of a standing car from adding up.
    """
    begin, end = track.times[0], track.times[-1]
    half = min(SMOOTHING / 2, (end - begin) / 4)
    centres = np.clip(times, begin + half, end - half)
    neighbours = centres + half * np.where(times < centres, 1.0, -1.0)

    def window(middles: np.ndarray) -> np.ndarray:
        way = positions_at(track, middles + half) - positions_at(track, middles - half)   # (M, 2)
        return np.hypot(*way.T) / (2 * half)

    missing = times - centres                                                   # 0 where a whole window fits
    slopes = np.where(missing == 0, 0.0, (window(centres) - window(neighbours)) / (centres - neighbours))
    return np.maximum(window(centres) + missing * slopes, 0.0)


def current_speed(track: Track, time: float) -> float:
    """Present speed in m/s from the past alone, so that a question with this speed does not leak the answer.

    At the start of a recording, with less than half a window of past, the next half window is used instead.
    """
    past = track.times <= time + 1e-6
    if past.sum() >= 2 and time - track.times[0] >= SMOOTHING / 2:
        track = Track(track.times[past], track.positions[past], track.headings[past])
    return float(speeds_at(track, np.array([time]))[0])


# ---------------------------------------------------------------- the label

def meta_action(track: Track, start: float = 0.0,
                changes: tuple[LaneChange, ...] = ()) -> MetaAction:
    """Label the motion from `start` to `start` + 3 s.

        speed   STOP: v(3) < 0.5 or max v < 1.0.  Else ACCELERATE, DECELERATE: v(3) - v(0) beyond +-max(1.0, 0.15 v(0))
        path    TURN: heading change >= 20 degrees and the tightest second's mean curvature >= 0.025 1/m, but not for a
                STOP within 2 m.  Else CHANGE, if `changes` (from lane_changes) has >= 1 m of its shift in these 3 s

    Units: m, s, degrees. `ambiguous`: a tested statistic lies within 15 % of its threshold.
    Raises: ValueError if the track does not cover the horizon.
    """
    if track.times[0] > start + STEP or track.times[-1] < start + HORIZON - STEP:
        raise ValueError(f"the track runs from {track.times[0]:.2f} to {track.times[-1]:.2f} s and does not cover "
                         f"{HORIZON} s from {start:.2f} s on; leave this moment out")
    facts = statistics(track, start)
    speed = _speed_action(facts)
    stays = speed == "STOP" and facts["length"] < STOP_TURN_LENGTH
    path = "STRAIGHT" if stays else _turn(facts) or _change(track, start, changes) or "STRAIGHT"
    return MetaAction(Decision(speed, path), _ambiguous(facts, speed), facts)


def statistics(track: Track, start: float) -> dict[str, float]:
    """The numbers compared with the thresholds; names and units as in MetaAction."""
    grid = start + STEP * np.arange(round(HORIZON / STEP) + 1)             # (31,) s
    speeds, headings = speeds_at(track, grid), np.interp(grid, track.times, track.headings)
    lengths = distances(speeds)                                                  # (31,) m
    second = round(1 / STEP)
    ways, turned = lengths[second:] - lengths[:-second], np.abs(headings[second:] - headings[:-second])   # (21,)
    curvatures = turned[ways > MOVING_SPEED] / ways[ways > MOVING_SPEED]
    return {"speed_start": float(speeds[0]), "speed_end": float(speeds[-1]), "speed_top": float(speeds.max()),
            "speed_change": float(speeds[-1] - speeds[0]),
            "change_limit": max(SPEED_CHANGE, SPEED_CHANGE_SHARE * float(speeds[0])),
            "length": float(lengths[-1]), "heading_change": math.degrees(headings[-1] - headings[0]),
            "curvature": float(curvatures.max(initial=0.0))}


def distances(speeds: np.ndarray) -> np.ndarray:
    """Distance driven at each time of the grid in m, by the trapezium rule."""
    return np.concatenate([[0.0], np.cumsum((speeds[1:] + speeds[:-1]) / 2 * STEP)])


def _speed_action(facts: dict[str, float]) -> str:
    if facts["speed_end"] < STOP_END_SPEED or facts["speed_top"] < STOP_TOP_SPEED:
        return "STOP"
    if abs(facts["speed_change"]) <= facts["change_limit"]:
        return "KEEP"
    return "ACCELERATE" if facts["speed_change"] > 0 else "DECELERATE"


def _turn(facts: dict[str, float]) -> str | None:
    if abs(facts["heading_change"]) < TURN_HEADING or facts["curvature"] < TURN_CURVATURE:
        return None
    return "LEFT_TURN" if facts["heading_change"] > 0 else "RIGHT_TURN"


def _change(track: Track, start: float, changes: tuple[LaneChange, ...]) -> str | None:
    for change in changes:
        ends = np.clip([change.start, change.end], start, start + HORIZON)
        shift = float(np.diff(positions_at(track, ends), axis=0)[0] @ change.normal)      # m within the horizon
        if abs(shift) >= CHANGE_SHIFT and shift * change.shift > 0:
            return "LEFT_CHANGE" if shift > 0 else "RIGHT_CHANGE"
    return None


def _ambiguous(facts: dict[str, float], speed: str) -> bool:
    limits = {"speed_end": STOP_END_SPEED, "speed_top": STOP_TOP_SPEED, "speed_change": facts["change_limit"],
              "heading_change": TURN_HEADING, "curvature": TURN_CURVATURE}
    if speed == "STOP":
        limits["length"] = STOP_TURN_LENGTH
    return any(abs(abs(facts[name]) - limit) <= MARGIN * limit for name, limit in limits.items())


# ---------------------------------------------------------------- lane changes, over a whole recording

def lane_changes(track: Track) -> tuple[LaneChange, ...]:
    """Windows of 2.5 to 7 s in which the car moves to a parallel line one lane aside; overlapping ones are one event.

    The shift is 2.5 to 5 m. The headings at both ends agree within 5 degrees; in between they deviate by less than 12
    degrees, towards the shift. Without a lane map an S-bend looks the same, so labels use lane changes only if the
    caller passes them to `meta_action`.
    """
    found = []
    starts = np.arange(track.times[0], track.times[-1], 0.25)
    for width in np.arange(2.5, 7.01, 0.5):
        for start in starts[starts + width <= track.times[-1] + 1e-6]:
            end = float(start + width)
            if all(end <= other.start or start >= other.end for other in found):
                found += _lane_change(track, float(start), end)
    return tuple(sorted(found, key=lambda event: event.start))


def _lane_change(track: Track, start: float, end: float) -> list[LaneChange]:
    grid = np.linspace(start, end, 26)
    headings = np.interp(grid, track.times, track.headings)                     # (26,)
    turned = headings[-1] - headings[0]
    deviation = headings - headings[0] - turned * np.linspace(0, 1, len(grid))  # from a uniform bend
    top = deviation[np.abs(deviation).argmax()]
    middle = headings[0] + turned / 2
    normal = (-math.sin(middle), math.cos(middle))                              # a uniform bend has no shift along it
    shift = float(np.diff(positions_at(track, grid[[0, -1]]), axis=0)[0] @ normal)
    parallel = abs(turned) < math.radians(5.0) and abs(top) < math.radians(12.0)
    fits = parallel and top * shift > 0 and 2.5 <= abs(shift) <= 5.0
    return [LaneChange(start, end, shift, normal)] if fits else []


# ---------------------------------------------------------------- navigation

def turns_ahead(track: Track, start: float = 0.0) -> list[tuple[float, str]]:
    """(distance, "left" | "right") of every turn on the recorded way: at least 30 degrees within 30 m.

    Units: metres from the position at `start` to where the heading has changed by 5 degrees.
    """
    route, headings = _heading_along_route(track, start)
    ahead = np.degrees(np.interp(route + 30.0, route, headings) - headings)   # (metres,)
    turns, inside = [], False
    for here in range(len(route)):
        if abs(ahead[here]) >= 30.0 and not inside:
            changed = np.abs(np.degrees(headings[here:] - headings[here])) >= 5.0
            turns.append((float(route[here + int(changed.argmax())]), "left" if ahead[here] > 0 else "right"))
        inside = abs(ahead[here]) >= 30.0
    return turns


def route_length(track: Track, start: float = 0.0) -> float:
    """Length in m of the recorded way after `start`."""
    return float(_heading_along_route(track, start)[0][-1])


def _heading_along_route(track: Track, start: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances 0, 1, 2, ... m from the position at `start`, and the headings (rad) there."""
    grid = np.arange(start, track.times[-1] + STEP / 2, STEP)
    lengths = distances(speeds_at(track, grid))
    route = np.arange(math.floor(lengths[-1]) + 1.0)                            # (metres,)
    return route, np.interp(route, lengths, np.interp(grid, track.times, track.headings))


def navigation(turns: list[tuple[float, str]], length: float) -> dict[str, str]:
    """AlphaDrive's command from the turns ahead (turns_ahead) on a route known for `length` metres.

    '100m' names the first turn that begins within 100 m, '200m' the first between 100 and 200 m. '100m' is always
    present ('Straight' without a known turn); '200m' only if a turn or that much of the route is known.
    """
    command = {}
    for name, near, far in (("100m", 0, 100), ("200m", 100, 200)):
        sides = [side for distance, side in turns if near <= distance < far]
        if sides or near == 0 or length >= far:
            command[name] = f"Turn {sides[0]}" if sides else "Straight"
    return command


def noisy_turns(turns: list[tuple[float, str]], uniforms: Iterator[float]) -> list[tuple[float, str]]:
    """The turns with the errors of a poor map: distances off by up to 20 m, 3 % of the sides swapped.

    `uniforms` yields numbers in [0, 1), two per turn.
    """
    other = {"left": "right", "right": "left"}
    return [(max(distance + 40 * next(uniforms) - 20, 0.0), other[side] if next(uniforms) < 0.03 else side)
            for distance, side in turns]
