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


@dataclass(frozen=True)
class Rule:
    """The thresholds. A statistic within the relative `margin` of its threshold makes a label ambiguous."""
    horizon: float = 3.0                 # s ahead
    smoothing: float = 0.5               # s, width of the window that a speed is averaged over
    moving_speed: float = 0.6            # m/s; slower motion has no direction or curvature
    stop_end_speed: float = 0.5          # m/s at the horizon
    stop_top_speed: float = 1.0          # m/s, maximum within the horizon
    speed_change: float = 1.0            # m/s over the horizon ...
    speed_change_share: float = 0.15     # ... or this share of the present speed, whichever is larger
    turn_heading: float = 20.0           # degrees over the horizon
    turn_curvature: float = 0.025        # 1/m, mean over the tightest second: a radius of 40 m
    stop_turn_length: float = 2.0        # m; a car that stops within this distance does not turn
    margin: float = 0.15


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


DEFAULT_RULE = Rule()


# ---------------------------------------------------------------- motions

def make_track(times: np.ndarray, positions: np.ndarray, headings: np.ndarray | None = None) -> Track:
    """A validated Track. Headings are unwrapped; by default they are the direction of motion.

    Shapes: times (N,), positions (N, 2), headings (N,). Units: s, m, rad.
    Raises: ValueError for wrong shapes, fewer than two points, times that do not increase, or numbers not finite.
    """
    times, positions = np.asarray(times, dtype=float), np.asarray(positions, dtype=float)
    if times.ndim != 1 or len(times) < 2 or positions.shape != (len(times), 2):
        raise ValueError(f"a track needs times (N,) and positions (N, 2) with N >= 2, got {times.shape} and "
                         f"{positions.shape}")
    if not (np.isfinite(times).all() and np.isfinite(positions).all() and (np.diff(times) > 0).all()):
        raise ValueError("a track needs finite positions and increasing times; sort it and drop repeated times")
    given = motion_headings(times, positions) if headings is None else np.asarray(headings, dtype=float)
    if given.shape != times.shape or not np.isfinite(given).all():
        raise ValueError(f"a track needs one finite heading per time, got {given.shape} for {len(times)} times")
    return Track(times, positions, np.unwrap(given))


def motion_headings(times: np.ndarray, positions: np.ndarray, moving_speed: float = 0.6) -> np.ndarray:
    """Direction of motion at each time (N,), constant while the car stands. A reversing car appears turned by 180."""
    gaps, steps = np.diff(times), np.diff(positions, axis=0)                    # (N - 1,), (N - 1, 2)
    moving = np.hypot(*steps.T) / gaps > moving_speed
    if not moving.any():
        return np.zeros(len(times))
    middles, gaps = (times[:-1] + gaps / 2)[moving], gaps[moving]
    angles = np.unwrap(np.arctan2(steps[moving, 1], steps[moving, 0]))
    if len(angles) == 1:
        return np.full(len(times), angles[0])
    first = (angles[1] - angles[0]) / (middles[1] - middles[0])                 # rad/s, half a step before the start
    last = (angles[-1] - angles[-2]) / (middles[-1] - middles[-2])              # rad/s, half a step after the end
    return np.interp(times, [middles[0] - gaps[0] / 2, *middles, middles[-1] + gaps[-1] / 2],
                     [angles[0] - first * gaps[0] / 2, *angles, angles[-1] + last * gaps[-1] / 2])


def positions_at(track: Track, times: np.ndarray) -> np.ndarray:
    """Interpolated positions, (M, 2) for times (M,), constant beyond the ends."""
    return np.stack([np.interp(times, track.times, axis) for axis in track.positions.T], axis=-1)


def speeds_at(track: Track, times: np.ndarray, smoothing: float = 0.5) -> np.ndarray:
    """Speed at each time, (M,) in m/s: the chord over a window of `smoothing` seconds, divided by its width.

    Near the ends the nearest whole window is extrapolated linearly, so a constant acceleration is exact everywhere. The
    chord keeps jitter of a standing car from adding up.
    """
    begin, end = track.times[0], track.times[-1]
    half = min(smoothing / 2, (end - begin) / 4)
    centres = np.clip(times, begin + half, end - half)
    neighbours = centres + half * np.where(times < centres, 1.0, -1.0)

    def window(middles: np.ndarray) -> np.ndarray:
        way = positions_at(track, middles + half) - positions_at(track, middles - half)   # (M, 2)
        return np.hypot(*way.T) / (2 * half)

    missing = times - centres                                                   # 0 where a whole window fits
    slopes = np.where(missing == 0, 0.0, (window(centres) - window(neighbours)) / (centres - neighbours))
    return np.maximum(window(centres) + missing * slopes, 0.0)


