"""The score sections."""

from evaluation.page.runs import read_runs
from evaluation.page.scores import multimodality, scores


def test_score_table(make_run, read, metrics):
    runs = read_runs([str(make_run("run", metrics={**metrics, "text": {"bleu4": 0.5, "cider": 1.25}}))])
    text = " ".join(read(scores(runs)).text)
    assert "50.0 %" in text and "40.0 to 60.0" in text
    assert "62.5 %" in text                                          # .5 / .8
    assert "50.00" in text and "125.00" in text                      # both x 100
    assert "Greedy, missed braking 16.7 %" in text                   # safety: 1 / 6
    assert "METEOR" not in text


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
