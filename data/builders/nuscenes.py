"""nuScenes to an examples file: `python -m data.nuscenes --root DIR --version v1.0-trainval --output FILE`.

Labels every keyframe of the front camera with 3 s of poses ahead of it by the rule of data/meta_action.py. Only tables
are opened, as streams; only rows of the front camera stay in memory. Pictures stay where they are and are named by
path. Map, annotations and CAN bus are not needed.
"""
import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import meta_action as motion
from data.example import Example, Navigation
from data.files import write_examples
from data.meta_action import Track

Report = Callable[[str], None]

CAMERA = "CAM_FRONT"
NAVIGATIONS = ("route", "noisy", "none")
LONGEST_GAP = 1.0                        # s; a longer gap between poses within the labelled seconds is a fault
VALIDATION_SHARE = 0.05
BLOCK = 1 << 20                          # characters read at a time; a row is far shorter
BETWEEN_ITEMS = re.compile(r"[\s,]*")

# The 150 scenes of the official validation split (nuscenes-devkit, utils/splits.py), which v1.0-mini shares.
OFFICIAL_VAL = ("3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 "
                "770-771 775 777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073")


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the front camera: time in s, token of its pose. Picture and sample are None between keyframes."""
    time: float
    pose: str
    picture: str | None
    sample: str | None


@dataclass(frozen=True)
class Recording:
    """A scene with its frames in order of time, and their poses as a track."""
    name: str
    location: str
    frames: list[Frame]
    track: Track


def convert(root: Path, version: str, navigation_style: str = "route", with_changes: bool = False,
            report: Report = lambda text: None) -> tuple[list[Example], Counter]:
    """All keyframes that can be labelled, scene by scene, and the number left out for each reason.

    Raises: FileNotFoundError for a missing table; ValueError naming table, row, field or remedy; for an unknown style.
    """
    if navigation_style not in NAVIGATIONS:
        raise ValueError(f"navigation {navigation_style!r}: choose one of {', '.join(NAVIGATIONS)}")
    examples, left_out = [], Counter()
    recordings = read_recordings(Path(root), version, report)
    for number, recording in enumerate(recordings, 1):
        found, missed = scene_examples(recording, Path(root), version, navigation_style, with_changes)
        examples += found
        left_out += missed
        report(f"scene {number} of {len(recordings)}, {len(examples)} examples")
    if not examples:
        raise ValueError(f"{root}/{version}: no keyframe of {CAMERA} has {motion.HORIZON} s ahead of it in its "
                         "scene; check that the tables belong together")
    return examples, left_out


# ---------------------------------------------------------------- one scene

def scene_examples(recording: Recording, root: Path, version: str, style: str,
                   with_changes: bool) -> tuple[list[Example], Counter]:
    """The keyframes of one scene as examples, and counts of those left out by reason."""
    changes = motion.lane_changes(recording.track) if with_changes else ()
    split = split_of(recording.name, version)
    examples, left_out = [], Counter()
    keyframes = [frame for frame in recording.frames if frame.picture is not None]
    for index, frame in enumerate(keyframes):
        reason = why_not(recording.track, frame.time)
        if reason:
            left_out[reason] += 1
            continue
        label = motion.meta_action(recording.track, frame.time, changes=changes)
        facts = {name: round(value, 4) + 0.0 for name, value in label.statistics.items()}
        examples.append(Example(
            id=f"{recording.name}-{index:03d}", image=os.path.abspath(root / frame.picture),
            speed=round(motion.current_speed(recording.track, frame.time), 3),
            navigation=navigation_of(recording.track, frame, style), decision=label.decision, split=split,
            factors={"scene": recording.name, "sample": frame.sample, "location": recording.location,
                     "ambiguous": label.ambiguous, "route_length": motion.route_length(recording.track, frame.time),
                     **facts}))
    return examples, left_out


def why_not(track: Track, time: float) -> str | None:
    """Why a moment cannot be labelled, or None."""
    end = time + motion.HORIZON
    if track.times[-1] < end - 0.1:                                             # keyframes jitter a little
        return "the scene ends within 3 s"
    first, last = np.searchsorted(track.times, [time, end - 0.1])
    gaps = np.diff(track.times[first:last + 1])                                 # up to the first pose after the horizon
    return "poses are missing" if gaps.max(initial=0.0) > LONGEST_GAP else None


def navigation_of(track: Track, frame: Frame, style: str) -> Navigation:
    """The recorded route, the same route with errors, or no route."""
    if style == "none":
        return "none"
    turns = motion.turns_ahead(track, frame.time)
    if style == "noisy":
        uniforms = np.random.PCG64(seed_of(frame.sample)).random_raw(2 * len(turns)) / 2.0 ** 64
        turns = motion.noisy_turns(turns, iter(uniforms))
    return motion.navigation(turns, motion.route_length(track, frame.time))


def seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(scene: str, version: str) -> str:
    """train, val or test by scene: test is the official validation split, val 5 % of the official training scenes.

    v1.0-test is all test. A scene has the same split in every version, so v1.0-mini does not leak.
    """
    if version.endswith("-test") or scene in official_validation():
        return "test"
    return "val" if seed_of(scene) / 2 ** 64 < VALIDATION_SHARE else "train"


def official_validation() -> frozenset[str]:
    ends = [[int(number) for number in part.split("-")] for part in OFFICIAL_VAL.split()]
    return frozenset(f"scene-{number:04d}" for part in ends for number in range(part[0], part[-1] + 1))


# ---------------------------------------------------------------- tables

def read_recordings(root: Path, version: str, report: Report) -> list[Recording]:
    """All scenes with their front camera's frames and poses, in the order of the scene table."""
    folder = root / version
    scenes = {row["token"]: row for row in read_table(folder / "scene.json", ("token", "name", "log_token"))}
    places = {row["token"]: row["location"] for row in read_table(folder / "log.json", ("token", "location"))}
    samples = {row["token"]: row["scene_token"]
               for row in read_table(folder / "sample.json", ("token", "scene_token"), report)}
    frames = read_frames(folder, samples, report)
    wanted = {frame.pose for scene in frames.values() for frame in scene}
    poses = read_poses(folder, wanted, report)
    missing = wanted - poses.keys()
    if missing:
        raise ValueError(f"{folder / 'ego_pose.json'}: {len(missing)} poses that sample_data names are missing, first "
                         f"{min(missing)}; unpack the metadata archive again")
    return [recording_of(row["name"], places.get(row["log_token"], "unknown"), frames[token], poses)
            for token, row in scenes.items() if len({frame.time for frame in frames.get(token, ())}) > 1]


