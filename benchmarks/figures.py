"""The figures of README and docs, drawn from committed records alone: `python benchmarks/figures.py`.

docs/scene.svg    the first built-in test scene, its question, the model's answer beside the expert's
                  (benchmarks/results/answer.json; the picture is drawn again from the scene's number)
docs/results.svg  differences between arms with their intervals (benchmarks/results/tables.json), and the rewards of
                  one GRPO run while it trains (answer.json)
docs/curves.svg   amount of data; validity over coverage (tables.json, when its arms have run)
docs/noise.svg    the same noise on way-points, on controls and on whitened controls (noise.json)
docs/speed.svg    seconds of a step by phase, before and after (step_small_phases.json); what a token costs over group
                  and picture, ours and TRL's (sweep_small_1x64_amp.json)
docs/tension.svg  score, collisions and covered modes over the floor of the noise (trajectories.json)

The commands that made answer.json are stored in it. `--record` writes it from runs/sft and runs/grpo.
"""

import argparse
import base64
import io
import json
import math
import operator
import statistics
import sys
import textwrap
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.claims import CLAIMS  # noqa: E402
from benchmarks.measure import git_commit  # noqa: E402
from benchmarks.tables import compare, grid  # noqa: E402
from data.scenes import draw, sample_scene, scene_examples  # noqa: E402
from evaluation.page.charts import ticks  # noqa: E402

RECORDS, DOCS = ROOT / "benchmarks/results", ROOT / "docs"
COMMANDS = ["make demo",
            "python eval.py --model runs/grpo/model --limit 1 --samples 8 --output runs/grpo/eval-first",
            "python benchmarks/figures.py --record"]
DRAWN = {"acceptable_sampled": ("grpo", "an acceptable plan, sampled at T = 1"),
         "acceptable": ("control", "an acceptable plan, greedy"),
         "covered": ("modes", "acceptable plans covered by the samples")}
FAMILIES = {"rewards": "Table 2: what a reward adds", "controls": "GRPO against controls",
            "modes": "Figure 3: several plans"}
PHASES = {"generate": ("sampling", "grpo"), "reference": ("reference", "control"),
          "policy_forward": ("policy forward", "modes"), "backward": ("backward", "sft")}
WIDEST = 10                                                  # points; longer intervals are cut and say where they end
BLOCK = 10                                                   # training steps that share one point of the curve
STYLE = """
text { font: 14px -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 15px } .small { font-size: 12px } .muted { fill: #59636e }
.card { fill: #ffffff; stroke: #d1d9e0 } .panel { fill: #f3f5f8 } .grid { stroke: #d1d9e0 }
.sft { fill: #59636e; stroke: #59636e } .control { fill: #b35900; stroke: #b35900 }
.grpo { fill: #0b62c4; stroke: #0b62c4 } .band { fill: #0b62c4; opacity: .18 }
.modes { fill: #1a7f37; stroke: #1a7f37 }
.ceiling { stroke: #1a7f37; stroke-dasharray: 5 4 } .odds { stroke: #1a7f37; stroke-dasharray: 1 4 }
text.green { fill: #1a7f37 } text.plan { font-weight: 600 } text.blue { fill: #0b62c4 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .muted { fill: #9aa5b1 } .card { fill: #151b23; stroke: #3d444d } .panel { fill: #212a36 }
.grid { stroke: #3d444d } .sft { fill: #b0b9c3; stroke: #b0b9c3 } .control { fill: #f0953f; stroke: #f0953f }
.grpo { fill: #58a6ff; stroke: #58a6ff } .band { fill: #58a6ff } .modes { fill: #56d364; stroke: #56d364 }
.ceiling, .odds { stroke: #56d364 }
text.green { fill: #56d364 } text.blue { fill: #79b8ff } }
"""


# ---------------------------------------------------------------- the pieces of an SVG

def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}" stroke-width="{width}"/>'


