from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from labelcurve.benchmarks import cli, compare
from labelcurve.benchmarks.harness import statistics
from labelcurve.benchmarks.record import Report, Window
from labelcurve.bundle.errors import LabelcurveError
from tests.benchmarks.samples import LOAD


def rated(report: Report, rate: float) -> Report:
    """The same report at another speed."""
    windows = tuple(
        Window(seconds=5, n=400, requests_per_s=rate * part, p50_ms=1e3 / rate / part)
        for part in (0.99, 1.0, 1.02)
    )
    load = LOAD.model_copy(update={"windows": windows})
    models = tuple(model.model_copy(update={"load": load}) for model in report.models)
    return report.model_copy(update={"models": models})


def test_the_same_run_does_not_differ(measured: Report) -> None:
    for pair in compare.pairs(measured, measured):
        assert pair.accuracy is not None
        assert (pair.accuracy.difference.value, pair.accuracy.p_value) == (0, 1)
        assert pair.rate is None
    assert compare.doubts(measured, measured) == []


def test_another_gpu_is_told(measured: Report) -> None:
    made = measured.provenance.model_copy(update={"gpu": None})
    other = made.model_copy(update={"gpu": "NVIDIA L4"})
    reports = (measured.model_copy(update={"provenance": each}) for each in (made, other))
    (doubt,) = compare.doubts(*reports)
    assert doubt.startswith("gpu differs (none, NVIDIA L4)")


def test_what_is_more_than_chance_is_marked(measured: Report) -> None:
    a, b = rated(measured, 100), rated(measured, 130)
    (pair, *_) = compare.pairs(a, b)
    assert pair.rate is not None
    assert pair.p50 is not None
    # Welch on logarithms of the same three windows: 2.776 is t of 4 degrees of freedom at 97.5 %.
    error = 2.776445 * np.sqrt(2 * np.log([0.99, 1.0, 1.02]).var(ddof=1) / 3)
    assert pair.rate.value == pytest.approx(1.3)
    assert pair.rate.low == pytest.approx(1.3 * np.exp(-error))
    assert pair.rate.high == pytest.approx(1.3 * np.exp(error))
    assert pair.p50.value == pytest.approx(1 / 1.3)
    assert "1.30 (1.2" in compare.markdown(a, b)
    assert ") *" in compare.markdown(a, b)


def test_windows_that_vary_differently_have_welch_s_degrees_of_freedom(measured: Report) -> None:
    quiet = rated(measured, 100).models[0].load
    assert quiet is not None
    rates = (80.0, 100.0, 125.0)
    windows = tuple(w.model_copy(update={"requests_per_s": r}) for w, r in zip(
        quiet.windows, rates, strict=True))  # fmt: skip
    found = compare.ratio(quiet, quiet.model_copy(update={"windows": windows}), "requests_per_s")
    assert found is not None
    logs = [np.log([w.requests_per_s for w in quiet.windows]), np.log(rates)]
    parts = [log.var(ddof=1) / 3 for log in logs]
    degrees = sum(parts) ** 2 / sum(part**2 / 2 for part in parts)
    half = student.ppf(0.975, degrees) * sum(parts) ** 0.5
    middle = logs[1].mean() - logs[0].mean()
    assert np.log((found.low, found.value, found.high)) == pytest.approx(
        (middle - half, middle, middle + half)
    )


@pytest.mark.parametrize("update", [{"stable": False}, {"rounds": 2}])
def test_unstable_rates_have_no_star(measured: Report, update: dict[str, object]) -> None:
    a, b = rated(measured, 100), rated(measured, 130)
    first = b.models[0]
    assert first.load is not None
    shaky = first.model_copy(update={"load": first.load.model_copy(update=update)})
    text = compare.markdown(a, b.model_copy(update={"models": (shaky,)}))
    assert "1.30 (1.2" in text
    assert ") *" not in text
    assert "not corrected for 3 comparisons" in text


def test_other_models_of_one_name_are_compared_image_by_image(measured: Report) -> None:
    low, high = measured.models[0], measured.models[-1]
    other = measured.model_copy(
        update={"models": (high.model_copy(update={"name": low.name}), *measured.models[1:])}
    )
    (pair, *_) = compare.pairs(measured, other)
    assert pair.accuracy is not None
    assert pair.accuracy.difference.value == pytest.approx(
        high.accuracy.accuracy - low.accuracy.accuracy
    )
    assert pair.accuracy.p_value < 0.001


def test_the_command(measured: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = measured.provenance.model_copy(update={"cpu": "another"})
    for name, report in (
        ("a", measured),
        ("b", measured.model_copy(update={"provenance": changed})),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(report.model_dump_json())
    cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b" / "report.json")])
    out = capsys.readouterr().out
    assert "| digits-10 (same version) |" in out
    assert "cpu differs" in out
    document = json.loads(out.splitlines()[-1])
    assert len(document["pairs"]) == 3


def test_what_cannot_be_compared_is_said(measured: Report, tmp_path: Path) -> None:
    with pytest.raises(LabelcurveError, match=r"cannot read .*nowhere"):
        cli.main(["compare", str(tmp_path / "nowhere"), str(tmp_path)])
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(LabelcurveError, match=r"is not a report\.json of this release"):
        cli.main(["compare", str(tmp_path), str(tmp_path)])
    data = measured.dataset.model_copy(update={"hash": "0" * 64})
    other = measured.model_copy(update={"dataset": data})
    assert compare.pairs(measured, other)[0].accuracy is None
    assert "accuracies cannot be compared" in compare.doubts(measured, other)[0]
    one, two = (rated(measured, 100.0) for _ in range(2))
    models = tuple(
        m.model_copy(update={"load": m.load and m.load.model_copy(update={"users": 99})})
        for m in two.models
    )
    (doubt,) = compare.doubts(one, two.model_copy(update={"models": models}))
    assert doubt.startswith("the numbers of clients differ (")
    assert "and 99)" in doubt
    assert "+0.00" in compare.markdown(measured, measured)
    assert "+0.00" not in compare.markdown(measured, other)


def test_figures_in_words() -> None:
    found = statistics.compare(
        "a", "b", np.repeat([True, False, True], (5, 15, 80)), np.repeat([False, True], (5, 95))
    )
    assert compare._points(found) == "+10.00 (+1.46 to +18.54)"
    assert (compare._p(0.0004), compare._p(0.0414), compare._p(0.2)) == (
        "< 0.001 *",
        "0.041 *",
        "0.200",
    )


def test_windows_without_variance_have_an_interval_without_width() -> None:
    found = compare.ratio(LOAD, LOAD, "requests_per_s")
    assert found is not None
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert compare.ratio(LOAD, None, "requests_per_s") is None
    assert compare.ratio(LOAD, LOAD.model_copy(update={"windows": ()}), "p50_ms") is None
