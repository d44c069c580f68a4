"""Plots of the learning curve and of the training."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from benchmarks.record import Curve, Report
from benchmarks.report.drawing import COLOURS, DASHES, MARKERS, colour, log_axis
from benchmarks.report.shown import main_models


def learning_curve(report: Report) -> Figure:
    """Score over labels, time over labels, score over time; bands span the seeds."""
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    score, time, both = figure.subplots(1, 3)
    for index, curve in enumerate(report.curves):
        hue, marker = COLOURS[(index + 1) % len(COLOURS)], MARKERS[index % len(MARKERS)]
        labels = [point.n_labels for point in curve.points]
        accuracy = [np.asarray(point.accuracies) for point in curve.points]
        seconds = [np.asarray(point.seconds) for point in curve.points]
        _band(score, labels, accuracy, hue, marker, curve.variant)
        _band(time, labels, seconds, hue, None, None)
        times, scores = [s.mean() for s in seconds], [a.mean() for a in accuracy]
        both.plot(times, scores, linestyle=DASHES[0], color=hue)
        for point, n, t, a in zip(curve.points, labels, times, scores, strict=True):
            fill = "none" if point.shared else hue
            for axes, x, y in ((time, n, t), (both, t, a)):
                axes.plot(x, y, marker, color=hue, markersize=6, markerfacecolor=fill)
        for spread, parts in zip(seconds, accuracy, strict=True):
            if len(parts) == len(spread) > 1:
                both.plot(spread, parts, ".", color=hue, alpha=0.6)
        _fitted(score, curve, hue)
    labels_seen = sorted({model.n_labels for model in report.models})
    furthest = max((f.n_labels for curve in report.curves for f in curve.line), default=0)
    doubled = [labels_seen[-1] * factor for factor in (2, 4)]
    for axes, ticks in ((score, [*labels_seen, *doubled]), (time, labels_seen)):
        axes.set_xscale("log")
        _label_ticks(axes, [n for n in ticks if n <= max(furthest, labels_seen[-1])])
        axes.set_xlabel("labels")
    if any(m.train_seconds > 0 for m in report.models):
        log_axis(time, "y")
        log_axis(both, "x")
    both.set_xlabel("training time, s")
    score.set_title("test accuracy over labels")
    time.set_title("training time over labels, s")
    both.set_title("test accuracy over training time")
    low, high = score.get_ylim()
    score.set_ylim(max(low, 0.0), min(high, 1.02))  # an interval may promise less than nothing
    for axes in (score, both):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _band(
    axes: Axes,
    labels: list[int],
    parts: list[np.ndarray[tuple[int], np.dtype[np.float64]]],
    hue: str,
    marker: str | None,
    name: str | None,
) -> None:
    if marker:
        axes.plot(labels, [p.mean() for p in parts], marker, color=hue, markersize=6, label=name)
    axes.fill_between(
        labels, [p.min() for p in parts], [p.max() for p in parts], color=hue, alpha=0.25, lw=0
    )
    for n, values in zip(labels, parts, strict=True):
        if len(values) > 1:
            axes.plot([n, n], [values.min(), values.max()], color=hue, linewidth=4, alpha=0.35)


def _fitted(axes: Axes, curve: Curve, hue: str) -> None:
    if not curve.line:
        labels = [point.n_labels for point in curve.points]
        means = [float(np.mean(point.accuracies)) for point in curve.points]
        axes.plot(labels, means, ":", color=hue, linewidth=1)
        return
    most = curve.points[-1].n_labels
    for inside in (True, False):
        part = (
            [f for f in curve.line if f.n_labels <= most]
            if inside
            else [f for f in curve.line if f.n_labels >= most * 0.9]
        )
        n = [f.n_labels for f in part]
        failed = curve.check is not None and not curve.check.inside
        name = f"{curve.variant}: its check failed" if failed and not inside else None
        axes.plot(
            n,
            [f.accuracy.value for f in part],
            "-" if inside else "--",
            color=hue,
            lw=1.4,
            label=name,
        )
        axes.fill_between(
            n,
            [f.accuracy.low for f in part],
            [f.accuracy.high for f in part],
            color=hue,
            alpha=0.14,
            linewidth=0,
        )


def _label_ticks(axes: Axes, labels: list[int]) -> None:
    """Ticks at the numbers of labels, leaving out those that would touch."""
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
    """Loss, accuracy, F1, precision and recall by epoch, one colour a number of labels."""
    figure = Figure(figsize=(9.2, 5.2), layout="constrained")
    (loss, accuracy), (f1, both) = figure.subplots(2, 2)
    models = main_models(report)
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
