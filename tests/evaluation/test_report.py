"""report.html: what it says, what it leaves out, and that nothing a model wrote becomes part of the page."""

import base64
import hashlib
import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import report
from data.scenes import scene_examples
from evaluation.page import groups, scenes
from evaluation.page.charts import Line, Point, bin_steps, plot, ticks
from evaluation.page.markup import interval, join, number, percent, points, table, tag
from evaluation.page.runs import change, missed_braking, outcome, present_factors, read_runs
from evaluation.page.scores import multimodality, scores
from evaluation.page.training import training

HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)> & </p>'
GOOD = "<think> The light is red. </think> <answer> STOP, STRAIGHT </answer>"


class Reader(HTMLParser):
    """Notes tags, attributes, visible text and scripts; fails where tags do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text, self.scripts = [], [], [], [], []

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += [(name, key, value) for key, value in attributes]
        if name not in ("meta", "img", "input"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        (self.scripts if self.open[-1:] == ["script"] else self.text).append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def prediction(name="a", truth="STOP, STRAIGHT", decision="STOP, STRAIGHT", **more):
    return {"id": name, "scene": None, "image": None, "prompt": "speed 1.0 m/s.", "truth": truth, "text": GOOD,
            "decision": decision, **more}


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, steps=..., groups=..., predictions=..., metrics=..., config=...) -> its directory."""
    def make(name, **parts):
        folder = tmp_path / name
        (folder / "eval-test").mkdir(parents=True)
        lines = {"steps": "metrics.jsonl", "groups": "samples.jsonl", "predictions": "eval-test/predictions.jsonl"}
        for part, value in parts.items():
            if part in lines:
                (folder / lines[part]).write_text("".join(json.dumps(row) + "\n" for row in value))
            else:
                place = {"metrics": "eval-test/metrics.json", "config": "config.json"}[part]
                (folder / place).write_text(json.dumps(value))
        return folder
    return make


def page_of(*folders):
    report.main([str(folder) for folder in folders])
    return (folders[-1] / "report.html").read_text()


METRICS = {"count": 4, "planning_accuracy": 0.5, "planning_accuracy_interval": [0.4, 0.6], "bayes_ceiling": 0.8,
           "invalid_rate": 0.25, "acceptable_accuracy": 0.75,
           "sampled": {"planning_accuracy": 0.45, "planning_accuracy_interval": [0.4, 0.5], "plan_entropy": 0.3},
           "speed_confusion": {"STOP": {"KEEP": 1, "STOP": 5, "invalid": 0},
                               "KEEP": {"KEEP": 2, "STOP": 2, "invalid": 0}}}
STEPS = [{"step": n, "reward": float(n), "kl": None, "flat_groups": 0.5} for n in range(1, 6)]
GROUP = {"step": 1, "id": "rl-0-000003", "truth": "STOP, STRAIGHT", "texts": [GOOD, HOSTILE], "rewards": [2.6, 0.0],
         "components": {"speed": [0.8, 0.0], "path": [0.8, 0.0], "format": [1.0, 0.0]}, "advantages": [0.71, -0.71]}


# ---------------------------------------------------------------- markup and numbers

def test_everything_but_markup_is_escaped():
    cell = tag("td", "a < b & c", tag("b", '"'), None, class_="x", data_note='<">', hidden=True, title=None)
    assert cell == '<td class="x" data-note="&lt;&quot;&gt;" hidden>a &lt; b &amp; c<b>&quot;</b></td>'
    assert join("<", tag("i")) == "&lt;<i></i>"
    assert tag("img", alt="<") == '<img alt="&lt;">'
    assert "&lt;td&gt;" in table("t", ["h"], [["a", "<td>"]])        # a text that looks like a cell is none


def test_numbers_for_people():
    assert [number(value) for value in (None, float("nan"), 0.0, -0.5, 12345.6, 5e-6)] == [
        "–", "–", "0", "−0.5", "12,346", "5e−06"]
    assert percent(0.7056) == "70.6 %" and percent(None) == "–"
    assert points(-0.0184) == "−1.8" and points(0.02) == "+2.0"
    assert interval(0.5, [0.4, 0.6]) == "50.0 % <small>40.0 to 60.0</small>"


