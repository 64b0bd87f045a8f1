"""The datasheet's counts and lengths, worked out by hand, and the commands that print it."""
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data import Example
from data.datasheet import (
    broken_images,
    datasheet,
    doubts,
    imbalance,
    joint_table,
    listing,
    main,
    mirrored,
    offsets,
    other_times,
    quantiles,
    repetitions,
    too_fast,
    turned_axes,
)
from rewards import Decision
from rewards.actions import ALPHADRIVE

ROOT = Path(__file__).resolve().parents[2]


def example(name, plan, **changes):
    speed, path = plan.split(", ")
    facts = {"scene": 1, "speed": 4.0, "navigation": "Go straight"} | changes
    return Example(id=name, decision=Decision(speed, path), **facts)


FOUR = [
    example("a", "KEEP, STRAIGHT", reasoning="The road is clear.", split="train", speed=2.0,
            acceptable=(Decision("KEEP", "STRAIGHT"),)),
    example("b", "KEEP, STRAIGHT", reasoning="Clear.", split="train", speed=8.0, factors={"ambiguous": True},
            acceptable=tuple(Decision(speed, "STRAIGHT") for speed in ("KEEP", "STOP", "ACCELERATE", "DECELERATE"))),
    example("c", "STOP, LEFT_TURN", split="val", navigation={"100m": "Turn left"}, factors={"ambiguous": False}),
    example("d", "KEEP, LEFT_TURN", split="val", scene=None, image="/none/x.png"),
]


def test_joint_table():
    assert joint_table(FOUR) == [
        "| speed \\ path | STRAIGHT | RIGHT_CHANGE | LEFT_CHANGE | RIGHT_TURN | LEFT_TURN | all |",
        "|---|---:|---:|---:|---:|---:|---:|",
        "| KEEP | 2 | 0 | 0 | 0 | 1 | 3 (75.0 %) |",
        "| ACCELERATE | 0 | 0 | 0 | 0 | 0 | 0 (0.0 %) |",
        "| DECELERATE | 0 | 0 | 0 | 0 | 0 | 0 (0.0 %) |",
        "| STOP | 0 | 0 | 0 | 0 | 1 | 1 (25.0 %) |",
        "| all | 2 (50.0 %) | 0 (0.0 %) | 0 (0.0 %) | 0 (0.0 %) | 2 (50.0 %) | 4 |"]


def test_quantiles():
    # speeds 2, 4, 4, 8; reasons of 4 words and of 1
    rows = quantiles(FOUR)
    assert rows[2] == "| speed, m/s | 4 | 2 | 4 | 8 |"
    assert rows[4] == "| reasoning, words | 2 | 1 | 2.5 | 4 |"
    assert rows[3].startswith("| prompt, words | 4 |")
    longer = quantiles(FOUR, replace(ALPHADRIVE, prompt=ALPHADRIVE.prompt + " Be brief."))[3]
    assert int(longer.split("|")[3]) == int(rows[3].split("|")[3]) + 2          # the shortest prompt


def test_overview():
    lines = datasheet(FOUR).splitlines()
    assert lines[:7] == [
        "4 examples",
        "split: train 2 (50.0 %); val 2 (50.0 %)",
        "source: 1 pictures (1 different files), 3 built-in scenes",
        "navigation: free text 3 (75.0 %); 100m: Turn left 1 (25.0 %)",
        "with reasoning: 2 (50.0 %)",
        "acceptable plans: 1 1 (50.0 %); 3 or more 1 (50.0 %)",
        "near a threshold of the label rule: 1 (50.0 %)"]


def test_way_points():
    # 3 m ahead and 4 m left at once, then standing: 5 m
    two = [example("a", "KEEP, STRAIGHT", trajectory=((3.0, 4.0),) * 8), example("b", "KEEP, STRAIGHT")]
    lines = datasheet(two).splitlines()
    assert "with way-points: 1 (50.0 %)" in lines and "| way driven in 4 s, m | 1 | 5 | 5 | 5 |" in lines


def test_what_is_absent_has_no_line():
    text = datasheet([example("a", "KEEP, STRAIGHT", prompt="What now?", speed=None, navigation=None)])
    assert "navigation: inside the prompt 1 (100.0 %)" in text
    assert not any(word in text for word in ("acceptable", "threshold", "speed, m/s", "reasoning, words", "way"))


