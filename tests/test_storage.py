"""Files are replaced whole or not at all, and JSON holds nothing that JSON cannot."""

import json
import os

import pytest

from storage import append_json, replace_directory, write_json, write_text


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    write_json({"a": [1]}, tmp_path / "a.json")
    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_text(tmp_path / "a.json", "half")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]             # nothing is left beside it


def test_json_has_no_nan_and_keeps_letters(tmp_path):
    write_json({"loss": float("nan"), "reason": "Fu\u00dfg\u00e4nger"}, tmp_path / "a.json")
    append_json(tmp_path / "a.jsonl", {"x": [float("inf"), 1.5]}, {"y": "\u505c"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").split("\n") == [
        "{", '  "loss": null,', '  "reason": "Fu\u00dfg\u00e4nger"', "}"]
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"x": [null, 1.5]}\n{"y": "\u505c"}\n'


def test_a_directory_is_replaced(tmp_path):
    for name, text in (("model", "old"), ("fresh", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    replace_directory(tmp_path / "fresh", tmp_path / "model")
    assert (tmp_path / "model/file").read_text() == "new" and len(list(tmp_path.iterdir())) == 1