# ---------------------------------------------------------------- charts

def test_ticks_are_round_and_enclose():
    assert ticks(1.9, 2.3) == pytest.approx([1.9, 2.0, 2.1, 2.2, 2.3])
    assert ticks(0, 200) == [0, 50, 100, 150, 200]
    assert ticks(-0.3, 1.1) == [-0.5, 0.0, 0.5, 1.0, 1.5]            # 1.4 / 4 = .35 -> .5
    assert len(ticks(0.0, 0.0)) >= 2 and len(ticks(7.0, 7.0)) >= 2   # a constant still has an axis


def test_long_runs_are_means_of_consecutive_steps():
    steps = [{"step": n, "kl": None if n == 3 else float(n)} for n in range(1, 7)]
    # measured: 1 2 4 5 6 in 2 bins of 3: (1 + 2 + 4) / 3 = 2.333, from 1 to 4; (5 + 6) / 2 = 5.5
    first, second = bin_steps(steps, "kl", bins=2)
    assert (first.x, first.low, first.high, first.label) == (2.5, 1.0, 4.0, "steps 1 to 4")
    assert first.y == pytest.approx(7 / 3) and (second.x, second.y, second.label) == (5.5, 5.5, "steps 5 to 6")
    assert bin_steps(steps, "absent") == []


def test_a_chart_has_axes_readings_and_words():
    line = Line("run <1>", 0, [Point(1, 0.0, 0.0, 0.0, "step 1"), Point(3, 1.0, 0.5, 1.0, "step 3")])
    reader = read(plot("Reward", "Why.", [line]))
    values = {key: value for name, key, value in reader.attributes if name == "svg"}
    # the plot reaches from x = 50 to 350: step 1 stands at its left edge, step 3 at its right
    assert json.loads(values["data-readings"]) == [[50.0, "step 1: 0"], [350.0, "step 3: 1 (0.5 to 1)"]]
    assert values["aria-label"] == "Reward: run <1> goes from 0 (step 1) to 1 (step 3), lowest 0, highest 1."
    (curve,) = [value for name, key, value in reader.attributes if (name, key) == ("polyline", "points")]
    assert curve == "50,160 350,10"                                  # bottom left to top right
    assert {"0", "0.5", "1", "step"} <= set(reader.text)


def test_a_share_has_an_axis_of_at_least_a_tenth():
    line = Line("run", 0, [Point(1, 0.7, 0.7, 0.7, "step 1"), Point(2, 0.701, 0.701, 0.701, "step 2")])
    assert {"0.65", "0.7", "0.75"} <= set(read(plot("A", "", [line], share=True)).text)
    assert "0.65" not in read(plot("A", "", [line])).text


def test_runs_of_one_stage_share_axes_and_nulls_are_named(make_run):
    runs = read_runs([str(make_run(name, steps=STEPS)) for name in ("one", "two")])
    reader = read(training(runs))
    assert reader.tags.count("svg") == 2 and reader.tags.count("polyline") == 4      # reward and flat_groups, two runs
    assert "Not measured in these runs:" in " ".join(reader.text) and "KL" in " ".join(reader.text)


# ---------------------------------------------------------------- outcomes and scores

@pytest.mark.parametrize(("truth", "decision", "acceptable", "expected"), [
    ("STOP, STRAIGHT", "STOP, STRAIGHT", None, "right"),
    ("STOP, STRAIGHT", None, None, "unreadable"),
    ("STOP, STRAIGHT", "KEEP, STRAIGHT", None, "unsafe"),
    ("DECELERATE, STRAIGHT", "ACCELERATE, LEFT_TURN", [], "unsafe"),
    ("STOP, STRAIGHT", "KEEP, STRAIGHT", ["KEEP, STRAIGHT"], "acceptable"),
    ("STOP, STRAIGHT", "DECELERATE, STRAIGHT", None, "wrong"),
    ("KEEP, STRAIGHT", "STOP, STRAIGHT", None, "wrong")])
