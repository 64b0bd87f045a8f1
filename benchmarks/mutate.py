"""How much of a file its tests would notice: `python benchmarks/mutate.py --output benchmarks/results/mutate.json`.

Breaks grpo/losses.py in one place at a time (signs, operators, comparison directions, clip bounds, masks, detach,
reductions) in a temporary copy of the project, and runs its tests in tests/grpo on each mutant. A mutant that the
tests let pass survives, and is listed with its line. Prints one JSON object on its last line.
"""

import argparse
import ast
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401  imported once here, so that no forked child has to wait for it

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/grpo/test_losses_by_hand.py", "tests/grpo/test_losses_properties.py"]
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
             ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And}
COMPARISONS = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.NotEq,
               ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
REDUCTIONS = {"sum": "mean", "mean": "sum", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
DROPPED = {"masked_fill", "detach", "clamp", "square", "exp"}    # x.f(...) becomes x


def main() -> None:
    """Make every mutant, test it, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="grpo/losses.py", help="the file that is broken")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="the tests that must notice")
    parser.add_argument("--timeout", type=float, default=300, help="seconds per mutant; a longer run counts as caught")
    parser.add_argument("--output", type=Path, help="write the JSON object to this file")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__"))
        record = check(copy, flags.source, flags.tests, flags.timeout)
    if flags.output:
        flags.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


def check(copy: Path, source: str, tests: list[str], timeout: float) -> dict:
    """Test the file as it is, then each mutant of it. -> the record that is printed."""
    text, began = (copy / source).read_text(), time.monotonic()
    if not passes(copy, tests, timeout):
        raise ValueError(f"{' '.join(tests)} do not pass before anything is broken")
    found, survivors = list(mutants(text)), []
    for number, (line, was, now, mutant) in enumerate(found, 1):
        (copy / source).write_text(mutant)
        if passes(copy, tests, timeout):
            survivors.append({"line": line, "was": was, "mutant": now})
        print(f"\r{number}/{len(found)}, {len(survivors)} survived", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {"source": source, "tests": tests, "mutants": len(found), "caught": len(found) - len(survivors),
            "survivors": survivors, "seconds": round(time.monotonic() - began)}


def passes(copy: Path, tests: list[str], timeout: float) -> bool:
    """Whether the tests pass in a forked process, which has read nothing of the project yet."""
    child = multiprocessing.get_context("fork").Process(target=run_tests, args=(copy, tests))
    child.start()
    child.join(timeout)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def run_tests(copy: Path, tests: list[str]) -> None:
    """Run the tests of the copy without a word and exit with pytest's code."""
    os.chdir(copy)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.dont_write_bytecode = True                          # byte code of an earlier mutant could be taken for it
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))


def mutants(text: str) -> Iterator[tuple[int, str, str, str]]:
    """Every mutant of a source text: line, what stood there, what stands there now, the whole text."""
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node in arithmetic(ast.parse(text)):
        begin = starts[node.lineno - 1] + node.col_offset                       # offsets count bytes
        end = starts[node.end_lineno - 1] + node.end_col_offset
        whole = text.encode()
        for new in broken(node):
            now = ast.unparse(new)
            yield (node.lineno, " ".join(whole[begin:end].decode().split()), now,
                   (whole[:begin] + f"({now})".encode() + whole[end:]).decode())


def arithmetic(node: ast.AST) -> Iterator[ast.expr]:
    """All expressions that compute: neither annotations nor messages of errors."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr) and name not in (
                    "annotation", "returns", "decorator_list"):
                if isinstance(child, ast.expr):
                    yield child
                yield from arithmetic(child)


def broken(node: ast.expr) -> list[ast.expr]:
    """The node with one thing changed, in every way that is known for its kind."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return [ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)]
    if isinstance(node, ast.BoolOp):
        return [ast.BoolOp(OPERATORS[type(node.op)](), node.values)]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]                                                   # -x, ~x and not x become x
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return [ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)]
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    return broken_call(node) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else []


def broken_call(node: ast.Call) -> list[ast.expr]:
    """A method or torch function with another reduction, without a bound, or left out."""
    name, changed = node.func.attr, []
    if name in REDUCTIONS:
        function = ast.Attribute(node.func.value, REDUCTIONS[name], node.func.ctx)
        changed.append(ast.Call(function, node.args, node.keywords))
    if name == "std":
        changed.append(ast.Call(node.func, node.args, [*node.keywords, ast.keyword("correction", ast.Constant(0))]))
    if name == "where":
        changed += node.args[1:]
    if name == "clamp" and len(node.args) == 2:
        changed += [ast.Call(node.func, [], [ast.keyword(bound, value)])
                    for bound, value in zip(("min", "max"), node.args, strict=True)]
    return changed + ([node.func.value] if name in DROPPED else [])


if __name__ == "__main__":
    main()