def test_long_listings_are_cut():
    counts = {f"form {number}": 1 for number in range(15)}
    assert listing(counts | {"usual": 5}).endswith("usual 5 (25.0 %); others 4 (20.0 %)")


def test_broken_pictures_are_found_once_each(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-700])
    (tmp_path / "text.png").write_text("no picture")
    names = ["good.png", "cut.jpg", "text.png", "gone.png", "cut.jpg", "good.png"]
    several = [example(f"e{number}", "KEEP, STRAIGHT", scene=None, image=str(tmp_path / name))
               for number, name in enumerate(names)]
    messages = broken_images([*several, FOUR[0]])
    assert [next(name for name in set(names) if name in message) for message in messages] == [
        "cut.jpg", "text.png", "gone.png"]
    assert "does not exist" in messages[2]


# ---------------------------------------------------------------- repeated pictures

def photo(name, image, plan="KEEP, STRAIGHT", **changes):
    return example(name, plan, scene=None, image=str(image), **changes)


def test_repeated_pictures_by_hand(tmp_path):
    for name, colour in (("a.png", 10), ("copy.png", 10), ("other.png", 99)):
        Image.new("RGB", (8, 8 + colour), (colour, 0, 0)).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to("a.png")
    six = [photo("a", tmp_path / "a.png", split="train"), photo("b", tmp_path / "copy.png", split="val"),
           photo("c", tmp_path / "link.png", "STOP, STRAIGHT", split="train"),
           photo("d", tmp_path / "a.png", "STOP, LEFT_TURN", split="train", speed=9.0),     # another question
           photo("e", tmp_path / "other.png", split="val"), example("f", "KEEP, STRAIGHT", scene=3, split="test")]
    assert repetitions(six) == [
        "pictures used more than once: 4 (66.7 %), first 'a' and 'b'",
        "same picture in more than one split: 4 (66.7 %), first 'a' (train) and 'b' (val)",
        "same picture and question, different decisions: 3 (50.0 %), first 'a' (KEEP, STRAIGHT) and 'c' (STOP, "
        "STRAIGHT)"]
    # without opening files the copy is another picture, but the link is not
    assert repetitions(six, open_files=False) == [
        "pictures used more than once: 3 (50.0 %), first 'a' and 'c'",
        "same picture and question, different decisions: 2 (33.3 %), first 'a' (KEEP, STRAIGHT) and 'c' (STOP, "
        "STRAIGHT)"]
    assert repetitions(six[3:]) == []


def test_a_scene_in_two_splits_is_told():
    two = [example("a", "KEEP, STRAIGHT", scene=3, split="sft"), example("b", "KEEP, STRAIGHT", scene=3, split="test")]
    assert "same picture in more than one split: 2 (100.0 %), first 'a' (sft) and 'b' (test)" in repetitions(two)
    views = [replace(one, scene=None, images=("f.png", f"{one.id}.png")) for one in two]         # one of two is shared
    assert "same picture in more than one split: 2 (100.0 %), first 'a' (sft) and 'b' (test)" in repetitions(views)


def test_a_clip_in_two_splits_is_told():
    three = [example("a", "KEEP, STRAIGHT", scene=1, split="train", factors={"scene_token": "x"}),
             example("b", "KEEP, STRAIGHT", scene=2, split="val", extra={"scene_token": "x"}),
             example("c", "KEEP, STRAIGHT", scene=3, split="val")]
    assert repetitions(three) == ["same clip in more than one split: 2 (100.0 %), first 'a' (train) and 'b' (val)"]
    assert repetitions(three[1:]) == []


@pytest.mark.parametrize(("first", "told"), [(2.0, []), (1.2, []), (0.4, ["0.2 (median)"]), (0.0, ["0 (median)"]),
                                             (4.0, ["2 (median)"])])
def test_way_points_at_other_times(first, told):
    """At 4 m/s the car is at 2 m after half a second; 0.4 m is a tenth of a second, 0 the present place."""
    driven = [example(name, "KEEP, STRAIGHT", speed=4.0, trajectory=tuple((first + i, 0.0) for i in range(8)))
              for name in "abc"]
    lines = other_times([*driven, example("d", "KEEP, STRAIGHT", speed=0.0, trajectory=((0.0, 0.0),) * 8)])
    assert len(lines) == len(told) and all(part in line for part, line in zip(told, lines, strict=True))
    assert other_times(FOUR) == []


