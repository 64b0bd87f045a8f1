"""eval.py --images: plans for pictures without labels, one JSON line per request."""

import json
import queue
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluate
from data.example import Example
from data.requests import Refused, read_requests, requests_in
from grpo.engine.checkpoint import save_policy
from grpo.engine.plans import answer_row, arriving, tell_new
from grpo.engine.prompts import PromptSettings
from grpo.sampling import Rollout
from rewards import Decision


@pytest.fixture
def pictures(tmp_path):
    """A folder with b.png, clip/a.JPG and a note."""
    (tmp_path / "frames/clip").mkdir(parents=True)
    Image.new("RGB", (56, 28), (90, 60, 30)).save(tmp_path / "frames/b.png")
    Image.new("RGB", (56, 28), (30, 60, 90)).save(tmp_path / "frames/clip/a.JPG", "JPEG")
    (tmp_path / "frames/note.md").write_text("no picture")
    return tmp_path / "frames"


@pytest.fixture
def model(make_model, processor, tmp_path):
    save_policy(make_model(stop=0.9), processor, PromptSettings("compact", max_new_tokens=12), {}, tmp_path / "model")
    return str(tmp_path / "model")


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def asked(requests):
    return [(one.id, one.speed, one.navigation) for one in requests]


# ---------------------------------------------------------------- requests