def recording_of(name: str, location: str, frames: list[Frame], poses: dict[str, tuple[float, ...]]) -> Recording:
    """The frames in order of time. Of two frames at the same time the keyframe is kept."""
    once = {frame.time: frame for frame in sorted(frames, key=lambda frame: (frame.time, frame.picture is not None))}
    driven = np.array([poses[frame.pose] for frame in once.values()])           # (N, 3): x, y, heading
    return Recording(name, location, list(once.values()), motion.make_track(list(once), driven[:, :2], driven[:, 2]))


def read_frames(folder: Path, samples: dict[str, str], report: Report) -> dict[str, list[Frame]]:
    """scene token -> frames of the front camera in table order; times in s since the first frame read."""
    sensors = {row["token"] for row in read_table(folder / "sensor.json", ("token", "channel"))
               if row["channel"] == CAMERA}
    cameras = {row["token"] for row in read_table(folder / "calibrated_sensor.json", ("token", "sensor_token"))
               if row["sensor_token"] in sensors}
    if not cameras:
        raise ValueError(f"{folder / 'sensor.json'}: no channel {CAMERA}; only nuScenes layouts with one are read")
    fields = ("calibrated_sensor_token", "sample_token", "ego_pose_token", "filename", "timestamp", "is_key_frame")
    frames, first = {}, None
    for row in read_table(folder / "sample_data.json", fields, report):
        if row["calibrated_sensor_token"] in cameras:
            first = row["timestamp"] if first is None else first
            scene = samples.get(row["sample_token"])
            if scene is None:
                raise ValueError(f"{folder / 'sample_data.json'}: sample_token {row['sample_token']!r} is not in "
                                 "sample.json; the tables belong to different versions")
            key = row["is_key_frame"]
            frames.setdefault(scene, []).append(Frame(
                (row["timestamp"] - first) / 1e6, row["ego_pose_token"], row["filename"] if key else None,
                row["sample_token"] if key else None))
    return frames


def read_poses(folder: Path, wanted: Collection[str], report: Report) -> dict[str, tuple[float, float, float]]:
    """token -> (x, y in m, heading in rad counter-clockwise from the map's x axis) of the wanted poses."""
    return {row["token"]: (row["translation"][0], row["translation"][1], yaw(row["rotation"]))
            for row in read_table(folder / "ego_pose.json", ("token", "translation", "rotation"), report)
            if row["token"] in wanted}


