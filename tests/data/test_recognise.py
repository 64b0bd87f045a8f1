"""Files that are neither examples nor pictures: each message names what the file is and what to do."""
import bz2
import gzip
import io
import pickle
import subprocess
import sys
import tarfile
import zipfile

import pytest
from PIL import Image

from data import Example, load_examples
from data.dataset import check_images, open_image
from rewards import Decision

LINE = '{"scene": 1, "speed": 1.0, "navigation": "Straight", "decision": "KEEP, STRAIGHT", "reasoning": "Grün."}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def packed(*names):
    """A zip archive of empty files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("data.jsonl"))
    return file.getvalue()


VIDEO = b"\0\0\0\x20ftypisom\0\0\2\0"


@pytest.mark.parametrize(("content", "told"), [
    (POINTER, "is a Git LFS pointer, not the file itself; run `git lfs pull`"), (b"PAR1\x15\0", "is a Parquet table"),
    (b"ARROW1\0\0", "is an Arrow table"), (gzip.compress(LINE.encode()), "unpack it with `gunzip FILE`"),
    (b"PK\3\4\x14\0", "is a zip archive"),
    (packed("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook; save its sheet as CSV"),
    (packed("data.json"), "is a zip archive"), (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an old Office document, such"),
    (b"\xff\xff\xff\xff\x10\0\0\0", "datasets.load_from_disk(DIR).to_json(OUT)"), (tar(), "`tar -xf FILE`"),
    (pickle.dumps({"a": 1}), "is a pickle"), (b"\x93NUMPY\1\0", "is an array of NumPy"),
    (bz2.compress(LINE.encode()), "unpack it with `bunzip2 FILE`"),
    (b"\x28\xb5\x2f\xfd\x24", "`unzstd FILE`"),
    (LINE.encode("utf-16"), "is UTF-16 text; save it as UTF-8"), (b"<!DOCTYPE html><html>", "is a web page"),
    (VIDEO, "is a video"), (b"SQLite format 3\0", "is an SQLite database"), (b"", "is empty; copy it again"),
    (b'<?xml version="1.0"?>\n<!-- by hand -->\n<!DOCTYPE svg PUBLIC "x">\n<svg>',
     "is a vector drawing; save it as PNG")])
def test_data_files_of_another_kind(tmp_path, content, told):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_examples(tmp_path / "data.json")
    assert str(error.value).startswith(f"{tmp_path / 'data.json'} is ") and told in str(error.value)


def test_a_table_that_is_no_json_names_the_command_that_reads_it(tmp_path):
    (tmp_path / "data.csv").write_text("image,decision\na.png,Go\n")
    with pytest.raises(ValueError, match=r"write a table as examples with `python -m data.convert .*data.csv OUT`"):
        load_examples(tmp_path / "data.csv")


def test_places_that_are_no_file(tmp_path):
    (tmp_path / "train.jsonl").write_text(LINE)
    with pytest.raises(ValueError, match="is a folder; give a file of examples, such as train.jsonl"):
        load_examples(tmp_path)
    with pytest.raises(ValueError, match="https://host/train.json is an address, and nothing is downloaded"):
        load_examples("https://host/train.json")
    with pytest.raises(FileNotFoundError, match="no such file; ~ is not expanded here, write the whole path"):
        load_examples("~/no-such-file.json")
    with pytest.raises(FileNotFoundError, match=r"no such file \(there is no folder .*gone: were the data moved\?\)"):
        load_examples(tmp_path / "gone/train.json")
    (tmp_path / "link.json").symlink_to("elsewhere.json")
    with pytest.raises(FileNotFoundError, match="it is a link to 'elsewhere.json', which does not exist"):
        load_examples(tmp_path / "link.json")


@pytest.mark.parametrize(("pack", "command"), [
    (lambda path: path.with_name("data.jsonl.gz").write_bytes(gzip.compress(path.read_bytes())), "gunzip"),
    (lambda path: zipfile.ZipFile(path.with_name("data.zip"), "w").write(path, path.name), "python"),
    (lambda path: path.with_name("wide.jsonl").write_text(path.read_text(encoding="utf-8"), "utf-16"), "iconv")])
def test_the_remedies_work(tmp_path, pack, command):
    """The command that the message prints, run as it stands, gives a file that is read."""
    path = tmp_path / "data.jsonl"
    path.write_text(LINE, encoding="utf-8")
    pack(path)
    path.unlink()
    [packed] = tmp_path.iterdir()
    with pytest.raises(ValueError, match=f"`{command} ") as error:
        load_examples(packed)
    words = {"FILE": str(packed), "OUT": str(path), "python": sys.executable}
    remedy = " ".join(words.get(word, word) for word in str(error.value).split("`")[1].split())
    subprocess.run(remedy, shell=True, check=True, cwd=tmp_path, capture_output=True)
    assert load_examples(path)[0].reasoning == "Grün."


@pytest.mark.parametrize(("content", "told"), [
    (b"", "it is empty; copy it again"), (POINTER, "it is a Git LFS pointer"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), "it is a HEIC or AVIF picture; save it as JPEG or PNG"),
    (b"\0\0\0\x1cftypmif1", "it is a HEIC or AVIF picture"), (VIDEO, "it is a video"),
    (b"\x1aE\xdf\xa3\1", "it is a video"), (b"RIFF\0\0\0\0AVI LIST", "it is a video"),
    (b"<svg xmlns='x'/>", "it is a vector drawing"), (b"<html>404", "it is a web page"),
    (b"no picture", "(cannot identify image file")])
def test_pictures_of_another_kind(tmp_path, content, told):
    (tmp_path / "a.jpg").write_bytes(content)
    example = Example(id="e7", image=str(tmp_path / "a.jpg"), prompt="?", decision=Decision("KEEP", "STRAIGHT"))
    with pytest.raises(ValueError) as error:
        open_image(example)
    assert "example 'e7': picture" in str(error.value) and "a.jpg cannot be read" in str(error.value)
    assert told in str(error.value)


def test_pointers_are_found_before_a_long_run(tmp_path):
    (tmp_path / "a.jpg").write_bytes(POINTER)
    example = Example(id="a", image=str(tmp_path / "a.jpg"), prompt="?", decision=Decision("KEEP", "STRAIGHT"))
    with pytest.raises(ValueError, match="a.jpg is a Git LFS pointer, not the file itself; run `git lfs pull`"):
        check_images([example])
    assert check_images([example], allow_some=True) == 0


def test_a_file_that_may_not_be_opened_names_its_example(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    example = Example(id="e7", image=str(tmp_path / "a.png"), prompt="?", decision=Decision("KEEP", "STRAIGHT"))

    def refuse(*arguments, **named):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ValueError, match="example 'e7': picture .*a.png cannot be read .*Permission denied"):
        open_image(example)


def test_a_folder_is_no_picture(tmp_path):
    example = Example(id="a", image=str(tmp_path), prompt="?", decision=Decision("KEEP", "STRAIGHT"))
    with pytest.raises(ValueError, match="is a folder; give one picture file"):
        open_image(example)


def test_utf_32_has_a_remedy_of_its_own(tmp_path):
    (tmp_path / "data.json").write_text(LINE, encoding="utf-32")
    with pytest.raises(ValueError, match="is UTF-32 text; save it as UTF-8, for example with `iconv -f UTF-32 "):
        load_examples(tmp_path / "data.json")
