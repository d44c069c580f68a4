"""Plot the study over labels, with and without pretraining, and extractors over their hours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any, Final

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from labelcurve.benchmarks.study import rows
from labelcurve.benchmarks.study.rows import Study

LINES: Final = (
    ("default", "Labelcurve", "#d0680a", "-"),
    ("scratch", "Labelcurve, without pretraining", "#d0680a", "--"),
    ("reference", "reference network, our protocol", "#2077b4", "-"),
    ("reference-scratch", "the same, without pretraining", "#2077b4", "--"),
)
PANELS: Final = (
    ("accuracy, %", "accuracy", 100),
    ("epochs", "epochs", 1),
    ("fine-tuning, minutes", "train_seconds", 1 / 60),
)
"""Title, field of a row, factor."""
JUDGED: Final = (("probe", "linear probe", "#2077b4"), ("knn", "k-NN", "#d0680a"))
"""Field of a row, name, colour."""
PUBLISHED: Final = ("reference experiment, as published", "#777777", ":")


def key(data: str) -> str:
    """Hash the input of a plot: 12 digits, kept in its file."""
    return hashlib.sha256(data.encode()).hexdigest()[:12]


def draw(data: str, plot: Callable[[Figure], None]) -> str:
    """Draw a figure as SVG on white.

    Args:
        data: its input, of which the file keeps the `key`.
        plot: fills the figure.
    """
    with style.context(
        {"svg.fonttype": "none", "svg.hashsalt": "labelcurve", "font.family": "sans-serif"}
    ):
        figure = Figure(layout="constrained")
        plot(figure)
        buffer = StringIO()
        metadata = {"Date": None, "Creator": None, "Description": key(data)}
        figure.savefig(buffer, format="svg", metadata=metadata)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def learning(study: Study, reference: Mapping[str, Any], figure: Figure) -> None:
    """Plot accuracy, epochs and time over labels, side by side."""
    figure.set_size_inches(11, 4.2)
    panels = figure.subplots(1, 3)
    name, colour, line = PUBLISHED
    for axes, (title, field, factor) in zip(panels, PANELS, strict=True):
        _plot(axes, title, study, field, factor)
        known = [(r["fraction"], r[field] * factor) for r in reference["results"]]
        axes.plot(*zip(*known, strict=True), line, color=colour, marker=".", label=name)
        axes.set_ylim(bottom=0 if field != "accuracy" else None)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def pretraining(made: Sequence[Mapping[str, Any]], figure: Figure) -> None:
    """Plot k-NN and linear probe of extractors over the hours that made them."""
    figure.set_size_inches(6, 3.4)
    axes = figure.subplots()
    hours = [row["hours"] for row in made]
    for field, name, colour in JUDGED:
        axes.plot(hours, [row[field] * 100 for row in made], color=colour, marker="o", label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(hours))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    axes.set_xlabel("hours of pretraining")
    axes.set_title("accuracy on held-out training images, %", loc="left", fontsize=10)
    axes.legend(frameon=False)
    _bare(axes)


def _plot(axes: Axes, title: str, study: Study, field: str, factor: float) -> None:
    for variant, name, colour, line in LINES:
        x, y, spread = [], [], []
        for fraction in study.fractions(variant):
            group = study.group(variant, fraction)
            if field == "train_seconds":
                group = [row for row in group if not row.shared]
            if group:
                x.append(fraction)
                y.append(rows.mean(group, field) * factor)
                spread.append((rows.deviation(group, field) or 0.0) * factor)
        axes.errorbar(x, y, spread, fmt=line, color=colour, marker="o", capsize=3, label=name)
    fractions = sorted({row.fraction for row in study.rows})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(fractions))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.3g} %"))
    axes.set_xlabel("labels")
    axes.set_title(title, loc="left", fontsize=10)
    _bare(axes)


def _bare(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
