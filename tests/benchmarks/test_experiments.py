"""The runner of resumable sets of experiments, and that the arms of the trajectory study do not share folders."""

import json

from benchmarks.experiments import Part, run_parts
from benchmarks.trajectories import ARMS, SHOWN, plan_parts, read_scores, slug, summarise


def test_parts_run_once_in_order_and_not_without_what_they_need(tmp_path, capsys):
    first = Part("first", (("-c", "print(1)"), ("-c", "print(2)")))
    broken = Part("broken", (("-c", "1/0"),), needs=("first",))
    behind = Part("behind", (("-c", "print(3)"),), needs=("broken",))
    assert run_parts(tmp_path, [behind, broken, first], jobs=2) == ["broken"]
    assert (tmp_path / "parts/first.log").read_text() == "$ python -c print(1)\n1\n$ python -c print(2)\n2\n"
    assert json.loads((tmp_path / "parts/first.json").read_text())["commands"] == [["-c", "print(1)"],
                                                                                    ["-c", "print(2)"]]
    assert {file.name for file in (tmp_path / "parts").iterdir()} == {"first.json", "first.log", "broken.log"}
    said = capsys.readouterr().out
    assert "see" in said and "not run: behind" in said
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


def test_a_study_keeps_the_arms_that_it_did_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.trajectories.scene_scores", lambda row: row)
    scores = {**dict.fromkeys(SHOWN, 0.5), **{f"demonstration_{name}": 0.25 for name in SHOWN}}
    for arm in ("cloning", "grpo"):
        (tmp_path / f"seed-3/{arm}/eval").mkdir(parents=True)
        rows = [json.dumps({**scores, "id": f"{i}", "pdms": i / 4 + (arm == "grpo") / 8}) for i in range(4)]
        (tmp_path / f"seed-3/{arm}/eval/trajectories.jsonl").write_text("\n".join(rows))
        (tmp_path / "parts/seed-3").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"parts/seed-3/{arm}.json").write_text(json.dumps({"seconds": 9, "commit": "c", "cpu": "new"}))
    assert read_scores(tmp_path, 3, "ranked") is None
    earlier = {"arms": {"no KL": {"pdms": 0.9, "cpu": "old"}, "grpo": {"pdms": 0.1, "cpu": "old"}, "gone": {}}}
    record = summarise(tmp_path, [3], earlier)
    assert record["arms"].keys() == {"no KL", "grpo", "cloning"}            # an arm that no longer exists is dropped
    assert record["arms"]["no KL"] == {"pdms": 0.9, "cpu": "old"}
    grpo = record["arms"]["grpo"]
    assert (grpo["pdms"], grpo["cpu"], grpo["seconds"]) == (0.5, "new", 9)
    assert grpo["minus"]["cloning"]["by_seed"] == [0.125] and grpo["minus"]["the demonstrations"]["difference"] == 0.25
    assert summarise(tmp_path / "nothing", [3], record) == record
