from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from labelcurve.benchmarks.record import Report
from labelcurve.benchmarks.report import accuracy_plots, curve_plots, drawing, serving_plots
from labelcurve.benchmarks.report.drawing import Draw
from tests.benchmarks.samples import renamed

ALL = [
    curve_plots.learning_curve,
    curve_plots.times,
    curve_plots.history,
    accuracy_plots.confusions,
    accuracy_plots.classes,
    accuracy_plots.reliability,
    accuracy_plots.accepting,
    accuracy_plots.robustness,
    serving_plots.latency,
    serving_plots.stages,
    serving_plots.saturation,
]


@pytest.mark.parametrize("draw", ALL)
def test_every_plot_is_svg_in_the_colours_of_the_page(draw: Draw, loaded: Report) -> None:
    text = drawing.svg(draw, loaded, "a title")
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert root.attrib["aria-label"] == "a title"
    assert "currentColor" in text
    assert drawing.INK not in text
    assert drawing.GRID not in text
    assert set(re.findall(r"var\((.+?)\)", text)) == {"--grid"}, "as in style.css"


def test_letters_that_no_font_has_are_no_warning_and_text_in_the_svg(measured: Report) -> None:
    names = tuple(f"猫 {name}" for name in measured.dataset.class_names)
    report = renamed(measured, names)
    assert drawing.png(accuracy_plots.classes, report).startswith(b"\x89PNG")
    assert f">{names[3]}<" in drawing.svg(accuracy_plots.classes, report, "")


def test_installed_fonts_help_out(monkeypatch: pytest.MonkeyPatch, measured: Report) -> None:
    monkeypatch.setattr(drawing, "FONTS", ("No such font", "DejaVu Serif"))
    text = drawing.svg(curve_plots.history, measured, "")
    assert "sans-serif, 'DejaVu Serif'" in text
    assert "No such font" not in text


def test_png_and_the_same_bytes_again(measured: Report) -> None:
    first = drawing.png(curve_plots.history, measured)
    assert first.startswith(b"\x89PNG")
    assert drawing.png(curve_plots.history, measured) == first
    assert drawing.svg(curve_plots.history, measured, "") == drawing.svg(
        curve_plots.history, measured, ""
    )


def test_numbers_in_labels_keep_their_digits(measured: Report) -> None:
    text = drawing.svg(serving_plots.latency, measured, "")
    labels = re.findall(r">([\d.]+)</text>", text)
    assert labels
    assert not [label for label in labels if re.fullmatch(r"0\.0+", label)]


def test_one_model_and_many_classes(measured: Report) -> None:
    """A single panel; with more classes than fit, cells without numbers."""
    model = measured.models[0]
    k = 40
    names = tuple(f"class {index}" for index in range(k))
    confusion = tuple(tuple(int(row == column) for column in range(k)) for row in range(k))
    accuracy = model.accuracy.model_copy(update={"confusion": confusion})
    many = measured.model_copy(
        update={
            "models": (model.model_copy(update={"accuracy": accuracy}),),
            "dataset": measured.dataset.model_copy(update={"class_names": names}),
        }
    )
    assert "class 0" not in drawing.svg(accuracy_plots.confusions, many, "")


def test_points_stand_at_confidence_and_accuracy(measured: Report) -> None:
    bins = [m.accuracy.calibration.bins for m in measured.models if m.accuracy.calibration]
    diagram, counts = accuracy_plots.reliability(measured).axes
    assert len(bins) == len(diagram.collections) == len(counts.lines) == len(measured.models)
    assert any(part.confidence != part.accuracy for part in bins[0])
    lines = diagram.lines[1:]  # the first is the diagonal
    for parts, points, line, share in zip(
        bins, diagram.collections, lines, counts.lines, strict=True
    ):
        n = sum(part.n for part in parts)
        expected = [(part.confidence, part.accuracy) for part in parts]
        assert np.asarray(points.get_offsets()) == pytest.approx(np.array(expected))
        many = [(part.confidence, part.accuracy) for part in parts if part.n >= max(10, n / 500)]
        assert line.get_xydata() == pytest.approx(np.array(many))
        shares = [(part.confidence, part.n / n) for part in parts]
        assert share.get_xydata() == pytest.approx(np.array(shares))


def test_accepted_answers_stand_at_coverage_and_accuracy(measured: Report) -> None:
    (axes,) = accuracy_plots.accepting(measured).axes
    drawn = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
    expected = []
    for model in measured.models:
        assert model.accuracy.accepting is not None
        expected.append([[p.coverage, p.accuracy] for p in model.accuracy.accepting.curve])
        expected += [
            [[level.coverage, level.accuracy]]
            for level in model.accuracy.accepting.levels
            if level.coverage is not None and level.accuracy is not None
        ]
    assert drawn == expected
