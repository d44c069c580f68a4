"""Plots of latency and load."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from labelcurve.benchmarks.record import Report, Saturation, Step
from labelcurve.benchmarks.report.drawing import COLOURS, colour, grid_colour, log_axis
from labelcurve.benchmarks.report.figures import loads
from labelcurve.benchmarks.report.tables import main_models

STAGE_COLOURS = {
    "decode": COLOURS[1],
    "queue": COLOURS[5],
    "inference": COLOURS[0],
    "encode": COLOURS[3],
}


def latency(report: Report) -> Figure:
    """Plot call time and images/s by batch size; the band spans the medians of the run's fifths."""
    figure = Figure(figsize=(9.2, 3.5), layout="constrained")
    time, rate = figure.subplots(1, 2)
    models = main_models(report)
    series = [(model.name, colour(report, model), model.latency.batches) for model in models]
    if report.null:
        series.append(("null", "", report.null.latency.batches))
    fastest = max(row.images_per_s for model in models for row in model.latency.batches)
    for name, hue, rows in series:
        sizes = [row.batch for row in rows]
        line = "o-" if hue else "x:"
        hue = hue or grid_colour()
        time.plot(sizes, [row.p50_ms for row in rows], line, color=hue, label=name)
        low, high = [row.p50_low_ms for row in rows], [row.p50_high_ms for row in rows]
        time.fill_between(sizes, low, high, color=hue, alpha=0.2, linewidth=0)
        if name != "null":
            rate.plot(sizes, [row.images_per_s for row in rows], line, color=hue)
    for axes in (time, rate):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("batch size")
    log_axis(time, "y")
    time.set_title("ms a call, p50")
    rate.set_ylim(0, 1.1 * fastest)
    rate.set_title("images/s")
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.legend(loc="outside lower center", ncols=min(4, len(series)))
    return figure


def stages(report: Report) -> Figure:
    """Plot the time of a request by stage, as the service reports it; the rest is `other`."""
    rows = [(name, load.stages) for name, load, _ in loads(report) if load.stages]
    figure = Figure(figsize=(9.2, 1.1 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for row, (_, found) in enumerate(reversed(rows)):
        left = 0.0
        for name, stage in found.items():
            hue = STAGE_COLOURS.get(name, grid_colour())
            label = name if row == 0 else None
            axes.barh(row, stage.mean_ms, 0.68, left, color=hue, label=label, linewidth=0)
            left += stage.mean_ms
    axes.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms a request, mean")
    figure.legend(loc="outside lower center", ncols=5)
    return figure


def saturation(report: Report) -> Figure:
    """Plot rate and latency over the number of clients, and latency over the rate."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    rate, time, both = figure.subplots(1, 3)
    found = [("", report.saturation, COLOURS[1], "o-")]
    if report.null:
        found.append(("null", report.null.saturation, "", "x:"))
    for name, measured, hue, line in found:
        if measured:
            _steps(rate, time, both, measured, name, hue or grid_colour(), line)
    for axes in (rate, time):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("clients")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    rate.set_ylim(bottom=0)
    rate.set_title("requests/s")
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    log_axis(time, "y")
    log_axis(both, "y")
    time.set_title("ms, p50 and p99")
    both.set_title("ms at a rate, p50 and p99")
    both.set_xlabel("requests/s")
    both.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _steps(
    rate: Axes, time: Axes, both: Axes, found: Saturation, name: str, hue: str, line: str
) -> None:
    steps = [step for step in found.steps if step.p50_ms is not None]
    users = [step.users or 0 for step in steps]
    rate.plot(users, [s.requests_per_s for s in steps], line, color=hue, label=name or found.model)
    if found.knee and not name:
        rate.axvline(found.knee, color=hue, linewidth=1, linestyle=":")
    _latencies(time, users, steps, line, hue)
    if name:
        return
    _latencies(both, [s.requests_per_s for s in steps], steps, line, hue)
    if fixed := [s for s in found.rates if s.p50_ms is not None]:
        rates = [s.rate or 0 for s in fixed]
        _latencies(both, rates, fixed, "D-", COLOURS[0], "fixed arrival rate")


def _latencies(
    axes: Axes, x: Sequence[float], steps: Sequence[Step], line: str, hue: str, label: str = ""
) -> None:
    """p50 over `x`, and p99 paler."""
    axes.plot(x, [s.p50_ms or 0 for s in steps], line, color=hue, label=label or None)
    axes.plot(x, [s.p99_ms or 0 for s in steps], line, color=hue, alpha=0.45)
