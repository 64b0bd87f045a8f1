"""The score sections: at a glance, table with intervals, F1 per action, confusion, factors, multimodality."""

from collections import Counter

from evaluation.comparison import (
    answered_by_both,
    braking_difference,
    braking_verdict,
    paired_difference,
    relabelled,
    unequal_samples,
)
from evaluation.metrics import wilson_interval
from evaluation.page.charts import Line, Point, plot, swatch
from evaluation.page.markup import Markup, details, interval, join, number, percent, points, table, tag
from evaluation.page.runs import Run, coloured, measured, outcome, present_factors
from rewards.actions import ALPHADRIVE

MIN_FACTOR = 10                                              # a factor with fewer scenes is not shown
TEXT_SCORES = (("bleu4", "BLEU-4"), ("cider", "CIDEr"), ("meteor", "METEOR"))


def glance(runs: list[Run]) -> Markup:
    """The main numbers of the last run, and its difference from each earlier run."""
    main = runs[-1]
    if not main.metrics:
        return tag("p", f"{main.name} has not been scored: there is no eval-test/metrics.json. Run python eval.py "
                   f"--model {main.folder / 'model'} and make this page again.")
    m, ceiling = main.metrics, main.metrics.get("bayes_ceiling")
    tiles = [tile("Greedy accuracy", percent(m.get("planning_accuracy")), bounds(m),
                  "Speed and path both equal the expert's"),
             tile("Accuracy at T = " + number(m.get("temperature", 1)), percent(part(m, "planning_accuracy")),
                  bounds(m.get("sampled", {})), "Mean over sampled answers") if m.get("sampled") else None,
             tile("Share of the ceiling", of_ceiling(m), f"Bayes ceiling {percent(ceiling)}",
                  "Greedy accuracy / Bayes ceiling, the best possible accuracy") if ceiling else None,
             tile("Acceptable", percent(m["acceptable_accuracy"]), "greedy",
                  "Answers that are a plan the expert might choose")
             if m.get("acceptable_accuracy") is not None else None,
             tile("Missed braking, greedy", percent(missed_braking(m)), unsafe_scenes(main),
                  "Of the scenes where the expert slows or stops. Unsafe: the answer is not acceptable either"),
             tile("Invalid", percent(m.get("invalid_rate")), "greedy", "Answers without a single plan")]
    return join(tag("ul", *tiles, class_="tiles"), *(comparison(main, run) for run in runs[:-1]))


def of_ceiling(metrics: dict) -> str:
    """Greedy accuracy as a share of the Bayes ceiling."""
    accuracy, ceiling = metrics.get("planning_accuracy"), metrics.get("bayes_ceiling")
    return percent(accuracy / ceiling) if measured(accuracy) and ceiling else "–"


def unsafe_scenes(run: Run) -> str:
    """The number of scenes with the outcome `unsafe`: missed braking, and the answer is not acceptable."""
    kinds = [outcome(row, run.actions) for row in run.predictions]
    return f"{kinds.count('unsafe'):,} scenes unsafe" if kinds else ""


def tile(name: str, value: str, low_high: str, note: str) -> Markup:
    """One number with its name and meaning."""
    return tag("li", tag("span", name), tag("strong", value), tag("small", low_high or " "), tag("small", note))


def part(metrics: dict, name: str) -> float | None:
    """A metric of the sampled answers."""
    return metrics.get("sampled", {}).get(name)


def missed_braking(metrics: dict) -> float | None:
    """Of the scenes whose label brakes (STOP, DECELERATE), the share answered with a speed that goes on."""
    return metrics.get("safety", {}).get("rate")


def bounds(metrics: dict) -> str:
    """`95 %: 68.5 to 72.6`, or an empty text."""
    given = metrics.get("planning_accuracy_interval")
    return f"95 %: {100 * given[0]:.1f} to {100 * given[1]:.1f}" if given else ""


def comparison(main: Run, before: Run) -> Markup:
    """Greedy and sampled difference of two runs on the scenes that both answered."""
    notes = join(*(tag("p", f"{line}.") for line in verdicts(main, before)))
    then, now = answered_by_both(before.predictions, main.predictions)
    if not now:
        return notes
    found = paired_difference(then, now, unequal_samples(before.metrics, main.metrics))
    greedy = found["greedy"]
    accuracy = tag("p", f"{main.name} compared with {before.name} on the same {len(now):,} scenes, in points of "
                   "planning accuracy. Greedy: ", difference(greedy), f"; {greedy['only_other']} scenes improved, "
                   f"{greedy['only_base']} got worse.",
                   join(" Sampled: ", difference(found["sampled"]), ".") if found["sampled"] else None)
    return join(accuracy, notes)


