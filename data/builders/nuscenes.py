"""nuScenes to an examples file: `python -m data.nuscenes --root DIR --version v1.0-trainval --output FILE`.

Labels every keyframe of the front camera with 3 s of poses ahead of it by the rule of data/meta_action.py. With 4 s
ahead the example also has the driven way-points. `--cameras CAM_FRONT,CAM_FRONT_LEFT,CAM_FRONT_RIGHT` gives every
example the keyframe's pictures of these cameras. Only tables are opened, as streams; only rows of the named cameras
stay in memory. Pictures stay where they are and are named by path. Map, annotations and CAN bus are not needed.
"""
import argparse
import hashlib
import json
import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from data import meta_action as motion
from data.example import Example, Navigation
from data.fields import camera_names, short
from data.files import write_examples
from data.meta_action import Track
from rewards.waypoints import SPACING, WAYPOINTS

LOG = logging.getLogger(__name__)
CAMERA = "CAM_FRONT"
NAVIGATIONS = ("route", "noisy", "none")
KEYFRAME_JITTER = 0.1                    # s that the last pose may lack of the labelled seconds
LONGEST_GAP = 1.0                        # s; a longer gap between poses within the labelled seconds is a fault
VALIDATION_SHARE = 0.05
MOVING = 2.0                             # m/s from which a heading must point where the car goes
NUMBERS = {"translation": (3, "three numbers in metres"), "rotation": (4, "a unit quaternion (w, x, y, z)")}
BLOCK = 1 << 20                          # characters read at a time; a row is far shorter
BETWEEN_ITEMS = re.compile(r"[\s,]*")

# The 150 scenes of the official validation split (nuscenes-devkit, utils/splits.py), which v1.0-mini shares.
OFFICIAL_VAL = ("3 12-18 35-36 38-39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629-630 632-638 "
                "770-771 775 777-778 780-784 794-800 802 904-917 919-931 962-963 966-969 971-972 1059-1073")


class Frame(NamedTuple):
    """One frame of the front camera: time in s, token of its pose. Picture and sample are None between keyframes."""
    time: float
    pose: str
    picture: str | None
    sample: str | None


Views = dict[str, dict[str, str]]        # token of a keyframe's sample -> camera -> picture


class Recording(NamedTuple):
    """A scene with its frames in order of time, and their poses as a track."""
    name: str
    location: str
    frames: list[Frame]
    track: Track


def convert(root: Path, version: str, navigation_style: str = "route", with_changes: bool = False,
            cameras: Sequence[str] = (CAMERA,)) -> tuple[list[Example], Counter]:
    """All keyframes that can be labelled, scene by scene, and the number left out for each reason.

    The pictures are those of `cameras`, in this order. Labels and times are the front camera's.
    Raises: FileNotFoundError for a missing table; ValueError naming table, row, field or remedy; for an unknown style.
    """
    if navigation_style not in NAVIGATIONS:
        raise ValueError(f"navigation {navigation_style!r}: choose one of {', '.join(NAVIGATIONS)}")
    examples, left_out = [], Counter()
    recordings, views = read_recordings(Path(root), version, cameras)
    for recording in recordings:
        found, missed = scene_examples(recording, Path(root), version, navigation_style, with_changes, cameras, views)
        examples += found
        left_out += missed
    if not examples:
        raise ValueError(f"{root}/{version}: no keyframe of {CAMERA} has {motion.HORIZON} s ahead of it in its "
                         "scene; check that the tables belong together")
    return examples, left_out


# ---------------------------------------------------------------- one scene

def scene_examples(recording: Recording, root: Path, version: str, style: str, with_changes: bool,
                   cameras: Sequence[str], views: Views) -> tuple[list[Example], Counter]:
    """The keyframes of one scene as examples, and counts of those left out by reason."""
    changes = motion.lane_changes(recording.track) if with_changes else ()
    split = split_of(recording.name, version)
    examples, left_out = [], Counter()
    keyframes = [frame for frame in recording.frames if frame.picture is not None]
    for index, frame in enumerate(keyframes):
        pictures = [views[frame.sample].get(camera) for camera in cameras]
        reason = why_not(recording.track, frame.time) or (None if all(pictures) else "a camera has no picture")
        if reason:
            left_out[reason] += 1
            continue
        label = motion.meta_action(recording.track, frame.time, changes=changes)
        facts = {name: round(value, 4) + 0.0 for name, value in label.statistics.items()}
        examples.append(Example(
            id=f"{recording.name}-{index:03d}",
            **pictures_of([os.path.abspath(root / picture) for picture in pictures], cameras),
            speed=round(motion.current_speed(recording.track, frame.time), 3),
            navigation=navigation_of(recording.track, frame, style), decision=label.decision, split=split,
            trajectory=driven_waypoints(recording.track, frame.time),
            factors={"scene": recording.name, "location": recording.location, "ambiguous": label.ambiguous,
                     "route_length": motion.route_length(recording.track, frame.time), **facts},
            extra={"sample": frame.sample}))
    return examples, left_out


