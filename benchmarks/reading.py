"""Writes the generated parts of docs/code.md, and mends names of functions that moved: `python benchmarks/reading.py`.

    map     every Python file in reading order, with the first sentence of its docstring
    path    the files that one GRPO step passes through, measured: the lines of each file, and the lines of those
            functions in it that the step calls
    names   where a page says `file.py: function` and the function now lives in another file, the file is corrected

tests/test_docs.py fails when a generated part no longer fits the code; this command repairs it.
"""

import argparse
import ast
import re
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

METHOD = ["losses", "credit", "groups", "packing", "sampling", "logprobs", "objective", "step", "sft"]
ROOMS = {"The method": ["grpo"], "What it calls": ["rewards", "models", "data"],
         "The same numbers, faster": ["grpo/fast", "models/fast"], "The machinery of a run": ["grpo/engine"],
         "What judges afterwards": ["evaluation", "evaluation/page"],
         "Built-in scenes and builders of data": ["data/scenes", "data/builders"], "Commands": ["."]}
STEP_FLAGS = ["--kernels", "plain"]                          # the method as it is read
WIDTH = 110


# ---------------------------------------------------------------- the map

def files_of(folder: str) -> list[Path]:
    """The Python files of one folder that define something, those of the method in reading order."""
    files = sorted(path for path in (ROOT / folder).glob("*.py") if has_code(path))
    return sorted(files, key=lambda path: METHOD.index(path.stem) if folder == "grpo" and path.stem in METHOD
                  else len(METHOD))


def other_paths() -> list[Path]:
    """Files that only re-export or start another file."""
    folders = (ROOT / folder for folders in ROOMS.values() for folder in folders)
    return sorted(path for folder in folders for path in folder.glob("*.py")
                  if path.name != "__init__.py" and not has_code(path))


def has_code(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(path.read_text()).body)


def first_sentence(path: Path) -> str:
    """The first sentence of a file's docstring, on one line."""
    words = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", words)[0]


def file_map() -> str:
    """Every file by room, as the text between the markers of docs/code.md."""
    rooms = {room: [path for folder in folders for path in files_of(folder)] for room, folders in ROOMS.items()}
    lines = []
    for room, paths in {**rooms, "Other names of the above": other_paths()}.items():
        lines.append(f"# {room}")
        for path in paths:
            said = textwrap.wrap(first_sentence(path), WIDTH - 31) or [""]
            lines.append(f"{path.relative_to(ROOT)!s:<30} {said[0]}")
            lines += [f"{'':<30} {part}" for part in said[1:]]
        lines.append("")
    return "```text\n" + "\n".join(line.rstrip() for line in lines).rstrip() + "\n```"


# ---------------------------------------------------------------- the path of a step

@contextmanager
def calls_within(name: str) -> Iterator[set[CodeType]]:
    """The code of every function that is called while a function of this name runs."""
    found: set[CodeType] = set()
    depth = 0

    def watch(frame: FrameType, event: str, _: object) -> None:
        nonlocal depth
        inside = frame.f_code.co_name == name
        if event == "call":
            depth += inside
            if depth:
                found.add(frame.f_code)
        elif event == "return":
            depth -= inside

    sys.setprofile(watch)
    try:
        yield found
    finally:
        sys.setprofile(None)


def function_lines(path: Path) -> dict[int, set[int]]:
    """First line of every function of a file, decorators included: its lines."""
    functions = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    starts = ((min([node.lineno, *(mark.lineno for mark in node.decorator_list)]), node) for node in functions)
    return {start: set(range(start, node.end_lineno + 1)) for start, node in starts}


def step_path(run: Callable[[], object]) -> dict[str, tuple[int, int]]:
    """File: (its lines, lines of the functions called), for all files of the project that one grpo_step calls."""
    with calls_within("grpo_step") as found:
        run()
    called = defaultdict(set)
    for code in found:
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT) and ".venv" not in path.parts:
            called[path] |= function_lines(path).get(code.co_firstlineno, set())
    return {str(path.relative_to(ROOT)): (len(path.read_text().splitlines()), len(lines))
            for path, lines in sorted(called.items()) if lines}


def one_step(model: str, output: str) -> None:
    """One step of GRPO on two answers to one built-in scene."""
    from train import main as train

    train(["--stage", "grpo", "--model", model, "--output", output, "--scenes", "2", "--eval-examples", "1",
                "--steps", "1", "--device", "cpu", "--overwrite", "--group-size", "2", "--prompts-per-step", "1",
                "--preset", "none", *STEP_FLAGS])


def path_table(path: dict[str, tuple[int, int]]) -> str:
    """The measured path as a table, the method's files in reading order and first."""
    def place(name: str) -> tuple[int, str]:
        folder, stem = str(Path(name).parent), Path(name).stem
        return (METHOD.index(stem) if folder == "grpo" and stem in METHOD else len(METHOD), name)

    names = sorted(path, key=place)
    method = [name for name in names if str(Path(name).parent) == "grpo"]
    rows = ["| file | lines | of these, in functions that the step calls |", "|---|---:|---:|"]
    for name in [*method, *(name for name in names if name not in method)]:
        rows.append(f"| `{name}` | {path[name][0]} | {path[name][1]} |")
    for title, group in (("the method and its settings", method), ("all", names)):
        sums = [sum(path[name][column] for name in group) for column in (0, 1)]
        rows.append(f"| **{title}: {len(group)} files** | {sums[0]} | {sums[1]} |")
    return "\n".join(rows)


# ---------------------------------------------------------------- names that moved

def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def moved_names(text: str) -> tuple[str, list[str]]:
    """A page with its `file.py: function` corrected, and the names that no file or several files define."""
    homes = defaultdict(list)
    code = (path for folders in ROOMS.values() for folder in folders for path in files_of(folder))
    for path in (*code, *sorted((ROOT / "tests").rglob("test_*.py"))):
        for name in functions_of(path):
            homes[name].append(str(path.relative_to(ROOT)))
    lost = []

    def mended(match: re.Match) -> str:
        place, name = match[1], match[2]
        if place in homes[name]:
            return match[0]
        near = [home for home in homes[name] if Path(home).parent == Path(place).parent] or homes[name]
        if len(near) != 1:
            lost.append(f"{place}: {name} -> {near or 'nowhere'}")
            return match[0]
        return f"`{near[0]}: {name}`"

    return re.sub(r"`([\w/.]+\.py): (\w+)`", mended, text), lost


def between_markers(text: str, name: str, content: str) -> str:
    """A page with the part between its two markers of this name replaced."""
    start, end = f"<!-- {name}: made by benchmarks/reading.py -->", f"<!-- end of {name} -->"
    before, after = text.index(start) + len(start), text.index(end)
    return f"{text[:before]}\n{content}\n{text[after:]}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    from train import main as train

    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]):
        text, lost = moved_names(page.read_text())
        page.write_text(text)
        for name in lost:
            print(f"{page.name}: {name}")
    with tempfile.TemporaryDirectory() as folder:
        train(["--stage", "sft", "--output", f"{folder}/sft", "--scenes", "8", "--steps", "1", "--batch-size",
                    "2", "--eval-examples", "1", "--device", "cpu"])
        path = step_path(lambda: one_step(f"{folder}/sft/model", f"{folder}/grpo"))
    page = ROOT / "docs/code.md"
    text = between_markers(page.read_text(), "map", file_map())
    page.write_text(between_markers(text, "path", path_table(path)))


if __name__ == "__main__":
    main()
