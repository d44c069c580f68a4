"""The learning curve, and the reference experiment beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tables
from benchmarks.record import Curve, Estimate, Report
from benchmarks.report import curve_plots
from benchmarks.report.blocks import (
    NONE,
    Block,
    Plot,
    Points,
    Rows,
    Section,
    Text,
    count,
    interval,
    percent,
    points,
)
from benchmarks.report.shown import variants

PUBLISHED = Path(__file__).parent.parent / "results" / "reference.json"


def section(report: Report) -> Section:
    """Score and time over labels, the fitted law, what it foretells and how well."""
    curves = report.curves
    seeds = sorted({len(point.accuracies) for curve in curves for point in curve.points})
    n = " or ".join(map(str, seeds))
    hollow = ""
    if any(point.shared for curve in curves for point in curve.points):
        hollow = (
            " Hollow: other work ran on the machine while these trained; alone they take less time."
        )
    blocks: list[Block] = [
        Plot(
            "curve",
            curve_plots.learning_curve,
            "Test accuracy and training time over labels, and one over the other",
            f"n = {report.dataset.n_test:,} test images; marks are means over {n} seed(s) a "
            "fraction, thick bars and bands span the seeds. Lines: the fitted power law with its "
            "95 % band, dashed beyond the points; dotted where no law is fitted." + hollow,
        )
    ]
    for curve in curves:
        if len(curves) > 1:
            blocks.append(Text(f"**{curve.variant}**", soft=False))
        if curve.variant != variants(report)[0]:  # that one's words stand at the top of the report
            blocks.append(Points(curve.text))
        blocks.append(_measured(curve))
        if curve.floor and curve.scale and curve.exponent:
            blocks.append(_law(curve, curve.floor, curve.scale, curve.exponent))
            if curve.next:
                blocks.append(_forecasts(curve))
    return Section("Learning curve", blocks)


def _measured(curve: Curve) -> Rows:
    body = []
    for point in curve.points:
        a, s = np.asarray(point.accuracies), np.asarray(point.seconds)
        body.append(
            (
                count(point.n_labels),
                str(len(a)),
                percent(float(a.mean())),
                points(float(a.std(ddof=1))).lstrip("+") if len(a) > 1 else NONE,
                tables.duration(float(s.mean())) + tables.SHARED * point.shared,
                f"{tables.duration(float(s.min()))} to {tables.duration(float(s.max()))}"
                if len(s) > 1
                else NONE,
            )
        )
    header = ("labels", "seeds", "accuracy", "standard deviation, points", "training time", "range")
    return Rows(header, body)


def _law(curve: Curve, floor: Estimate, scale: Estimate, exponent: Estimate) -> Text:
    text = (
        f"error = {floor.value:.4f} + {scale.value:.3g} × labels^−{exponent.value:.3f}; 95 %: "
        f"floor {floor.low:.4f} to {floor.high:.4f}, exponent {exponent.low:.3f} to "
        f"{exponent.high:.3f}. Weighted least squares on the means of {len(curve.points)} "
        "fractions; intervals from 1,000 resamples of test images and seeds"
    )
    if curve.seed_spread is not None:
        text += f", whose spread is {curve.seed_spread:.1%} of the error"
    if curve.misfit is not None:
        text += f"; distance of the points from the curve, in their own spread: {curve.misfit:.2f}"
    return Text(text + ".")


def _forecasts(curve: Curve) -> Rows:
    measured = max(float(np.mean(point.accuracies)) for point in curve.points)
    body = [
        (
            f"{count(f.n_labels)} labels",
            percent(f.accuracy.value),
            interval(f.accuracy.low, f.accuracy.high),
        )
        for f in curve.next
        if f.accuracy.value > measured  # less than is there already is no forecast
    ]
    failed = curve.check is not None and not curve.check.inside
    first = "foretold, by a curve that failed its check" if failed else "foretold"
    return Rows((first, "accuracy", "95 % interval"), body)


def reference(report: Report) -> Section | None:
    """The experiment that the product grew from: published, run again, and ours. None for other
    data than it used."""
    published: dict[str, Any] = json.loads(PUBLISHED.read_text())
    if report.dataset.name != published["dataset"]:
        return None
    others = [curve for curve in report.curves if curve.variant != "default"]
    ours = next((curve for curve in report.curves if curve.variant == "default"), None)
    found = {row["fraction"]: row for row in published["results"]}
    fractions = sorted({p.fraction for curve in report.curves for p in curve.points} & set(found))
    if not fractions:
        return None
    columns = [*others, *([ours] if ours else [])]
    header = ["fraction", "published", *(f"{c.variant}, run here" for c in others)]
    header += ["default, run here"] if ours else []
    header += ["default minus reference, points"] if ours and others else []
    body = []
    for fraction in fractions:
        row = [f"{fraction:.0%}".replace("%", " %"), f"{found[fraction]['accuracy'] * 100:.0f} %"]
        values: dict[str, float] = {}
        for curve in columns:
            point = next((p for p in curve.points if p.fraction == fraction), None)
            row.append(_accuracy(point.accuracies) if point else NONE)
            if point:
                values[curve.variant] = float(np.mean(point.accuracies))
        if ours and others:
            has = "default" in values and "reference" in values
            row.append(points(values["default"] - values["reference"]) if has else NONE)
        body.append(row)
    note = (
        f"Published: {published['note']} ([source]({published['url']})); one such figure has a "
        f"95 % interval of about ± 1.9 points from its {published['n_test']:,} images alone. "
    )
    if ours:
        note += "`default` is this product's own recipe. "
    if any(curve.variant.startswith("reference") for curve in others):
        note += (
            "`reference` is its network, optimiser and stopping under our protocol "
            "(`train --preset reference`). "
        )
    else:
        note += (
            "Its own network under our protocol is not among these models: `train --preset "
            "reference` adds it. "
        )
    if any("scratch" in curve.variant for curve in others):
        note += "`scratch` began with random weights (`--extractor none`). "
    note += (
        f"Run here: on all {report.dataset.n_test:,} test images, which chose nothing; mean ± "
        "standard deviation over the seeds where there are several."
    )
    return Section("Beside the reference experiment", [Rows(header, body), Text(note)])


def _accuracy(values: tuple[float, ...]) -> str:
    mean = f"{np.mean(values) * 100:.2f}"
    if len(values) == 1:
        return f"{mean} %"
    return f"{mean} ± {np.std(values, ddof=1) * 100:.2f} % ({len(values)} seeds)"
