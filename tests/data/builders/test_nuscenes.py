"""A miniature nuScenes, written here in its true layout: seven sensors' worth of rows, sweeps, tables in any order."""
import json
import math
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data.builders import nuscenes
from data.builders.nuscenes import convert, main, official_validation, split_of, stream_list, yaw
from data.dataset import check_images
from data.example import prompt_text
from data.files import load_examples

ROOT = Path(__file__).resolve().parents[3]
VERSION = "v1.0-mini"
CHANNELS = {"CAM_FRONT": 12, "CAM_BACK": 12, "LIDAR_TOP": 20}                   # rows per second
START = 1532402927612460                                                        # microseconds, as in the data set


def token(*parts):
    return f"{random.Random(repr(parts)).getrandbits(128):032x}"


def driven(speed, acceleration, radius, t):
    """Length after t seconds and the pose there, first along the map's direction 0.5 rad."""
    held = min(t, -speed / acceleration) if acceleration < 0 else t
    length = speed * held + acceleration * held ** 2 / 2
    angle = length / radius if radius else 0.0
    x, y = (radius * math.sin(angle), radius * (1 - math.cos(angle))) if radius else (length, 0.0)
    c, s = math.cos(0.5), math.sin(0.5)
    return 410.0 + c * x - s * y, 1180.0 + s * x + c * y, 0.5 + angle


class Tables:
    """Rows of each table, filled scene by scene."""

    def __init__(self):
        self.rows = {name: [] for name in ("scene", "log", "sample", "sample_data", "ego_pose", "sensor",
                                           "calibrated_sensor", "map", "instance", "sample_annotation")}
        self.rows["log"] = [{"token": token("log"), "logfile": "n015-2018-07-24-11-22-45+0800", "vehicle": "n015",
                             "date_captured": "2018-07-24", "location": "singapore-onenorth"}]
        for channel in CHANNELS:
            self.rows["sensor"].append({"token": token("sensor", channel), "channel": channel, "modality": "camera"})
            self.rows["calibrated_sensor"].append(
                {"token": token("calibrated", channel), "sensor_token": token("sensor", channel),
                 "translation": [1.7, 0.0, 1.5], "rotation": [0.5, -0.5, 0.5, -0.5], "camera_intrinsic": []})

    def add_scene(self, name, speed, acceleration=0.0, radius=0.0, seconds=8.0):
        samples = [token(name, "sample", index) for index in range(int(seconds * 2) + 1)]
        self.rows["scene"].append({"token": token(name), "log_token": token("log"), "nbr_samples": len(samples),
                                   "first_sample_token": samples[0], "last_sample_token": samples[-1], "name": name,
                                   "description": "Driving, \"quoted\", [brackets] {braces}"})
        for index, sample in enumerate(samples):
            self.rows["sample"].append({"token": sample, "timestamp": START + index * 500_000, "prev": "", "next": "",
                                        "scene_token": token(name)})
        for channel, rate in CHANNELS.items():
            for frame in range(int(seconds * rate) + 1):
                t = frame / rate
                self.add_frame(name, channel, t, (t * 2).is_integer(), samples[math.ceil(t * 2 - 1e-9)],
                               driven(speed, acceleration, radius, t))

    def add_frame(self, name, channel, t, is_key, sample, pose):
        stamp, key = START + round(t * 1e6), token(name, channel, t)
        folder = "samples" if is_key else "sweeps"
        file = f"{folder}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{name}-{stamp}.jpg"
        self.rows["sample_data"].append(
            {"token": key, "sample_token": sample, "ego_pose_token": key, "timestamp": stamp, "fileformat": "jpg",
             "calibrated_sensor_token": token("calibrated", channel), "is_key_frame": is_key, "height": 900,
             "width": 1600, "filename": file, "prev": "", "next": ""})
        x, y, heading = pose
        self.rows["ego_pose"].append(
            {"token": key, "timestamp": stamp, "translation": [x, y, 0.0],
             "rotation": [math.cos(heading / 2), 0.0, 0.0, math.sin(heading / 2)]})

    def write(self, root):
        """Tables in random order of rows, indented as the published ones; keyframe pictures of the front camera."""
        (root / VERSION).mkdir(parents=True, exist_ok=True)
        for name, rows in self.rows.items():
            shuffled = rows[:] if name == "scene" else random.Random(0).sample(rows, len(rows))
            (root / VERSION / f"{name}.json").write_text(json.dumps(shuffled, indent=0))
        for row in self.rows["sample_data"]:
            if row["filename"].startswith("samples/CAM_FRONT/"):
                (root / row["filename"]).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 9)).save(root / row["filename"])


