"""The report's plots as SVG that takes its text colour from the page, so that one file suits light
and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from math import ceil
from typing import Any, Final

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from benchmarks.record import Model, Report

COLOURS: Final = ("#e08214", "#2f8fd0", "#2ca876", "#a06cd5", "#d1495b", "#7f8c2d")
"""By model; each is legible on white and on near-black."""

# Stand-ins that no plot uses otherwise: replaced by the page's own colours.
_INK, _GRID, _PAPER = "#010203", "#040506", "#070809"
_STYLE: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "labelcurve",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.facecolor": "none",
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.minor.visible": False,
}


def colour(index: int) -> str:
    """The colour of model number `index`, the same in every plot."""
    return COLOURS[index % len(COLOURS)]


def learning_curve(report: Report) -> str:
    """Accuracy over labels, with its 95 % interval; the line joins the mean of each fraction."""
    with style.context(_STYLE):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        variants = sorted({model.variant for model in report.models})
        for variant, dashes in zip(variants, ("-", "--", ":", "-.") * len(variants), strict=False):
            chosen = [model for model in report.models if model.variant == variant]
            labels = sorted({model.n_labels_train + model.n_labels_val for model in chosen})
            means = [
                np.mean([m.accuracy.accuracy for m in chosen if _labels(m) == n]) for n in labels
            ]
            axes.plot(labels, means, dashes, color=_GRID, zorder=1, label=variant)
        for index, model in enumerate(report.models):
            score = model.accuracy
            axes.errorbar(
                [_labels(model)],
                [score.accuracy],
                yerr=[
                    [score.accuracy - score.accuracy_low],
                    [score.accuracy_high - score.accuracy],
                ],
                fmt="o",
                color=colour(index),
                capsize=4,
                markersize=7,
            )
            axes.annotate(
                f"{score.accuracy:.1%}",
                (_labels(model), score.accuracy),
                xytext=(9, 5),
                textcoords="offset points",
                fontweight="bold",
            )
        axes.set_xscale("log")
        ticks = sorted({_labels(model) for model in report.models})
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.margins(x=0.14, y=0.15)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("labels (training and validation)")
        axes.set_ylabel("test accuracy")
        if len(variants) > 1:
            axes.legend()
        return _svg(figure, "Test accuracy over the number of labels")


def history(report: Report) -> str:
    """Loss, accuracy, F1, precision and recall by epoch, one colour a model."""
    with style.context(_STYLE):
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        (loss, accuracy), (f1, both) = figure.subplots(2, 2)
        for index, model in enumerate(report.models):
            rows, hue = model.history, colour(index)
            epochs = [row.epoch for row in rows]
            loss.plot(epochs, [row.val_loss for row in rows], color=hue, label=model.name)
            loss.plot(epochs, [row.train_loss for row in rows], ":", color=hue)
            accuracy.plot(epochs, [row.val_accuracy for row in rows], color=hue)
            accuracy.plot(epochs, [row.train_accuracy for row in rows], ":", color=hue)
            f1.plot(epochs, [row.val_f1 for row in rows], color=hue)
            both.plot(epochs, [row.val_precision for row in rows], color=hue)
            both.plot(epochs, [row.val_recall for row in rows], "--", color=hue)
            for axes in (loss, accuracy, f1, both):
                axes.axvline(model.best_epoch, color=hue, linewidth=0.8, alpha=0.5)
        _log_scale(loss)
        loss.set_title("loss (dotted: train)")
        accuracy.set_title("accuracy (dotted: train)")
        f1.set_title("F1, weighted")
        both.set_title("precision (dashed: recall), weighted")
        for axes in (loss, accuracy, f1, both):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (accuracy, f1, both):
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        for axes in (f1, both):
            axes.set_xlabel("epoch")
        figure.legend(loc="outside lower center", ncols=min(6, len(report.models)))
        return _svg(figure, "Loss and metrics by epoch")


def confusions(report: Report) -> str:
    """The confusion matrix of every model; shade is the share of the true class."""
    with style.context({**_STYLE, "axes.grid": False}):
        models, names = report.models, report.dataset.class_names
        columns = min(3, len(models))
        rows = ceil(len(models) / columns)
        figure = Figure(figsize=(3.6 * columns, 3.7 * rows), layout="constrained")
        panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes in panels[len(models) :]:
            axes.remove()
        for index, (axes, model) in enumerate(zip(panels, models, strict=False)):
            _confusion(axes, model, names, colour(index))
            if index % columns:
                axes.set_ylabel("")
        return _svg(figure, "Confusion matrices, true classes by row")


def _confusion(axes: Axes, model: Model, names: Sequence[str], hue: str) -> None:
    counts = np.asarray(model.accuracy.confusion)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    k = len(names)
    # Transparent where nothing is, so that the page's background is the zero of both themes.
    cells = np.zeros((k, k, 4))
    cells[..., :3] = to_rgb(hue)
    cells[..., 3] = 0.85 * share**0.5
    if k <= 30:
        axes.pcolormesh(cells, edgecolors=_GRID, linewidth=0.3)
    else:
        axes.imshow(cells, extent=(0, k, k, 0), interpolation="nearest")
    axes.set_aspect("equal")
    axes.set_xlim(0, k)
    axes.set_ylim(k, 0)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=8)
    axes.set_title(model.name)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if k <= 30:
        axes.set_xticks(np.arange(k) + 0.5, names, rotation=90 if max(map(len, names)) > 2 else 0)
        axes.set_yticks(np.arange(k) + 0.5, names)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if k <= 12:
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column + 0.5,
                row + 0.5,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=7 if counts.max() < 1000 else 6,
            )


def latency(report: Report) -> str:
    """Time of a call and images a second by batch size; the band spans the fifths' medians."""
    with style.context(_STYLE):
        figure = Figure(figsize=(9.2, 3.3), layout="constrained")
        time, rate = figure.subplots(1, 2)
        for index, model in enumerate(report.models):
            rows, hue = model.latency.batches, colour(index)
            sizes = [row.batch for row in rows]
            time.plot(sizes, [row.p50_ms for row in rows], "o-", color=hue, label=model.name)
            time.fill_between(
                sizes,
                [row.p50_low_ms for row in rows],
                [row.p50_high_ms for row in rows],
                color=hue,
                alpha=0.2,
                linewidth=0,
            )
            rate.plot(sizes, [row.images_per_s for row in rows], "o-", color=hue)
        for axes in (time, rate):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xlabel("batch size")
        _log_scale(time)
        time.set_title("ms a call, p50")
        fastest = max(row.images_per_s for m in report.models for row in m.latency.batches)
        rate.set_ylim(0, 1.1 * fastest)
        rate.set_title("images/s")
        rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        figure.legend(loc="outside lower center", ncols=min(6, len(report.models)))
        return _svg(figure, "Session latency and throughput by batch size")


def _log_scale(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _labels(model: Model) -> int:
    return model.n_labels_train + model.n_labels_val


def _svg(figure: Figure, title: str) -> str:
    buffer = StringIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None}
    figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.05)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
