"""The report of trajectory decoders: scores, curves, and scenes from above and in the picture.

Trajectories are coloured by their advantage: their score minus the mean of their scene's, as in training.
"""

import base64
import io
from collections.abc import Sequence

import torch

from data.scenes import draw, sample_scene
from data.scenes.brush import HORIZON, lane_centre, lane_half
from data.scenes.geometry import CAR_LENGTH, CAR_WIDTH, LANE_WIDTH
from data.scenes.world import Scene
from evaluation.page.charts import Line, Point, bin_steps, plot
from evaluation.page.markup import Markup, interval, join, number, table, tag
from evaluation.page.runs import Run, coloured, measured
from trajectory.field import BUMPER, Field, scene_row
from trajectory.score import FACTORS

SHOWN = 8                       # scenes
AHEAD, ASIDE = 46.0, 9.0        # m shown from above
SCALE = 9                       # pixels per metre
CAMERA, FOCUS = 1.0, 190.0      # the picture has no metres: the eye's distance from the axle, and a fitting scale
BEST, WORST = (24, 136, 96), (206, 58, 44)
CURVES = (("reward", "Score of the sampled trajectories, exploration noise included."),
          ("reward_no_collision", "Share without a collision (odds counted)."),
          ("reward_progress", "Way along the route, as a share of the best safe way."),
          ("reward_comfort", "Share within the limits of comfort."), ("kl", "To the cloned decoder, in nats a step."),
          ("flat_groups", "Share of groups with equal scores."),
          ("loss", "Of cloning: weighted squared error of the denoiser."))


def driving(runs: list[Run]) -> Markup:
    """The section on trajectories."""
    return join(scores(runs), tension(runs), curves(runs), scenes(runs))


def scores(runs: list[Run]) -> Markup:
    """Scores of every scored run with its 95 % interval, and of the imitated driver."""
    missing = [run.name for run in runs if not run.metrics]
    note = tag("p", f"Not scored: {', '.join(missing)}. Run python eval.py --trajectories 16.") if missing else None
    runs = [run for run in runs if run.metrics]
    if not runs:
        return note
    names = [name for name in (*FACTORS[:6], "validity", "modes_covered", "min_ade", "diversity")
             if any(name in run.metrics for run in runs)]
    rows = [[run.name, *(cell(run.metrics, name) for name in names)] for run in runs]
    known = runs[-1].metrics
    if "demonstration_pdms" in known:
        rows.insert(0, ["the demonstrations", *(cell(known, f"demonstration_{name}") for name in names)])
    header = ["run", *(name.replace("_", " ") for name in names)]
    splits = " and ".join(dict.fromkeys(run.metrics.get("split", "test") for run in runs))
    return join(table(f"Driven {splits} scenes, mean and 95 % interval", header, rows), note)


def cell(metrics: dict, name: str) -> object:
    """A share or a distance in metres with its interval, or a dash."""
    if name not in metrics:
        return "–"
    bounds = metrics.get(f"{name}_interval")
    if not name.endswith(("ade", "diversity")):
        return interval(metrics[name], bounds)
    ends = tag("small", " to ".join(number(end, 3) for end in bounds)) if bounds else ""
    return join(f"{number(metrics[name], 3)} m ", ends)


def tension(runs: list[Run]) -> Markup | None:
    """Score and covered modes over the noise floor, if at least three runs have constant ones."""
    known = [(float(run.config["noise_floor"]), run.metrics) for run in runs
             if "pdms" in run.metrics and str(run.config.get("noise_floor", "")).replace(".", "", 1).isdigit()]
    if len({floor for floor, _ in known}) < 3:
        return None
    known.sort(key=lambda pair: pair[0])
    lines = [Line(title, colour, [Point(i, found[name], *found[f"{name}_interval"], f"floor {floor:g}", f"{floor:g}")
                                  for i, (floor, found) in enumerate(known)])
             for colour, (name, title) in enumerate((("pdms", "PDMS-like"), ("modes_covered", "modes covered")))]
    note = ("After training with this floor of the noise: too little does not explore, too much breaks trajectories "
            "and merges modes.")
    return tag("div", plot("Exploration trade-off", note, lines, "floor of the noise, in order", share=True,
                           ranked=True), class_="charts wide")


def curves(runs: list[Run]) -> Markup | None:
    """What training logged."""
    drawn = [plot(name.removeprefix("reward_").replace("_", " "), note, lines) for name, note in CURVES
             if (lines := [Line(run.name, colour, bin_steps(run.steps, name)) for colour, run in coloured(runs)
                           if any(measured(step.get(name)) for step in run.steps)
                           and (name != "loss" or run.config.get("stage") == "trajectory-bc")])]
    return tag("div", *drawn, class_="charts") if drawn else None


# ---------------------------------------------------------------- scenes

def scenes(runs: list[Run]) -> Markup:
    """Scenes whose score changed most between the first and the last run, best and worst; else the first ones."""
    tables = [{row["id"]: row for row in run.trajectories} for run in runs]
    common = [name for name in tables[-1] if all(name in table for table in tables)
              and tables[-1][name]["scene"] is not None and "pdms" in tables[-1][name]["trajectories"][0]]
    if not common:
        return tag("p", "No built-in scenes to draw: run `python eval.py --trajectories 16` for each run.")
    changes = {name: mean_score(tables[-1][name]) - mean_score(tables[0][name]) for name in common}
    ranked = sorted(common, key=lambda name: -changes[name])
    chosen = common[:SHOWN] if len(runs) == 1 else list(dict.fromkeys([*ranked[:SHOWN - 3], *ranked[-3:]]))
    note = (f"From above, {AHEAD:.0f} m ahead, and in the picture, which has no scale in metres. Green trajectories "
            "score above their scene's mean, red ones below. "
            + ("The first are those that gained most from the first run to the last, then those that lost most."
               if len(runs) > 1 else ""))
    return join(tag("p", note, class_="note"),
                *(scene_block(name, [(run, rows[name]) for run, rows in zip(runs, tables, strict=True)])
                  for name in chosen))