def verdicts(main: Run, before: Run) -> list[str]:
    """Whether a run brakes better than an earlier one, on the scenes that both answered, and what is not compared."""
    then, now = answered_by_both(before.predictions, main.predictions)
    gap = unequal_samples(before.metrics, main.metrics) if now else ""
    found = None if gap else braking_difference(then, now, main.actions)
    pair, other = f"{main.name} against {before.name}", relabelled(before.predictions, main.predictions)
    return [*([braking_verdict(main.name, before.name, found)] if found else []),
            *([f"{pair}: samples are not compared: {gap}"] if gap else []),
            *([f"{pair}: {other:,} scenes with different labels are left out"] if other else [])]


def difference(found: dict) -> Markup:
    """A paired difference with its interval."""
    low, high = found["interval"]
    verdict = "" if low > 0 or high < 0 else "; it contains 0, so these scenes do not decide"
    return join(tag("b", points(found["difference"])), f" (95 %: {points(low)} to {points(high)}{verdict})")


def scores(runs: list[Run]) -> Markup:
    """The accuracies as a picture, the table of all scores, and F1 of every action."""
    scored = [run for run in runs if run.metrics]
    if not scored:
        return tag("p", "No run has been scored: there is no eval-test/metrics.json.")
    rows = [[measure_name(name, runs[-1]), *(cell(run.metrics) for run in scored)] for name, cell in MEASURES]
    rows += [[name, *(text_score(run.metrics, key) for run in scored)] for key, name in TEXT_SCORES
             if any(text_score(run.metrics, key) != "–" for run in scored)]
    counts = " and ".join(dict.fromkeys(f"{run.metrics['count']:,}" for run in scored if "count" in run.metrics))
    main = table(f"Scores on {counts or 'all'} scenes, with 95 % bootstrap intervals over scenes",
                 ["measure", *(run.name for run in scored)], [row for row in rows if set(row[1:]) != {"–"}])
    return join(intervals_picture(runs), tag("div", main, actions_table(scored), class_="pair"))


MEASURES = (
    ("Greedy planning accuracy", lambda m: interval(m.get("planning_accuracy"), m.get("planning_accuracy_interval"))),
    ("Sampled planning accuracy", lambda m: interval(part(m, "planning_accuracy"),
                                                     part(m, "planning_accuracy_interval"))),
    ("Greedy, share of the Bayes ceiling", of_ceiling),
    ("Always the most frequent label", lambda m: percent(m.get("majority", {}).get("accuracy"))),
    ("Greedy, acceptable plan", lambda m: percent(m.get("acceptable_accuracy"))),
    ("Sampled, acceptable plan", lambda m: percent(part(m, "acceptable_accuracy"))),
    ("Greedy, speed correct", lambda m: percent(m.get("speed_accuracy"))),
    ("Greedy, path correct", lambda m: percent(m.get("path_accuracy"))),
    ("Macro F1 of speed", lambda m: percent(m.get("speed_macro_f1"))),
    ("Macro F1 of path", lambda m: percent(m.get("path_macro_f1"))),
    ("Macro F1, nine actions", lambda m: percent(m.get("macro_f1"))),
    ("Macro F1, seven paper classes", lambda m: percent(m.get("paper", {}).get("macro_f1"))),
    ("Greedy, unambiguous scenes", lambda m: percent(m.get("unambiguous", {}).get("accuracy"))),
    ("Greedy, invalid answers", lambda m: percent(m.get("invalid_rate"))),
    ("Sampled, invalid answers", lambda m: percent(part(m, "invalid_rate"))),
    ("Greedy, missed braking", lambda m: percent(missed_braking(m))),
    ("Sampled, missed braking", lambda m: percent(missed_braking(m.get("sampled", {})))),
    ("Greedy, missed braking, cost", lambda m: number(m.get("safety", {}).get("cost"), 3)),
    ("Sampled, missed braking, cost", lambda m: number(m.get("sampled", {}).get("safety", {}).get("cost"), 3)),
    ("Entropy of sampled plans, nats", lambda m: number(part(m, "plan_entropy"), 3)),
)


def measure_name(name: str, run: Run) -> str:
    """The name of a measure; its numbers of actions are those of AlphaDrive's lists."""
    return name if run.actions == ALPHADRIVE else name.replace("nine", "all").replace("seven paper", "merged")


