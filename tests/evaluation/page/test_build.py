"""report.html as a whole: safe, self-contained, accessible, small, and clear about what is missing."""

import base64
import hashlib
import time

from data.scenes import scene_examples


def test_model_text_stays_text(make_run, read, prediction, page_of, metrics, steps, group, hostile):
    row = prediction(f"id {hostile}", text=hostile, decision=None, prompt=hostile, factors={hostile: hostile},
                     acceptable=[hostile], sample_decisions=[None, hostile])
    page = page_of(make_run("sft", predictions=[row], metrics=metrics),
                   make_run(f"run {hostile}".replace("/", ""), predictions=[row], metrics=metrics,
                            groups=[{**group, "prompt": hostile}], steps=[{**steps[0], hostile: 1.0}],
                            config={"data": "scenes", "note": hostile}))
    reader = read(page)
    assert reader.tags.count("script") == 1 and hostile in "".join(reader.text)
    assert not [key for _, key, _ in reader.attributes if key.startswith("on")]


def test_the_page_asks_for_nothing(make_run, read, prediction, page_of, metrics, steps, group):
    page = page_of(make_run("run", predictions=[prediction(scene=5)], metrics=metrics, steps=steps, groups=[group]))
    reader = read(page)
    links = [value for _, key, value in reader.attributes if key in ("src", "href", "action", "data", "srcset")]
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert "http" not in page.replace("http-equiv", "") and "url(" not in page and "@import" not in page
    (policy,) = [value for name, key, value in reader.attributes if key == "content" and "default-src" in value]
    digest = base64.b64encode(hashlib.sha256("".join(reader.scripts).encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def test_the_page_can_be_used_without_eyes(make_run, read, prediction, page_of, metrics, steps, group):
    page = page_of(make_run("run", predictions=[prediction(scene=5, factors={"light": "red"})], metrics=metrics,
                            steps=steps, groups=[group]))
    reader = read(page)
    ids = [value for _, key, value in reader.attributes if key == "id"]
    targets = [value[1:] for _, key, value in reader.attributes if key == "href"]
    assert len(ids) == len(set(ids)) and set(targets) <= set(ids)
    alternatives = [value for name, key, value in reader.attributes if (name, key) == ("img", "alt")]
    assert len(alternatives) == reader.tags.count("img") and "Front view of a: light: red" in alternatives
    assert reader.tags.count("caption") == reader.tags.count("table") and reader.tags.count("h1") == 1
    assert ("html", "lang", "en") in reader.attributes


def test_what_is_missing_is_said(make_run, read, page_of, metrics):
    text = "".join(read(page_of(make_run("run", steps=[{"step": 1, "loss": 2.0}]))).text)
    for sentence in ("run has not been scored", "No run has been scored", "No confusion matrices", "give no factors",
                     "Not measured: no eval-test/metrics.json", "No groups: no run has a samples.jsonl",
                     "No scenes: run has no eval-test/predictions.jsonl", "No run has a config.json"):
        assert sentence in text
    text = "".join(read(page_of(make_run("scored", metrics={"planning_accuracy": 0.5}))).text)
    assert "there is no metrics.jsonl" in text and "50.0 %" in text


def test_the_header_says_what_was_trained(make_run, read, page_of, metrics):
    def said(stage, count):
        steps = [{"step": n + 1, "loss": 2.0} for n in range(count)]
        folder = make_run(f"{stage}-{count}", steps=steps, config={"stage": stage})
        return "".join(read(page_of(folder)).text)
    assert "names a speed action and a path action. 1 step of SFT. For" in said("sft", 1)
    assert "A diffusion decoder drives 4 s per scene. 2 steps of TRAJECTORY-BC. For" in said("trajectory-bc", 2)


def test_five_hundred_scenes_are_small_and_soon_made(make_run, prediction, page_of, metrics, steps):
    prompt = "Your current speed is 4.2m/s. " * 30                   # 900 characters, as AlphaDrive's
    rows = [prediction(e.id, str(e.decision), "KEEP, STRAIGHT", scene=e.scene, factors=e.factors, prompt=prompt,
                       sample_decisions=["KEEP, STRAIGHT"] * 8) for e in scene_examples("test", 500)]
    before, now = (make_run(name, predictions=rows, metrics=metrics, steps=steps) for name in ("sft", "grpo"))
    started = time.process_time()
    page = page_of(before, now)
    assert time.process_time() - started < 10
    assert len(page.encode()) < 5_000_000 and page.count('class="card"') == 500


def test_the_page_says_how_many_of_how_many_were_scored(make_run, read, page_of, metrics):
    some = "".join(read(page_of(make_run("some", metrics={**metrics, "available": 1200, "skipped": 3}))).text)
    assert "Scored on 4 of 1,200 scenes of the test split (3 could not be used and were skipped)." in some
    scenes = "".join(read(page_of(make_run("scenes", metrics={**metrics, "available": None, "skipped": 0}))).text)
    assert "Scored on 4 scenes of the test split." in scenes


def test_words_of_any_language_reach_the_page(make_run, page_of, prediction, metrics):
    folder = make_run("run", metrics=metrics, predictions=[prediction(prompt="左转 für ü \ud800")])
    page_of(folder)
    assert "左转 für ü \\ud800" in (folder / "report.html").read_bytes().decode("utf-8")
