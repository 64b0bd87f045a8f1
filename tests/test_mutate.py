"""The mutation check: it breaks one thing at a time, and it can tell a test that notices from one that does not."""

from benchmarks.mutate import check, mutants

SOURCE = '''"""Adds - nothing."""
def f(x: int | None) -> int:
    if x is None:
        raise ValueError(f"{x + 1}")
    return max(-x, 0) + 1
'''


def test_every_mutant_of_a_small_source():
    found = [(line, was, now) for line, was, now, _ in mutants(SOURCE)]
    assert found == [(3, "x is None", "x is not None"), (5, "max(-x, 0) + 1", "max(-x, 0) - 1"), (5, "-x", "x")]
    assert [text.splitlines()[4] for *_, text in mutants(SOURCE)][1:] == [
        "    return (max(-x, 0) - 1)", "    return max((x), 0) + 1"]


def test_bounds_masks_and_reductions():
    found = [now for _, _, now, _ in mutants("y = x.clamp(lo, hi)\nz = x.masked_fill(m, 0).sum()\nw = a < b\n")]
    assert found == ["x.clamp(min=lo)", "x.clamp(max=hi)", "x", "x.masked_fill(m, 0).mean()", "x", "a > b"]


def test_survivors_are_listed(tmp_path):
    (tmp_path / "source.py").write_text("def f(x):\n    return x + 1 if x > 0 else -x\n")
    (tmp_path / "test_it.py").write_text(
        "import sys\nsys.path.insert(0, '.')\nfrom source import f\n\ndef test_it():\n    assert f(1) == 2\n")
    record = check(tmp_path, "source.py", ["test_it.py"], timeout=60)
    # noticed: the branch `-x` alone, `x - 1`, `x < 0`; not noticed: the branch `x + 1` alone, `x` for `-x`
    assert (record["mutants"], record["caught"]) == (5, 3)
    assert [(s["line"], s["mutant"]) for s in record["survivors"]] == [(2, "x + 1"), (2, "x")]
