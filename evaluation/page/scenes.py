"""The gallery: scenes with picture, question, label and every run's answer, worst first, and its filters."""

import base64
import io
from collections import Counter
from collections.abc import Callable
from functools import partial

from PIL import Image

from data.dataset import BROKEN, FORMATS, on_white, turned_upright
from data.example import PICTURE_EDGES, SCENE_SIZE, VIEWS, picture_size
from data.fields import MOST_PICTURES
from data.scenes import draw, sample_scene
from evaluation.page.charts import swatch
from evaluation.page.markup import Markup, details, join, tag
from evaluation.page.runs import OUTCOMES, Run, change, coloured, outcome, present_factors
from evaluation.text_metrics import think_text
from rewards import parse_plan
from rewards.actions import ALPHADRIVE, Actions

SHOWN = 500                                                  # scenes on the page
FAILURES, CHANGED = 250, 125                                 # the worst of them; improved over the first run
MAX_BYTES = 4_000_000                                        # of the gallery, so that the page stays under 5 MB
PICTURE_BYTES = 4_000
PICTURE_EDGE = 224                                           # longest edge of a drawn scene
MAX_TEXT, OPEN_TEXT = 1200, 200                              # characters of a text, and those shown before a click
JPEG_STEPS = ((256, 70), (224, 55), (192, 40), (160, 25), (96, 20), (48, 20))     # longest edge, quality
CHANGES = ("improved", "worse", "both right", "both wrong")


def gallery(runs: list[Run]) -> Markup:
    """Up to SHOWN scenes of the last run."""
    main = runs[-1]
    if not main.predictions:
        return tag("p", f"No scenes: {main.name} has no eval-test/predictions.jsonl.")
    tables = [(colour, run, {row["id"]: row for row in run.predictions}) for colour, run in coloured(runs)]
    cards, size, chosen = [], 0, choose(main.predictions, tables[0][2] if len(runs) > 1 else {},
                                            actions=main.actions)
    for row in chosen:
        card = scene_card(row, [(colour, run, rows.get(row["id"])) for colour, run, rows in tables])
        size += len(card.encode(errors="backslashreplace"))
        if size > MAX_BYTES:
            break
        cards.append((row, card))
    total = len(main.predictions)
    better = f"up to {CHANGED} that {runs[0].name} got wrong and {main.name} right, " if len(runs) > 1 else ""
    how = (f"{len(chosen)} of {total:,} scenes: the worst {FAILURES}, {better}and an even selection of the others"
           if len(chosen) < total else "all scenes")
    cut = f"; only the first {len(cards)}, to keep the page below 5 MB" if len(cards) < len(chosen) else ""
    counts = Counter(outcome(row, main.actions) for row in main.predictions)
    tally = ", ".join(f"{counts[name]:,} {name}" for name in OUTCOMES if counts[name])
    return join(tag("p", f"Greedy answers of {main.name} on all {total:,} scenes: {tally}. Shown: {how}{cut}. They are "
                    f"sorted by outcome ({', '.join(OUTCOMES)}), then by the share of acceptable samples, lowest "
                    f"first.{seen_size(main.metrics)}", class_="note"),
                filters([row for row, _ in cards], runs),
                tag("div", *(card for _, card in cards), id="cards"),
                tag("p", tag("button", "Show more scenes", type="button", id="more", hidden=True)))