def small_tables():
    tables = Tables()
    tables.add_scene("scene-0061", speed=10.0)                                  # 8 s: 11 of 17 keyframes have 3 s left
    tables.add_scene("scene-0103", speed=8.0, acceleration=-1.0)
    tables.add_scene("scene-0655", speed=5.0, radius=-12.0, seconds=5.0)
    return tables


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("nuscenes")
    small_tables().write(root)
    return root


@pytest.fixture(scope="module")
def examples(root):
    return {example.id: example for example in convert(root, VERSION)[0]}


# ---------------------------------------------------------------- what is written

def test_every_keyframe_with_three_seconds_ahead(examples):
    # 8 s: keyframes 0 to 10 (5.0 s); 5 s: 0 to 4. Sweeps and other cameras are no examples.
    names = [f"scene-{scene}-{index:03d}" for scene, count in (("0061", 11), ("0103", 11), ("0655", 5))
             for index in range(count)]
    assert list(examples) == names


def test_left_out_keyframes_are_counted(root):
    assert convert(root, VERSION)[1] == {"the scene ends within 3 s": 6 + 6 + 6}


def test_labels_speeds_and_routes(examples):
    steady, braking, turning = (examples[f"scene-{scene}-002"] for scene in ("0061", "0103", "0655"))   # t = 1 s
    assert (str(steady.decision), steady.speed) == ("KEEP, STRAIGHT", pytest.approx(10.0, abs=0.01))
    assert (str(braking.decision), braking.speed) == ("DECELERATE, STRAIGHT", pytest.approx(7.0, abs=0.01))
    assert (str(turning.decision), turning.speed) == ("KEEP, RIGHT_TURN", pytest.approx(5.0, abs=0.05))
    assert str(examples["scene-0103-010"].decision) == "STOP, STRAIGHT"         # 3 m/s at 5 s, standing at 8 s
    assert steady.navigation == {"100m": "Straight"} and turning.navigation == {"100m": "Turn right"}
    assert "sample" not in turning.factors                  # it would be a factor of one example
    assert turning.factors["ambiguous"] is False and turning.factors["location"] == "singapore-onenorth"
    assert turning.factors["heading_change"] == pytest.approx(-71.6, abs=0.5)   # 15 m / 12 m


def test_way_points_in_the_car_s_frame(examples):
    # at 10 m/s straight on: 5 m per half second, whatever the direction on the map
    assert examples["scene-0061-002"].trajectory == tuple((5.0 * k, 0.0) for k in range(1, 9))
    # 5 m/s on a circle of 12 m to the right: after 4 s 20 / 12 rad, x = 12 sin, y = -12 (1 - cos) = 11.945, -13.149
    end = examples["scene-0655-001"].trajectory[-1]
    assert end == (pytest.approx(11.945, abs=0.01), pytest.approx(-13.149, abs=0.01))
    # braking from 7 m/s at 1 m/s^2: 7 t - t^2 / 2, 20 m after 4 s
    assert [examples["scene-0103-002"].trajectory[k] for k in (0, 7)] == [
        (pytest.approx(3.375, abs=0.002), 0.0), (pytest.approx(20.0, abs=0.002), 0.0)]


def test_no_way_points_where_the_scene_ends_within_four_seconds(examples):
    # 8 s: keyframes 9 and 10, at 4.5 and 5.0 s, are labelled by 3 s and have less than 4 s ahead; 5 s: 3 and 4
    short = [name for name, example in examples.items() if example.trajectory is None]
    assert short == ["scene-0061-009", "scene-0061-010", "scene-0103-009", "scene-0103-010", "scene-0655-003",
                     "scene-0655-004"]


def test_pictures_are_the_keyframe_s_own(examples, root):
    example = examples["scene-0061-003"]                                        # 1.5 s after the start
    assert example.image == str(root / "samples/CAM_FRONT" / (
        f"n015-2018-07-24-11-22-45+0800__CAM_FRONT__scene-0061-{START + 1_500_000}.jpg"))
    check_images(list(examples.values()))


def test_splits_are_whole_scenes(examples):
    assert {example.split for name, example in examples.items() if name.startswith("scene-0103")} == {"test"}
    assert {example.split for name, example in examples.items() if name.startswith("scene-0061")} == {"train"}


