"""Recognises files that are neither examples nor pictures by their first bytes, and says what to do with them."""
import re
from pathlib import Path

PICTURE_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
UNREAD_ENDINGS = (".heic", ".heif", ".avif", ".jp2", ".svg")     # pictures that are not opened
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".h264")
VIDEO = "is a video; extract its frames and give the pictures"
PICKLE = "is a pickle, which may run code and is not opened; write its records as JSON Lines"
STARTS = {
    b"version https://git-lfs.github.com/spec": "is a Git LFS pointer, not the file itself; run `git lfs pull` in its "
                                                "repository",
    b"PAR1": "is a Parquet table; write it as JSON Lines, for example with pandas.read_parquet(FILE).to_json(OUT, "
             "orient='records', lines=True), and its pictures as files",
    b"ARROW1": "is an Arrow table; write it as JSON Lines, for example with pandas.read_feather(FILE).to_json(OUT, "
               "orient='records', lines=True), and its pictures as files",
    b"\xff\xff\xff\xff": "is an Arrow stream, as datasets saves it; write it as JSON Lines with "
                           "datasets.load_from_disk(DIR).to_json(OUT), and its pictures as files",
    b"\x1f\x8b": "is compressed; unpack it with `gunzip FILE`",
    b"PK\x03\x04": "is a zip archive; unpack it with `python -m zipfile -e FILE .`",
    b"\x28\xb5\x2f\xfd": "is compressed; unpack it with `unzstd FILE`",
    b"BZh": "is compressed; unpack it with `bunzip2 FILE`",
    b"\xfd7zXZ": "is compressed; unpack it with `unxz FILE`",
    b"SQLite format 3": "is an SQLite database; write its rows as JSON Lines",
    b"\xd0\xcf\x11\xe0": "is an old Office document, such as .xls; save its sheet as CSV",
    b"\x93NUMPY": "is an array of NumPy; write its rows as JSON Lines",
    **{b"\x80" + bytes([protocol]): PICKLE for protocol in (2, 3, 4, 5)},
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
            start = file.read(512)
            file.seek(max(0, path.stat().st_size - 2**16))
            end = file.read()                               # of a zip archive: the names of its files
    except OSError:
        return None
    if not start:
        return "is empty; copy it again"
    if start[4:8] == b"ftyp":
        picture = start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"hevc")
        return "is a HEIC or AVIF picture; save it as JPEG or PNG" if picture else VIDEO
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it with `tar -xf FILE`"
    if start.startswith(b"PK\x03\x04") and b"xl/workbook" in end:
        return "is an Excel workbook; save its sheet as CSV"
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return VIDEO
    start = re.sub(rb"^(<(\?xml|!--|!DOCTYPE svg)[^>]*>\s*)+", b"", start, flags=re.I)      # before <svg
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
