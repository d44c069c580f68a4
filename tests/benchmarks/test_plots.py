from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks import plots
from benchmarks.record import Report


@pytest.mark.parametrize(
    "plot", [plots.learning_curve, plots.history, plots.confusions, plots.latency]
)
def test_every_plot_is_svg_in_the_colours_of_the_page(plot: object, measured: Report) -> None:
    assert callable(plot)
    text = plot(measured)
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert root.attrib["aria-label"]
    assert "currentColor" in text
    assert plots._INK not in text
    assert plots._GRID not in text


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
    assert "class 0" not in plots.confusions(many)
    assert "160" in plots.learning_curve(many)


def test_the_same_figures_give_the_same_bytes(measured: Report) -> None:
    assert plots.history(measured) == plots.history(measured)
