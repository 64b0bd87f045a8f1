"""Which examples a run trains and validates on, and what it prints about them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from data import Example
from grpo.engine.distributed import Distributed
from grpo.engine.examples import load_data, note_balance, note_styles, take
from grpo.engine.flags import GRPOFlags, SFTFlags
from grpo.engine.setup import planned_steps
from rewards import Decision


def write(folder, name, ids, split=None):
    """A data file whose examples have a picture each, named by their id."""
    folder.mkdir(exist_ok=True)
    for i in ids:
        Image.new("RGB", (28, 28), (i, 0, 0)).save(folder / f"{i}.png")
    lines = [{"id": f"{name}{i}", "image": f"{i}.png", "speed": 1.0, "navigation": "Go straight",
              "decision": "KEEP, STRAIGHT", **({"split": split} if split else {})} for i in ids]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / f"{name}.jsonl")


def test_validation_from_a_second_file(tmp_path, capsys):
    train, val = write(tmp_path, "a", range(4)), write(tmp_path, "b", range(4, 9))
    examples, validation, faults = load_data(SFTFlags(data=train, val_data=val, split="train", eval_examples=3))
    assert [e.id for e in examples] == ["a0", "a1", "a2", "a3"]
    assert ([e.id for e in validation], faults) == (["b4", "b5", "b6"], ())
    told = capsys.readouterr().out
    assert "validation uses the first 3 of 5 examples" in told and "warning" not in told
    scenes, validation, _ = load_data(SFTFlags(split="sft", scenes=2, val_data=val))
    assert len(scenes) == 2 and len(validation) == 5


def test_a_split_named_in_the_second_file_is_respected(tmp_path):
    train, val = write(tmp_path, "a", range(2)), write(tmp_path, "b", range(2, 4), "test")
    with pytest.raises(ValueError, match="no example belongs to split 'val'; present are test"):
        load_data(SFTFlags(data=train, val_data=val, split="train"))


def test_pictures_of_training_and_validation_are_compared(tmp_path, capsys):
    train, val = write(tmp_path, "a", range(4)), write(tmp_path, "b", range(2, 7))
    load_data(SFTFlags(data=train, val_data=val, split="train"))
    told = capsys.readouterr().out
    assert "warning: 2 of 5 validation examples have a picture of a training example, 0 have the id" in told
    other = write(tmp_path / "other", "a", range(3, 6))     # ids a3, a4, a5: the first is a training example's
    load_data(SFTFlags(data=train, val_data=other, split="train"))
    assert "0 of 3 validation examples have a picture of a training example, 1 have the id" in capsys.readouterr().out


def test_ids_that_were_made_for_the_file_tell_nothing(tmp_path, capsys):
    """Files of one name whose records have no id: the first of each has the same one."""
    files = [write(tmp_path / part, "labels", numbers) for part, numbers in (("a", range(3)), ("b", range(3, 6)))]
    for file in files:
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        Path(file).write_text("".join(json.dumps({k: v for k, v in row.items() if k != "id"}) + "\n" for row in rows))
    load_data(SFTFlags(data=files[0], val_data=files[1], split="train"))
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(("config", "count", "steps"), [
    # 10 examples by 4: 2.5, so 3;  by 5: 2;  1.5 epochs of 10 by 5: 3;  .1 epochs of 30 by 3: 1, not 2 by rounding
    (SFTFlags(batch_size=4), 10, 3), (SFTFlags(batch_size=5), 10, 2), (SFTFlags(batch_size=5, epochs=1.5), 10, 3),
    (SFTFlags(batch_size=3, epochs=0.1), 30, 1), (SFTFlags(batch_size=100), 7, 1),
    (GRPOFlags(prompts_per_step=8), 9, 2), (GRPOFlags(prompts_per_step=8, steps=7), 9, 7)])
def test_no_part_of_an_epoch_is_left_out(config, count, steps, capsys):
    assert planned_steps(config, count) == steps
    assert f"{steps} steps of " in capsys.readouterr().out


def test_splits_that_are_not_used_are_listed(tmp_path, capsys):
    train, val = write(tmp_path, "a", range(4), "train"), write(tmp_path, "b", range(4, 6), "holdout")
    both = tmp_path / "both.jsonl"
    both.write_text(Path(train).read_text() + Path(val).read_text())
    load_data(SFTFlags(data=str(both), split="train"))
    told = capsys.readouterr().out
    assert f"2 of 6 examples of {both} are not used, because of their split: holdout 2" in told
    assert "no example has the split `val`" in told
    load_data(SFTFlags(data=train, split="train"))
    assert "are not used" not in capsys.readouterr().out
    other = write(tmp_path, "c", range(6, 8), "val")
    both.write_text(Path(train).read_text() + Path(other).read_text())
    load_data(SFTFlags(data=str(both), val_data=other, split="train"))         # its own val part is not read
    assert f"2 of 6 examples of {both} are not used, because of their split: val 2" in capsys.readouterr().out


def test_pictures_of_a_split_that_is_not_used_need_not_exist(tmp_path):
    file = Path(write(tmp_path, "a", range(3), "train"))
    used = file.read_text()
    gone = {"image": "gone.png", "speed": 1.0, "navigation": "Straight", "decision": "KEEP, STRAIGHT"}
    file.write_text(used + json.dumps(gone | {"split": "test"}))
    assert len(load_data(SFTFlags(data=str(file), split="train"))[0]) == 3
    for split in ("train", "val"):
        file.write_text(used + json.dumps(gone | {"split": split}))
        with pytest.raises(FileNotFoundError, match="1 of 4 pictures do not exist"):
            load_data(SFTFlags(data=str(file), split="train"))


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev"])
def test_names_of_the_validation_split(tmp_path, capsys, name):
    train, val = write(tmp_path, "a", range(4), "train"), write(tmp_path, "b", range(4, 6), name)
    both = tmp_path / "both.jsonl"
    both.write_text(Path(train).read_text() + Path(val).read_text())
    assert [one.id for one in load_data(SFTFlags(data=str(both), split="train"))[1]] == ["b4", "b5"]
    assert "are not used" not in capsys.readouterr().out
    assert len(load_data(SFTFlags(data=train, val_data=val, split="train"))[1]) == 2


def test_balance_draws_rare_plans_as_often(capsys):
    """6 examples of one plan, 2 of another, 1 of a third: 12 draws hold 4 of each, on one process and on two."""
    plans = [("KEEP", "STRAIGHT")] * 6 + [("STOP", "STRAIGHT")] * 2 + [("KEEP", "LEFT_TURN")]
    examples = [Example(id=str(i), scene=i, prompt="?", decision=Decision(*plan)) for i, plan in enumerate(plans)]

    def drawn(rank, size, position, number):
        run = SimpleNamespace(examples=examples, config=SFTFlags(balance=True), world=Distributed(rank, size))
        return [example.id for example in take(run, lambda example: None, 7, position, number)[0]]

    alone = drawn(0, 1, 0, 12)
    assert sorted(alone)[-4:] == ["8"] * 4 and [alone.count("6"), alone.count("7")] == [2, 2]
    assert len({one for one in alone if one < "6"}) == 4    # each once before one comes again
    assert drawn(0, 1, 0, 5) + drawn(0, 1, 5, 7) == alone
    assert (drawn(0, 2, 0, 12), drawn(1, 2, 0, 12)) == (alone[::2], alone[1::2])
    note_balance(examples, SFTFlags(balance=True))
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("balance: 3 plans, each in 1 of 3 draws")
    # 9 draws per epoch, 3 of each plan
    assert [line.split()[-2:] for line in told[1:]] == [["6", "0.5"], ["2", "1.5"], ["1", "3"]]


def test_questions_that_have_no_compact_form_are_counted(tmp_path, capsys):
    file = Path(write(tmp_path, "a", range(3)))
    lines = file.read_text().splitlines()
    lines[1] = lines[1].replace('"speed": 1.0, "navigation": "Go straight"', '"prompt": "Where to?"')
    file.write_text("\n".join(lines))
    load_data(SFTFlags(data=str(file), split="train", prompt_style="compact"))
    assert "1 of 3 examples have no known speed and navigation: they are asked in the words" in capsys.readouterr().out
    load_data(SFTFlags(data=str(file), split="train"))
    assert "no known speed" not in capsys.readouterr().out


def test_own_questions_that_the_compact_style_does_not_ask_are_counted(capsys):
    theirs, stop = "Your current speed is 1.0m/s, the navigation command is 'Straight', based on it.", Decision(
        "STOP", "STRAIGHT")
    known = [Example(id="a", scene=1, speed=1.0, navigation="Straight", prompt=prompt, decision=stop)
             for prompt in (None, "May I overtake?", theirs)]
    unknown = Example(id="b", scene=1, prompt=theirs.replace("'Straight'", "'nan'"), decision=stop)
    note_styles([*known, unknown], "compact")
    told = capsys.readouterr().out
    assert "1 of 4 examples have no known speed" in told
    assert "note: 1 of 4 examples have a question of their own" in told
    note_styles([*known, unknown], "alphadrive")
    assert capsys.readouterr().out == ""
