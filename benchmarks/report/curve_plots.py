"""Plots of the learning curve and of training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from labelcurve.benchmarks.record import Curve, Report
from labelcurve.benchmarks.report.drawing import COLOURS, DASHES, MARKERS, colour, log_axis
from labelcurve.benchmarks.report.tables import accuracy, main_models


def learning_curve(report: Report) -> Figure:
    """Plot accuracy over labels, each point with its 95 % interval, and the fitted curves."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for index, curve in enumerate(report.curves):
        hue, marker = _look(index)
        labels = [point.n_labels for point in curve.points]
        found = [
            accuracy([m for m in report.models if (m.variant, m.n_labels) == (curve.variant, n)])
            for n in labels
        ]
        below, above = [a.value - a.low for a in found], [a.high - a.value for a in found]
        values = [a.value for a in found]
        axes.errorbar(
            labels, values, (below, above), fmt=marker, color=hue, markersize=6, capsize=3,
            label=curve.variant,
        )  # fmt: skip
        _fitted(axes, curve, hue)
    labels_seen = sorted({model.n_labels for model in report.models})
    doubled = [labels_seen[-1] * factor for factor in (2, 4)]
    axes.set_xscale("log")
    _label_ticks(axes, [n for n in (*labels_seen, *doubled) if n <= axes.dataLim.xmax])
    axes.set_xlabel("labels")
    axes.set_title("test accuracy over labels")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 1.02))  # an interval may extend below zero
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def times(report: Report) -> Figure:
    """Plot training time over labels, and accuracy over training time; bars span the seeds."""
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    time, both = figure.subplots(1, 2)
    for index, curve in enumerate(report.curves):
        hue, marker = _look(index)
        labels = [point.n_labels for point in curve.points]
        seconds = [np.asarray(point.seconds) for point in curve.points]
        means = [s.mean() for s in seconds]
        scores = [float(np.mean(point.accuracies)) for point in curve.points]
        time.vlines(labels, [s.min() for s in seconds], [s.max() for s in seconds], color=hue)
        both.plot(means, scores, linestyle=DASHES[0], color=hue)
        for point, n, t, a in zip(curve.points, labels, means, scores, strict=True):
            fill = "none" if point.shared else hue
            for axes, x, y in ((time, n, t), (both, t, a)):
                axes.plot(x, y, marker, color=hue, markersize=6, markerfacecolor=fill)
        both.plot([], [], marker, color=hue, label=curve.variant)
    time.set_xscale("log")
    _label_ticks(time, sorted({model.n_labels for model in report.models}))
    if any(m.train_seconds > 0 for m in report.models):
        log_axis(time, "y")
        log_axis(both, "x")
    time.set_xlabel("labels")
    both.set_xlabel("training time, s")
    time.set_title("training time over labels, s")
    both.set_title("test accuracy over training time")
    both.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _look(index: int) -> tuple[str, str]:
    """Colour and marker of a curve."""
    return COLOURS[(index + 1) % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _fitted(axes: Axes, curve: Curve, hue: str) -> None:
    if not curve.line or (curve.check and not curve.check.inside):
        labels = [point.n_labels for point in curve.points]
        means = [float(np.mean(point.accuracies)) for point in curve.points]
        axes.plot(labels, means, ":", color=hue, linewidth=1)
        return
    most = curve.points[-1].n_labels
    for part, dash in (
        ([f for f in curve.line if f.n_labels <= most], "-"),
        ([f for f in curve.line if f.n_labels >= most * 0.9], "--"),
    ):
        n = [f.n_labels for f in part]
        low, high = [f.accuracy.low for f in part], [f.accuracy.high for f in part]
        axes.plot(n, [f.accuracy.value for f in part], dash, color=hue, lw=1.4)
        axes.fill_between(n, low, high, color=hue, alpha=0.14, linewidth=0)


def _label_ticks(axes: Axes, labels: list[int]) -> None:
    """Set ticks at the numbers of labels, except those that would overlap."""
    kept: list[int] = []
    apart = max(1.7, (labels[-1] / labels[0]) ** 0.13)  # some 8 have room
    for n in reversed(labels):
        if not kept or kept[-1] / n > apart:
            kept.append(n)
    axes.set_xticks(kept)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    return f"{value / 1000:.3g}k" if 1000 <= value < 1_000_000 else f"{value:,g}"


def history(report: Report) -> Figure:
    """Plot loss, accuracy, F1, precision and recall by epoch, one colour per number of labels.

    Of the models that have epochs, of which there is at least one: a linear head has none.
    """
    figure = Figure(figsize=(9.2, 5.2), layout="constrained")
    (loss, accuracy), (f1, both) = figure.subplots(2, 2)
    models = [model for model in main_models(report) if model.history]
    for model in models:
        rows, hue = model.history, colour(report, model)
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
    log_axis(loss, "y")
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
    figure.legend(loc="outside lower center", ncols=min(4, len(models)))
    return figure
