"""Plots of accuracy: by class, by confidence, and under corruptions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from labelcurve.benchmarks.record import Model, Report
from labelcurve.benchmarks.report import figures
from labelcurve.benchmarks.report.drawing import colour, grid_colour, short
from labelcurve.benchmarks.report.tables import main_models


def confusions(report: Report) -> Figure:
    """Plot confusion matrices of the fewest, a middle and the most labels."""
    models, names = main_models(report), report.dataset.class_names
    if len(models) > 3:
        models = [models[0], models[len(models) // 2], models[-1]]
    figure = Figure(figsize=(3.6 * len(models), 3.7), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(models)))
    for axes, model in zip(panels, models, strict=True):
        _confusion(axes, model, names, colour(report, model))
        axes.grid(visible=False)
    panels[0].set_ylabel("true")
    return figure


def _confusion(axes: Axes, model: Model, names: Sequence[str], hue: str) -> None:
    counts = np.asarray(model.accuracy.confusion)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    k = len(names)
    # Transparent where there is nothing, so that the page's background is the zero of both themes.
    cells = np.zeros((k, k, 4))
    cells[..., :3] = to_rgb(hue)
    cells[..., 3] = 0.85 * share**0.5
    if k <= 30:
        axes.pcolormesh(cells, edgecolors=grid_colour(), linewidth=0.3)
        shown = [short(name) for name in names]
        axes.set_xticks(np.arange(k) + 0.5, shown, rotation=90 if max(map(len, shown)) > 2 else 0)
        axes.set_yticks(np.arange(k) + 0.5, shown)
    else:
        axes.imshow(cells, extent=(0, k, k, 0), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_aspect("equal")
    axes.set_xlim(0, k)
    axes.set_ylim(k, 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_title(model.name)
    axes.set_xlabel("predicted")
    if k <= 12:
        size = 7 if counts.max() < 1000 else 6
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column + 0.5, row + 0.5, str(counts[row, column]), ha="center", va="center",
                fontsize=size,
            )  # fmt: skip


def classes(report: Report) -> Figure:
    """Plot the recall of each class by number of labels, largest gain first."""
    models = main_models(report)
    names = [row.name for row in figures.classes(report)[:30]][::-1]
    figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(names):
        values = [model.accuracy.per_class[name].recall for model in models]
        axes.plot([min(values), max(values)], [row, row], color=grid_colour(), lw=3, zorder=1)
        for model, value in zip(models, values, strict=True):
            axes.plot(
                [value], [row], "o", color=colour(report, model), markersize=7,
                label=model.name if row == 0 else None,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("recall")
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def reliability(report: Report) -> Figure:
    """Plot accuracy over confidence; below the diagonal is overconfident."""
    models = [model for model in main_models(report) if model.accuracy.calibration]
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    diagram, counts = figure.subplots(1, 2, width_ratios=(1.2, 1))
    diagram.plot([0, 1], [0, 1], "--", color=grid_colour(), linewidth=1.2)
    for model in models:
        assert model.accuracy.calibration is not None
        bins, hue = model.accuracy.calibration.bins, colour(report, model)
        x, y, n = np.array([(part.confidence, part.accuracy, part.n) for part in bins]).T
        # A bin with few images says little: its mark is small, and no line connects it.
        share, full = n / n.sum(), n >= max(10, n.sum() / 500)
        diagram.plot(x[full], y[full], color=hue, lw=1.2)
        diagram.scatter(
            x, y, s=8 + 300 * share, color=hue, alpha=0.8, linewidths=0, label=model.name
        )
        counts.plot(x, share, ".-", color=hue)
    diagram.set_title("right, over how sure (mark: share of images)")
    counts.set_title("share of images")
    for axes in (diagram, counts):
        axes.set_xlabel("probability of the first answer")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    legend = figure.legend(loc="outside lower center", ncols=min(4, len(models)))
    for handle in legend.legend_handles:
        if isinstance(handle, PathCollection):
            handle.set_sizes([40])
    return figure


def accepting(report: Report) -> Figure:
    """Plot accuracy over coverage, with what the models' own thresholds accept."""
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    axes = figure.subplots()
    for model in main_models(report):
        if (found := model.accuracy.accepting) is None:
            continue
        hue = colour(report, model)
        x, y = ([getattr(p, name) for p in found.curve] for name in ("coverage", "accuracy"))
        axes.plot(x, y, color=hue, label=model.name)
        for level in found.levels:
            if level.coverage is not None and level.accuracy is not None:
                axes.plot(level.coverage, level.accuracy, "o", color=hue)
    axes.set_xlabel("share of the images whose answer is accepted")
    axes.set_ylabel("right, of the accepted")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def robustness(report: Report) -> Figure:
    """Plot accuracy by kind and level of corruption."""
    models = [model for model in main_models(report) if model.robustness]
    first = models[0].robustness
    assert first is not None
    kinds = list(dict.fromkeys(shift.kind for shift in first.shifts))
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    for axes, kind in zip(panels, kinds, strict=True):
        for model in models:
            assert model.robustness is not None
            shifts = [shift for shift in model.robustness.shifts if shift.kind == kind]
            axes.plot(
                ["clean", *(shift.level for shift in shifts)],
                [model.robustness.accuracy, *(shift.accuracy for shift in shifts)],
                "o-",
                color=colour(report, model),
                markersize=4,
                label=model.name if axes is panels[0] else None,
            )
        axes.set_title(kind, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside lower center", ncols=min(4, len(models)))
    return figure
