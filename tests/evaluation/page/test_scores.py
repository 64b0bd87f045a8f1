"""The score sections."""

import json

from evaluation.page.runs import read_runs
from evaluation.page.scores import factors, multimodality, scores


def test_score_table(make_run, read, metrics):
    costs = {"safety": {"rate": 1 / 6, "cost": 0.125},
             "sampled": {**metrics["sampled"], "safety": {"rate": 0.5, "cost": 0.25}}}
    runs = read_runs([str(make_run("run", metrics={**metrics, "text": {"bleu4": 0.5, "cider": 1.25}, **costs}))])
    text = " ".join(read(scores(runs)).text)
    assert "50.0 %" in text and "40.0 to 60.0" in text
    assert "62.5 %" in text                                          # .5 / .8
    assert "50.00" in text and "125.00" in text                      # both x 100
    assert "Greedy, missed braking 16.7 %" in text                   # safety: 1 / 6
    assert "Greedy, missed braking, cost 0.125" in text and "Sampled, missed braking, cost 0.25" in text
    assert "METEOR" not in text


def test_merged_paths_stand_once(make_run, read, metrics):
    """FORWARD and U_TURN are classes of their own: they stand among the paths, not among the merged ones too."""
    f1 = {"f1": 0.5, "precision": 0.5, "recall": 0.5, "support": 3}
    folder = make_run("run", metrics={**metrics, "path": dict.fromkeys(("FORWARD", "LEFT", "RIGHT", "U_TURN"), f1),
                                      "paper": {"path": dict.fromkeys(("ASIDE", "FORWARD", "U_TURN"), f1)}})
    (folder / "eval-test/config.json").write_text(json.dumps({"actions": {
        "speeds": ["CRUISE", "HALT"], "paths": ["FORWARD", "LEFT", "RIGHT", "U_TURN"],
        "merge": {"LEFT": "ASIDE", "RIGHT": "ASIDE"}}}))
    text = read(scores(read_runs([str(folder)]))).text
    names = [name for name in text if name.split(",")[0] in ("FORWARD", "LEFT", "RIGHT", "U_TURN", "ASIDE")]
    assert names == ["FORWARD", "LEFT", "RIGHT", "U_TURN", "ASIDE, merged"]


def test_few_scenes_of_a_factor_have_no_interval_of_no_width(make_run, read, prediction, metrics):
    """Wilson, 10 of 10: (10 + 1.92 -+ 1.96 * 0.98) / 13.84, 72.2 to 100 %; another run with one scene shows a dash."""
    rows = [prediction(str(i), factors={"light": "red"}) for i in range(10)]
    runs = read_runs([str(make_run(name, metrics=metrics, predictions=part))
                      for name, part in (("one", rows[:1]), ("ten", rows))])
    text = read(factors(runs)).text
    assert text[text.index("light: red"):] == ["light: red", "10", "–", "100.0 % ", "72.2 to 100.0"]


def test_multimodality_curve(make_run, read, metrics):
    sweep = [{"temperature": t, "validity": 1 - t / 4, "coverage": t / 2, "pass_at_k": {"label": {"8": 0.9}}}
             for t in (1.0, 0.5)]
    (with_sweep, without) = (make_run(name, metrics={**metrics, **more}) for name, more in
                             (("with", {"multimodality": sweep}), ("without", {})))
    reader = read(multimodality(read_runs([str(without), str(with_sweep)])))
    (curve,) = [value for name, key, value in reader.attributes if (name, key) == ("polyline", "points")]
    assert len(curve.split()) == 2 and "pass at k label 8" in reader.text
    assert "T = 0.5, coverage 0.25, validity: 0.875" in str(reader.attributes)
    assert "Not measured" in multimodality(read_runs([str(without)]))
    single = make_run("single", metrics={**metrics, "multimodality": sweep[:1]})
    assert "One temperature is no curve" in multimodality(read_runs([str(single)]))


def test_two_runs_are_compared_scene_by_scene(make_run, read, prediction, page_of, metrics):
    wrong = {"decision": "KEEP, STRAIGHT"}
    # before right: a b; now right: b c d -> 3 - 2 of 4 scenes = +25 points, gained c and d, lost a
    before = make_run("sft", metrics=metrics, predictions=[prediction("a"), prediction("b"), prediction("c", **wrong),
                                                          prediction("d", **wrong)])
    now = make_run("grpo", metrics=metrics, predictions=[prediction("a", **wrong), prediction("b"), prediction("c"),
                                                        prediction("d"), prediction("e")])
    text = "".join(read(page_of(before, now)).text)
    assert "grpo compared with sft on the same 4 scenes" in text and "Greedy: +25.0 (95 %" in text
    assert "2 scenes improved, 1 got worse" in text