def test_imbalance():
    assert imbalance(FOUR) == []                            # the most frequent plan has just a half
    two = [*FOUR[:2], example("c", "STOP, LEFT_TURN")]
    assert imbalance(two) == ["warning: imbalance: KEEP, STRAIGHT 2 (66.7 %); rarest STOP, LEFT_TURN 1 (33.3 %); "
                              "always answering KEEP, STRAIGHT gives that accuracy; `train.py --balance` draws every "
                              "plan equally often"]
    assert "66.7 %), the only plan" not in imbalance(two)[0] and "100.0 %), the only plan" in imbalance(FOUR[:2])[0]
    many = [example("a", plan) for plan in ["KEEP, STRAIGHT"] * 21 + ["STOP, STRAIGHT"] * 21 + ["KEEP, LEFT_TURN"]]
    assert "rarest KEEP, LEFT_TURN 1 (2.3 %)" in imbalance(many)[0] and imbalance(many[1:21] + many[22:]) == []


def speeds(*values):
    return [example(str(number), "KEEP, STRAIGHT", speed=value) for number, value in enumerate(values)]


def test_speeds_that_are_probably_in_another_unit():
    assert too_fast(speeds(0, 35, 70, None)) == [] == too_fast([])
    told = "; `speed` is in m/s: divide km/h by 3.6, and mph by 2.237"
    assert too_fast(speeds(20, 36, 50)) == ["warning: half of the speeds are 36 m/s (130 km/h) or more" + told]
    assert too_fast(speeds(20, 20, 71)) == ["warning: the highest speed is 71 m/s (256 km/h)" + told]


def driven(x, y, plan="KEEP, STRAIGHT", points=8):
    return example("a", plan, trajectory=tuple((x * step / 8, y * step / 8) for step in range(1, points + 1)))


def test_way_points_with_other_axes():
    good, swapped, back = driven(20.0, -1.0), driven(-1.0, 20.0), driven(-20.0, 1.0)
    still = driven(0.1, 0.3)                                # the noise of a car that stands
    assert turned_axes([]) == turned_axes([good, swapped, still]) == turned_axes([still] * 3) == []
    assert turned_axes([good, swapped, swapped, still]) == [
        "warning: 2 of 3 paths that are called STRAIGHT end farther to the side than ahead; way-points are [x, y], x "
        "forward and y to the left; nuScenes and others have x to the right and y forward: write [y, -x]"]
    assert turned_axes([good, back, back]) == [
        "warning: 2 of 3 driven paths end behind the car; way-points are [x, y], x forward and y to the left"]
    assert turned_axes([driven(5.0, 9.0, "KEEP, LEFT_TURN")] * 2) == []


def ways(plan, *points):
    return example("a", plan, trajectory=points)


def test_paths_on_the_other_side():
    left, right = (ways(plan, *[(9.0, y)] * 8) for plan, y in (("KEEP, LEFT_TURN", 3.0), ("KEEP, RIGHT_CHANGE", -3.0)))
    swapped = [ways("KEEP, LEFT_TURN", *[(9.0, -3.0)] * 8), ways("KEEP, RIGHT_CHANGE", *[(9.0, 3.0)] * 8)]
    near, straight = ways("KEEP, LEFT_TURN", *[(9.0, -2.0)] * 8), ways("KEEP, STRAIGHT", *[(9.0, -3.0)] * 8)
    assert mirrored([]) == mirrored([left, right, *swapped]) == mirrored([near, straight, FOUR[2]]) == []
    told = "paths that are called LEFT or RIGHT end on the other side"
    assert f"2 of 3 {told}" in mirrored([left, *swapped, near, straight])[0]
    assert "where y is to the right write [x, -y]" in mirrored([swapped[1]])[0]


def test_steps_in_place_of_places():
    """At 6 m/s, 3 m in each half second; braking at 6 m/s2 the car is at 2.25 m and stands at 3 m."""
    steps = ways("KEEP, STRAIGHT", *[(3.0, 0.1)] * 8)
    places = ways("KEEP, STRAIGHT", *[(3.0 * i, 0.0) for i in range(1, 9)])
    braking, still = ways("STOP, STRAIGHT", (2.25, 0.0), *[(3.0, 0.0)] * 7), ways("STOP, STRAIGHT", *[(0.1, 0.0)] * 8)
    assert offsets([]) == offsets([places, places, steps]) == offsets([braking] * 3) == offsets([still] * 3) == []
    assert "add up the steps" in offsets([steps, steps, places, still])[0]
    on_a_map = ways("KEEP, STRAIGHT", *[(500.0 + 3 * i, 0.0) for i in range(8)])
    assert len(doubts([on_a_map])) == 1 and "add up" not in doubts([on_a_map])[0]
    assert "add up" in doubts([replace(steps, speed=6.0)])[0]


