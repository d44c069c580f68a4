from __future__ import annotations

from pathlib import Path

import numpy as np

from labelcurve.benchmarks.quality import accepting
from labelcurve.benchmarks.record import Report
from labelcurve.benchmarks.report import figures, page
from labelcurve.bundle import acceptance, store


def test_thresholds_come_from_held_out_images_and_the_curve_from_test(digits_models: Path) -> None:
    held = store.read(digits_models, "digits-100").manifest.held_out
    confidence = np.array([0.9999, 0.9998, 0.6, 0.3], np.float32)
    right = np.array([True, True, True, False])
    found = accepting.measure(held, confidence, right)
    assert [(p.coverage, p.accuracy) for p in found.curve] == [
        (0.25, 1), (0.5, 1), (0.75, 1), (1, 0.75)
    ]  # fmt: skip
    levels = {level.wished: level for level in found.levels}
    promised = acceptance.threshold(held, 0.95)
    assert levels[0.95].forecast == promised.coverage
    assert levels[0.95].coverage == (confidence >= promised.confidence).mean()
    assert levels[0.95].accuracy == 1
    assert levels[0.995].coverage is None
    assert "held-out images" in (levels[0.995].why_none or "")
    without = accepting.measure(None, confidence, right)
    assert all("train it again" in (level.why_none or "") for level in without.levels)


def test_the_report_says_how_much_a_person_still_reviews(measured: Report) -> None:
    assert any("a person looks at the rest." in text for text in figures.accepted(measured))
    models = tuple(
        model.model_copy(update={"accuracy": model.accuracy.model_copy(update={"accepting": None})})
        for model in measured.models
    )
    earlier = measured.model_copy(update={"models": models})
    assert figures.accepted(earlier) == []
    assert "Accepting answers" not in page.markdown(earlier)
    assert "Accepting answers" in page.markdown(measured)
