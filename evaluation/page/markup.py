"""HTML by construction: everything that is not Markup is escaped, so that no text of a model can become code."""

import math
from html import escape

VOID = ("img", "input", "meta", "link")


class Markup(str):
    """Text that is already HTML."""

    __slots__ = ()


def join(*children: object) -> Markup:
    """Concatenate to HTML; plain values are escaped, None is left out."""
    return Markup("".join(child if isinstance(child, Markup) else escape(str(child))
                          for child in children if child is not None))


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element: tag("td", "a < b", class_="number", data_x=3) -> <td class="number" data-x="3">a &lt; b</td>.

    An attribute that is True is written without a value; None and False are left out. A final underscore avoids
    Python's keywords.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()
             if value is not None and value is not False}
    start = "".join(f" {key}" if value is True else f' {key}="{escape(str(value))}"' for key, value in given.items())
    return Markup(f"<{name}{start}>" if name in VOID else f"<{name}{start}>{join(*children)}</{name}>")


def table(caption: str, header: list[object], rows: list[list[object]]) -> Markup:
    """A table with row headers in its first column, which scrolls on a narrow page. A cell may be a finished <td>."""
    def cell(value: object) -> Markup:
        made = isinstance(value, Markup) and value.startswith("<td")
        return value if made else tag("td", value)

    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in header)))
    body = tag("tbody", *(tag("tr", tag("th", row[0], scope="row"), *map(cell, row[1:])) for row in rows))
    return tag("div", tag("table", tag("caption", caption), head, body), class_="scroll", tabindex=0, role="region",
               aria_label=caption)


def details(summary: object, *children: object, **attributes: object) -> Markup:
    """A part that opens on demand."""
    return tag("details", tag("summary", summary), *children, **attributes)


def percent(value: float | None) -> str:
    """0.7056 -> `70.6 %`; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(value: float | None, bounds: list[float] | None) -> Markup:
    """A share with its 95 % interval."""
    low_high = tag("small", f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}") if bounds else None
    return join(percent(value), " " if low_high else None, low_high)


def points(value: float) -> str:
    """A difference of shares in percentage points, with a typographic minus sign: 0.0185 -> `+1.9`."""
    return f"{100 * value:+.1f}".replace("-", "−")


def number(value: float | None, digits: int = 4) -> str:
    """A short number with a typographic minus sign; a dash for None and for numbers that are not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    plain = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.{digits}g}"
    return plain.replace("-", "−")
