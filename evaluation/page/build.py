"""The whole page: the sections in order, inlined style and script, and a policy that forbids every request."""

import base64
import hashlib
from pathlib import Path

from evaluation.page.groups import groups
from evaluation.page.markup import Markup, details, table, tag
from evaluation.page.runs import Run, unfinished
from evaluation.page.scenes import gallery
from evaluation.page.scores import confusions, factors, glance, multimodality, scores
from evaluation.page.training import training
from evaluation.page.trajectories import driving


def build_page(runs: list[Run]) -> str:
    """A page about the last run; earlier runs are shown for comparison."""
    style, script = (Markup(Path(__file__).with_name(name).read_text(encoding="utf-8"))
                     for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = f"DriveGRPO: {runs[-1].name}"
    head = tag("head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=policy),
               tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
               tag("meta", name="color-scheme", content="light dark"), tag("title", title), tag("style", style))
    chosen = DRIVING if runs[-1].drives else SECTIONS
    links = [tag("li", tag("a", name, href=f"#{place}")) for place, name, _ in chosen]
    sections = [tag("section", tag("h2", name), make(runs), id=place) for place, name, make in chosen]
    body = tag("body", tag("a", "Skip to the content", href="#main", class_="skip"), header(runs),
               tag("nav", tag("ul", *links), aria_label="Sections"),
               tag("main", *sections, id="main"), tag("script", script))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def header(runs: list[Run]) -> Markup:
    """The names of the runs, the training and the scored scenes."""
    main = runs[-1]
    compared = f" compared with {', '.join(run.name for run in runs[:-1])}" if runs[:-1] else ""
    count, split, available = (main.metrics.get(name) for name in ("count", "split", "available"))
    skipped = main.metrics.get("skipped")
    prior = main.metrics.get("prior") or "balanced"
    drawn = f" The scenes follow the {prior} prior." if prior != "balanced" else ""
    of_all = f" of {available:,}" if available else ""
    left_out = f" ({skipped:,} could not be used and were skipped)" if skipped else ""
    scored = f" Scored on {count:,}{of_all} scenes of the {split or 'test'} split{left_out}.{drawn}" if count else ""
    done = f"{len(main.steps)} step{'s' if len(main.steps) > 1 else ''}"
    trained = f" {done} of {main.stage.upper()}." if main.steps else ""
    if so_far := unfinished(main):
        trained += f" This is {so_far}: run report.py again and reload the page for a later state."
    what = ("A diffusion decoder drives 4 s per scene." if main.drives else
            "Given a picture from the car, its speed and its route, a planner names a speed action and a path action.")
    return tag("header", tag("p", "DriveGRPO report", class_="kicker"), tag("h1", main.name, tag("small", compared)),
               tag("p", f"{what}{trained}{scored} For research, not for vehicles."))


def settings(runs: list[Run]) -> Markup:
    """The config.json of every run."""
    blocks = [table(f"{run.name}: config.json", ["setting", "value"],
                    [[key, str(value)] for key, value in run.config.items()]) for run in runs if run.config]
    return details("Settings of the runs", *blocks) if blocks else tag("p", "No run has a config.json.")


SECTIONS = (("glance", "At a glance", glance), ("training", "Training", training), ("scores", "Scores", scores),
            ("confusion", "Confusion", confusions), ("factors", "Factors", factors),
            ("modes", "Multimodality", multimodality), ("groups", "What GRPO rewarded", groups),
            ("scenes", "Scenes", gallery), ("settings", "Settings", settings))
DRIVING = (("trajectories", "Trajectories", driving), ("settings", "Settings", settings))
