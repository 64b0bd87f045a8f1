"""The files of a scored run: what is read, what is refused, what is written."""

import pytest

from evaluation.predictions import (
    append_lines,
    find_predictions,
    plan_name,
    read_lines,
    read_object,
    read_predictions,
    replace_lines,
)


def test_lines_come_back_and_blank_ones_are_passed_over(tmp_path):
    file = tmp_path / "predictions.jsonl"
    append_lines(file, [{"id": "a"}])
    append_lines(file, [{"id": "b"}, {"id": "c"}])
    file.write_text(file.read_text().replace("\n", "\n\n"))
    assert read_lines(file, ("id",)) == [{"id": "a"}, {"id": "b"}, {"id": "c"}]
    assert read_lines(tmp_path / "absent.jsonl", ("id",)) == [] and read_object(tmp_path / "absent.json") == {}


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "predictions.jsonl"
    file.write_text("old")
    (tmp_path / "predictions.jsonl.tmp").write_text('{"id": "of an interrupted run"}')
    replace_lines(file, [{"id": "a"}])
    assert file.read_text() == '{"id": "a"}\n' and [path.name for path in tmp_path.iterdir()] == [file.name]


def test_the_plan_of_a_completion_as_text():
    assert plan_name("<answer>stop straight.</answer>") == "STOP, STRAIGHT"
    assert plan_name("STOP, STRAIGHT") is None


def test_a_missing_predictions_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone is not a predictions file and contains none: run python eval.py"):
        find_predictions(str(tmp_path / "gone"))


# ---------------------------------------------------------------- what is written

def test_text_stays_readable_and_no_number_is_lost_to_other_readers(tmp_path):
    file = tmp_path / "predictions.jsonl"
    append_lines(file, [{"text": "红灯 für\u2028alle\x85", "numbers": [float("nan"), {"x": float("-inf")}, 0.5]}])
    assert file.read_bytes().decode("utf-8") == (
        '{"text": "红灯 für\\u2028alle\\u0085", "numbers": [null, {"x": null}, 0.5]}\n')
    assert read_lines(file, ("text",)) == [{"text": "红灯 für\u2028alle\x85", "numbers": [None, {"x": None}, 0.5]}]
    append_lines(tmp_path / "half.jsonl", [{"path": "\udcc3.png"}])              # a file name that is not UTF-8
    assert read_lines(tmp_path / "half.jsonl", ()) == [{"path": "\udcc3.png"}]


# ---------------------------------------------------------------- files of strangers

def test_what_cannot_be_read_is_named_by_its_line(tmp_path):
    file, good = tmp_path / "predictions.jsonl", b'{"id": 1, "truth": "", "text": "", "decision": null}\n'
    for content, message in ((good + b'{"id": "gr\xfcn"}\n', ", line 2 is not UTF-8: save the file as UTF-8"),
                             (good + b'\n{"id": ', ", line 3 is not valid JSON"),
                             (b"[" * 100_000, ", line 1 is not valid JSON"),
                             (good + b"[1]\n", ", line 2 has no id, truth, text, decision"),
                             (b'{"id": 1, "truth": "STOP, STRAIGHT"}\n', ", line 1 has no text, decision"),
                             (b"\n", " is empty: run python eval.py again")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"predictions.jsonl{message}"):
            read_predictions(file)
    (tmp_path / "config.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match="config.json, line 1 is not UTF-8"):
        read_object(tmp_path / "config.json")


def test_a_mark_at_the_beginning_is_no_fault(tmp_path, predictions):
    file = tmp_path / "predictions.jsonl"
    append_lines(file, predictions([1, 0]))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert [row["id"] for row in read_predictions(file)] == ["s0", "s1"]


@pytest.mark.parametrize(("field", "value", "message"), [
    ("truth", "FLY, UP", "truth is 'FLY, UP', which is not a plan such as 'STOP, STRAIGHT'"),
    ("truth", None, "truth is None"),
    ("truth", {"a": 1}, "truth is {'a': 1}, which is not a plan"),
    ("decision", "STOP", "decision is 'STOP', which is not a plan"),
    ("acceptable", ["STOP, STRAIGHT", None], "acceptable is None, which is not a plan"),
    ("acceptable", "STOP, STRAIGHT", "acceptable is 'STOP, STRAIGHT', not list"),
    ("sample_decisions", [7], "sample_decisions is 7, which is not a plan"),
    ("sample_decisions", [None] * 2, "the numbers of samples are {.*'sample_decisions': 2}, in the first prediction"),
    ("samples", [None], "samples contains None, not str"),
    ("sweep", {"1": ["up"]}, "sweep 1 is 'up'"),
    ("sweep", {"1": None}, "sweep 1 is None, not a list of plans"),
    ("text", 5, "text is 5, not str"),
    ("id", [1], "id is .1., not"),
    ("scene", "3", "scene is '3', not"),
    ("reason", 4, "reason is 4"),
    ("factors", [], "factors is .., not"),
])
def test_fields_that_cannot_be_scored_are_named(tmp_path, predictions, field, value, message):
    first, second = predictions([1, 1])
    file = tmp_path / "predictions.jsonl"
    append_lines(file, [first, {**second, field: value}])
    with pytest.raises(ValueError, match=rf"predictions.jsonl, prediction 2 \(id .*\): {message}"):
        read_predictions(file)


def test_samples_without_their_plans_are_told(tmp_path, predictions):
    append_lines(tmp_path / "p.jsonl", [{**row, "samples": ["a", "b", "c"]} for row in predictions([1, 1])])
    with pytest.raises(ValueError, match=r"prediction 1 .*: 3 samples and 1 sample_decisions; each needs a plan"):
        read_predictions(tmp_path / "p.jsonl")