def pictures_of(files: Sequence[str], cameras: Sequence[str]) -> dict[str, str | tuple[str, ...]]:
    """The fields of an example with these pictures; CAM_FRONT_LEFT is named front_left."""
    if len(files) == 1:
        return {"image": files[0]}
    return {"images": tuple(files), "cameras": tuple(camera.removeprefix("CAM_").lower() for camera in cameras)}


def why_not(track: Track, time: float, seconds: float = motion.HORIZON, jitter: float = KEYFRAME_JITTER) -> str | None:
    """Why a moment has not so many seconds of poses ahead of it, or None."""
    end = time + seconds - jitter
    if track.times[-1] < end:
        return f"the scene ends within {seconds:g} s"
    first, last = np.searchsorted(track.times, [time, end])
    gaps = np.diff(track.times[first:last + 1])                                 # up to the first pose after the end
    return "poses are missing" if gaps.max(initial=0.0) > LONGEST_GAP else None


def driven_waypoints(track: Track, time: float) -> tuple[tuple[float, float], ...] | None:
    """Where the car's origin (nuScenes: the middle of the rear axle) is at 0.5, ..., 4.0 s, as in Example.trajectory;
    None if the scene ends earlier or poses are missing. Rounded to millimetres."""
    ahead = SPACING * np.arange(1, WAYPOINTS + 1)                               # (8,) s
    if why_not(track, time, ahead[-1], jitter=1e-3):
        return None
    x, y = (motion.positions_at(track, time + ahead) - motion.positions_at(track, np.array([time]))).T
    heading = np.interp(time, track.times, track.headings)
    forward, left = x * np.cos(heading) + y * np.sin(heading), y * np.cos(heading) - x * np.sin(heading)
    return tuple((round(float(a), 3) + 0.0, round(float(b), 3) + 0.0) for a, b in zip(forward, left, strict=True))


def navigation_of(track: Track, frame: Frame, style: str) -> Navigation:
    """The recorded route, the same route with errors, or no route."""
    if style == "none":
        return "No route is known"
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

def read_recordings(root: Path, version: str, cameras: Sequence[str]) -> tuple[list[Recording], Views]:
    """All scenes with their front camera's frames and poses, in the order of the scene table; the keyframes' pictures
    of the named cameras."""
    folder = root / version
    scenes = {row["token"]: row for row in read_table(folder / "scene.json", "token", "name", "log_token")}
    places = {row["token"]: row["location"] for row in read_table(folder / "log.json", "token", "location")}
    samples = {row["token"]: row["scene_token"] for row in read_table(folder / "sample.json", "token", "scene_token")}
    frames, views = read_frames(folder, samples, cameras)
    wanted = {frame.pose for scene in frames.values() for frame in scene}
    poses = {row["token"]: (*row["translation"][:2], yaw(row["rotation"]))
             for row in read_table(folder / "ego_pose.json", "token", "translation", "rotation")
             if row["token"] in wanted}
    missing = wanted - poses.keys()
    if missing:
        raise ValueError(f"{folder / 'ego_pose.json'}: {len(missing)} poses that sample_data names are missing, first "
                         f"{min(missing)}; unpack the metadata archive again")
    names = Counter(row["name"] for row in scenes.values())
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"{folder / 'scene.json'}: {names[twice[0]]} scenes have the name {twice[0]!r}, of which ids "
                         "are made; give each its own")
    found = [recording_of(row["name"], places.get(row["log_token"], "unknown"), frames[token], poses)
             for token, row in scenes.items() if len({frame.time for frame in frames.get(token, ())}) > 1]
    check_headings([recording.track for recording in found], folder / "ego_pose.json")
    return found, views


