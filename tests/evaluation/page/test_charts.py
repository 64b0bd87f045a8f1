"""Ticks, binned curves, and charts as SVG."""

import json

import pytest

from evaluation.page.charts import Line, Point, bin_steps, plot, ticks


def test_ticks_are_round_and_enclose():
    assert ticks(1.9, 2.3) == pytest.approx([1.9, 2.0, 2.1, 2.2, 2.3])
    assert ticks(0, 200) == [0, 50, 100, 150, 200]
    assert ticks(-0.3, 1.1) == [-0.5, 0.0, 0.5, 1.0, 1.5]            # 1.4 / 4 = .35 -> .5
    assert len(ticks(0.0, 0.0)) >= 2 and len(ticks(7.0, 7.0)) >= 2   # a constant still has an axis


def test_long_runs_are_means_of_consecutive_steps(steps):
    steps = [{"step": n, "kl": None if n == 3 else float(n)} for n in range(1, 7)]
    # measured: 1 2 4 5 6 in 2 bins of 3: (1 + 2 + 4) / 3 = 2.333, from 1 to 4; (5 + 6) / 2 = 5.5
    first, second = bin_steps(steps, "kl", bins=2)
    assert (first.x, first.low, first.high, first.label) == (2.5, 1.0, 4.0, "steps 1 to 4")
    assert first.y == pytest.approx(7 / 3) and (second.x, second.y, second.label) == (5.5, 5.5, "steps 5 to 6")
    assert bin_steps(steps, "absent") == []


def test_a_chart_has_axes_readings_and_words(read):
    line = Line("run <1>", 0, [Point(1, 0.0, 0.0, 0.0, "step 1"), Point(3, 1.0, 0.5, 1.0, "step 3")])
    reader = read(plot("Reward", "Why.", [line]))
    values = {key: value for name, key, value in reader.attributes if name == "svg"}
    # the plot reaches from x = 50 to 350: step 1 stands at its left edge, step 3 at its right
    assert json.loads(values["data-readings"]) == [[50.0, "step 1: 0"], [350.0, "step 3: 1 (0.5 to 1)"]]
    assert values["aria-label"] == "Reward: run <1> goes from 0 (step 1) to 1 (step 3), lowest 0, highest 1."
    (curve,) = [value for name, key, value in reader.attributes if (name, key) == ("polyline", "points")]
    assert curve == "50,160 350,10"                                  # bottom left to top right
    assert {"0", "0.5", "1", "step"} <= set(reader.text)


def test_a_share_has_an_axis_of_at_least_a_tenth(read):
    line = Line("run", 0, [Point(1, 0.7, 0.7, 0.7, "step 1"), Point(2, 0.701, 0.701, 0.701, "step 2")])
    assert {"0.65", "0.7", "0.75"} <= set(read(plot("A", "", [line], share=True)).text)
    assert "0.65" not in read(plot("A", "", [line])).text


def test_values_that_differ_by_rounding_are_one_line():
    values = (0.42499999999999993, 0.425)
    assert "<svg" in plot("reward", "", [Line("run", 0, [Point(i, v, v, v, "") for i, v in enumerate(values)])])
