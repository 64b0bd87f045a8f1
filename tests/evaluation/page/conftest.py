"""What the tests of the page share: runs on disk, the page made from them, and a reader of HTML."""

import json
from html.parser import HTMLParser

import pytest

import report

GOOD = "<think> The light is red. </think> <answer> STOP, STRAIGHT </answer>"


class Reader(HTMLParser):
    """Collects tags, attributes, visible text and scripts; fails if tags do not match."""

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


@pytest.fixture
def read():
    """read(html) -> its Reader; fails if an element is not closed."""
    def make(page):
        reader = Reader()
        reader.feed(page)
        reader.close()
        assert reader.open == []
        return reader
    return make


@pytest.fixture
def prediction():
    """prediction(name, truth, decision, **more) -> a line of predictions.jsonl."""
    def make(name="a", truth="STOP, STRAIGHT", decision="STOP, STRAIGHT", **more):
        return {"id": name, "scene": None, "image": None, "prompt": "speed 1.0 m/s.", "truth": truth, "text": GOOD,
                "decision": decision, **more}
    return make


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


@pytest.fixture
def page_of():
    """page_of(folder, ...) -> the report page of these runs."""
    def make(*folders):
        report.main([str(folder) for folder in folders])
        return (folders[-1] / "report.html").read_text(encoding="utf-8")
    return make


@pytest.fixture
def metrics():
    return {"count": 4, "planning_accuracy": 0.5, "planning_accuracy_interval": [0.4, 0.6], "bayes_ceiling": 0.8,
            "invalid_rate": 0.25, "acceptable_accuracy": 0.75, "safety": {"rate": 1 / 6},
            "sampled": {"planning_accuracy": 0.45, "planning_accuracy_interval": [0.4, 0.5], "plan_entropy": 0.3}}


@pytest.fixture
def steps():
    return [{"step": n, "reward": float(n), "kl": None, "flat_groups": 0.5} for n in range(1, 6)]


@pytest.fixture
def group(hostile):
    return {"step": 1, "id": "rl-0-000003", "scene": 1_000_000_000_003, "truth": "STOP, STRAIGHT",
            "texts": [GOOD, hostile], "rewards": [2.6, 0.0],
            "components": {"speed": [0.8, 0.0], "path": [0.8, 0.0], "format": [1.0, 0.0]}, "advantages": [0.71, -0.71]}


@pytest.fixture
def hostile():
    """A model's text that tries to become part of the page."""
    return '<script>alert("1")</script><img src=x onerror=alert(2)> & </p>'