def check_headings(tracks: Sequence[Track], path: Path) -> None:
    """Raises: ValueError if the car mostly points away from where it goes, as with quaternions in another order."""
    ahead = []
    for track in tracks:
        steps = np.diff(track.positions, axis=0)                                # (N - 1, 2)
        toward = np.stack([np.cos(track.headings[:-1]), np.sin(track.headings[:-1])], axis=1)
        moving = np.hypot(*steps.T) > MOVING * np.diff(track.times)
        ahead += ((steps * toward).sum(1) > 0)[moving].tolist()
    if ahead and sum(ahead) < len(ahead) / 2:
        raise ValueError(f"{path}: in {len(ahead) - sum(ahead)} of {len(ahead)} steps the moving car points away from "
                         "where it goes; write the field 'rotation' as a quaternion (w, x, y, z)")


def recording_of(name: str, location: str, frames: list[Frame], poses: dict[str, tuple[float, ...]]) -> Recording:
    """The frames in order of time. Of two frames at the same time the keyframe is kept."""
    once = {frame.time: frame for frame in sorted(frames, key=lambda frame: (frame.time, frame.picture is not None))}
    driven = np.array([poses[frame.pose] for frame in once.values()])           # (N, 3): x, y, heading
    return Recording(name, location, list(once.values()), motion.make_track(list(once), driven[:, :2], driven[:, 2]))


def read_cameras(folder: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Token of a calibrated sensor -> its channel, of the front camera and the wanted ones."""
    sensors = {row["token"]: row["channel"] for row in read_table(folder / "sensor.json", "token", "channel")}
    found = {row["token"]: sensors[row["sensor_token"]]
             for row in read_table(folder / "calibrated_sensor.json", "token", "sensor_token")
             if sensors.get(row["sensor_token"]) in {CAMERA, *wanted}}
    if CAMERA not in found.values():
        raise ValueError(f"{folder / 'sensor.json'}: no channel {CAMERA}; only nuScenes layouts with one are read")
    if missing := [camera for camera in wanted if camera not in found.values()]:
        known = sorted(channel for channel in sensors.values() if channel.startswith("CAM"))
        raise ValueError(f"{folder / 'sensor.json'}: no camera {missing[0]!r}; --cameras may name {', '.join(known)}")
    return found


def read_frames(folder: Path, samples: dict[str, str],
                cameras: Sequence[str]) -> tuple[dict[str, list[Frame]], Views]:
    """scene token -> frames of the front camera in table order; times in s since the first frame read. And the
    keyframes' pictures of the named cameras."""
    channels, frames, views, first = read_cameras(folder, cameras), {}, {}, None
    for row in read_table(folder / "sample_data.json", "calibrated_sensor_token", "sample_token", "ego_pose_token",
                          "filename", "timestamp", "is_key_frame"):
        channel, sample, picture = channels.get(row["calibrated_sensor_token"]), row["sample_token"], row["filename"]
        if channel is not None and row["is_key_frame"]:
            views.setdefault(sample, {})[channel] = picture
        if channel != CAMERA:
            continue
        first = row["timestamp"] if first is None else first
        if sample not in samples:
            raise ValueError(f"{folder / 'sample_data.json'}: sample_token {sample!r} is not in sample.json; the "
                             "tables belong to different versions")
        shown = (picture, sample) if row["is_key_frame"] else (None, None)
        time = (row["timestamp"] - first) / 1e6
        frames.setdefault(samples[sample], []).append(Frame(time, row["ego_pose_token"], *shown))
    return frames, views


def yaw(rotation: list[float]) -> float:
    """Heading in rad of a quaternion (w, x, y, z)."""
    w, x, y, z = rotation
    return math.atan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))