def test_main_prints_these_warnings(tmp_path, capsys):
    main([str(write(tmp_path, GOOD | {"image": None, "scene": 1, "speed": 90, "trajectory": [[0.0, 20.0]] * 8,
                                      "decision": "KEEP, STRAIGHT"}))])
    told = capsys.readouterr().out
    assert "\nwarning: half of the speeds are 90 m/s" in told and "\nwarning: 1 of 1 paths that are called" in told


# ---------------------------------------------------------------- commands

def write(tmp_path, *records):
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


GOOD = {"id": "a", "image": "good.png", "speed": 4.2, "navigation": {"100m": "Straight"}, "decision": "STOP, STRAIGHT"}


def test_main_prints_and_succeeds(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    path = write(tmp_path, GOOD, GOOD | {"id": "b"})
    main([str(path)])
    printed = capsys.readouterr().out
    assert printed.startswith(f"# {path}\n\n2 examples\n") and "\nbroken pictures: 0\n" in printed
    assert "source: 2 pictures (1 different files), 0 built-in scenes" in printed


def test_main_fails_for_broken_pictures_and_invalid_files(tmp_path, capsys):
    path = write(tmp_path, GOOD)
    with pytest.raises(SystemExit) as end:
        main([str(path)])
    assert end.value.code == 1 and "broken pictures: 1\n- example 'a': picture" in capsys.readouterr().out
    main([str(path), "--no-pictures"])
    assert "broken pictures" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="line 1: field 'speed': expected a speed in m/s"):
        main([str(write(tmp_path, GOOD | {"speed": -1}))])


def test_main_compares_two_files_and_counts_what_was_left_out(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    train = write(tmp_path, GOOD | {"speed": -0.1}, GOOD | {"id": "b", "speed": -9}).rename(tmp_path / "train.jsonl")
    val = write(tmp_path, GOOD).rename(tmp_path / "val.jsonl")
    with pytest.raises(SystemExit) as end:
        main([str(train), str(val)])
    printed = capsys.readouterr().out
    assert end.value.code == 1 and f"# {train}\n\n1 examples\n" in printed and f"# {val}\n\n1 examples\n" in printed
    assert "1 of 1 examples: a speed from -0.5 to 0 m/s was read as 0" in printed
    assert f"same picture in more than one split: 2 (100.0 %), first 'a' ({train}) and 'a' ({val})" in printed
    assert "invalid records: 1\n- " in printed and "line 2: field 'speed': expected a speed" in printed


def test_the_flag_that_a_message_names_works(tmp_path, capsys):
    (tmp_path / "store").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "store/good.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/good.png").symlink_to(tmp_path / "store/good.png")
    path = write(tmp_path / "data", GOOD)
    with pytest.raises(SystemExit, match="a link leads there.*--image-root DIR"):
        main([str(path)])
    main([str(path), "--image-root", str(tmp_path / "data")])
    assert "broken pictures: 0" in capsys.readouterr().out


def test_main_finds_a_thin_picture(tmp_path, capsys):
    Image.new("RGB", (4000, 10)).save(tmp_path / "good.png")
    with pytest.raises(SystemExit):
        main([str(write(tmp_path, GOOD))])
    assert "broken pictures: 1\n- example 'a': picture" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["data.schema", "data.datasheet"])
def test_both_commands(tmp_path, module):
    path = write(tmp_path, GOOD | {"image": None, "scene": 3})
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-m", module, str(path)], cwd=ROOT, env=environment, capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| STOP | 1 | 0 | 0 | 0 | 0 | 1 (100.0 %) |" in done.stdout


@pytest.mark.parametrize("module", ["data.datasheet", "data.schema"])
def test_a_reader_that_leaves_is_no_fault(tmp_path, module):
    (tmp_path / "a.jsonl").write_text('{"scene": 1, "speed": 1, "navigation": "Go", "decision": "KEEP, STRAIGHT"}\n')
    command = f"{sys.executable} -m {module} {tmp_path / 'a.jsonl'} | true"
    assert subprocess.run(command, shell=True, capture_output=True, check=False).stderr == b""