def test_outcomes(truth, decision, acceptable, expected):
    assert outcome({"truth": truth, "decision": decision, "acceptable": acceptable}) == expected


def test_changes_between_runs():
    right, wrong = prediction(), prediction(decision=None)
    pairs = ((right, wrong), (wrong, right), (right, right), (wrong, wrong), (right, None))
    assert [change(*pair) for pair in pairs] == ["improved", "worse", "both right", "both wrong", None]


def test_missed_braking_is_counted_by_hand():
    # STOP answered KEEP: 1 of 1 + 5 = 6; KEEP answered STOP is no missed braking
    assert missed_braking(METRICS) == pytest.approx(1 / 6)
    assert missed_braking({"safety": {"rate": 0.25}}) == 0.25
    assert missed_braking({}) is None


def test_factors_are_what_is_there():
    assert present_factors({"factors": {"light": "red", "night": True, "lead": "none", "braking": False, "gap": 3.2,
                                        "left_lane": "free"}}) == {"light": "red", "night": "yes", "left lane": "free"}


def test_score_table(make_run):
    runs = read_runs([str(make_run("run", metrics={**METRICS, "bleu4": 0.5, "text": {"cider": 1.25}}))])
    text = " ".join(read(scores(runs)).text)
    assert "50.0 %" in text and "40.0 to 60.0" in text
    assert "62.5 %" in text                                          # .5 / .8
    assert "50.00" in text and "125.00" in text                      # both x 100
    assert "METEOR" not in text


def test_multimodality_curve(make_run):
    sweep = [{"temperature": t, "validity": 1 - t / 4, "coverage": t / 2, "pass_at_k": {"label": {"8": 0.9}}}
             for t in (1.0, 0.5)]
    (with_sweep, without) = (make_run(name, metrics={**METRICS, **more}) for name, more in
                             (("with", {"multimodality": sweep}), ("without", {})))
    reader = read(multimodality(read_runs([str(without), str(with_sweep)])))
    (curve,) = [value for name, key, value in reader.attributes if (name, key) == ("polyline", "points")]
    assert len(curve.split()) == 2 and "pass at k label 8" in reader.text
    assert "T = 0.5, coverage 0.25, validity: 0.875" in str(reader.attributes)
    assert "Not measured" in multimodality(read_runs([str(without)]))
    single = make_run("single", metrics={**METRICS, "multimodality": sweep[:1]})
    assert "One temperature is no curve" in multimodality(read_runs([str(single)]))


def test_two_runs_are_compared_scene_by_scene(make_run):
    wrong = {"decision": "KEEP, STRAIGHT"}
    # before right: a b; now right: b c d -> 3 - 2 of 4 scenes = +25 points, gained c and d, lost a
    before = make_run("sft", metrics=METRICS, predictions=[prediction("a"), prediction("b"), prediction("c", **wrong),
                                                          prediction("d", **wrong)])
    now = make_run("grpo", metrics=METRICS, predictions=[prediction("a", **wrong), prediction("b"), prediction("c"),
                                                        prediction("d"), prediction("e")])
    text = "".join(read(page_of(before, now)).text)
    assert "grpo against sft on the same 4 scenes" in text and "Greedy: +25.0 (95 %" in text
    assert "right now and wrong before 2, wrong now and right before 1" in text


# ---------------------------------------------------------------- gallery and groups

def test_worst_scenes_come_first():
    rows = [prediction("right"), prediction("wrong", decision="DECELERATE, STRAIGHT"),
            prediction("none", decision=None),
            prediction("mixed", decision="KEEP, STRAIGHT", sample_decisions=["STOP, STRAIGHT", "KEEP, STRAIGHT"]),
            prediction("sure", decision="KEEP, STRAIGHT", sample_decisions=["KEEP, STRAIGHT"] * 2)]
    assert [row["id"] for row in scenes.choose(rows, {})] == ["sure", "mixed", "none", "wrong", "right"]