def current_speed(track: Track, time: float, rule: Rule = DEFAULT_RULE) -> float:
    """Present speed in m/s from the past alone, so that a question with this speed does not leak the answer.

    At the start of a recording, with less than half a window of past, the next half window is used instead.
    """
    past = track.times <= time + 1e-6
    if past.sum() >= 2 and time - track.times[0] >= rule.smoothing / 2:
        track = Track(track.times[past], track.positions[past], track.headings[past])
    return float(speeds_at(track, np.array([time]), rule.smoothing)[0])


# ---------------------------------------------------------------- the label

def meta_action(track: Track, start: float = 0.0, rule: Rule = DEFAULT_RULE,
                changes: tuple[LaneChange, ...] = ()) -> MetaAction:
    """Label the motion from `start` to `start` + 3 s.

        speed   STOP: v(3) < 0.5 or max v < 1.0.  Else ACCELERATE, DECELERATE: v(3) - v(0) beyond +-max(1.0, 0.15 v(0))
        path    TURN: heading change >= 20 degrees and the tightest second's mean curvature >= 0.025 1/m, but not for a
                STOP within 2 m.  Else CHANGE, if `changes` (from lane_changes) has >= 1 m of its shift in these 3 s

    Units: m, s, degrees. `ambiguous`: a tested statistic lies within 15 % of its threshold.
    Raises: ValueError if the track does not cover the horizon.
    """
    if track.times[0] > start + STEP or track.times[-1] < start + rule.horizon - STEP:
        raise ValueError(f"the track runs from {track.times[0]:.2f} to {track.times[-1]:.2f} s and does not cover "
                         f"{rule.horizon} s from {start:.2f} s on; leave this moment out")
    facts = statistics(track, start, rule)
    speed = _speed_action(facts, rule)
    stays = speed == "STOP" and facts["length"] < rule.stop_turn_length
    path = "STRAIGHT" if stays else _turn(facts, rule) or _change(track, start, rule, changes) or "STRAIGHT"
    near = any(abs(value - limit) <= rule.margin * limit for value, limit in _tests(facts, speed, rule))
    return MetaAction(Decision(speed, path), near, facts)


def statistics(track: Track, start: float, rule: Rule = DEFAULT_RULE) -> dict[str, float]:
    """The numbers compared with the thresholds; names and units as in MetaAction."""
    grid = start + STEP * np.arange(round(rule.horizon / STEP) + 1)             # (31,) s
    speeds, headings = speeds_at(track, grid, rule.smoothing), np.interp(grid, track.times, track.headings)
    lengths = distances(speeds)                                                  # (31,) m
    second = round(1 / STEP)
    ways, turned = lengths[second:] - lengths[:-second], np.abs(headings[second:] - headings[:-second])   # (21,)
    curvatures = turned[ways > rule.moving_speed] / ways[ways > rule.moving_speed]
    return {"speed_start": float(speeds[0]), "speed_end": float(speeds[-1]), "speed_top": float(speeds.max()),
            "speed_change": float(speeds[-1] - speeds[0]),
            "change_limit": max(rule.speed_change, rule.speed_change_share * float(speeds[0])),
            "length": float(lengths[-1]), "heading_change": math.degrees(headings[-1] - headings[0]),
            "curvature": float(curvatures.max(initial=0.0))}


def distances(speeds: np.ndarray) -> np.ndarray:
    """Distance driven at each time of the grid in m, by the trapezium rule."""
    return np.concatenate([[0.0], np.cumsum((speeds[1:] + speeds[:-1]) / 2 * STEP)])


def _speed_action(facts: dict[str, float], rule: Rule) -> str:
    if facts["speed_end"] < rule.stop_end_speed or facts["speed_top"] < rule.stop_top_speed:
        return "STOP"
    if abs(facts["speed_change"]) <= facts["change_limit"]:
        return "KEEP"
    return "ACCELERATE" if facts["speed_change"] > 0 else "DECELERATE"


