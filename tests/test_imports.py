"""The direction of imports (docs, layout): lower layers know nothing of higher ones, and no third party comes in."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("rewards", "data", "models", "grpo", "page")
ALLOWED = {
    "rewards": {"rewards"},
    "data": {"data", "rewards"},
    "models": {"models"},
    "grpo": {"grpo", "models", "data.schema"},
    "page": {"page", "rewards", "data"},
}
SCRIPTS = {file.stem for file in ROOT.glob("*.py")}
THIRD_PARTY = {"torch", "safetensors", "tokenizers", "numpy", "PIL"}


def imported_modules(file):
    """Full names of everything a file imports, at any depth of nesting: `from a.b import c` gives a.b and a.b.c."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the full name"
            names.add(node.module)
    return names


def source_files():
    """Every file of the project that ships: layers, scripts, benchmarks, tests; not environments or outputs."""
    scripts = sorted(ROOT.glob("*.py"))
    folders = [path for name in (*LAYERS, "benchmarks", "tests") for path in sorted((ROOT / name).rglob("*.py"))]
    return [*scripts, *folders]


def is_within(module, allowed):
    return any(module == name or module.startswith(name + ".") for name in allowed)



@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_downwards_only(layer):
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    for file in files:
        own = {name for name in imported_modules(file) if name.split(".")[0] in (*LAYERS, *SCRIPTS)}
        wrong = {name for name in own if not is_within(name, ALLOWED[layer])}
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}; {layer} may use {sorted(ALLOWED[layer])}"


def test_no_script_is_imported_by_a_layer_or_another_script_cycle():
    scripts = {file.stem: imported_modules(file) & SCRIPTS for file in ROOT.glob("*.py")}
    for name, imported in scripts.items():
        assert not any(name in scripts[other] for other in imported), f"{name} and {sorted(imported)} form a circle"


def test_third_party_packages():
    known = set(sys.stdlib_module_names) | {*LAYERS, *SCRIPTS, "benchmarks", "tests"} | THIRD_PARTY
    for file in source_files():
        place = file.relative_to(ROOT)
        makes_golden = place.parts[:2] == ("tests", "golden") and place.name.startswith("make_")
        if place.parts[0] == "benchmarks" or makes_golden:
            continue                                         # they may compare with the usual tools
        extra = {"pytest"} if place.parts[0] == "tests" else set()
        packages = {name.split(".")[0] for name in imported_modules(file)}
        assert packages <= known | extra, f"{place} imports {sorted(packages - known - extra)}"


def test_no_home_for_leftovers():
    assert not [file for file in source_files() if file.name in ("utils.py", "helpers.py", "common.py")]