def box(x: float, y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" class="{style}"/>'


def paragraph(x: float, y: float, words: str, columns: int, style: str = "") -> list[str]:
    return [text(x, y + 20 * row, part, style) for row, part in enumerate(textwrap.wrap(words, columns))]


def page(width: int, height: int, title: str, parts: list[str]) -> str:
    """A whole SVG file on a card of its own, so that it reads on light and dark pages."""
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img"><title>{escape(title)}</title><style>{STYLE}</style>')
    return "\n".join([head, box(.5, .5, width - 1, height - 1, "card"), *parts, "</svg>\n"])


# ---------------------------------------------------------------- the scene and its answers

def scene_figure(answer: dict) -> str:
    """A test scene, the question, and two columns: the model's reason and plan, the expert's reason and plan."""
    picture, plans = io.BytesIO(), Counter(map(str, answer["sampled_plans"])).most_common(4)
    draw(sample_scene(scene_examples("test", 1)[0].scene), (448, 224)).save(picture, "PNG", optimize=True)
    parts = [f'<image x="20" y="20" width="448" height="224" '
             f'href="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"/>',
             text(488, 36, "Question", "title"), *paragraph(488, 60, answer["question"], 44),
             text(488, 104, "Plans of eight sampled answers", "title"),
             *(text(488, 128 + 20 * row, f"{count}  {plan}") for row, (plan, count) in enumerate(plans)),
             text(488, 222, f"Below: the greedy answer. {answer['id']} is the first test", "small muted"),
             text(488, 238, "scene; the model is the demo's after GRPO, seed 0.", "small muted")]
    columns = ((20, "Model", answer["reason"], answer["plan"], "plan blue"),
               (424, "Simulated expert", answer["expert_reason"], answer["expert_plan"], "plan green"))
    for x, who, reason, plan, style in columns:
        parts += [box(x, 260, 396, 116, "panel"), text(x + 14, 284, who, "title"),
                  *paragraph(x + 14, 308, reason, 54), text(x + 14, 362, f"Plan: {plan}", style)]
    return page(840, 394, "A built-in scene with the model's and the expert's answer", parts)


# ---------------------------------------------------------------- scores and curve

def scale(value: float, ends: tuple[float, float], start: float, length: float) -> float:
    return start + (value - ends[0]) / (ends[1] - ends[0]) * length


def curve_panel(values: list[float], title: str, x: int, top: float) -> list[str]:
    """Means of blocks of steps, with a band of 1.96 standard errors, over the steps of a run."""
    wide, tall = 340, 110
    blocks = [values[start:start + BLOCK] for start in range(0, len(values), BLOCK)]
    means = [statistics.mean(block) for block in blocks]
    spreads = [1.96 * statistics.stdev(block) / len(block) ** .5 if len(block) > 1 else 0.0 for block in blocks]
    ends = (math.floor(10 * min(map(operator.sub, means, spreads))) / 10,
            math.ceil(10 * max(map(operator.add, means, spreads))) / 10)
    parts = [text(x, top - 18, title, "title")]
    for tick in (ends[0], sum(ends) / 2, ends[1]):
        at = scale(tick, ends, top + tall, -tall)
        parts += [line(x, at, x + wide, at, "grid"), text(x - 8, at + 4, f"{tick:.2f}", "small muted", "end")]
    points, low, high = [], [], []
    for number, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        at = x + (BLOCK * number + len(blocks[number]) / 2) / len(values) * wide
        for points_, value in ((points, mean), (low, mean - spread), (high, mean + spread)):
            points_.append(f"{at:.1f},{scale(value, ends, top + tall, -tall):.1f}")
    parts += [f'<polygon points="{" ".join(high + low[::-1])}" class="band"/>',
              f'<polyline points="{" ".join(points)}" class="grpo" style="fill: none" stroke-width="2.5"/>']
    for step in range(0, len(values) + 1, 20):
        parts.append(text(x + step / len(values) * wide, top + tall + 18, str(step), "small muted", "middle"))
    return parts


def forest_rows(record: dict) -> list[tuple[str, list[dict]]]:
    """Families and pairs of arms in the order of the claims, each with what came out; Table 3 has another scale."""
    rows: list[tuple[str, list[dict]]] = []
    for family, title in FAMILIES.items():
        rows.append((title, []))
        found = [row for row in compare(record, [claim for claim in CLAIMS if claim.family == family]) if row["seeds"]]
        pairs = dict.fromkeys((row["claim"].arm, row["claim"].than) for row in found)
        for pair in pairs:
            drawn = [row for row in found if (row["claim"].arm, row["claim"].than) == pair
                     and row["claim"].score in DRAWN]
            rows += [(f"{pair[0]} - {pair[1]}", drawn)] if drawn else []
    return rows


def forest_panel(rows: list[tuple[str, list[dict]]], top: float) -> list[str]:
    """A line per pair of arms: the mean difference and its 95 % interval for each score, in points."""
    left, wide, high = 370, 450, 24
    largest = max((abs(100 * end) for _, drawn in rows for row in drawn for end in row["interval"]),
                  default=1)
    limit = min(WIDEST, math.ceil(largest / 2) * 2)
    ends = (-limit, limit)
    bottom, parts = top + high * len(rows), []
    for tick in range(ends[0], ends[1] + 1, max(1, ends[1] // 4)):
        at = scale(tick, ends, left, wide)
        parts += [line(at, top - 14, at, bottom - 6, "grid", 2 if tick == 0 else 1),
                  text(at, bottom + 10, f"{tick:+d}" if tick else "0", "small muted", "middle")]
    for number, (words, drawn) in enumerate(rows):
        y = top + high * number
        parts.append(text(20 if drawn else 12, y + 4, words, "small" if drawn else "title"))
        for place, row in enumerate(drawn):
            style, at = DRAWN[row["claim"].score][0], y + 7 * (place - (len(drawn) - 1) / 2)
            low, mean, upper = (scale(max(-limit, min(limit, 100 * value)), ends, left, wide) for value in (
                row["interval"][0], row["mean"], row["interval"][1]))
            parts += [text(cut, at + 1 + 6 * place, f"{100 * end:+.0f}", "small", anchor) for end, cut, anchor in (
                (row["interval"][0], left - 2, "end"), (row["interval"][1], left + wide + 2, "start"))
                      if abs(100 * end) > limit]                                # an interval that leaves the figure
            parts += [line(low, at, upper, at, style, 2),
                      f'<circle cx="{mean:.1f}" cy="{at:.1f}" r="3.5" class="{style}"/>']
    return parts


def results_figure(record: dict, answer: dict) -> str:
    """Above: differences between arms. Below: reward and accuracy of the sampled answers while GRPO trains."""
    rows = forest_rows(record)
    seeds = min((row["seeds"] for _, drawn in rows for row in drawn), default=0)
    parts = [text(20, 30, f"Differences in percentage points with 95 % intervals; {seeds} seeds, {record['scenes']:,} "
                  "test scenes; right of 0: the first arm is better", "muted")]
    for x, (style, words) in zip((20, 310, 520), DRAWN.values(), strict=True):
        parts += [f'<circle cx="{x + 4}" cy="52" r="4" class="{style}"/>', text(x + 14, 56, words, "small")]
    parts += forest_panel(rows, 90)
    top = 90 + 24 * len(rows) + 50
    parts += [text(20, top, "Training: the demo's GRPO run, seed 0; sampled answers of each step, "
                   f"means of {BLOCK} steps with 1.96 standard errors", "muted")]
    for x, key, title in ((54, "reward", "Reward"), (470, "reward_accuracy", "Accuracy")):
        parts += curve_panel([step[key] for step in answer["training"]], title, x, top + 48)
    return page(850, top + 190, "Differences between arms with intervals; reward and accuracy during GRPO", parts)


def data_lines(record: dict) -> dict[str, list[tuple[float, float]]]:
    """Method -> (share of the data, acceptable greedy answers); empty until all arms of Table 4 have run."""
    names = {"SFT": "SFT", "RL alone": "RL alone", "SFT and RL": "all rewards"}
    arms = {name: {0.2: f"{name}, 1/5 of the data", 0.5: f"{name}, 1/2 of the data", 1.0: whole}
            for name, whole in names.items()}
    if not all(arm in record["arms"] for shares in arms.values() for arm in shares.values()):
        return {}
    return {name: [(share, float(grid(record, arm, sorted(record["arms"][arm]), "acceptable").mean()))
                   for share, arm in shares.items()] for name, shares in arms.items()}


def validity_lines(record: dict) -> dict[str, list[tuple[float, float]]]:
    """Arm -> (coverage, validity) at each temperature, mean over seeds; empty until all arms of Figure 3 have run."""
    ending = ", several temperatures"
    curves = {arm.removesuffix(ending): [row["curve"] for row in rows.values()]
              for arm, rows in record["arms"].items() if arm.endswith(ending)}
    return {arm: [tuple(statistics.mean(point[name] for point in points) for name in ("coverage", "validity"))
                  for points in zip(*seeds, strict=True)] for arm, seeds in curves.items()} if len(curves) > 1 else {}


def lines_panel(lines: dict[str, list[tuple[float, float]]], title: str, below: str, x: int) -> list[str]:
    """Lines from point to point, each with its name at its end; both axes go from one round number to another."""
    wide, top, tall = 260, 60, 200
    across, up = (ticks(min(values), max(values)) for values in zip(*(point for line_ in lines.values()
                                                                      for point in line_), strict=True))
    ends = [(places[0], places[-1]) for places in (across, up)]
    parts = [text(x, 36, title, "title"), text(x + wide / 2, top + tall + 38, below, "small muted", "middle")]
    for value in up:
        y = scale(value, ends[1], top + tall, -tall)
        parts += [line(x, y, x + wide, y, "grid"), text(x - 6, y + 4, f"{value:.4g}", "small muted", "end")]
    parts += [text(scale(value, ends[0], x, wide), top + tall + 18, f"{value:.4g}", "small muted", "middle")
              for value in across]
    named = []                                              # ends of the lines, from the top
    for style, (name, points) in zip(("sft", "control", "grpo", "modes")[:len(lines)], lines.items(), strict=True):
        places = [(scale(a, ends[0], x, wide), scale(b, ends[1], top + tall, -tall)) for a, b in points]
        way = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline points="{way}" class="{style}" style="fill: none" stroke-width="2.5"/>')
        named.append((places[-1][1], places[-1][0], name))
    height = 0.0
    for y, across, name in sorted(named):
        height = max(height + 14, y)                        # names do not overlap
        parts.append(text(across + 6, height + 4, name, "small"))
    return parts


def curves_figure(record: dict) -> str | None:
    """Answers over the amount of data, and validity over coverage at several temperatures; None before their runs."""
    parts: list[str] = []
    for x, lines, title, below in (
            (60, data_lines(record), "Acceptable plans, greedy", "share of the data"),
            (500, validity_lines(record), "Share of valid samples", "share of the acceptable plans covered")):
        parts += lines_panel(lines, title, below, x) if lines else []
    return page(920, 320, "Amount of data; validity and coverage", parts) if parts else None


# ---------------------------------------------------------------- speed

def speed_figure(phases: dict, sweep: dict) -> str:
    """Seconds of a GRPO step by phase in two versions, and what a token costs over group size and picture size."""
    parts, longest = [text(20, 30, "Seconds of a GRPO step, by phase", "title")], phases["before"]["seconds"]
    for row, (name, found) in enumerate(phases.items()):
        x, y = 90.0, 48 + 40 * row
        parts += [text(20, y + 18, name), text(100 + 640 * found["seconds"] / longest, y + 18,
                                               f"{found['seconds']:.2f} s")]
        for phase, (_, style) in PHASES.items():
            width = 640 * found["share_of_time"][phase] * found["seconds"] / longest
            parts.append(box(x, y, width, 26, style))
            x += width
    for i, (words, style) in enumerate(PHASES.values()):
        parts += [box(90 + 170 * i, 134, 12, 12, style), text(108 + 170 * i, 145, words, "small")]
    panels = []
    for x, key, title, below in ((60, "group_size", "ms a token, 448x252 picture", "answers in a group"),
                                 (480, "patches", "ms a token, 8 answers in a group", "patches of the picture")):
        panels += lines_panel(token_costs(sweep, key), title, below, x)
    return page(840, 480, "Time of a step by phase; cost of a token over group and picture",
                [*parts, f'<g transform="translate(0 160)">{"".join(panels)}</g>'])


def token_costs(sweep: dict, key: str) -> dict[str, list[tuple[float, float]]]:
    """Milliseconds a completion token of both sides over the group size, or over the patches of the picture."""
    chosen = [row for row in sweep["rows"]
              if (row["image"] == "448x252" if key == "group_size" else row["group_size"] == 8)]
    at = {"group_size": lambda row: row["group_size"], "patches": lambda row: row["shapes"]["patches"][0]}[key]
    rows = sorted(chosen, key=at)
    return {"ours": [(at(row), 1000 / row["tokens_per_second"]) for row in rows],
            "TRL": [(at(row), 1000 / row["peer"]["tokens_per_second"]) for row in rows]}


# ---------------------------------------------------------------- trajectories

def noise_figure(record: dict) -> str:
    """Noisy copies of one drive from above, in three spaces, with the share of comfortable ones over 1,000 scenes."""
    floor = record["floors"].index(0.1)
    parts = [text(20, 30, "One drive at about 8 m/s with noise of 0.1 standard deviations, 12 draws, 4 s from above "
                  "(36 m x 5 m)", "muted")]
    for i, (space, copies) in enumerate(record["drawn"].items()):
        x, share, moved = 20 + 272 * i, record["comfortable"][space][floor], record["moved"][space][floor]
        parts += [box(x, 70, 256, 150, "panel"), text(x, 60, f"Noise on {space}", "title")]
        for points in copies:
            way = " ".join(f"{x + 8 + 240 * along / 36:.1f},{145 - 150 * aside / 5:.1f}"
                           for along, aside in [[0.0, 0.0], *points])
            parts.append(f'<polyline points="{way}" class="grpo" style="fill: none" stroke-width="1.2" opacity=".7"/>')
        parts.append(text(x, 242, f"{share:.1%} comfortable, ends moved by {moved:.1f} m"))
    return page(840, 262, "Noise on way-points, on controls and on whitened controls", parts)


def tension_figure(record: dict) -> str:
    """PDMS-like score, no collision, progress and covered modes after training with each floor of the noise."""
    arms = {float(name.removeprefix("floor ")): arm for name, arm in record["arms"].items()
            if name.startswith("floor ")}
    floors, lines = sorted(arms), {"pdms": ("grpo", "PDMS-like"), "no_collision": ("ceiling", "no collision"),
                                   "progress": ("control", "progress"), "modes_covered": ("sft", "modes covered")}
    seeds = min(arm["seeds"] for arm in arms.values())
    parts = [text(20, 30, f"After {record['steps']['arms']} steps of GRPO with a constant floor of the noise; mean of "
                  f"{seeds} seed{'s' if seeds > 1 else ''}, {record['scenes']:,} test scenes", "muted")]
    for tick in (0.2, 0.4, 0.6, 0.8, 1.0):
        y = scale(tick, (0.2, 1.0), 260, -200)
        parts += [line(60, y, 640, y, "grid"), text(52, y + 4, f"{tick:g}", "small muted", "end")]
    places = {floor: 80 + 540 * i / (len(floors) - 1) for i, floor in enumerate(floors)}
    parts += [text(x, 280, f"{floor:g}", "small muted", "middle") for floor, x in places.items()]
    parts.append(text(350, 300, "floor of sigma, in standard deviations of the demonstrations", "small muted",
                      "middle"))
    for name, (style, title) in lines.items():
        points = [(places[floor], scale(arms[floor][name], (0.2, 1.0), 260, -200)) for floor in floors]
        way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts += [f'<polyline points="{way}" class="{style}" style="fill: none" stroke-width="2.5"/>',
                  text(650, points[-1][1] + 4, title, "small")]
    return page(770, 314, "The tension of exploration", parts)


# ---------------------------------------------------------------- the record

def record_answer(runs: Path) -> dict:
    """What the figures need of runs/sft and runs/grpo: the first test scene's answer, and the curve of GRPO."""
    row = json.loads((runs / "grpo/eval-first/predictions.jsonl").read_text().splitlines()[0])
    steps = [json.loads(step) for step in (runs / "grpo/metrics.jsonl").read_text().splitlines()]
    example = scene_examples("test", 1)[0]
    if row["id"] != example.id:
        raise ValueError(f"{row['id']} is not the first test scene, {example.id}")
    reason = row["text"].split("<think>")[-1].split("</think>")[0].strip()
    return {"commit": git_commit(), "seed": 0, "commands": COMMANDS, "rule": "the first scene of the split test",
            "id": row["id"], "question": row["prompt"], "text": row["text"], "reason": reason,
            "plan": row["decision"] or "no readable plan", "expert_reason": example.reasoning,
            "expert_plan": str(example.decision), "sampled_plans": row["sample_decisions"],
            "training": [{key: step[key] for key in ("step", "reward", "reward_accuracy")} for step in steps]}


def draw_results(output: Path = DOCS) -> None:
    """docs/results.svg from its records; docs/curves.svg once the arms that it draws have run."""
    record, answer = (json.loads((RECORDS / name).read_text()) for name in ("tables.json", "answer.json"))
    (output / "results.svg").write_text(results_figure(record, answer))
    if curves := curves_figure(record):
        (output / "curves.svg").write_text(curves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="first write answer.json from runs/sft and runs/grpo")
    parser.add_argument("--output", type=Path, default=DOCS, help="folder of the SVG files")
    options = parser.parse_args()
    if options.record:
        (RECORDS / "answer.json").write_text(json.dumps(record_answer(ROOT / "runs"), indent=1) + "\n")
    answer = json.loads((RECORDS / "answer.json").read_text())
    (options.output / "scene.svg").write_text(scene_figure(answer))
    draw_results(options.output)
    (options.output / "noise.svg").write_text(noise_figure(json.loads((RECORDS / "noise.json").read_text())))
    phases, sweep = (json.loads((RECORDS / f"{name}.json").read_text())
                     for name in ("step_small_phases", "sweep_small_1x64_amp"))
    (options.output / "speed.svg").write_text(speed_figure(phases, sweep))
    (options.output / "tension.svg").write_text(tension_figure(json.loads((RECORDS / "trajectories.json").read_text())))


if __name__ == "__main__":
    main()
