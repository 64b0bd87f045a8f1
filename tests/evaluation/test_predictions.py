"""The files of a scored run: what is read, what is refused, what is written."""

import pytest

from evaluation.predictions import append_lines, plan_name, read_lines, read_object, read_predictions, replace_lines


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
        read_predictions(str(tmp_path / "gone"))
