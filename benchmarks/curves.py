"""The study as curves: accuracy, epochs and time over the labels, with and without pretraining."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any, Final

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks import rows
from benchmarks.rows import Row, Study

LINES: Final = (
    ("default", "Labelcurve", "#d0680a", "-"),
    ("scratch", "Labelcurve, without pretraining", "#d0680a", "--"),
    ("reference", "reference network, our protocol", "#2077b4", "-"),
    ("reference-scratch", "the same, without pretraining", "#2077b4", "--"),
)
PUBLISHED: Final = ("reference experiment, as published", "#777777", ":")


def key(study: Study, reference: Mapping[str, Any]) -> str:
    """What the curves were drawn from: 12 digits, kept in the file."""
    text = study.model_dump_json(include={"rows"}) + repr(sorted(reference.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def draw(study: Study, reference: Mapping[str, Any]) -> str:
    """An SVG of three plots side by side, on white."""
    with style.context(
        {"svg.fonttype": "none", "svg.hashsalt": "labelcurve", "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        _plot(left, "accuracy, %", study, lambda row: row.accuracy * 100)
        _plot(middle, "epochs", study, lambda row: row.epochs)
        _plot(right, "fine-tuning, minutes", study, lambda row: row.train_seconds / 60, timed=True)
        name, colour, line = PUBLISHED
        for axes, field, factor in (
            (left, "accuracy", 100),
            (middle, "epochs", 1),
            (right, "train_seconds", 1 / 60),
        ):
            known = [(r["fraction"], r[field] * factor) for r in reference["results"]]
            axes.plot(*zip(*known, strict=True), line, color=colour, marker=".", label=name)
            axes.set_ylim(bottom=0 if axes is not left else None)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        buffer = StringIO()
        figure.savefig(
            buffer,
            format="svg",
            metadata={"Date": None, "Creator": None, "Description": key(study, reference)},
        )
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def _plot(
    axes: Axes, title: str, study: Study, pick: Callable[[Row], float], *, timed: bool = False
) -> None:
    for variant, name, colour, line in LINES:
        x, y, spread = [], [], []
        for fraction in study.fractions(variant):
            group = study.group(variant, fraction)
            if timed:
                group = [row for row in group if not row.shared]
            if group:
                x.append(fraction)
                y.append(rows.mean(group, pick))
                spread.append(rows.deviation(group, pick) or 0.0)
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
