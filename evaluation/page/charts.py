"""Curves as inline SVG: axes, a band from minimum to maximum, and readings that the page's script shows.

Colours are CSS classes (`run0`, `run1`, ...), so that they can differ in light, dark and print. A long run is drawn as
means of consecutive steps.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from evaluation.page.markup import Markup, join, number, tag
from evaluation.page.runs import measured

WIDTH, HEIGHT = 360, 188
LEFT, RIGHT, TOP, BOTTOM = 50, 350, 10, 160           # edges of the plot inside the picture
BINS = 60

Place = Callable[[float, float], tuple[float, float]]   # a value -> pixels of the picture


@dataclass(frozen=True)
class Point:
    """A point of a curve; `label` names it in readings, `mark` is printed beside it."""

    x: float
    y: float
    low: float
    high: float
    label: str
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """One curve; `colour` is the run's number."""

    name: str
    colour: int
    points: list[Point]


def bin_steps(steps: list[dict], field: str, bins: int = BINS) -> list[Point]:
    """A logged field as at most `bins` points, each the mean of the same number of consecutive measured steps."""
    rows = [(step["step"], step[field]) for step in steps if measured(step.get(field))]
    size = max(1, math.ceil(len(rows) / bins))
    points = []
    for start in range(0, len(rows), size):
        places, values = zip(*rows[start:start + size], strict=True)
        label = f"step {places[0]}" if len(places) == 1 else f"steps {places[0]} to {places[-1]}"
        points.append(Point((places[0] + places[-1]) / 2, sum(values) / len(values), min(values), max(values), label))
    return points


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` + 1 round numbers at equal distances that enclose `low` and `high`."""
    rough = (high - low or abs(high) or 1) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def plot(title: str, note: str, lines: list[Line], x_label: str = "step", share: bool = False,
         ranked: bool = False) -> Markup:
    """A figure of the lines that have points, with axes, legend and a note.

    The axis of a `share` spans at least 0.1, so that noise does not look like a trend. Where x is a rank, no numbers
    stand at its axis.
    """
    lines = [line for line in lines if line.points]
    everything = [point for line in lines for point in line.points]
    low, high = min(p.low for p in everything), max(p.high for p in everything)
    if high - low < 1e-9 * max(abs(low), abs(high)):        # equal but for rounding
        high = low
    if share and high - low < 0.1:
        low = min(max((low + high) / 2 - 0.05, 0.0), 0.9)
        high = low + 0.1
    y_ticks = ticks(low, high)
    left, right = min(p.x for p in everything), max(p.x for p in everything)

    def place(x: float, y: float) -> tuple[float, float]:
        u = (x - left) / (right - left or 1) if right > left else 0.5
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(LEFT + u * (RIGHT - LEFT), 1), round(BOTTOM - v * (BOTTOM - TOP), 1)

    x_ticks = [x for x in ticks(left, right) if left <= x <= right and not ranked] if right > left else [left]
    drawing = tag("svg", axes(x_ticks, y_ticks, x_label, place), *(draw_line(line, place) for line in lines),
                  tag("line", class_="cursor", x1=0, x2=0, y1=TOP, y2=BOTTOM),
                  viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=describe(title, lines),
                  data_readings=json.dumps(readings(lines, place), ensure_ascii=False, separators=(",", ":")))
    legend = tag("span", *(tag("span", swatch(line.colour), line.name) for line in lines), class_="legend")
    return tag("figure", tag("figcaption", tag("b", title), legend if len(lines) > 1 else None), drawing,
               tag("output", last_values(lines)), tag("p", note), class_="chart")


def axes(x_ticks: list[float], y_ticks: list[float], x_label: str, place: Place) -> Markup:
    """Grid lines and their numbers, hidden from screen readers, which read the description instead."""
    rows = [join(tag("line", x1=LEFT, x2=RIGHT, y1=v, y2=v, class_="grid"),
                 tag("text", number(y, 3), x=LEFT - 5, y=v + 3.5, text_anchor="end"))
            for y in y_ticks for v in [place(0.0, y)[1]]]
    columns = [join(tag("line", x1=u, x2=u, y1=BOTTOM, y2=BOTTOM + 4, class_="axis"),
                    tag("text", number(x), x=u, y=BOTTOM + 15, text_anchor="middle"))
               for x in x_ticks for u in [place(x, y_ticks[0])[0]]]
    base = tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis")
    name = tag("text", x_label, x=RIGHT, y=HEIGHT - 4, text_anchor="end", class_="name")
    return tag("g", *rows, *columns, base, name, aria_hidden="true")


def draw_line(line: Line, place: Place) -> Markup:
    """Band and curve, with dots if there are few points."""
    middle = [place(p.x, p.y) for p in line.points]
    edge = [place(p.x, p.high) for p in line.points] + [place(p.x, p.low) for p in reversed(line.points)]
    dots = middle if len(middle) <= 20 else []
    marks = [tag("text", p.mark, x=u, y=v - 6, text_anchor="middle")
             for p, (u, v) in zip(line.points, middle, strict=True) if p.mark]
    band = tag("polygon", points=coordinates(edge), class_="band") if any(p.low < p.high for p in line.points) else None
    return tag("g", band, tag("polyline", points=coordinates(middle)),
               *(tag("circle", cx=u, cy=v, r=3) for u, v in dots), *marks, class_=f"run{line.colour}")


def coordinates(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{u:g},{v:g}" for u, v in places)


def readings(lines: list[Line], place: Place) -> list[list]:
    """[x in the picture, text] from left to right, for each x at which a line has a point."""
    texts: dict[float, list[str]] = {}
    for line in lines:
        for p in line.points:
            spread = f" ({number(p.low)} to {number(p.high)})" if p.low < p.high else ""
            name = f"{line.name}, " if len(lines) > 1 else ""
            texts.setdefault(place(p.x, p.y)[0], []).append(f"{name}{p.label}: {number(p.y)}{spread}")
    return [[u, "; ".join(texts[u])] for u in sorted(texts)]


def last_values(lines: list[Line]) -> str:
    """The text below a chart until a pointer or an arrow key selects another point."""
    names = [f"{line.name}, " if len(lines) > 1 else "" for line in lines]
    return "; ".join(f"{name}{line.points[-1].label}: {number(line.points[-1].y)}"
                     for name, line in zip(names, lines, strict=True))


def describe(title: str, lines: list[Line]) -> str:
    """A chart in words, for screen readers."""
    parts = [f"{line.name} goes from {number(line.points[0].y)} ({line.points[0].label}) to "
             f"{number(line.points[-1].y)} ({line.points[-1].label}), lowest "
             f"{number(min(p.low for p in line.points))}, highest {number(max(p.high for p in line.points))}"
             for line in lines]
    return f"{title}: {'; '.join(parts)}."


def swatch(colour: int) -> Markup:
    """A small square in a run's colour."""
    return tag("i", class_=f"swatch run{colour}", aria_hidden="true")
