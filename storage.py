"""Writing to disk: after a crash a file has its old contents or its new ones. Every layer may import this file."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}        # Python's splitlines would split here
ESCAPED = "backslashreplace"        # a lone surrogate, which UTF-8 lacks, becomes an escape that JSON reads back


def sync(path: str | Path) -> None:
    """Flush a file, or the entries of a directory, to disk. A rename alone may reach the disk before the data."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Errors of a full disk name the file and the remedy; Python's own name neither."""
    try:
        yield
    except OSError as fault:
        if fault.filename or fault.errno is None:
            raise
        raise OSError(fault.errno, f"{path} could not be written ({fault.strerror}): free some space, or raise the "
                                   "limit on file sizes") from fault


@contextlib.contextmanager
def replaced(path: str | Path) -> Iterator[TextIO]:
    """A UTF-8 stream to the new contents of a file: written beside it, synced, then renamed to its name.

    If the writing fails, the old file stays and nothing is left beside it."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(path), open(temporary, "w", encoding="utf-8", errors=ESCAPED, newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Replace the contents of a file."""
    with replaced(path) as stream:
        stream.write(text)


def write_json(value: object, path: str | Path) -> None:
    """Replace a JSON file, one field per line; numbers that are not finite become null."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def append_json(path: str | Path, *records: dict) -> None:
    """Append one `json_line` per record."""
    lines = [json_line(record) for record in records]
    with naming(path), open(path, "a", encoding="utf-8", errors=ESCAPED, newline="\n") as stream:
        stream.writelines(lines)


def json_line(record: dict) -> str:
    """A record as one line; numbers that are not finite become null, because JSON has no NaN."""
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False).translate(LINE_ENDS) + "\n"


def finite(value: Any) -> Any:  # noqa: ANN401
    """The value with None for numbers that are not finite, which JSON cannot represent."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_file(tensors: dict, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write and sync a safetensors file, as readable as the umask allows; safetensors lets only the owner read it."""
    from safetensors.torch import save_file as write  # here, because most who import this file need no torch
    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    write(tensors, path, metadata)
    path.chmod(mode)
    sync(path)


@contextlib.contextmanager
def fresh_directory(directory: str | Path) -> Iterator[Path]:
    """A new directory to write, which then replaces `directory`. If the writing fails, the old one stays.

    After a crash at any moment a complete directory exists: the old one, or the new one, which may still be called
    NAME.new until `repair` or the next writing."""
    directory = Path(directory)
    repair(directory)
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir(parents=True)
        yield fresh
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)            # half a model helps nobody, and the disk may be full
        raise
    replace_directory(fresh, directory)


def repair(directory: Path) -> None:
    """Finish what a crash between the two renames of `replace_directory` left: NAME.old, NAME.new and no NAME."""
    old, fresh = (directory.with_name(directory.name + ending) for ending in (".old", ".new"))
    if old.exists() and not directory.exists():
        os.replace(fresh if fresh.exists() else old, directory)


def replace_directory(fresh: Path, directory: Path) -> None:
    """Give a finished directory the name of another, which is removed; in between that one is called NAME.old."""
    old = directory.with_name(directory.name + ".old")
    remove(old)
    if directory.exists():
        os.replace(directory, old)
    os.replace(fresh, directory)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, a directory, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
