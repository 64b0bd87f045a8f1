"""Reading runs; outcomes of answers and changes between runs."""

import pytest

import report
from evaluation.page.runs import change, outcome, present_factors, read_runs


@pytest.mark.parametrize(("truth", "decision", "acceptable", "expected"), [
    ("STOP, STRAIGHT", "STOP, STRAIGHT", None, "right"),
    ("STOP, STRAIGHT", None, None, "invalid"),
    ("STOP, STRAIGHT", "KEEP, STRAIGHT", None, "unsafe"),
    ("DECELERATE, STRAIGHT", "ACCELERATE, LEFT_TURN", [], "unsafe"),
    ("STOP, STRAIGHT", "KEEP, STRAIGHT", ["KEEP, STRAIGHT"], "acceptable"),
    ("STOP, STRAIGHT", "DECELERATE, STRAIGHT", None, "wrong"),
    ("KEEP, STRAIGHT", "STOP, STRAIGHT", None, "wrong")])
def test_outcomes(truth, decision, acceptable, expected):
    assert outcome({"truth": truth, "decision": decision, "acceptable": acceptable}) == expected


def test_changes_between_runs(prediction):
    right, wrong = prediction(), prediction(decision=None)
    pairs = ((right, wrong), (wrong, right), (right, right), (wrong, wrong), (right, None))
    assert [change(*pair) for pair in pairs] == ["improved", "worse", "both right", "both wrong", None]


def test_factors_are_what_is_there():
    assert present_factors({"factors": {"light": "red", "night": True, "lead": "none", "braking": False, "gap": 3.2,
                                        "left_lane": "free", "gear": 0}}) == {
        "light": "red", "night": "yes", "left lane": "free", "gear": "0"}


def test_broken_files_are_named(make_run, tmp_path, capsys, metrics, steps):
    folder = make_run("run", steps=steps)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(SystemExit, match="metrics.jsonl, line 2 is not valid JSON"):
        report.main([str(folder)])
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(SystemExit, match="line 1 has no step"):
        report.main([str(folder)])
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": null}\n')
    with pytest.raises(SystemExit, match="metrics.jsonl, record 2: step is None, which is no number; remove the line"):
        report.main([str(folder)])
    (folder / "metrics.jsonl").write_text("")
    (folder / "eval-test/metrics.json").write_text("[]")
    with pytest.raises(SystemExit, match="not a JSON object"):
        report.main([str(folder)])
    with pytest.raises(SystemExit, match="run `python eval.py --model"):
        report.main([str(tmp_path / "absent")])


def test_a_run_that_is_going_on_is_shown(make_run, tmp_path, capsys, steps, read):
    folder = make_run("run", steps=steps, config={"stage": "grpo", "steps": len(steps) + 2}, groups=[])
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(folder / name, "ab") as file:
            file.write(b'{"step": 99, "id": "\xc3')                # a line that is being written, cut inside a letter
    report.main([str(folder)])
    assert f"run is at step {steps[-1]['step']} of {len(steps) + 2}\n" in capsys.readouterr().out
    text = " ".join(read((folder / "report.html").read_text()).text)
    assert f"This is step {steps[-1]['step']} of {len(steps) + 2}: run report.py again and reload" in text
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.json").write_text('{"stage": "sft", "steps": 40}')
    report.main([str(folder), str(tmp_path / "begun")])
    assert "begun is at step 0 of 40\n" in capsys.readouterr().out


def test_a_scoring_that_is_going_on_is_shown(make_run, steps, prediction, capsys):
    folder = make_run("run", steps=steps, predictions=[prediction("a"), prediction("b")])
    with open(folder / "eval-test/predictions.jsonl", "a") as file:
        file.write('{"id": "c", "tru')
    report.main([str(folder)])
    assert len(read_runs([str(folder)])[0].predictions) == 2 and "is at step" not in capsys.readouterr().out