def scene_block(name: str, rows: list[tuple[Run, dict]]) -> Markup:
    """One scene, driven by every run."""
    scene = sample_scene(rows[0][1]["scene"])
    noise = rows[0][0].metrics.get("metre_noise", 0.12)
    field = Field(*(torch.as_tensor(part)[None] for part in scene_row(scene, noise)))
    shown = [tag("figure", tag("figcaption", tag("b", run.name), f" PDMS-like {mean_score(row):.2f}"),
                 from_above(row, field), in_picture(row, scene), class_="chart") for run, row in rows]
    return join(tag("h3", f"{name}: {scene.speed:g} m/s, {scene.road.replace('_', ' ')}"),
                tag("div", *shown, class_="charts"))


def mean_score(row: dict) -> float:
    """Mean score of a scene's trajectories."""
    return sum(one["pdms"] for one in row["trajectories"]) / len(row["trajectories"])


def shades(row: dict) -> list[tuple[str, list]]:
    """Colour and way-points along the lane of each trajectory, the best last."""
    mean = mean_score(row)
    gaps = [(one["pdms"] - mean, one.get("lane", one["waypoints"])) for one in row["trajectories"]]
    largest = max(abs(gap) for gap, _ in gaps) or 1.0

    def shade(gap: float) -> str:
        part = (gap / largest + 1) / 2
        return "#" + "".join(f"{round(low + (high - low) * part):02x}" for low, high in zip(WORST, BEST, strict=True))

    return [(shade(gap), points) for gap, points in sorted(gaps, key=lambda pair: pair[0])]


def from_above(row: dict, field: Field) -> Markup:
    """Edges, stop line, obstacles at their first place, the car, and the trajectories. x runs to the right."""
    def place(x: float, y: float) -> tuple[float, float]:
        return round((x + 6) * SCALE, 1), round((ASIDE - y) * SCALE, 1)

    def box(x: float, y: float, length: float, width: float, colour: str) -> Markup:
        u, v = place(x, min(y + width, ASIDE))
        height = max(0.0, (min(y + width, ASIDE) - max(y, -ASIDE)) * SCALE)
        return tag("rect", x=u, y=v, width=round(length * SCALE, 1), height=round(height, 1), fill=colour)

    left, right = field.left[0].item(), field.right[0].item()
    road = box(-6.0, -right, AHEAD + 6, left + right, "#8883")
    lanes = [box(x, side * LANE_WIDTH / 2 - 0.07, 2.0, 0.14, "#8888") for x in range(-6, int(AHEAD), 5)
             for side in (1, -1) if (left if side > 0 else right) > 2]
    boxes = zip(field.boxes[0].tolist(), field.is_line[0].tolist(), strict=True)
    things = [box(near, low, length, high - low, "#c33a" if line else "#555a")
              for (near, high, low, _, _, length, odds), line in boxes if odds > 0]
    car = box(BUMPER - CAR_LENGTH, -CAR_WIDTH / 2, CAR_LENGTH, CAR_WIDTH, "#36c8")
    ways = [polyline([place(0, 0), *(place(x, y) for x, y in points)], colour) for colour, points in shades(row)]
    return tag("svg", road, *lanes, *things, car, *ways, viewBox=f"0 0 {(AHEAD + 6) * SCALE:g} {2 * ASIDE * SCALE:g}",
               role="img", aria_label=f"{len(ways)} trajectories from above")


def in_picture(row: dict, scene: Scene) -> Markup:
    """The trajectories over the drawn scene."""
    picture = draw(scene)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"

    def place(x: float, y: float) -> tuple[float, float]:
        v = HORIZON + FOCUS / (x + CAMERA)
        return round(lane_centre(scene, v) - y / (LANE_WIDTH / 2) * lane_half(v), 1), round(v, 1)

    ways = [polyline([place(x, y) for x, y in points if x > BUMPER - CAMERA], colour) for colour, points in shades(row)]
    return tag("svg", tag("image", href=source, width=picture.width, height=picture.height), *ways,
               viewBox=f"0 0 {picture.width} {picture.height}", role="img", aria_label="the same in the picture")


def polyline(points: Sequence[tuple[float, float]], colour: str) -> Markup:
    """A thin line through points."""
    return tag("polyline", points=" ".join(f"{u:g},{v:g}" for u, v in points),
               style=f"fill:none;stroke:{colour};stroke-width:1.6;stroke-opacity:.8")


def text_table(runs: list[Run]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows for a terminal: the demonstrations, then every run."""
    names = ("pdms", "greedy_pdms", "no_collision", "on_road", "progress", "comfort", "validity", "modes_covered")
    header = ("policy", "PDMS-like (95 %)", *(name.replace("_", " ") for name in names[1:]))

    def row(name: str, metrics: dict, prefix: str = "") -> tuple[str, ...]:
        low, high = metrics.get(f"{prefix}pdms_interval", (None, None))
        first = "-" if low is None else f"{metrics[f'{prefix}pdms']:.3f} ({low:.3f} to {high:.3f})"
        return (name, first, *(f"{metrics[prefix + key]:.3f}" if prefix + key in metrics else "-" for key in names[1:]))

    scored = [run for run in runs if run.metrics]
    first = [row("demonstrations", scored[-1].metrics, "demonstration_")] if scored else []
    return header, first + [row(str(run.folder), run.metrics) for run in runs]