def test_official_splits():
    names = official_validation()
    assert len(names) == 150
    assert {"scene-0003", "scene-0553", "scene-0796", "scene-0916", "scene-1073"} <= names
    assert not {"scene-0061", "scene-0918", "scene-0655", "scene-1077"} & names
    assert split_of("scene-0061", "v1.0-test") == "test"
    shares = [split_of(f"scene-{number:04d}", "v1.0-trainval") for number in range(2000, 4000)]
    assert "test" not in shares and 70 < shares.count("val") < 130              # 5 % of 2000


def test_nothing_in_the_question_comes_from_the_future(root, tmp_path):
    # the same drive up to 2 s, then a hard brake: question and speed at 2 s must be the same text
    texts = []
    for acceleration in (0.0, -3.0):
        tables = Tables()
        tables.add_scene("scene-0001", speed=9.0, seconds=6.0)
        for row in tables.rows["ego_pose"]:
            t = (row["timestamp"] - START) / 1e6 - 2.0
            if t > 0:
                x, y, _ = driven(9.0, acceleration, 0.0, t)
                row["translation"] = [x + 18 * math.cos(0.5), y + 18 * math.sin(0.5), 0.0]
        tables.write(tmp_path / str(acceleration))
        example = convert(tmp_path / str(acceleration), VERSION)[0][4]
        texts.append((prompt_text(example), example.speed))
        assert str(example.decision) == {0.0: "KEEP, STRAIGHT", -3.0: "STOP, STRAIGHT"}[acceleration]
    assert texts[0] == texts[1]


def test_navigation_styles(root, examples):
    unknown = convert(root, VERSION, "none")[0]
    assert {example.navigation for example in unknown} == {"No route is known"}
    noisy = convert(root, VERSION, "noisy")[0]
    assert noisy == convert(root, VERSION, "noisy")[0]                          # the same noise every time
    assert {example.navigation["100m"] for example in noisy} <= {"Straight", "Turn right", "Turn left"}
    with pytest.raises(ValueError, match="navigation 'map': choose one of route, noisy, none"):
        convert(root, VERSION, "map")


def test_gaps_in_the_poses_are_not_bridged(tmp_path):
    tables = Tables()
    tables.add_scene("scene-0001", speed=9.0, seconds=8.0)
    gone = {START + round(t / 12 * 1e6) for t in range(49, 66)}                 # 4.08 to 5.42 s
    tables.rows["sample_data"] = [row for row in tables.rows["sample_data"] if row["timestamp"] not in gone]
    tables.write(tmp_path)
    examples, left_out = convert(tmp_path, VERSION)
    # keyframes 4.5 and 5.0 s are gone; 1.5 to 4.0 s look across the gap (1.0 ends at 4.0, 5.5 s is the next keyframe)
    assert left_out == {"poses are missing": 6, "the scene ends within 3 s": 6}
    assert [example.extra["sample"] for example in examples] == [
        token("scene-0001", "sample", index) for index in range(3)]


def test_lane_changes_are_opt_in(tmp_path):
    tables = Tables()
    tables.add_scene("scene-0001", speed=10.0, seconds=12.0)
    for row in tables.rows["ego_pose"]:
        u = min(max(((row["timestamp"] - START) / 1e6 - 4) / 4, 0), 1)
        aside = 3.5 * (10 * u ** 3 - 15 * u ** 4 + 6 * u ** 5)
        x, y, _ = row["translation"]
        row["translation"] = [x - math.sin(0.5) * aside, y + math.cos(0.5) * aside, 0.0]
        slope = 0.5 + math.atan2(3.5 * 30 * (u ** 2 - 2 * u ** 3 + u ** 4) / 4, 10)
        row["rotation"] = [math.cos(slope / 2), 0.0, 0.0, math.sin(slope / 2)]
    tables.write(tmp_path)
    assert {example.decision.path for example in convert(tmp_path, VERSION)[0]} == {"STRAIGHT"}
    changed = convert(tmp_path, VERSION, with_changes=True)[0]
    assert changed[8].decision.path == "LEFT_CHANGE"                            # 4 s
    assert changed[0].decision.path == "STRAIGHT"


# ---------------------------------------------------------------- several cameras

def test_cameras_add_pictures_in_their_order_and_change_no_label(root, examples, tmp_path):
    several = {example.id: example for example in convert(root, VERSION, cameras=("CAM_BACK", "CAM_FRONT"))[0]}
    for name, example in several.items():
        assert replace(example, image=example.images[1], images=None, cameras=None) == examples[name]
    example = several["scene-0061-003"]
    assert example.cameras == ("back", "front") and example.images[0] == str(root / "samples/CAM_BACK" / (
        f"n015-2018-07-24-11-22-45+0800__CAM_BACK__scene-0061-{START + 1_500_000}.jpg"))
    assert prompt_text(example).startswith("The pictures show, in this order: back, front. You are an expert")
    main(["--root", str(root), "--version", VERSION, "--output", str(tmp_path / "some.jsonl"), "--cameras",
          "CAM_FRONT,CAM_BACK"])
    read = load_examples(tmp_path / "some.jsonl", root)
    assert [one.cameras for one in read] == [("front", "back")] * 27
    assert [Path(picture).parent.name for picture in read[0].images] == ["CAM_FRONT", "CAM_BACK"]


