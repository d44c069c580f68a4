from __future__ import annotations

from statistics import fmean

import pytest

from labelcurve.benchmarks.record import Model, Report
from labelcurve.benchmarks.report import tables


def test_a_row_a_fraction(measured: Report) -> None:
    rows = tables.rows(measured)
    assert [row[0] for row in rows] == ["10 %", "50 %", "100 %"]
    assert [row[1] for row in rows] == ["144 + 16", "718 + 79", "1,437 + 159"]
    assert all(len(row) == len(tables.HEADER) for row in rows)
    assert all(row[-3:] == ("–", "–", "–") for row in rows)
    score = measured.models[0].accuracy
    assert rows[0][3] == f"{score.accuracy * 100:.2f} %"
    recalls = [of_class.recall for of_class in score.per_class.values()]
    assert rows[0][4] == f"{fmean(recalls) * 100:.2f} %"


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [(1.0, "100 %"), (0.5, "50 %"), (0.125, "12.5 %"), (0.015, "1.5 %"), (0.001, "0.1 %")],
)
def test_a_fraction_is_not_rounded_to_another(fraction: float, shown: str) -> None:
    assert tables.share(fraction) == shown


def test_variants_of_one_fraction_have_a_row_each_and_say_what_they_are(measured: Report) -> None:
    first = measured.models[0].model_copy(update={"preset": "default"})
    ours = first.model_copy(update={"extractor": "contrastive", "pretraining_seconds": 4200.0})
    reference = ours.model_copy(update={"preset": "reference"})
    without = first.model_copy(update={"preset": "reference"})
    models = (ours, first, reference, without)
    changed = measured.model_copy(update={"models": models})
    names = [row[0] for row in tables.rows(changed)]
    assert names == ["10 %", "10 %, scratch", "10 %, reference", "10 %, reference scratch"]
    assert "pretrained without labels in 1 h 10 min" in tables.conditions(changed)
    assert "pretrained" not in tables.conditions(measured)


def test_several_seeds_give_mean_and_deviation(measured: Report) -> None:
    def seed(model: Model, number: int, accuracy: float) -> Model:
        score = model.accuracy.model_copy(update={"accuracy": accuracy})
        return model.model_copy(update={"seed": number, "accuracy": score})

    first = measured.models[0]
    models = tuple(seed(first, number, 0.8 + number / 100) for number in range(3))
    changed = measured.model_copy(update={"models": models})
    (row,) = tables.rows(changed)
    assert row[3] == "81.00 ± 1.00 %"
    assert row[4].endswith(" ± 0.00 %")
    assert "over 3 seeds" in tables.conditions(changed)


def test_an_interval_counts_test_images_and_the_seeds(measured: Report) -> None:
    """Two seeds, 0.80 and 0.90, each known to 0.03 below and 0.02 above: the standard error of
    their mean is 0.0707 / 2 ** 0.5 = 0.05, of which 1.96 are 0.098."""

    def seed(accuracy: float) -> Model:
        low, high = accuracy - 0.03, accuracy + 0.02
        update = {"accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}
        score = measured.models[0].accuracy.model_copy(update=update)
        return measured.models[0].model_copy(update={"accuracy": score})

    one, both = tables.accuracy([seed(0.8)]), tables.accuracy([seed(0.8), seed(0.9)])
    assert (one.value, one.low, one.high) == pytest.approx((0.8, 0.77, 0.82))
    assert both.value == pytest.approx(0.85)
    assert both.value - both.low == pytest.approx((0.03**2 + 0.098**2) ** 0.5, abs=1e-4)
    assert both.high - both.value == pytest.approx((0.02**2 + 0.098**2) ** 0.5, abs=1e-4)


def test_a_report_opens_with_a_row_a_main_fraction_and_a_price_only_where_one_is_given(
    measured: Report,
) -> None:
    header, rows = tables.opening(measured.model_copy(update={"price_per_label": None}))
    assert header == ["of the labels", "labels", "accuracy", "95 % interval"]
    assert [row[:2] for row in rows] == [["10 %", "160"], ["50 %", "797"], ["100 %", "1,596"]]
    header, rows = tables.opening(measured.model_copy(update={"price_per_label": 0.5}))
    assert header[-1] == "price"
    assert [row[-1] for row in rows] == ["80.00", "398", "798"]