def test_a_choice_keeps_failures_improvements_and_some_others():
    rows = [prediction(f"{i:02}", decision=None if i < 3 else "STOP, STRAIGHT") for i in range(20)]
    before = {"19": prediction("19", decision=None), "18": prediction("18", decision=None)}
    chosen = [row["id"] for row in scenes.choose(rows, before, shown=8, failures=3, changed=1)]
    # 3 failures, the first improvement (18), 4 of the 16 others: places 0, 4, 8, 12 of 03 .. 17, 19
    assert chosen == ["00", "01", "02", "03", "07", "11", "15", "18"]


def test_pictures_keep_to_their_budget(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6                                                 # lies on its side
    Image.fromarray(pixels).save(tmp_path / "noise.jpg", exif=exif)
    data = scenes.photo(str(tmp_path / "noise.jpg"))
    assert len(data) <= 4000
    with Image.open(io.BytesIO(data)) as image:
        assert image.height > image.width
    with Image.open(io.BytesIO(scenes.drawn(3))) as image:
        assert image.size == (224, 112)
    # 448 x 224 is halved to the page's 224; 112 x 56 stays what the model saw; 896 x 100 is a quarter, but 28 at least
    for asked, shown in (("448x224", (224, 112)), ("112x56", (112, 56)), ("896x100", (224, 28)), (None, (224, 112))):
        with Image.open(io.BytesIO(scenes.drawn(3, asked))) as image:
            assert image.size == shown
    assert "448 x 224" in scenes.seen_size({"scene_size": "448x224"})
    assert scenes.seen_size({"scene_size": "224x112"}) == scenes.seen_size({}) == ""
    assert scenes.picture({"id": "a"}, "") is None
    assert "cannot be shown" in scenes.picture({"id": "a", "image": str(tmp_path / "gone.jpg")}, "")


def test_groups_show_components_and_advantages():
    reader = read(groups.group_block(GROUP, {"data": "scenes"}, True))
    assert [text for text in reader.text if re.fullmatch(r"[+−]?[\d.]+", text)] == [
        "0.8", "0.8", "1", "2.6", "+0.71", "0", "0", "0", "0", "−0.71"]
    assert "img" in reader.tags and "script" not in reader.tags
    assert groups.mean_advantage([1.0, 2.0]) == 1.5                  # a value per token


def test_chosen_groups_run_through_the_training():
    flat = {**GROUP, "rewards": [1.0, 1.0], "advantages": [0.0, 0.0]}
    logged = [{**GROUP, "step": 1}, {**flat, "step": 1}, {**flat, "step": 10}, {**GROUP, "step": 20}]
    chosen = groups.choose(logged, shown=3)
    assert [(group["step"], group["rewards"]) for group in chosen] == [
        (1, [2.6, 0.0]), (10, [1.0, 1.0]), (20, [2.6, 0.0])]


def test_seed_of_a_built_in_scene():
    # sft rl val test are 0 1 2 3; a split has 10^5 data seeds of 10^7 scenes
    assert groups.built_in_scene("rl-0-006037", {"data": "scenes"}) == 1_000_000_006_037
    assert groups.built_in_scene("test-2-000001", {"data": "scenes"}) == 3_000_020_000_001
    assert groups.built_in_scene("natural-rl-0-000012", {"data": "scenes"}) == 11_000_000_000_012     # 10 splits each
    assert groups.built_in_scene("rl-0-006037", {"data": "file.json"}) is None
    assert groups.built_in_scene("frame 12", {"data": "scenes"}) is None


# ---------------------------------------------------------------- the page

def test_model_text_stays_text(make_run):
    hostile = prediction(f"id {HOSTILE}", text=HOSTILE, decision=None, prompt=HOSTILE, factors={HOSTILE: HOSTILE},
                         acceptable=[HOSTILE], sample_decisions=[None, HOSTILE])
    group = {**GROUP, "prompt": HOSTILE, "texts": [HOSTILE, GOOD]}
    page = page_of(make_run("sft", predictions=[hostile], metrics=METRICS),
                   make_run(f"run {HOSTILE}".replace("/", ""), predictions=[hostile], metrics=METRICS, groups=[group],
                            steps=[{**STEPS[0], HOSTILE: 1.0}], config={"data": "scenes", "note": HOSTILE}))
    reader = read(page)
    assert reader.tags.count("script") == 1 and HOSTILE in "".join(reader.text)
    assert not [key for _, key, _ in reader.attributes if key.startswith("on")]


def test_the_page_asks_for_nothing(make_run):
    page = page_of(make_run("run", predictions=[prediction(scene=5)], metrics=METRICS, steps=STEPS, groups=[GROUP]))
    reader = read(page)
    links = [value for _, key, value in reader.attributes if key in ("src", "href", "action", "data", "srcset")]
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert "http" not in page.replace("http-equiv", "") and "url(" not in page and "@import" not in page
    (policy,) = [value for name, key, value in reader.attributes if key == "content" and "default-src" in value]
    digest = base64.b64encode(hashlib.sha256("".join(reader.scripts).encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_the_page_can_be_used_without_eyes(make_run):
    page = page_of(make_run("run", predictions=[prediction(scene=5, factors={"light": "red"})], metrics=METRICS,
                            steps=STEPS, groups=[GROUP]))
    reader = read(page)
    ids = [value for _, key, value in reader.attributes if key == "id"]
    targets = [value[1:] for _, key, value in reader.attributes if key == "href"]
    assert len(ids) == len(set(ids)) and set(targets) <= set(ids)
    alternatives = [value for name, key, value in reader.attributes if (name, key) == ("img", "alt")]
    assert len(alternatives) == reader.tags.count("img") and "Front view of a: light: red" in alternatives
    assert reader.tags.count("caption") == reader.tags.count("table") and reader.tags.count("h1") == 1
    assert ("html", "lang", "en") in reader.attributes


def test_what_is_missing_is_said(make_run):
    text = "".join(read(page_of(make_run("run", steps=[{"step": 1, "loss": 2.0}]))).text)
    for sentence in ("run has not been scored", "No run has been scored", "No confusion matrices", "name no factors",
                     "Not measured: no eval-test/metrics.json", "No groups: no run has a samples.jsonl",
                     "No scenes: run has no eval-test/predictions.jsonl", "No run has a config.json"):
        assert sentence in text
    text = "".join(read(page_of(make_run("scored", metrics={"planning_accuracy": 0.5}))).text)
    assert "there is no metrics.jsonl" in text and "50.0 %" in text


def test_broken_files_are_named(make_run, tmp_path, capsys):
    folder = make_run("run", steps=STEPS)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": ')
    with pytest.raises(SystemExit, match="metrics.jsonl, line 2 is no JSON"):
        report.main([str(folder)])
    (folder / "metrics.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(SystemExit, match="line 1 has no step"):
        report.main([str(folder)])
    (folder / "metrics.jsonl").write_text("")
    (folder / "eval-test/metrics.json").write_text("[]")
    with pytest.raises(SystemExit, match="not a JSON object"):
        report.main([str(folder)])
    with pytest.raises(SystemExit, match="run `python eval.py --model"):
        report.main([str(tmp_path / "absent")])


def test_runs_of_one_name_are_told_apart(make_run):
    runs = read_runs([str(make_run(f"{place}/run", steps=STEPS)) for place in ("a", "b")])
    assert runs[0].name != runs[1].name


def test_five_hundred_scenes_are_small_and_soon_made(make_run):
    prompt = "Your current speed is 4.2m/s. " * 30                   # 900 characters, as AlphaDrive's
    rows = [prediction(e.id, str(e.decision), "KEEP, STRAIGHT", scene=e.scene, factors=e.factors, prompt=prompt,
                       sample_decisions=["KEEP, STRAIGHT"] * 8) for e in scene_examples("test", 500)]
    before, now = (make_run(name, predictions=rows, metrics=METRICS, steps=STEPS) for name in ("sft", "grpo"))
    started = time.process_time()
    page = page_of(before, now)
    assert time.process_time() - started < 10
    assert len(page.encode()) < 5_000_000 and page.count('class="card"') == 500