def test_a_camera_that_is_not_there(root, tmp_path):
    with pytest.raises(ValueError, match="no camera 'CAM_TOP'; --cameras may name CAM_BACK, CAM_FRONT"):
        convert(root, VERSION, cameras=("CAM_FRONT", "CAM_TOP"))
    tables = small_tables()
    gone = token("scene-0061", "CAM_BACK", 1.5)
    tables.rows["sample_data"] = [row for row in tables.rows["sample_data"] if row["token"] != gone]
    tables.write(tmp_path)
    found, left_out = convert(tmp_path, VERSION, cameras=("CAM_FRONT", "CAM_BACK"))
    assert left_out["a camera has no picture"] == 1 and "scene-0061-003" not in [example.id for example in found]


# ---------------------------------------------------------------- the command

def test_command_writes_a_file_that_loads(root, tmp_path):
    output = tmp_path / "some.jsonl"
    done = subprocess.run([sys.executable, "-m", "data.nuscenes", "--root", str(root), "--version", VERSION,
                           "--output", str(output)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert "wrote 27 examples" in done.stderr and "11 test, 16 train" in done.stderr
    assert "left out 18 keyframes: the scene ends within 3 s" in done.stderr
    assert "6 examples have no way-points: the scene ends within 4 s" in done.stderr
    read = load_examples(output, root)
    assert len(read) == 27 and "Your current speed is 10.0m/s, the navigation command is '{'100m': 'Straight'}'" in (
        prompt_text(read[0]))
    assert all(os.path.isfile(example.image) for example in read)


def test_missing_pictures_are_told_and_may_be_skipped(tmp_path, capsys):
    tables = small_tables()
    tables.write(tmp_path)
    for file in (tmp_path / "samples/CAM_FRONT").glob("*scene-0103-*"):
        file.unlink()
    flags = ["--root", str(tmp_path), "--version", VERSION, "--output", str(tmp_path / "some.jsonl")]
    main(flags)
    assert "11 pictures do not exist under" in capsys.readouterr().err
    assert len(load_examples(tmp_path / "some.jsonl")) == 27
    flags[-1] = str(tmp_path / "new/some.jsonl")            # a folder that does not exist is made
    main([*flags, "--skip-missing"])
    assert "left out 11 keyframes: the picture is missing" in capsys.readouterr().err
    assert len(load_examples(tmp_path / "new/some.jsonl", tmp_path)) == 16
    for file in (tmp_path / "samples/CAM_FRONT").iterdir():
        file.unlink()
    with pytest.raises(SystemExit, match="no example has its picture under"):
        main([*flags[:-1], str(tmp_path / "none.jsonl"), "--skip-missing"])
    assert not (tmp_path / "none.jsonl").exists()


def test_a_slash_behind_the_version_changes_nothing(tmp_path, monkeypatch):
    for version in ("v1.0-test", "v1.0-test/"):
        monkeypatch.setattr(nuscenes, "convert", lambda root, version, *_: pytest.fail(version)
                            if version != "v1.0-test" else ([], Counter()))
        with pytest.raises(SystemExit, match="no example has its picture"):
            main(["--root", str(tmp_path), "--version", version, "--output", str(tmp_path / "some.jsonl")])


def test_faults_end_the_command_with_a_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--root", str(tmp_path), "--version", VERSION, "--output", str(tmp_path / "some.jsonl")])
    assert "scene.json: no such table; give --root the folder that holds v1.0-mini/" in str(end.value)
    assert not (tmp_path / "some.jsonl").exists()


@pytest.mark.parametrize("table, change, told", [
    ("ego_pose", lambda rows: rows[40:], r"ego_pose.json: \d+ poses that sample_data names are missing"),
    ("sample", lambda rows: rows[:1], "sample_token '.*' is not in sample.json"),
    ("sensor", lambda rows: [row | {"channel": "CAM"} for row in rows], "sensor.json: no channel CAM_FRONT"),
    ("scene", lambda rows: [{"token": "a"}], "scene.json: row 0 has no field 'name'"),
    ("log", lambda rows: [1], "log.json: row 0 has no field 'token'"),
    ("sample_data", lambda rows: [row | {"is_key_frame": str(row["is_key_frame"])} for row in rows],
     "sample_data.json: row 0: field 'is_key_frame' must be true or false, got '"),
    ("sample_data", lambda rows: [row | {"timestamp": None} for row in rows], "'timestamp' must be a number, in micro"),
    ("ego_pose", lambda rows: [row | {"translation": [1.0]} for row in rows], "'translation' must be three numbers"),
    ("ego_pose", lambda rows: [row | {"rotation": [0, 0, 0, 0]} for row in rows], "must be a unit quaternion"),
    ("ego_pose", lambda rows: [row | {"rotation": row["rotation"][1:] + row["rotation"][:1]} for row in rows],
     r"in (\d+) of \1 steps the moving car points away from where it goes; "
     "write the field 'rotation' as a quaternion .w, x, y, z."),
    ("scene", lambda rows: [row | {"name": "scene-1"} for row in rows], "3 scenes have the name 'scene-1'"),
    ("sample_data", lambda rows: [row for row in rows if not row["is_key_frame"]], "no keyframe of CAM_FRONT has 3.0"),
])
def test_faulty_tables(tmp_path, table, change, told):
    tables = small_tables()
    tables.rows[table] = change(tables.rows[table])
    tables.write(tmp_path)
    with pytest.raises(ValueError, match=told):
        convert(tmp_path, VERSION)


# ---------------------------------------------------------------- reading as a stream

class Pieces:
    """A file that is read in pieces of `size` characters and counts them."""

    def __init__(self, text, size):
        self.blocks, self.reads = iter([text[start:start + size] for start in range(0, len(text), size)]), 0

    def read(self, _):
        self.reads += 1
        return next(self.blocks, "")


@pytest.mark.parametrize("size", [2, 3, 7, 1000])
def test_stream_at_any_block_size(size):
    text = ' [\n{"a": "]},{\\" \\u00fc", "b": [1.5, -2e3]} ,{"a": {"c": []}, "b": null}\n,\n{}]\n'
    assert list(stream_list(Pieces(text, size), Path("t.json"))) == [
        {"a": ']},{" ü', "b": [1.5, -2000.0]}, {"a": {"c": []}, "b": None}, {}]
    assert list(stream_list(Pieces("[]", 2), Path("t.json"))) == []


@pytest.mark.parametrize("text, told", [
    ('{"a": 1}', "t.json: not a JSON list"), ("", "t.json: not a JSON list"),
    ('[{"a": 1}, {"a": 2}', "t.json: row 2 is cut short"), ('[{"a": 1}, {"a": }]', "t.json: row 1 is cut short"),
    ("[", "t.json: row 0 is cut short")])
def test_stream_faults(text, told):
    with pytest.raises(ValueError, match=told):
        list(stream_list(Pieces(text, 1000), Path("t.json")))


def test_a_broken_row_does_not_pull_in_the_whole_file(monkeypatch):
    monkeypatch.setattr(nuscenes, "BLOCK", 50)
    file = Pieces("[" + '{"a": 1},' * 5 + '{"a" 1},' * 1000, 50)
    with pytest.raises(ValueError, match="row 5 is cut short"):
        list(stream_list(file, Path("t.json")))
    assert file.reads <= 4


def test_rows_are_dropped_as_they_are_read():
    # 3,000 rows in pieces of 1,000 characters: the first row is there after one piece, not after the file
    file = Pieces(json.dumps([{"token": str(index)} for index in range(3000)]), 1000)
    rows = stream_list(file, Path("t.json"))
    assert next(rows) == {"token": "0"} and file.reads == 1
    assert [row["token"] for row in rows] == [str(index) for index in range(1, 3000)] and file.reads > 40


def test_yaw_of_quaternions():
    half = math.sqrt(0.5)
    assert yaw([1, 0, 0, 0]) == 0
    assert yaw([half, 0, 0, half]) == pytest.approx(math.pi / 2)
    assert yaw([half, 0, 0, -half]) == pytest.approx(-math.pi / 2)
    assert yaw([math.cos(1.5), 0, 0, math.sin(1.5)]) == pytest.approx(3.0)
    # 30 degrees of yaw after 60 of pitch: (cos 15, 0, 0, sin 15) times (cos 30, 0, sin 30, 0)
    assert yaw([0.836516, -0.129410, 0.482963, 0.224144]) == pytest.approx(math.pi / 6, abs=1e-5)