def choose(predictions: list[dict], before: dict[str, dict], shown: int = SHOWN, failures: int = FAILURES,
           changed: int = CHANGED, actions: Actions = ALPHADRIVE) -> list[dict]:
    """The worst scenes, some improved over an earlier run (`before`, by id), and evenly chosen others; worst first."""
    ranked = sorted(predictions, key=partial(severity, actions=actions))
    if len(ranked) <= shown:
        return ranked
    better = [i for i in range(failures, len(ranked)) if change(ranked[i], before.get(ranked[i]["id"])) == "improved"]
    chosen = {*range(failures), *better[:changed]}
    rest = [i for i in range(failures, len(ranked)) if i not in chosen]
    wanted = shown - len(chosen)
    return [ranked[i] for i in sorted(chosen | {rest[i * len(rest) // wanted] for i in range(wanted)})]


def severity(row: dict, actions: Actions = ALPHADRIVE) -> tuple[int, float]:
    """Sort key: the outcome of the greedy answer, then the share of acceptable samples."""
    good = {row["truth"], *(row.get("acceptable") or ())}
    samples = row.get("sample_decisions") or []
    return OUTCOMES.index(outcome(row, actions)), sum(plan in good for plan in samples) / max(len(samples), 1)


def scene_card(row: dict, answers: list[tuple[int, Run, dict | None]]) -> Markup:
    """One scene; the filters read its data attributes."""
    present = [f"{name}: {value}" for name, value in present_factors(row).items()]
    before = answers[0][2] if len(answers) > 1 else None
    speed, _, path = row["truth"].partition(", ")
    others = [plan for plan in row.get("acceptable") or () if plan != row["truth"]]
    facts = tag("dl", fact("Question", question(row.get("prompt") or "–")), fact("Expert", tag("b", row["truth"])),
                fact("Also acceptable", "; ".join(others)) if others else None,
                fact("In the scene", ", ".join(present)) if present else None)
    columns = [answer(colour, run, shown) for colour, run, shown in answers if shown]
    kind = outcome(row, answers[-1][1].actions)
    return tag("article", tag("h3", row["id"], " ", badge(kind)),
               picture(row, ", ".join(present), answers[-1][1].metrics.get("scene_size")), facts,
               tag("div", *columns, class_="answers"), class_="card", data_outcome=kind, data_speed=speed,
               data_path=path, data_change=change(row, before), data_factors="|".join(present))


def question(text: str) -> Markup | str:
    """A short question in full; a long one shortened, with the full text on demand."""
    return text if len(text) <= OPEN_TEXT else details(f"{text[:OPEN_TEXT]} …", clipped(text))


def fact(name: str, value: object) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value))


def badge(name: str) -> Markup:
    """An outcome as a coloured word."""
    return tag("span", name, class_=f"badge {name}")


def answer(colour: int, run: Run, row: dict) -> Markup:
    """A run's greedy answer with its reasoning, and the counts of its sampled plans."""
    good = {row["truth"], *(row.get("acceptable") or ())}
    return tag("section", tag("h4", swatch(colour), run.name, " ", badge(outcome(row, run.actions))),
               written(row["text"], run.actions),
               samples(row.get("sample_decisions") or [], good, run.metrics.get("temperature")))


def written(text: str, actions: Actions = ALPHADRIVE) -> Markup:
    """A completion: plan and reasoning separately if it has a plan, else the raw text."""
    plan = parse_plan(text, actions)
    if plan is None:
        raw = tag("pre", clipped(text) or "(nothing)")
        return raw if len(text) <= OPEN_TEXT else details(tag("code", f"{text[:OPEN_TEXT]} …"), raw)
    reason = think_text(text)
    return join(tag("p", str(plan), class_="plan"), tag("q", clipped(reason)) if reason else None)


def samples(plans: list[str | None], good: set[str], temperature: float | None) -> Markup | None:
    """Sampled plans and their counts, most frequent first."""
    if not plans:
        return None
    rows = [tag("li", tag("span", tag("i", style=f"width:{100 * count / len(plans):.3g}%"), aria_hidden="true",
                          class_="good" if plan in good else None), tag("span", count),
                tag("span", plan or "invalid", " ✓" if plan in good else None))
            for plan, count in Counter(plans).most_common()]
    heat = f" at T = {temperature:g}" if temperature is not None else ""
    return tag("div", tag("small", f"{len(plans)} samples{heat}, ✓ acceptable"), tag("ul", *rows), class_="samples")


def clipped(text: str) -> str:
    """At most MAX_TEXT characters, and the number of those left out."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"


# ---------------------------------------------------------------- pictures

def picture(row: dict, content: str, size: str | None = None) -> Markup | None:
    """The scene as a data URI, a note if its file cannot be read, or None if the record names no picture. The pictures
    of several cameras stand one below the other.

    `size`, such as 448x224, is the size at which the model saw a built-in scene."""
    names, several = texts(row.get("cameras")), texts(row.get("images"))
    files = several or ([] if row.get("image") is None else [row["image"]])
    if files:
        opened = [partial(photo, file) for file in files]
    elif row.get("scene") is not None:
        opened = [partial(drawn, row["scene"], size, view) for view in names or VIEWS[:1]]
    else:
        return None
    kind = "jpeg" if files else "png"
    if len(opened) == 1:
        return shown(opened[0], kind, f"Front view of {row['id']}" + (f": {content}" if content else ""))
    titles = [name.replace("_", " ") for name in names] if len(names) == len(opened) else [
        f"picture {place + 1}" for place in range(len(opened))]
    return tag("div", *(tag("figure", shown(one, kind, f"{title} of {row['id']}"), tag("figcaption", title))
                        for one, title in zip(opened, titles, strict=True)), class_="views")


def texts(value: object) -> list[str]:
    """A list of texts from a foreign file; empty for anything else."""
    return value[:MOST_PICTURES] if isinstance(value, list) and all(isinstance(one, str) for one in value) else []


def shown(opened: Callable[[], bytes], kind: str, alternative: str) -> Markup:
    """One picture as a data URI, or a note if its file cannot be read."""
    try:
        data = opened()
    except BROKEN:
        return tag("p", "The picture cannot be shown: its file is missing or unreadable.", class_="picture missing")
    return tag("img", class_="picture", src=f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
               alt=alternative, decoding="async")


def seen_size(metrics: dict) -> str:
    """A sentence if the model saw larger pictures than the page shows."""
    size = picture_size(metrics.get("scene_size"))
    return f" The model saw each picture at {size[0]} x {size[1]} pixels." if size and max(size) > PICTURE_EDGE else ""


def shown_size(asked: str | None) -> tuple[int, int]:
    """The size that the model saw, reduced to PICTURE_EDGE with the same aspect ratio."""
    size = picture_size(asked) or picture_size(SCENE_SIZE)
    share = min(1, PICTURE_EDGE / max(size))
    return max(round(size[0] * share), PICTURE_EDGES[0]), max(round(size[1] * share), PICTURE_EDGES[0])


def drawn(scene: int, size: str | None = None, view: str = "front") -> bytes:
    """A view of a built-in scene as PNG with 64 colours."""
    stream = io.BytesIO()
    draw(sample_scene(scene), shown_size(size), view).quantize(64, dither=Image.Dither.NONE).save(stream, "PNG")
    return stream.getvalue()


def photo(path: str) -> bytes:
    """A file's picture as JPEG, reduced in size and quality until it fits PICTURE_BYTES."""
    with Image.open(path, formats=FORMATS) as image:
        image.draft(None, (JPEG_STEPS[0][0],) * 2)           # a JPEG is decoded at a small size
        upright = on_white(turned_upright(image))
    for edge, quality in JPEG_STEPS:
        stream = io.BytesIO()
        upright.thumbnail((edge, edge))
        upright.save(stream, "JPEG", quality=quality)
        if stream.tell() <= PICTURE_BYTES:
            break
    return stream.getvalue()


# ---------------------------------------------------------------- filters

def filters(rows: list[dict], runs: list[Run]) -> Markup:
    """Drop-downs that the script applies; hidden where scripts do not run."""
    speeds, paths = zip(*(row["truth"].split(", ") for row in rows), strict=True)
    actions, before = runs[-1].actions, {row["id"]: row for row in runs[0].predictions} if len(runs) > 1 else {}
    changes = Counter(change(row, before.get(row["id"])) for row in rows)
    present = Counter(f"{name}: {value}" for row in rows for name, value in present_factors(row).items())
    choices = [choice("outcome", "Outcome", OUTCOMES, Counter(outcome(row, actions) for row in rows)),
               choice("change", f"Compared with {runs[0].name}", CHANGES, changes) if before else None,
               choice("speed", "Expert's speed", actions.speeds, Counter(speeds)),
               choice("path", "Expert's path", actions.paths, Counter(paths)),
               choice("factors", "Factor", sorted(present), present) if present else None]
    return tag("form", *choices, tag("button", "Clear", type="reset"), tag("output", "", id="count", role="status"),
               id="filters", hidden=True, aria_label="Filter the scenes")


def choice(field: str, name: str, values: tuple[str, ...] | list[str], counts: Counter) -> Markup:
    """A drop-down of the values that occur, with their counts."""
    options = [tag("option", f"{value} ({counts[value]})", value=value) for value in values if counts[value]]
    return tag("label", tag("span", name), tag("select", tag("option", "all", value=""), *options, name=field))
