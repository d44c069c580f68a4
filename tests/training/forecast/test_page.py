"""The page of an answer."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from labelcurve.training.forecast.advice import Estimate, advise
from labelcurve.training.forecast.law import Points
from labelcurve.training.forecast.page import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    page,
    plot,
)
from labelcurve.training.forecast.sentences import sentences

SIZES = np.array([22.0, 39, 70, 126, 225, 403, 720])
POINTS = Points(SIZES, 0.5 * (SIZES / 22) ** -0.35, 0.004**2 * np.eye(7), 800)


def test_the_answer_is_the_headline_and_all_figures_are_those_of_the_advice() -> None:
    advice = advise(POINTS, 2000)
    text = page(advice, POINTS, sentences(advice, 0.05), [("Data", "<photos>")])
    assert "<h1>2,000 more labels? Yes.</h1>" in text
    then, gain = advice.then, advice.gain
    assert f"<td>{then.value * 100:.1f} %</td>" in text
    assert f"<td>{gain.low:.1f} to {gain.high:.1f}</td>" in text
    assert "&lt;photos&gt;" in text
    assert "<script" not in text
    assert "http" not in text


def test_the_plot_has_a_point_a_size_and_one_for_the_forecast() -> None:
    advice = advise(POINTS, 2000)
    root = ElementTree.fromstring(plot(advice, POINTS))
    circles = root.findall("circle")
    assert len(circles) == len(SIZES) + 1
    # More labels are further right, more accuracy is higher up.
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in circles]
    assert places == sorted(places)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    (band,) = root.findall("polygon")
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", band.attrib["points"])]
    assert min(numbers) >= 0
    assert max(numbers) <= 760


def test_a_curve_that_failed_its_check_is_drawn_as_far_as_it_was_measured() -> None:
    failed = replace(advise(POINTS, 2000), answer="cannot tell", failed_check="beside the curve")
    text = page(failed, POINTS, sentences(failed, None), [])
    root = ElementTree.fromstring(plot(failed, POINTS))
    circles = root.findall("circle")
    assert len(circles) == len(SIZES)
    last = float(circles[-1].attrib["cx"])
    (centre,), (band,) = root.findall("polyline"), root.findall("polygon")
    for line in (centre, band):
        places = [float(place.split(",")[0]) for place in line.attrib["points"].split()]
        assert min(places) == float(circles[0].attrib["cx"])
        assert last - 15 < max(places) <= last
    # The axis ends at the labels there are, and so do its numbers.
    assert {text.text for text in root.findall("text")} >= {"50", "200", "500", "800"}
    assert not {text.text for text in root.findall("text")} & {"1,000", "2,000", "2,800"}
    assert "forecast" not in root.attrib["aria-label"]
    assert "2,000 more labels? Cannot tell." in text
    assert "Gain in points" not in text


def test_points_and_bars_stand_where_they_were_measured() -> None:
    """In a plot from 400 to 800 labels and 60 to 80 %, whose places are known."""
    few = Points(np.array([400.0, 800.0]), np.array([0.4, 0.2]), 1e-12 * np.eye(2), 800)
    failed = replace(advise(few, 1), failed_check="too few", accuracy_now=Estimate(0.8, 0.8, 0.8))
    root = ElementTree.fromstring(plot(failed, few))
    (left, low), (right, high) = (
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.findall("circle")
    )
    assert (left, low, high) == (LEFT, HEIGHT - BOTTOM, TOP)
    # log 2 of log 2.16: 8 % of the labels are left free at the right.
    width = WIDTH - LEFT - RIGHT
    assert right == pytest.approx(LEFT + width * np.log(2) / np.log(2.16), abs=0.05)
    ticks = {text.text: float(text.attrib["y"]) - 4 for text in root.findall("text")}
    assert ticks["60 %"] == pytest.approx(HEIGHT - BOTTOM, abs=0.11)
    assert ticks["70 %"] == pytest.approx((TOP + HEIGHT - BOTTOM) / 2, abs=0.11)


def test_a_bar_is_the_interval_of_its_point() -> None:
    wide = replace(POINTS, covariance=np.diag([0.1**2] + [0.004**2] * 6))
    root = ElementTree.fromstring(plot(advise(wide, 2000), wide))
    bars = [line for line in root.findall("line") if line.attrib["stroke"] == "var(--ink)"]
    heights = [float(bar.attrib["y1"]) - float(bar.attrib["y2"]) for bar in bars]
    assert len(heights) == len(SIZES)
    assert min(heights[0] / height for height in heights[1:]) > 10


def test_a_single_size_is_drawn_as_it_was_measured() -> None:
    few = Points(SIZES[-1:], POINTS.errors[-1:], POINTS.covariance[-1:, -1:], 800)
    advice = advise(few, 1)
    text = page(advice, few, sentences(advice, None), [])
    assert "<h1>1 more label? Cannot tell.</h1>" in text
    root = ElementTree.fromstring(plot(advice, few))
    assert len(root.findall("circle")) == 1
    assert [p.attrib["points"] for p in root.findall("polygon")] == [""]


def test_no_number_is_minus_nothing() -> None:
    level = Points(SIZES, np.full(7, 0.2), 0.004**2 * np.ones((7, 7)) + 1e-8 * np.eye(7), 800)
    advice = advise(level, 1)
    assert "-0.0" not in page(advice, level, sentences(advice, None), [])