def _turn(facts: dict[str, float], rule: Rule) -> str | None:
    if abs(facts["heading_change"]) < rule.turn_heading or facts["curvature"] < rule.turn_curvature:
        return None
    return "LEFT_TURN" if facts["heading_change"] > 0 else "RIGHT_TURN"


def _change(track: Track, start: float, rule: Rule, changes: tuple[LaneChange, ...], least: float = 1.0) -> str | None:
    for change in changes:
        ends = np.clip([change.start, change.end], start, start + rule.horizon)
        shift = float(np.diff(positions_at(track, ends), axis=0)[0] @ change.normal)      # m within the horizon
        if abs(shift) >= least and shift * change.shift > 0:
            return "LEFT_CHANGE" if shift > 0 else "RIGHT_CHANGE"
    return None


def _tests(facts: dict[str, float], speed: str, rule: Rule) -> list[tuple[float, float]]:
    """(statistic, threshold) of every comparison behind the label."""
    tests = [(facts["speed_end"], rule.stop_end_speed), (facts["speed_top"], rule.stop_top_speed),
             (abs(facts["speed_change"]), facts["change_limit"]), (abs(facts["heading_change"]), rule.turn_heading),
             (facts["curvature"], rule.turn_curvature)]
    return [*tests, (facts["length"], rule.stop_turn_length)] if speed == "STOP" else tests


# ---------------------------------------------------------------- lane changes, over a whole recording

def lane_changes(track: Track, shift: tuple[float, float] = (2.5, 5.0), parallel: float = 5.0,
                 bump: float = 12.0) -> tuple[LaneChange, ...]:
    """Windows of 2.5 to 7 s in which the car moves to a parallel line one lane aside; overlapping ones are one event.

    Units: shift in m (least, most). The headings at both ends agree within `parallel` degrees; in between they deviate
    by less than `bump` degrees, towards the shift. Without a lane map an S-bend looks the same, so labels use lane
    changes only if the caller passes them to `meta_action`.
    """
    found = []
    starts = np.arange(track.times[0], track.times[-1], 0.25)
    for width in np.arange(2.5, 7.01, 0.5):
        for start in starts[starts + width <= track.times[-1] + 1e-6]:
            end = float(start + width)
            if all(end <= other.start or start >= other.end for other in found):
                event = _lane_change(track, float(start), end, math.radians(parallel), math.radians(bump))
                if event and shift[0] <= abs(event.shift) <= shift[1]:
                    found.append(event)
    return tuple(sorted(found, key=lambda event: event.start))


def _lane_change(track: Track, start: float, end: float, parallel: float, bump: float) -> LaneChange | None:
    grid = np.linspace(start, end, 26)
    headings = np.interp(grid, track.times, track.headings)                     # (26,)
    turned = headings[-1] - headings[0]
    deviation = headings - headings[0] - turned * np.linspace(0, 1, len(grid))  # from a uniform bend
    top = deviation[np.abs(deviation).argmax()]
    middle = headings[0] + turned / 2
    normal = (-math.sin(middle), math.cos(middle))                              # a uniform bend has no shift along it
    shift = float(np.diff(positions_at(track, grid[[0, -1]]), axis=0)[0] @ normal)
    fits = abs(turned) < parallel and abs(top) < bump and top * shift > 0
    return LaneChange(start, end, shift, normal) if fits else None


# ---------------------------------------------------------------- navigation

def turns_ahead(track: Track, start: float = 0.0, turn: float = 30.0, within: float = 30.0) -> list[tuple[float, str]]:
    """(distance, "left" | "right") of every turn on the recorded way: at least `turn` degrees within `within` metres.

    Units: metres from the position at `start` to where the heading has changed by 5 degrees.
    """
    route, headings = _heading_along_route(track, start)
    ahead = np.degrees(np.interp(route + within, route, headings) - headings)   # (metres,)
    turns, inside = [], False
    for here in range(len(route)):
        if abs(ahead[here]) >= turn and not inside:
            changed = np.abs(np.degrees(headings[here:] - headings[here])) >= 5.0
            turns.append((float(route[here + int(changed.argmax())]), "left" if ahead[here] > 0 else "right"))
        inside = abs(ahead[here]) >= turn
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