def read_table(path: Path, *fields: str) -> Iterator[dict]:
    """The rows of one table, a JSON list of objects. At most two blocks of its text are in memory.

    Raises: FileNotFoundError; ValueError naming the file, the row (counted from 0) and the fault.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; give --root the folder that holds {path.parent.name}/ and "
                                "samples/")
    LOG.info("reading %s", path)
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(stream_list(file, path)):
            missing = [field for field in fields if not isinstance(row, dict) or field not in row]
            if missing:
                raise ValueError(f"{path}: row {number} has no field {missing[0]!r}; this is not the nuScenes table "
                                 "of that name")
            for field in fields:
                if wanted := what_is_wanted(field, row[field]):
                    raise ValueError(f"{path}: row {number}: field {field!r} must be {wanted}, got "
                                     f"{short(row[field])}")
            yield row


def what_is_wanted(field: str, value: object) -> str | None:
    """What a field of a table must be, if the value is not."""
    if field in NUMBERS:
        count, about = NUMBERS[field]
        good = isinstance(value, list) and len(value) == count and all(map(is_number, value))
        unit = field != "rotation" or (good and abs(math.hypot(*value) - 1) < 0.05)
        return None if good and unit else about
    if field == "timestamp":
        return None if is_number(value) else "a number, in microseconds"
    if field == "is_key_frame":
        return None if isinstance(value, bool) else "true or false"
    return None if field == "location" or (isinstance(value, str) and value) else "a text"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def stream_list(file: TextIO, path: Path) -> Iterator[object]:
    """The items of a JSON list, read in blocks. An item cut at the end of a block is parsed again.

    Raises: ValueError for text that is no list, an item longer than a block, or a list without an end.
    """
    decode = json.JSONDecoder().raw_decode
    text, position, count = file.read(BLOCK).lstrip(), 1, 0
    if not text.startswith("["):
        raise ValueError(f"{path}: not a JSON list of rows; unpack the metadata archive again")
    while True:
        position = BETWEEN_ITEMS.match(text, position).end()
        if text.startswith("]", position):
            return
        try:
            item, position = decode(text, position)
        except ValueError as error:
            block = file.read(BLOCK)
            if not block or len(text) - position > BLOCK:
                raise ValueError(f"{path}: row {count} is cut short or not JSON ({error.args[0]}); unpack the metadata "
                                 "archive again") from None
            text, position = text[position:] + block, 0
        else:
            count += 1
            yield item


# ---------------------------------------------------------------- command

def read_flags(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m data.nuscenes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder with samples/ and the version's tables")
    parser.add_argument("--version", default="v1.0-trainval", help="v1.0-trainval, v1.0-mini or v1.0-test")
    parser.add_argument("--output", type=Path, required=True, help="the examples file to write (JSON Lines)")
    parser.add_argument("--navigation", choices=NAVIGATIONS, default="route",
                        help="route: the recorded way; noisy: the same with wrong distances and sides; none: no route")
    parser.add_argument("--cameras", default=CAMERA, metavar="CAM_A,CAM_B", help="the cameras whose pictures an "
                        "example holds, in the order in which the question names them (default: CAM_FRONT)")
    parser.add_argument("--lane-changes", action="store_true",
                        help="label lane changes too; S-bends of the road are then labelled as changes")
    parser.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it exists")
    parser.add_argument("--skip-missing", action="store_true", help="leave out examples whose picture does not exist")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Convert and write; log how many examples of each split, and what was left out."""
    flags = read_flags(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    try:
        if flags.output.exists() and not flags.overwrite:
            raise ValueError(f"--output {flags.output} exists; give another name, or --overwrite")
        flags.output.parent.mkdir(parents=True, exist_ok=True)                  # before the work, which takes minutes
        examples, left_out = convert(flags.root, Path(flags.version).name, flags.navigation, flags.lane_changes,
                                     camera_names(flags.cameras.split(","), "--cameras"))
        there = [example for example in examples if all(map(os.path.isfile, example.pictures))]
        missing = sum(not os.path.isfile(picture) for example in examples for picture in example.pictures)
        if flags.skip_missing:
            left_out["the picture is missing"] = len(examples) - len(there)
            examples, missing = there, 0
        if not examples:
            raise ValueError(f"no example has its picture under {flags.root}; unpack the pictures there")
        write_examples(examples, flags.output)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    splits = Counter(example.split for example in examples)
    shares = ", ".join(f"{count} {name}" for name, count in sorted(splits.items()))
    LOG.info("wrote %d examples to %s: %s", len(examples), flags.output, shares)
    for reason, count in (+left_out).items():
        LOG.info("left out %d keyframes: %s", count, reason)
    if short := sum(example.trajectory is None for example in examples):
        LOG.info("%d examples have no way-points: the scene ends within 4 s, or poses are missing", short)
    if missing:
        LOG.info("%d pictures do not exist under %s; unpack them there or use --skip-missing", missing, flags.root)


if __name__ == "__main__":
    main()
