"""The direction of imports: arrows go down only, no file stands in a circle, and no third party comes in.

    scripts > grpo/engine > grpo/fast, evaluation > trajectory > grpo/*.py > models, data > rewards, storage.py
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {file.stem for file in ROOT.glob("*.py")}
FOLDERS = ("rewards", "data", "models", "evaluation", "grpo", "trajectory")
THIRD_PARTY = {"torch", "safetensors", "tokenizers", "numpy", "PIL"}
# What the modules of a layer may import, beside their own. "grpo" stands for the method: the files of grpo/ itself.
BELOW = {
    "storage": set(),
    "machine": set(),
    "rewards": set(),
    "data": {"rewards", "storage", "machine"},
    "models": {"storage"},
    "grpo": {"rewards", "data", "models"},
    "grpo.fast": {"grpo", "models"},
    "trajectory": {"grpo", "rewards", "data", "models", "storage"},
    "evaluation": {"rewards", "data", "trajectory", "storage"},
    "grpo.engine": {"grpo", "grpo.fast", "evaluation", "trajectory", "rewards", "data", "models", "storage",
                    "machine"},
}
# Files that only re-export names under an earlier path; they may point anywhere.
RE_EXPORTS = {"rewards/text_metrics.py", "grpo/checkpoint.py", "grpo/batch.py", "grpo/rollout.py"}


def module_name(file):
    """Dotted name of a source file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def source_files():
    """Every file of the project that ships: folders, scripts, benchmarks, tests; not environments or outputs."""
    folders = [path for name in (*FOLDERS, "benchmarks", "tests") for path in sorted((ROOT / name).rglob("*.py"))]
    return [*sorted(ROOT.glob("*.py")), *folders]


MODULES = {module_name(file): file for file in source_files()}


def imported_modules(file):
    """Full names of everything a file imports; `from a import b` gives a.b if that is a module."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the full name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found = inner & MODULES.keys()
            names |= found | ({node.module} if len(found) < len(inner) else set())
    return names


def layer_of(module):
    """The layer that a module belongs to."""
    parts = module.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in BELOW else parts[0]


def is_re_export(file):
    return str(file.relative_to(ROOT)) in RE_EXPORTS


@pytest.mark.parametrize("layer", BELOW)
def test_layers_import_downwards_only(layer):
    files = [file for name, file in MODULES.items() if layer_of(name) == layer]
    assert files
    for file in files:
        own = {name for name in imported_modules(file) if name.split(".")[0] in (*FOLDERS, *SCRIPTS)}
        wrong = {name for name in own if layer_of(name) not in BELOW[layer] | {layer}}
        assert not wrong or is_re_export(file), f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_re_exports_hold_nothing_else():
    for name in RE_EXPORTS:
        body = ast.parse((ROOT / name).read_text()).body
        assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Assign) for node in body), name


def circle_from(start, arrows):
    """A way from a module back to itself, or nothing."""
    ways, seen = [[start]], set()
    while ways:
        way = ways.pop()
        for following in arrows[way[-1]]:
            if following == start:
                return [*way, start]
            if following not in seen:
                seen.add(following)
                ways.append([*way, following])
    return []


def test_no_circles():
    arrows = {name: imported_modules(file) & MODULES.keys() - {name} for name, file in MODULES.items()}
    circles = [way for name in arrows if (way := circle_from(name, arrows))]
    assert not circles, f"{len(circles)} modules stand in a circle, such as {' -> '.join(min(circles, key=len))}"


def test_the_circle_finder_finds_circles():
    assert circle_from("a", {"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle_from("a", {"a": {"b"}, "b": {"c"}, "c": {"b"}}) == []         # a leads to a circle, it is in none


def test_third_party_packages():
    known = set(sys.stdlib_module_names) | {*FOLDERS, *SCRIPTS, "benchmarks", "tests"} | THIRD_PARTY
    for file in source_files():
        place = file.relative_to(ROOT)
        makes_golden = place.parts[:2] == ("tests", "golden") and place.name.startswith("make_")
        if place.parts[0] == "benchmarks" or makes_golden:
            continue                                         # they may compare with the usual tools
        extra = {"pytest"} if place.parts[0] == "tests" else set()
        packages = {name.split(".")[0] for name in imported_modules(file)}
        assert packages <= known | extra, f"{place} imports {sorted(packages - known - extra)}"


# In the order of reading
METHOD = ("losses", "credit", "groups", "packing", "sampling", "logprobs", "objective", "step", "sft")
BESIDE = {"__init__", "config"} | {Path(name).stem for name in RE_EXPORTS if name.startswith("grpo/")}


def test_the_method_is_nine_files_that_a_person_can_read():
    assert {file.stem for file in (ROOT / "grpo").glob("*.py")} == {*METHOD, *BESIDE}
    lines = {name: (ROOT / f"grpo/{name}.py").read_text().splitlines() for name in METHOD}
    # 1,200 at first; 50 more since the pass of a policy and its objective are apart, so that the diffusion decoder of
    # trajectory/ shares the objective and the updates
    assert sum(map(len, lines.values())) <= 1250
    wide = [f"{file.name}:{number}" for file in (ROOT / "grpo").glob("*.py")
            for number, line in enumerate(file.read_text().splitlines(), 1) if len(line) > 100]
    assert not wide, f"longer than 100 columns: {wide}"


def test_no_home_for_leftovers():
    assert not [file for file in source_files() if file.name in ("utils.py", "helpers.py", "common.py")]