def yaw(rotation: list[float]) -> float:
    """Heading in rad of a quaternion (w, x, y, z)."""
    w, x, y, z = rotation
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def read_table(path: Path, fields: tuple[str, ...], report: Report = lambda text: None) -> Iterator[dict]:
    """The rows of one table, a JSON list of objects. At most two blocks of its text are in memory.

    Raises: FileNotFoundError; ValueError naming the file, the row (counted from 0) and the fault.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; give --root the folder that holds {path.parent.name}/ and "
                                "samples/")
    size = path.stat().st_size
    with open(path, encoding="utf-8", errors="replace") as file:

        def next_block() -> str:
            report(f"{path.name}: {file.buffer.tell() / 1e6:.0f} of {size / 1e6:.0f} MB")
            return file.read(BLOCK)

        for number, row in enumerate(stream_list(next_block, path)):
            missing = [field for field in fields if not isinstance(row, dict) or field not in row]
            if missing:
                raise ValueError(f"{path}: row {number} has no field {missing[0]!r}; this is not the nuScenes table "
                                 "of that name")
            yield row


def stream_list(next_block: Callable[[], str], path: Path) -> Iterator[object]:
    """The items of a JSON list that arrives in blocks of text. An item cut at the end of a block is parsed again.

    Raises: ValueError for text that is no list, an item longer than a block, or a list without an end.
    """
    decode = json.JSONDecoder().raw_decode
    text = next_block()
    position, count = len(text) - len(text.lstrip()), 0
    if text[position:position + 1] != "[":
        raise ValueError(f"{path}: not a JSON list of rows; unpack the metadata archive again")
    position += 1
    while True:
        position = BETWEEN_ITEMS.match(text, position).end()
        if text[position:position + 1] == "]":
            return
        try:
            item, position = decode(text, position)
        except ValueError as error:
            block = next_block()
            if not block or len(text) - position > BLOCK:
                raise ValueError(f"{path}: row {count} is cut short or not JSON ({error.args[0]}); unpack the metadata "
                                 "archive again") from None
            text, position = text[position:] + block, 0
        else:
            count += 1
            yield item


# ---------------------------------------------------------------- command

def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.nuscenes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder with samples/ and the version's tables")
    parser.add_argument("--version", default="v1.0-trainval", help="v1.0-trainval, v1.0-mini or v1.0-test")
    parser.add_argument("--output", type=Path, required=True, help="the examples file to write (JSON Lines)")
    parser.add_argument("--navigation", choices=NAVIGATIONS, default="route",
                        help="route: the recorded way; noisy: the same with wrong distances and sides; none: no route")
    parser.add_argument("--lane-changes", action="store_true",
                        help="label lane changes too; S-bends of the road are then labelled as changes")
    parser.add_argument("--skip-missing", action="store_true", help="leave out examples whose picture does not exist")
    flags = parser.parse_args(arguments)
    try:
        examples, left_out = convert(flags.root, flags.version, flags.navigation, flags.lane_changes, progress())
        missing = [example for example in examples if not os.path.isfile(example.image)]
        if flags.skip_missing:
            gone = {example.id for example in missing}
            examples = [example for example in examples if example.id not in gone]
            left_out["the picture is missing"] = len(gone)
        write_examples(examples, flags.output)
    except (OSError, ValueError) as error:
        sys.exit(f"\n{error}")
    sys.stderr.write("\n" + summary(examples, left_out, len(missing), flags) + "\n")


def summary(examples: list[Example], left_out: Counter, missing: int, flags: argparse.Namespace) -> str:
    """Counts of what was written, by split, and of what was left out."""
    splits = Counter(example.split for example in examples)
    lines = [f"wrote {len(examples)} examples to {flags.output}: "
             + ", ".join(f"{count} {name}" for name, count in sorted(splits.items()))]
    lines += [f"left out {count} keyframes: {reason}" for reason, count in left_out.items() if count]
    if missing and not flags.skip_missing:
        lines.append(f"{missing} pictures do not exist under {flags.root}; unpack them there or use --skip-missing")
    return "\n".join(lines)


def progress(every: float = 0.5) -> Report:
    """A function that shows a text on one line of stderr, at most every `every` seconds."""
    last = 0.0

    def report(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            sys.stderr.write(f"\r{text:<60}")
            sys.stderr.flush()

    return report


if __name__ == "__main__":
    main()
