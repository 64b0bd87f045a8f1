"""Recognises files that are neither examples nor pictures by their first bytes, and says what to do with them."""
from pathlib import Path

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".h264")
VIDEO = "is a video; extract its frames and give the pictures"
STARTS = {
    b"version https://git-lfs.github.com/spec": "is a Git LFS pointer, not the file itself; run `git lfs pull` in its "
                                                "repository",
    b"PAR1": "is a Parquet table; write it as JSON Lines, for example with pandas.read_parquet(FILE).to_json(OUT, "
             "orient='records', lines=True), and its pictures as files",
    b"ARROW1": "is an Arrow table; write it as JSON Lines, for example with pandas.read_feather(FILE).to_json(OUT, "
               "orient='records', lines=True), and its pictures as files",
    b"\x1f\x8b": "is compressed; unpack it with `gunzip FILE`",
    b"PK\x03\x04": "is a zip archive; unpack it with `python -m zipfile -e FILE .`",
    b"\x28\xb5\x2f\xfd": "is compressed; unpack it with `unzstd FILE`",
    b"\xfd7zXZ": "is compressed; unpack it with `unxz FILE`",
    b"SQLite format 3": "is an SQLite database; write its rows as JSON Lines",
    b"\xff\xfe\0\0": "is UTF-32 text; save it as UTF-8, for example with `iconv -f UTF-32 -t UTF-8 FILE > OUT`",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8 FILE > OUT`",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8, for example with `iconv -f UTF-16 -t UTF-8 FILE > OUT`",
    b"\x1aE\xdf\xa3": VIDEO,
    b"<!doctype html": "is a web page; download the file itself again",
    b"<html": "is a web page; download the file itself again",
    b"<svg": "is a vector drawing; save it as PNG",
    b"%PDF": "is a PDF document; save its page as PNG or JPEG",
}


def what_else(path: Path) -> str | None:
    """What a file is and the remedy, as the end of a sentence that begins with its name; None if it is not known."""
    if path.is_dir():
        return "is a folder; give a file"
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return None
    if not start:
        return "is empty; copy it again"
    if start[4:8] == b"ftyp":
        picture = start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"hevc")
        return "is a HEIC or AVIF picture; save it as JPEG or PNG" if picture else VIDEO
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return VIDEO
    return next((told for begin, told in STARTS.items() if start.lower().startswith(begin.lower())), None)


def broken_path(path: Path) -> str:
    """Why there is no file of this path, for a message: a missing folder (moved data), a link without its file, or what
    the system says, such as `Permission denied`."""
    try:
        if path.is_symlink():
            return f" (it is a link to {str(path.readlink())!r}, which does not exist)"
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as fault:
        return f" ({fault.strerror})"
    absent = [folder for folder in path.parents if not folder.exists()]
    return f" (there is no folder {absent[-1]}: were the data moved?)" if absent else ""
