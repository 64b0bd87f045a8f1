"""The page about trajectory decoders: sections, drawings, colours by advantage, and the tension of several floors."""

import json
from pathlib import Path

import pytest

from data.scenes import scene_examples
from evaluation.page.build import build_page
from evaluation.page.runs import read_runs
from evaluation.page.trajectories import shades, tension, text_table
from evaluation.trajectories import trajectory_metrics


def one(x, pdms):
    return {"waypoints": [[x * (i + 1), 0.1 * i] for i in range(8)], "driven": "KEEP, STRAIGHT", "pdms": pdms,
            "no_collision": 1.0, "on_road": 1.0, "progress": 1.0, "time_to_collision": 1.0, "comfort": 1.0,
            "agreement": 0.0, "violations": []}


@pytest.fixture
def make_run(tmp_path):
    def make(name, scores=(0.2, 0.8), floor=None):
        folder = tmp_path / name / "eval-test"
        folder.mkdir(parents=True)
        rows = [{"id": example.id, "scene": example.scene, "truth": str(example.decision), "plan": None,
                 "acceptable": ["KEEP, STRAIGHT"],
                 "demonstration": one(3.0, 0.7), "greedy": one(3.0, 0.9),
                 "trajectories": [one(2.0 + i, score) for i, score in enumerate(scores)]}
                for example in scene_examples("test", 3)]
        (folder / "trajectories.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        (folder / "metrics.json").write_text(json.dumps({"count": 3, "split": "test", **trajectory_metrics(rows)}))
        (tmp_path / name / "config.json").write_text(json.dumps({"stage": "trajectory-grpo", "noise_floor": floor}))
        (tmp_path / name / "metrics.jsonl").write_text("".join(
            json.dumps({"step": i, "reward": 0.5 + i / 100, "kl": 0.1 * i}) + "\n" for i in range(1, 4)))
        return str(tmp_path / name)
    return make


def test_the_page_draws_scenes_of_both_runs(make_run):
    page = build_page(read_runs([make_run("bc"), make_run("grpo", (0.9, 0.95))]))
    assert "the demonstrations" in page and "Driven test scenes" in page
    assert page.count("trajectories from above") == 6 == page.count("the same in the picture")
    assert "PDMS-like 0.50" in page and "PDMS-like 0.93" in page       # means of .2 and .8, of .9 and .95 (.925)
    assert "default-src" in page                           # the page's policy still forbids every request


def test_what_was_not_scored_is_said(make_run):
    scored, not_scored = make_run("bc"), make_run("grpo")
    file = Path(scored, "eval-test/metrics.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "split": "val", "min_ade": 0.5,
                                "min_ade_interval": [0.25, 0.75]}))
    Path(not_scored, "eval-test/metrics.json").unlink()
    page = build_page(read_runs([not_scored, scored]))
    assert "Driven val scenes" in page and "Not scored: grpo. Run python eval.py --trajectories 16." in page
    assert "0.5 m <small>0.25 to 0.75</small>" in page
    alone = build_page(read_runs([not_scored]))
    assert "Not scored: grpo." in alone and "mean and 95 % interval" not in alone


def test_colours_are_advantages():
    worst, best = shades({"trajectories": [one(1.0, 0.9), one(2.0, 0.1)]})     # drawn in this order, the best on top
    assert worst[0] == "#ce3a2c" and best[0] == "#188860"
    assert worst[1][0][0] == 2.0 and best[1][0][0] == 1.0


def test_equal_scores_are_neither():
    for colour, _ in shades({"trajectories": [one(1.0, 0.5), one(2.0, 0.5)]}):
        assert colour == "#736146"                          # half way: (206 + 24) / 2, (58 + 136) / 2, (44 + 96) / 2


def test_the_tension_needs_three_floors(make_run):
    two = read_runs([make_run("a", floor="0.01"), make_run("b", floor="0.1")])
    assert tension(two) is None
    three = tension([*two, *read_runs([make_run("c", (0.1, 0.2), floor="0.4")])])
    assert "Exploration trade-off" in three and "0.01" in three
    axis = three[three.index('aria-hidden'):three.index('class="name"')]
    assert ">floor of the noise, in order<" in three and 'text-anchor="middle"' not in axis     # a rank has no numbers
    assert tension(read_runs([make_run("annealed", floor="0.1:0.03:linear")] * 3)) is None


def test_the_table_of_the_terminal(make_run):
    header, rows = text_table(read_runs([make_run("bc"), make_run("grpo", (0.9, 0.95))]))
    assert header[1] == "PDMS-like (95 %)" and rows[0][0] == "demonstrations"
    assert rows[0][1].startswith("0.700") and rows[1][1].startswith("0.500") and rows[2][1].startswith("0.925")


def test_two_runs_are_compared(make_run):
    from evaluation.comparison import compare
    text = compare([make_run("bc"), make_run("grpo", (0.9, 0.95))])
    assert "minus" in text and "3 scenes: pdms +0.425 (95 % +0.425 to +0.425)" in text


def test_scenes_of_a_file_without_scores_are_not_drawn(make_run):
    run = make_run("grpo")
    file = Path(run, "eval-test/trajectories.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        for trajectory in row["trajectories"]:
            del trajectory["pdms"]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert "No built-in scenes to draw" in build_page(read_runs([run]))
