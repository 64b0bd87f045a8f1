"""The comparison of cameras: its groups of scenes and its record, from answers written by hand."""
import json

import pytest

from benchmarks.cameras import ARMS, all_parts, arm_part, summarise


def write_run(folder, arm, seed, right):
    """A finished run that answered scene i rightly where right[i] is 1."""
    run = folder / arm_part(folder, arm, seed).name
    (run / "eval-test").mkdir(parents=True)
    sides = ("none", "none", "cyclist_left", "beside_right")
    answers = ("STOP, STRAIGHT" if good else None for good in right)
    rows = [{"id": str(i), "factors": {"side": side}, "truth": "STOP, STRAIGHT", "decision": answer}
            for i, (side, answer) in enumerate(zip(sides, answers, strict=True))]
    (run / "eval-test/predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "metrics.jsonl").write_text('{"seconds": 1.5}\n{"seconds": 2.5}\n')


def test_record_by_hand(tmp_path):
    for seed, three, front in ((0, (1, 0, 1, 1), (1, 0, 0, 1)), (1, (1, 1, 1, 0), (1, 1, 0, 0))):
        write_run(tmp_path, "three", seed, three)
        write_run(tmp_path, "front", seed, front)
        write_run(tmp_path, "front long", seed, three)
    groups = summarise(tmp_path, [0, 1])["groups"]
    # all: 6 of 8 against 4 of 8; scenes with a side fact: 3 of 4 against 1 of 4; the cyclist alone 2 of 2 against 0
    assert (groups["all"]["three"], groups["all"]["front"]) == (0.75, 0.5)
    assert groups["all"]["minus"]["front"]["mean"] == 0.25 and groups["all"]["minus"]["front"]["seeds"] == [0.25, 0.25]
    assert groups["side view decides"]["scenes"] == 2 and groups["side view decides"]["three"] == 0.75
    assert groups["cyclist"]["minus"]["front"]["mean"] == 1.0 and groups["no side fact"]["minus"]["front"]["mean"] == 0
    low, high = groups["all"]["minus"]["front long"]["interval"]
    assert (low, high) == (0.0, 0.0)
    assert summarise(tmp_path, [0, 1])["seconds"]["three"] == [pytest.approx(4.0)] * 2


def test_every_arm_has_a_folder_and_only_the_controls_hide_the_sides(tmp_path):
    parts = all_parts(tmp_path, [0, 1])
    assert len({part.name for part in parts}) == 2 * len(ARMS)
    hidden = {part.name for part in parts if "--hide" in part.commands[0]}
    assert hidden == {f"front-{seed}" for seed in (0, 1)} | {f"front-long-{seed}" for seed in (0, 1)}
