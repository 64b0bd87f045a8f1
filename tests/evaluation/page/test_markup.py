"""Escaping, and numbers as text."""

from evaluation.page.markup import interval, join, number, percent, points, table, tag


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
