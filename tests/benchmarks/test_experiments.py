"""The runner of resumable sets of experiments, and that the arms of the trajectory study do not share folders."""

import json

from benchmarks.experiments import Part, run_parts
from benchmarks.trajectories import ARMS, plan_parts, slug


def test_parts_run_once_in_order_and_not_without_what_they_need(tmp_path, capsys):
    first = Part("first", (("-c", "print(1)"), ("-c", "print(2)")))
    broken = Part("broken", (("-c", "1/0"),), needs=("first",))
    behind = Part("behind", (("-c", "print(3)"),), needs=("broken",))
    assert run_parts(tmp_path, [behind, broken, first], jobs=2) == ["broken"]
    assert (tmp_path / "parts/first.log").read_text() == "$ python -c print(1)\n1\n$ python -c print(2)\n2\n"
    assert json.loads((tmp_path / "parts/first.json").read_text())["commands"] == [["-c", "print(1)"],
                                                                                    ["-c", "print(2)"]]
    assert {file.name for file in (tmp_path / "parts").iterdir()} == {"first.json", "first.log", "broken.log"}
    assert "see" in capsys.readouterr().out
    (tmp_path / "parts/first.log").write_text("kept")       # a finished part is not run again
    mended = Part("broken", (("-c", "print(0)"),), needs=("first",))
    assert run_parts(tmp_path, [behind, mended, first], jobs=1) == []
    assert (tmp_path / "parts/first.log").read_text() == "kept"
    assert (tmp_path / "parts/behind.log").read_text().endswith("3\n")


def test_no_part_starts_after_the_time(tmp_path):
    assert run_parts(tmp_path, [Part("late", (("-c", "print(1)"),))], jobs=1, seconds=-1) == []
    assert not (tmp_path / "parts").exists()


def test_arms_have_folders_of_their_own(tmp_path):
    assert len({slug(arm) for arm in ARMS}) == len(ARMS)
    names = [part.name for part in plan_parts(tmp_path, [0, 1], "planner")]
    assert len(set(names)) == len(names)
