from __future__ import annotations

from statistics import fmean

import pytest

from benchmarks import tables
from benchmarks.record import Model, Report


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


def test_variants_of_one_fraction_have_a_row_each_and_say_what_they_are(measured: Report) -> None:
    first = measured.models[0].model_copy(update={"preset": "default"})
    ours = first.model_copy(update={"extractor": "contrastive", "pretraining_seconds": 4200.0})
    reference = ours.model_copy(update={"preset": "reference"})
    without = first.model_copy(update={"preset": "reference"})
    models = (ours, first, reference, without)
    changed = measured.model_copy(update={"models": models})
    names = [row[0] for row in tables.rows(changed)]
    assert names == ["10 %", "10 %, scratch", "10 %, reference", "10 %, reference scratch"]
    assert "learned without labels in 1 h 10 min" in tables.conditions(changed)
    assert "learned without labels" not in tables.conditions(measured)


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (3.21, "3.2 s"),
        (245, "4 min 05 s"),
        (3725, "1 h 02 min"),
        (4194, "1 h 10 min"),
        (7199.6, "2 h 00 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text
