"""Sentences whose figures agree."""

from __future__ import annotations

import re

import pytest

from labelcurve.training.forecast.advice import advise
from labelcurve.training.forecast.sentences import sentences
from tests.training.forecast.test_advice import points


def test_three_sentences_with_a_price_only_where_one_is_given() -> None:
    advice = advise(points(), 2000)
    with_price, without = sentences(advice, 0.05), sentences(advice, None)
    assert len(with_price) == len(without) == 3
    assert "2,000 more labels (2,800 in all)" in with_price[0]
    assert "100.00 (0.05 a label)" in with_price[1]
    assert "cost" not in " ".join(without)


@pytest.mark.parametrize("more", [1, 100, 2000, 5600])
def test_the_figures_of_a_sentence_agree_and_now_is_the_same_whatever_is_asked(more: int) -> None:
    advice = advise(points(), more)
    assert advice.accuracy_now == advise(points(), 300).accuracy_now
    first = sentences(advice, None)[0]
    numbers = re.search(r"from ([\d.]+) % to about ([\d.]+) % .* a gain of ([\d.]+) points", first)
    assert numbers is not None, first
    now, then, gain = map(float, numbers.groups())
    assert then - now == pytest.approx(gain, abs=1e-9)
    assert now == round(advice.accuracy_now.value * 100, 1)
    # Off the median of the samples by sampling noise alone.
    assert advice.then.value == pytest.approx(advice.accuracy_then.value, abs=0.004)


def test_one_label_is_one_and_tiny_or_large_prices_are_said_plainly() -> None:
    first, second, _ = sentences(advise(points(), 1), 2e-5)
    assert "1 more label (801 in all)" in first
    assert "-0.0" not in first
    assert second.startswith("It costs 0.00 (0.00002 a label); the probability is ")
    assert second.endswith(" above 2 points, from which it pays.")
    large = sentences(advise(points(), 2000, least_gain=2000), None)[1]
    assert large.endswith("that the gain is above 2,000 points, from which the labels pay.")
