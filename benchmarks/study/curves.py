"""Plot accuracy, epochs and time of the study over labels, with and without pretraining."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
PUBLISHED: Final = ("reference experiment, as published", "#777777", ":")


def key(study: Study, reference: Mapping[str, Any]) -> str:
    """Hash the input of the curves: 12 digits, kept in the file."""
    text = study.model_dump_json(include={"rows"}) + repr(sorted(reference.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def draw(study: Study, reference: Mapping[str, Any]) -> str:
    """Draw three plots side by side, as SVG on white."""
    with style.context(
        {"svg.fonttype": "none", "svg.hashsalt": "labelcurve", "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        panels = figure.subplots(1, 3)
        name, colour, line = PUBLISHED
        for axes, (title, field, factor) in zip(panels, PANELS, strict=True):
            _plot(axes, title, study, field, factor)
            known = [(r["fraction"], r[field] * factor) for r in reference["results"]]
            axes.plot(*zip(*known, strict=True), line, color=colour, marker=".", label=name)
            axes.set_ylim(bottom=0 if field != "accuracy" else None)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        buffer = StringIO()
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Description": key(study, reference)},
        )
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


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
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