def test_files_of_other_kinds_are_named(tmp_path):
    for name, start, told in (("a.jsonl", b"\x1f\x8b\x08", "is compressed; unpack it with `gunzip FILE`"),
                              ("a.txt", "a.png".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
                              ("b.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer")):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(ValueError, match=told):
            read_requests(tmp_path / name, 0.0, "Go straight")


def test_what_is_refused_has_the_id_that_an_answer_would_have():
    found = list(requests_in([b'{"image": "a.png", "speed": "fast"}', b"no", b"\xff"], 0.0, "Go straight"))
    assert [(type(one), one.id) for one in found] == [(Refused, f"line-{number:06d}") for number in (1, 2, 3)]


@pytest.mark.parametrize("fields", ['"ego": {"state": {"speed": 12}}', '"states": [{"speed": 12}]', '"egoVel": 12',
                                    '"pose": {"twist": {"linear": {"vx": 12}}}', '"v0": 12', '"spd": 12'])
def test_a_speed_at_any_depth_is_found(fields):
    (found,) = requests_in([f'{{"image": "a.png", {fields}}}'.encode()], 0.0, "Go straight")
    assert isinstance(found, Refused) and "is not known and 'speed' is not given" in found.fault


def test_a_note_on_a_stream_is_told_at_once_and_once(capsys):
    notes, known = Counter({"'speed' is not given": 1}), set()
    for _ in range(3):
        tell_new(notes, known)
        notes["'speed' is not given"] += 1
    assert capsys.readouterr().err == "note, from now on counted: 'speed' is not given\n"


def test_a_folder_is_searched_with_its_sub_folders(pictures):
    found = read_requests(pictures, 4.5, "{'100m': 'Straight'}")
    assert asked(found) == [("b.png", 4.5, {"100m": "Straight"}), ("clip/a.JPG", 4.5, {"100m": "Straight"})]
    assert found[1].image == str(pictures / "clip/a.JPG")
    (pictures / "clip/none").mkdir()
    with pytest.raises(ValueError, match="clip/none contains no picture .*.jpg"):
        read_requests(pictures / "clip/none", 0, "Go straight")


def test_hidden_files_are_no_pictures_and_other_endings_are_counted(model, pictures, capsys):
    for name in (".b.png", "__MACOSX/c.png", "clip/._a.JPG", ".cache/d.png", "e.jfif", "f.jpe", "clip/labels.json"):
        (pictures / name).parent.mkdir(exist_ok=True)
        (pictures / name).write_bytes((pictures / "clip/a.JPG").read_bytes())
    assert [one.id for one in read_requests(pictures, 0, "Go")] == ["b.png", "clip/a.JPG", "e.jfif", "f.jpe"]
    evaluate.main(["--model", model, "--images", str(pictures), "--device", "cpu"])
    assert (f"note: {pictures}: 2 files with other endings were left out, the first is clip/labels.json"
            in capsys.readouterr().err)
    evaluate.main(["--model", model, "--image", str(pictures), "--device", "cpu"])
    shown = capsys.readouterr()
    assert "1 files with other endings were left out, the first is note.md" in shown.err
    assert [line.rpartition("/")[2] for line in shown.out.splitlines() if line.startswith("/")] == [
        "b.png", "e.jfif", "f.jpe"]


def test_a_list_of_paths(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(pictures / "clip")
    (tmp_path / "list.txt").write_text(f"\ufeffframes/b.png\r\n\n{pictures / 'b.png'}\na.JPG\ns3://far/away.png\n")
    found = read_requests(tmp_path / "list.txt", 1.0, "Go straight")
    assert [one.id for one in found] == ["frames/b.png", str(pictures / "b.png"), "a.JPG", "s3://far/away.png"]
    assert [Path(one.image).exists() for one in found[:3]] == [True] * 3        # of the list, whole, of the folder
    assert "line 5: 's3://far/away.png' is an address" in found[3].fault


def test_records_override_the_flags_and_labels_are_ignored(pictures):
    (pictures / "asked.jsonl").write_text("\n".join(map(json.dumps, [
        {"image": "b.png"}, {"image": "b.png", "id": 7, "speed": 3, "navigation": "Turn left", "solution": "nonsense"},
        {"image": "b.png", "prompt": "What now?", "split": "test", "weather": "rain"}, {"speed": 2, "id": "empty"}])))
    found = read_requests(pictures / "asked.jsonl", 9.0, "Go straight")
    assert asked(found[:3]) == [("asked-000000", 9.0, "Go straight"), ("7", 3.0, "Turn left"),
                                ("asked-000002", None, None)]
    assert found[2].prompt == "What now?" and found[2].extra == {"weather": "rain"}
    assert found[3].id == "empty" and "line 4: fields 'image' and 'scene': both are missing" in found[3].fault


def test_records_may_not_name_pictures_elsewhere(pictures, tmp_path):
    (pictures / "clip/asked.jsonl").write_text('{"image": "../b.png"}\n')
    (found,) = read_requests(pictures / "clip/asked.jsonl", 0, "Go straight")
    assert isinstance(found, Refused) and "--image-root DIR" in found.fault
    (found,) = read_requests(pictures / "clip/asked.jsonl", 0, "Go straight", root=str(tmp_path))
    assert found.image == str(pictures / "b.png")


@pytest.mark.parametrize(("fields", "words"), [
    ('"velocity": 13.9, "navigation": "Left"', "field 'velocity' is not known and 'speed' is not given; call it "
                                               "'speed', in m/s"),
    ('"v": 13.9', "field 'v' is not known"), ('"speed_kmh": 50', "field 'speed_kmh' is not known"),
    ('"speed": 3, "high_level_command": "Left"', "field 'high_level_command' is not known and 'navigation' is not"),
    ('"speed": 3, "instruction": "Left"', "call it 'navigation'"),
    *((f'"{name}": 30', f"field '{name}' is not known and 'speed' is not given") for name in (
        "vel", "ego_vel", "kmh", "mph", "ego_v", "v_ego", "vx")),
    *((f'"{name}": "Left"', f"field '{name}' is not known and 'navigation' is not given") for name in (
        "maneuver", "manoeuvre", "direction", "driving_direction", "turn", "goal", "text", "cmd", "nextTurn")),
    ('"ego": {"speed": 30}', "field 'ego.speed' is not known and 'speed' is not given")])
def test_a_flag_does_not_stand_in_for_a_field_of_another_name(pictures, fields, words):
    (pictures / "asked.jsonl").write_text(f'{{"image": "b.png", {fields}}}\n')
    (found,) = read_requests(pictures / "asked.jsonl", 0.0, "Go straight")
    assert isinstance(found, Refused) and words in found.fault
    (pictures / "asked.jsonl").write_text('{"image": "b.png", "speed": 3, "navigation": "Left", "velocity": 3, '
                                          '"weather": "rain"}\n{"image": "b.png", "weather": "rain"}\n')
    assert not any(isinstance(one, Refused) for one in read_requests(pictures / "asked.jsonl", 0.0, "Go straight"))


@pytest.mark.parametrize("about", ['"speed_limit_mps": 13.9', '"route_id": 3', '"max_speed": 30', '"unavailable": 0',
                                   '"speed_unit": "m/s"', '"instructionId": 4', '"wind_direction": 3', '"level": 2',
                                   '"turn_signal": 0', '"context": "x"', '"limits": {"speed": 30}', '"version": 2'])
def test_what_is_about_a_field_is_not_the_field(pictures, about):
    (pictures / "asked.jsonl").write_text(f'{{"image": "b.png", {about}}}\n')
    (found,) = read_requests(pictures / "asked.jsonl", 3.0, "{'200m': 'Turn left', '100m': 'Straight'}")
    assert (found.speed, found.navigation) == (3.0, {"100m": "Straight", "200m": "Turn left"})


def test_what_was_assumed_is_counted(model, pictures, capsys):
    (pictures / "asked.jsonl").write_text('{"image": "b.png", "speed": -0.1, "weather": "rain"}\n{"image": "b.png"}\n')
    evaluate.main(["--model", model, "--images", str(pictures / "asked.jsonl"), "--device", "cpu", "--navigation", "L"])
    told = capsys.readouterr().err
    assert "note: 2 of 2 requests: 'navigation' is not given; --navigation L was assumed" in told
    assert "note: 1 of 2 requests: 'speed' is not given; --speed 0.0 was assumed" in told
    assert "note: 1 of 2 requests: a speed from -0.5 to 0 m/s was read as 0" in told
    assert "note: 1 of 2 requests: field 'weather' is unknown and not used" in told


def test_notes_on_a_stream_are_counted():
    notes = Counter()
    list(requests_in([b'{"scene": 1, "speed": 2}\n', b'{"scene": 2, "prompt": "Plan?"}\n'], 2.0, "Left", notes=notes))
    assert notes == {"'navigation' is not given; --navigation Left was assumed": 1}


def test_a_stream_of_records(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    found = list(requests_in([b'{"image": "b.png"}\n', b"\n", b'{"image": "\xff"}\n', b"half", b"[1]\n"], 2.0, "Left"))
    assert asked(found[:1]) == [("line-000001", 2.0, "Left")] and found[0].image == str(pictures / "b.png")
    for one, words in zip(found[1:], ("line 3: not UTF-8", "line 4: not valid JSON", "line 5: expected an object"),
                          strict=True):
        assert one.fault.startswith(f"standard input: {words}")


@pytest.mark.parametrize(("name", "words"), [
    ("frames/b.png", "b.png is not a folder, a .txt list or a .json or .jsonl file of records; for one"),
    ("frames/gone", "gone does not exist; name a folder, a .txt list of paths"),
])
def test_other_places_are_refused(pictures, name, words):
    with pytest.raises((ValueError, OSError), match=words):
        read_requests(pictures.parent / name, 0, "Go straight")


# ---------------------------------------------------------------- answers

def rollout(*answers):
    """Answers as (text, log-probabilities of its tokens)."""
    width = max(len(logprobs) for _, logprobs in answers)
    padded = torch.tensor([[*logprobs, *[-9.0] * (width - len(logprobs))] for _, logprobs in answers])
    mask = torch.tensor([[n < len(logprobs) for n in range(width)] for _, logprobs in answers])
    return Rollout(torch.zeros_like(mask, dtype=torch.long), mask, padded, [text for text, _ in answers],
                   torch.zeros(len(answers), dtype=torch.bool))


KEEP, STOP = "<answer> KEEP, STRAIGHT </answer>", "<think> red </think> <answer> STOP, STRAIGHT </answer>"
ONE = Example(id="one", image="x.png", speed=2.0, navigation="Go", decision=Decision("KEEP", "STRAIGHT"))


def test_a_line_by_hand():
    row = answer_row(ONE, rollout((KEEP, [-0.25]), (STOP, [-1.0, -0.5]), (STOP, [-0.5, -0.25]), ("hm", [-0.125])), 0.5)
    assert row == {"id": "one", "images": ["x.png"], "speed": 2.0, "navigation": "Go", "plan": "STOP, STRAIGHT",
                   "plans": {"STOP, STRAIGHT": 0.5, "KEEP, STRAIGHT": 0.25}, "invalid": 0.25, "reason": "red",
                   "text": STOP, "logprob": -0.75, "seconds": 0.5}


def test_a_tie_goes_to_the_likelier_sample_and_invalid_answers_never_win():
    assert answer_row(ONE, rollout((KEEP, [-0.5, -0.25]), (STOP, [-0.5])), 0)["plan"] == "STOP, STRAIGHT"
    assert answer_row(ONE, rollout(("hm", [-0.1]), ("hm", [-0.1]), (KEEP, [-5.0])), 0)["plan"] == "KEEP, STRAIGHT"
    none = answer_row(ONE, rollout(("hm", [-2.0]), ("what", [-0.5])), 0)
    assert (none["plan"], none["plans"], none["invalid"], none["text"]) == (None, {}, 1.0, "what")


def test_arriving_never_waits_for_a_full_list():
    inbox = queue.SimpleQueue()
    lists = arriving(iter(inbox.get, None), most=2)
    inbox.put(1)
    assert next(lists) == [1]                                   # nothing else has come
    for item in (2, 3, 4, None):
        inbox.put(item)
    time.sleep(0.2)                                             # the thread has read what fits
    assert list(lists) == [[2, 3], [4]]


def test_a_fault_while_reading_reaches_who_asks():
    def items():
        yield 1
        raise OverflowError("too large")
    lists = arriving(items(), most=1)
    assert next(lists) == [1]
    with pytest.raises(OverflowError, match="too large"):
        list(lists)


# ---------------------------------------------------------------- the command

def test_the_batch_size_changes_no_line(model, pictures, tmp_path, capsys):
    (pictures / "asked.jsonl").write_text("\n".join(
        json.dumps({"image": ("b.png", "clip/a.JPG")[i % 2], "speed": i}) for i in range(5)))
    found = {}
    for size in ("1", "2", "5"):
        evaluate.main(["--model", model, "--images", str(pictures / "asked.jsonl"), "--samples", "3", "--device", "cpu",
                       "--batch-size", size, "--json", str(tmp_path / size)])
        found[size] = [{**row, "seconds": 0} for row in lines((tmp_path / size).read_text())]
        assert min(row["seconds"] for row in lines((tmp_path / size).read_text())) > 0
    assert found["1"] == found["2"] == found["5"] and [row["speed"] for row in found["1"]] == [0, 1, 2, 3, 4]
    assert len({row["text"] for row in found["1"]}) > 2
    assert capsys.readouterr().out == ""


def test_faults_stop_or_get_a_line_of_their_own(model, pictures, capsys):
    (pictures / "torn.png").write_bytes((pictures / "b.png").read_bytes()[:40])
    flags = ["--model", model, "--images", str(pictures), "--device", "cpu"]
    with pytest.raises(SystemExit, match="torn.png cannot be read .*; --on-bad-data skip plans for the others"):
        evaluate.main(flags)
    capsys.readouterr()
    evaluate.main([*flags, "--on-bad-data", "skip"])
    shown = capsys.readouterr()
    rows = lines(shown.out)
    assert [row["id"] for row in rows] == ["b.png", "clip/a.JPG", "torn.png"]
    assert ["fault" in row for row in rows] == [False, False, True] and set(rows[2]) == {"id", "fault"}
    assert "planned 2 requests" in shown.err and "1 skipped; written to standard output" in shown.err


def test_nothing_of_the_users_is_replaced_unasked(model, pictures, tmp_path):
    out, flags = tmp_path / "out/plans.jsonl", ["--model", model, "--device", "cpu", "--images", str(pictures)]
    evaluate.main([*flags, "--json", str(out)])
    before = out.read_text()
    with pytest.raises(SystemExit, match="plans.jsonl exists; name another file, or replace it with --overwrite"):
        evaluate.main([*flags, "--json", str(out)])
    with pytest.raises(SystemExit, match="is a folder; name a file"):
        evaluate.main([*flags, "--json", str(pictures)])
    with pytest.raises(SystemExit, match="is the file that --images reads"):
        evaluate.main([*flags[:4], "--images", str(out), "--json", str(out), "--overwrite"])
    assert out.read_text() == before
    evaluate.main([*flags, "--json", str(out), "--overwrite", "--seed", "1"])
    assert len(lines(out.read_text())) == 2


def test_a_live_planner_answers_each_line_as_it_comes(model, pictures):
    command = [sys.executable, Path(evaluate.__file__), "--model", model, "--images", "-", "--device", "cpu",
               "--on-bad-data", "skip", "--threads", "1"]
    with subprocess.Popen(command, cwd=pictures, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as planner:
        for name, field in (("b.png", "plan"), ("gone.png", "fault")):
            planner.stdin.write(json.dumps({"image": name, "id": "\u00fc"}).encode() + b"\n")
            planner.stdin.flush()
            row = json.loads(planner.stdout.readline())         # would wait for ever if a full batch were needed
            assert field in row and row["id"] == "\u00fc"
        planner.stdin.close()
        assert planner.wait(60) == 0


@pytest.mark.parametrize("flags", [["--image", "x"], ["--trajectories", "2"], ["--resume"]])
def test_flags_that_do_not_belong(flags):
    with pytest.raises(SystemExit, match="left out with"):
        evaluate.main(["--images", "somewhere", *flags])
    with pytest.raises(SystemExit, match="json .*left out without --images"):
        evaluate.main(["--json", "out.jsonl"])