def test_terminal_and_page_say_which_run_brakes_better(make_run, prediction, capsys, metrics):
    """By hand: STOP answered KEEP costs 2/3, in the 30 scenes of sft; in grpo's 31 one sample of two stops."""
    def samples(*plans):
        return {"sample_decisions": [f"{plan}, STRAIGHT" for plan in plans]}
    sft = make_run("sft", metrics=metrics, predictions=[prediction(f"s{i}", **samples("KEEP", "KEEP"))
                                                        for i in range(30)])
    grpo = make_run("grpo", metrics=metrics, predictions=[prediction(f"s{i}", **samples("KEEP", "STOP"))
                                                          for i in range(31)])
    report.main([str(sft), str(grpo)])
    told = ("grpo against sft: expected cost of missed braking -0.333 (95 % -0.333 to -0.333, 30 scenes): better; "
            "unreadable 0.0 % against 0.0 %")
    assert told in capsys.readouterr().out.splitlines() and f"<p>{told}.</p>" in (grpo / "report.html").read_text()
    report.main([str(grpo), str(make_run("other", metrics=metrics, predictions=[prediction("z", **samples("STOP"))]))])
    assert "against" not in capsys.readouterr().out                             # no scene in common


def test_samples_drawn_differently_have_no_verdict(make_run, prediction, capsys, metrics, read):
    """A scene with another label is left out, and its number is told."""
    kept, other = (prediction(name, sample_decisions=["STOP, STRAIGHT"]) for name in "ab")
    sft = make_run("sft", metrics={**metrics, "temperature": 1.0}, predictions=[kept, other])
    grpo = make_run("grpo", metrics={**metrics, "temperature": 0.5},
                    predictions=[kept, {**other, "truth": "KEEP, STRAIGHT"}])
    report.main([str(sft), str(grpo)])
    shown, page = capsys.readouterr().out, "".join(read((grpo / "report.html").read_text()).text)
    lines = ("grpo against sft: samples are not compared: temperature 1.0 and 0.5",
             "grpo against sft: 1 scenes with different labels are left out")
    assert all(line in shown.splitlines() and f"{line}." in page for line in lines)
    assert "missed braking" not in shown and "Sampled: " not in page and "on the same 1 scenes" in page
    before, now = (row.split("|") for row in shown.splitlines()[2:4])
    assert (before[3].strip(), now[3].strip()) == ("0.450", "0.450 (T = 0.5)")


def test_groups_that_the_page_cannot_show_are_named(make_run, group, capsys):
    for field in ("texts", "truth"):
        folder = make_run(field, config={"stage": "grpo"}, groups=[{k: v for k, v in group.items() if k != field}])
        with pytest.raises(SystemExit, match=f"samples.jsonl, line 1 has no {field}: make the file again"):
            report.main([str(folder)])
        (folder / "config.json").write_text('{"stage": "trajectory-grpo"}')                # its groups are not shown
        report.main([str(folder)])


def test_runs_of_one_name_are_told_apart(make_run, steps):
    runs = read_runs([str(make_run(f"{place}/run", steps=steps)) for place in ("a", "b")])
    assert runs[0].name != runs[1].name


def test_predictions_that_the_page_cannot_show_are_named(make_run, prediction, metrics):
    for field, value, words in (("truth", "STOP", "truth is 'STOP'"), ("decision", 5, "decision is 5")):
        folder = make_run(field, metrics=metrics, predictions=[prediction("a"), prediction("b", **{field: value})])
        with pytest.raises(ValueError, match=f"predictions.jsonl, prediction 2: {words}, which is not a plan"):
            read_runs([str(folder)])


def test_a_run_by_epochs_says_its_planned_steps(make_run, capsys, steps):
    last = steps[-1]["step"]
    report.main([str(make_run("run", steps=steps, config={"stage": "sft", "steps": 0, "planned_steps": last + 9}))])
    assert f"run is at step {last} of {last + 9}\n" in capsys.readouterr().out


def test_a_folder_of_scores_alone(make_run, prediction, metrics, capsys):
    run = make_run("run", predictions=[prediction("a")], metrics=metrics)
    (run / "eval-test/config.json").write_text('{"stage": "eval"}')
    report.main([str(run / "eval-test")])
    assert f"| {metrics['planning_accuracy']:.3f}" in capsys.readouterr().out
    assert len(read_runs([str(run / "eval-test")])[0].predictions) == 1


def test_help_is_printed(capsys):
    report.main(["--help"])
    assert "Compare runs" in capsys.readouterr().out
