"""Comparing runs by hand, and `eval.py --compare`."""

import json

import pytest

import eval as evaluate
from evaluation import comparison
from evaluation.predictions import append_lines

KEEP, STOP = "KEEP, STRAIGHT", "STOP, STRAIGHT"


def test_paired_difference_by_hand(predictions):
    found = comparison.paired_difference(predictions([1, 0, 0, 0, 0, 1]), predictions([0, 1, 1, 1, 1, 1]))
    greedy = found["greedy"]
    assert greedy["difference"] == pytest.approx(0.5)                   # 5 / 6 - 2 / 6
    assert (greedy["only_base"], greedy["only_other"]) == (1, 4)
    assert greedy["p_value"] == 0.375                                   # 2 (C(5,0) + C(5,1)) / 2^5
    low, high = greedy["interval"]
    assert low < 0.5 < high and found["sampled"]["difference"] == pytest.approx(0.5)
    text = comparison.difference_text("new", "old", found)
    assert "new minus old" in text and "+50.0" in text
    assert "alone right: new in 4 scenes, old in 1" in text and "p = 0.38" in text
    alone = comparison.paired_difference(predictions([1]), [{**predictions([1])[0], "sample_decisions": []}])
    assert alone["sampled"] is None and "sampled" not in comparison.difference_text("a", "b", alone)


def test_braking_difference_by_hand(line, answer):
    """STOP -> KEEP costs 2/3, STOP -> ACCELERATE 1, DECELERATE -> KEEP 1/3; unreadable samples and braking nothing."""
    def lines(*samples):
        return [line(f"s{i}", f"{label}, STRAIGHT", "", [answer(f"{plan}, STRAIGHT") for plan in plans])
                for i, (label, plans) in enumerate(zip(("STOP", "DECELERATE", "KEEP"), samples, strict=True))]
    base = lines(("KEEP", "ACCELERATE"), ("KEEP", "STOP"), ("KEEP", "KEEP"))
    other = lines(("STOP", "DECELERATE"), ("KEEP", "FLY"), ("ACCELERATE", "KEEP"))
    found = comparison.braking_difference(base, other)
    assert found["scenes"] == 2 and found["difference"] == pytest.approx(-5 / 12)   # (0 + 1/6 - 5/6 - 1/6) / 2
    assert found["interval"] == pytest.approx((-5 / 6, 0))
    assert found["unreadable"] == [0, 1 / 4]                                    # FLY is no action
    assert comparison.braking_verdict("b", "a", found) == (
        "b against a: expected cost of missed braking -0.417 (95 % -0.833 to +0.000, 2 scenes): cannot be told apart; "
        "unreadable 25.0 % against 0.0 %")
    def told(interval, unreadable, scenes=30):
        return comparison.braking_verdict("b", "a", {"difference": 0.0, "interval": interval, "scenes": scenes,
                                                     "unreadable": unreadable}).split("scenes): ")[1].split(";")[0]
    assert told((-0.2, -0.1), (0.03, 0.0)) == "better" and told((0.1, 0.2), (0, 0)) == "worse"
    assert told((-0.2, -0.1), (0.0, 0.09)) == "better"                          # -.1 + .09, were each to cost 1
    assert told((-0.2, -0.1), (0.0, 0.11)) == "better in cost, but unreadable rose"
    assert told((-0.2, -0.1), (0, 0), scenes=29) == told((0.1, 0.2), (0, 0), 29) == "cannot be told apart"
    assert comparison.braking_difference(base[2:], other[2:]) is None           # no label brakes
    assert comparison.braking_difference(base, [{**row, "sample_decisions": []} for row in other]) is None


def test_scenes_are_joined_on_their_id(line, predictions):
    runs = {"a": predictions([1, 0, 1]), "b": predictions([0, 1, 1], offset=1)[::-1]}
    common = comparison.common_scenes(runs)
    assert [row["id"] for row in common["a"]] == [row["id"] for row in common["b"]] == ["s1", "s2"]
    with pytest.raises(ValueError, match="no scene in common"):
        comparison.common_scenes({"a": predictions([1]), "b": predictions([1], offset=5)})
    with pytest.raises(ValueError, match="scene s0 has different truths"):
        comparison.common_scenes({"a": predictions([1]), "b": [line("s0", KEEP, "")]})
    with pytest.raises(ValueError, match="b answers some id twice"):
        comparison.common_scenes({"a": predictions([1]), "b": predictions([1]) * 2})


def test_scenes_of_another_label_are_counted(line, predictions):
    base, other = predictions([1, 1]), [line("s0", KEEP, ""), line("s1", STOP, ""), line("s9", KEEP, "")]
    assert [row["id"] for row in comparison.answered_by_both(base, other)[1]] == ["s1"]
    assert comparison.relabelled(base, other) == 1                              # s0; s9 is answered once


def test_samples_drawn_differently_are_not_compared(tmp_path, predictions):
    def told(**changes):
        for name, more in (("a", {}), ("b", changes)):
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "predictions.jsonl").unlink(missing_ok=True)
            append_lines(folder / "predictions.jsonl", predictions([1, 0]))
            (folder / "metrics.json").write_text(json.dumps(
                {"sampled": {"planning_accuracy": 1}, "temperature": 1.0, "samples_per_example": 8, **more}))
        return comparison.compare([str(tmp_path / "a"), str(tmp_path / "b")]).splitlines()[-1]

    assert told() == told(temperature=None) == "  sampled  +0.0 (95 % +0.0 to +0.0)"
    assert told(temperature=0.5) == "  sampled  not compared: temperature 1.0 and 0.5"
    assert told(temperature=2, samples_per_example=4) == (
        "  sampled  not compared: temperature 1.0 and 2, samples per scene 8 and 4")
    assert told(temperature=0.5, sampled=None) == "  sampled  +0.0 (95 % +0.0 to +0.0)"
    for name, heat in (("a", 1.0), ("b", 0.5)):             # of an unfinished or copied scoring config.json is there
        (tmp_path / name / "metrics.json").unlink()
        (tmp_path / name / "config.json").write_text(json.dumps({"samples": 8, "temperature": heat}))
    text = comparison.compare([str(tmp_path / "a"), str(tmp_path / "b")])
    assert text.endswith("  sampled  not compared: temperature 1.0 and 0.5")


def test_compare_reads_files_directories_and_runs(tmp_path, capsys, predictions):
    for folder, right in (("one", [1, 0, 0]), ("two/eval-test", [1, 1, 0]), ("three", [1, 1, 1, 1])):
        (tmp_path / folder).mkdir(parents=True)
        append_lines(tmp_path / folder / "predictions.jsonl", predictions(right))
    places = [str(tmp_path / place) for place in ("one", "two", "three/predictions.jsonl")]
    evaluate.main(["--compare", *places])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "3 scenes that all runs answered, of up to 4"
    assert [text.split("|")[3].split()[0] for text in shown[3:6]] == ["33.3", "66.7", "100.0"]
    assert sum(" minus " in text for text in shown) == 2 and f"minus {places[0]}" in shown[6]
    for wrong, word in ((places[:1], "two or more"), ([places[0]] * 2, "different"), ([places[0], "gone"], "gone")):
        with pytest.raises(SystemExit, match=word):
            evaluate.main(["--compare", *wrong])