def text_score(metrics: dict, name: str) -> str:
    """A score of the reasoning text, x 100 as in the paper."""
    value = (metrics.get("text") or {}).get(name)
    return f"{100 * value:.2f}" if measured(value) else "–"


def intervals_picture(runs: list[Run]) -> Markup:
    """Accuracies as dots with intervals on one scale, the Bayes ceiling as a line."""
    rows = []
    for colour, run in coloured(runs):
        for kind, m, ceiling in (("greedy", run.metrics, "bayes_ceiling"),
                                 ("sampled", run.metrics.get("sampled", {}), "bayes_ceiling_sampled")):
            if m.get("planning_accuracy_interval"):
                rows.append(interval_row(f"{run.name}, {kind}", colour, m["planning_accuracy"],
                                         m["planning_accuracy_interval"], run.metrics.get(ceiling)))
    if not rows:
        return Markup()
    caption = ("Planning accuracy from 0 to 100 %, with its 95 % interval. The vertical line: for greedy answers the "
               "Bayes ceiling; for sampled ones the accuracy of sampling the true odds, which sharper ones may exceed.")
    return tag("figure", tag("div", *rows, class_="ranges", role="list"), tag("figcaption", caption))


def interval_row(name: str, colour: int, value: float, ends: list[float], ceiling: float | None) -> Markup:
    """A name, a track with dot, interval and ceiling, and the numbers."""
    low, high = ends
    limit = tag("s", style=f"left:{100 * ceiling:.2f}%") if ceiling else None
    track = tag("span", tag("em", style=f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"),
                tag("b", style=f"left:{100 * value:.2f}%"), limit, class_=f"track run{colour}", aria_hidden="true")
    return tag("div", tag("span", swatch(colour), name), track, tag("span", interval(value, ends)), role="listitem")


def actions_table(runs: list[Run]) -> Markup:
    """F1 of every action with precision and recall; the number of scenes is that of the first run."""
    rows = []
    sides = [{name: row for name, row in run.metrics.get("paper", {}).get("path", {}).items() if name in merged(run)}
             for run in runs]
    for tables, note in (([run.metrics.get("speed", {}) for run in runs], ""),
                         ([run.metrics.get("path", {}) for run in runs], ""), (sides, ", merged")):
        for action in dict.fromkeys(name for part in tables for name in part):
            found = [part.get(action, {}) for part in tables]
            support = next((row["support"] for row in found if "support" in row), None)
            rows.append([f"{action}{note}", tag("td", support), *(f1_cell(row) for row in found)])
    header = ["action", "scenes", *(run.name for run in runs)]
    return table("F1 (precision, recall) of every action, greedy answers, %", header, rows) if rows else Markup()


def merged(run: Run) -> set[str]:
    """The classes of the merged tables that hold several paths; the others are paths of their own."""
    counts = Counter(run.actions.merge.get(path, path) for path in run.actions.paths)
    return {name for name, count in counts.items() if count > 1}


def f1_cell(row: dict) -> Markup:
    """`76.1 (76.3, 75.8)`."""
    f1, precision, recall = (f"{100 * row[name]:.1f}" if measured(row.get(name)) else "–"
                             for name in ("f1", "precision", "recall"))
    return join(tag("b", f1), " ", tag("small", f"({precision}, {recall})"))


def confusions(runs: list[Run]) -> Markup:
    """The answers for each true action, run beside run."""
    blocks = [tag("div", *(confusion_table(f"{run.name}: {name}", run.metrics[f"{group}_confusion"])
                           for run in runs if run.metrics.get(f"{group}_confusion")), class_="pair")
              for group, name in (("speed", "speed"), ("path", "path"))]
    joint = [confusion_table(f"{run.name}: speed and path together", run.metrics["joint_confusion"])
             for run in runs if run.metrics.get("joint_confusion")]
    if not any(run.metrics.get("speed_confusion") for run in runs):
        return tag("p", "No confusion matrices: no run has been scored.")
    return join(tag("p", "Rows: the expert's action. Columns: the greedy answer. The shade is the share of the row.",
                    class_="note"), *blocks, details("Speed and path together", *joint) if joint else None)


def confusion_table(caption: str, confusion: dict[str, dict[str, int]]) -> Markup:
    """Counts, shaded by their share of the row."""
    def cell(truth: str, said: str, count: int, total: int) -> Markup:
        share = count / total if total else 0.0
        return tag("td", f"{count:,}" if count else "·", class_="hit" if truth == said else None,
                   style=f"--share:{share:.3f}", title=f"{truth} answered {said}: {count} of {total}, {percent(share)}")

    def shown(name: str) -> str:
        return name.replace("_", " ").lower()

    columns = list(dict.fromkeys(said for row in confusion.values() for said in row))
    rows = [[shown(truth), *(cell(truth, said, row.get(said, 0), sum(row.values())) for said in columns)]
            for truth, row in confusion.items()]
    return tag("div", table(caption, ["expert", *map(shown, columns)], rows), class_="confusion")


def factors(runs: list[Run]) -> Markup:
    """Greedy accuracy on the scenes in which a factor is present, from the predictions."""
    columns = []
    for run in runs:
        right: dict[str, list[float]] = {}
        for row in run.predictions:
            for name, value in present_factors(row).items():
                right.setdefault(f"{name}: {value}", []).append(float(row["decision"] == row["truth"]))
        columns.append(right)
    names = sorted({name for right in columns for name, values in right.items() if len(values) >= MIN_FACTOR})
    if not names:
        return tag("p", "The data give no factors of their scenes, or there are no predictions.")

    def cell(right: dict[str, list[float]], name: str) -> Markup | str:
        values = right.get(name, [])
        if len(values) < MIN_FACTOR:
            return "–"
        return interval(sum(values) / len(values), wilson_interval(sum(values), len(values)))

    rows = [[name, max(len(right.get(name, [])) for right in columns), *(cell(right, name) for right in columns)]
            for name in names]
    caption = f"Greedy accuracy where a factor is present (at least {MIN_FACTOR} scenes), with Wilson's 95 % intervals"
    return table(caption, ["factor", "scenes", *(run.name for run in runs)], rows)


def multimodality(runs: list[Run]) -> Markup:
    """Validity over coverage for a sweep of temperatures, and a table of all its numbers."""
    sweeps = [(colour, run, sweep(run.metrics)) for colour, run in coloured(runs)]
    sweeps = [(colour, run, rows) for colour, run, rows in sweeps if rows]
    if not sweeps:
        return tag("p", "Not measured: no eval-test/metrics.json has a sweep of temperatures (eval.py --temperatures).")
    lines = [Line(run.name, colour, [sweep_point(row, marked=run is runs[-1]) for row in rows])
             for colour, run, rows in sweeps]
    note = (f"Up and to the right is better. The numbers at the dots of {runs[-1].name} are temperatures. A higher "
            "temperature raises coverage, so compare curves, not points.")
    if max(len(rows) for _, _, rows in sweeps) > 1:
        picture = tag("div", plot("Validity over coverage", note, lines, "coverage"), class_="charts wide")
    else:
        picture = tag("p", "One temperature is no curve: a higher temperature raises coverage, so the numbers below "
                      "do not rank the runs.")
    return join(picture, *(sweep_table(run, rows) for _, run, rows in sweeps))


def sweep(metrics: dict) -> list[dict]:
    """The records of `multimodality` by temperature, without those that lack validity or coverage."""
    complete = [row for row in metrics.get("multimodality") or []
                if all(measured(row.get(name)) for name in ("temperature", "validity", "coverage"))]
    return sorted(complete, key=lambda row: row["temperature"])


def sweep_point(row: dict, marked: bool) -> Point:
    """The point of a temperature on the curve."""
    heat, validity = number(row["temperature"]), row["validity"]
    label = f"T = {heat}, coverage {number(row['coverage'], 3)}, validity"
    return Point(row["coverage"], validity, validity, validity, label, heat if marked else "")


def sweep_table(run: Run, rows: list[dict]) -> Markup:
    """Every number of a sweep, one column per temperature."""
    columns = [flat(row) for row in rows]
    names = dict.fromkeys(name for row in columns for name, value in row.items() if measured(value))
    return table(f"{run.name}: multimodality by temperature",
                 ["measure", *(f"T = {number(row['temperature'])}" for row in columns)],
                 [[name.replace("_", " "), *(number(row.get(name), 3) for row in columns)]
                  for name in names if name != "temperature"])


def flat(row: dict, before: str = "") -> dict:
    """Nested records as one: {"pass_at_k": {"label": {"8": 0.9}}} -> {"pass_at_k label 8": 0.9}."""
    parts = [flat(value, f"{before}{name} ") if isinstance(value, dict) else {f"{before}{name}": value}
             for name, value in row.items()]
    return {name: value for part in parts for name, value in part.items()}
