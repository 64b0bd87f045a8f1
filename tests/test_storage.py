"""Files are replaced as a whole; JSON never holds NaN and stays readable."""

import json
import math
import os

import pytest
import torch

from storage import append_json, finite, fresh_directory, repair, replaced, save_file, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OSError, match="disk full"), replaced(tmp_path / "a.txt") as stream:
        stream.write("new, but not to the end")
        raise OSError("disk full")
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_names_the_file_and_the_remedy(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    for writing in (lambda: append_json("/dev/full", {"a": 1}), lambda: fill(tmp_path / "a.txt")):
        with pytest.raises(OSError, match=r"(/dev/full|a.txt) could not be written \(No space left on device\): free "):
            writing()
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def fill(path):
    """Stands for a disk that is full in the middle of a file."""
    with replaced(path):
        raise OSError(28, "No space left on device")


def test_json_holds_no_nan():
    value = {"a": math.nan, "b": [1.5, -math.inf], "c": ({"d": math.inf},), "e": "NaN"}
    assert finite(value) == {"a": None, "b": [1.5, None], "c": [{"d": None}], "e": "NaN"}


def test_json_files_have_null_for_nan_and_readable_text(tmp_path):
    record = {"text": "减速 für Fußgänger", "loss": math.nan}
    write_json(record, tmp_path / "one.json")
    append_json(tmp_path / "log.jsonl", record, record)
    for file, times in (("one.json", 1), ("log.jsonl", 2)):
        text = (tmp_path / file).read_bytes().decode("utf-8")
        assert text.count("减速 für Fußgänger") == times and "NaN" not in text
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "减速 für Fußgänger", "loss": None}] * 2


def test_a_lone_surrogate_comes_back(tmp_path):
    """JSON may name half a pair, which UTF-8 cannot hold."""
    write_json({"id": "a\ud800b"}, tmp_path / "one.json")
    append_json(tmp_path / "log.jsonl", {"id": "a\ud800b"})
    for file in ("one.json", "log.jsonl"):
        assert json.loads((tmp_path / file).read_text(encoding="utf-8")) == {"id": "a\ud800b"}


@pytest.mark.parametrize(("left", "found"), [("old new", "new"), ("old", "old"), ("new", None)])
def test_a_crash_between_two_renames_is_repaired(tmp_path, left, found):
    """Without the old directory, the new one may be half written."""
    for ending in left.split():
        (tmp_path / f"model.{ending}").mkdir()
        (tmp_path / f"model.{ending}/name").write_text(ending)
    repair(tmp_path / "model")
    assert (tmp_path / "model").exists() == (found is not None)
    assert found is None or (tmp_path / "model/name").read_text() == found
    with pytest.raises(ValueError, match="half way"), fresh_directory(tmp_path / "model"):
        raise ValueError("half way")
    assert (tmp_path / "model").exists() == (found is not None)


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("kept")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    for number in range(3):
        with fresh_directory(tmp_path / "model") as fresh:
            (fresh / "new").write_text(str(number))
    assert (tmp_path / "model/new").read_text() == "2" and (tmp_path / "elsewhere/kept").read_text() == "kept"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elsewhere", "model"]


def test_tensor_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        for _ in range(2):                                   # a new file, and one that is there
            save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
            assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
