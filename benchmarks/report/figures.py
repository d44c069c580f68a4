"""Figures that the sections of a report show, where a template would be too clumsy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labelcurve.benchmarks.record import Latency, Load, Report
from labelcurve.benchmarks.report.drawing import colour
from labelcurve.benchmarks.report.tables import main_models
from labelcurve.benchmarks.report.templates import NONE, points
from labelcurve.bundle.text import escaped, percent

PUBLISHED = Path(__file__).parent.parent / "results" / "reference.json"
NULL_HUE = "var(--soft)"


class Class(NamedTuple):
    """A class under each number of labels."""

    name: str
    n: int
    f1: list[float]
    gain: float
    """Recall with the most labels minus that with the fewest."""


def classes(report: Report) -> list[Class]:
    """Classes by number of labels, largest gain first."""
    models = main_models(report)
    found = []
    for name in report.dataset.class_names:
        scores = [model.accuracy.per_class[name] for model in models]
        gain = scores[-1].recall - scores[0].recall
        found.append(Class(name, scores[0].support, [score.f1 for score in scores], gain))
    return sorted(found, key=lambda row: -row.gain)


def confused(report: Report) -> list[tuple[str, ...]]:
    """List the ten most frequent confusions of the model with the most labels, with their shares at
    every number of labels."""
    models, names = main_models(report), report.dataset.class_names
    counts = np.asarray([model.accuracy.confusion for model in models], dtype=float)
    shares = counts / np.maximum(1, counts.sum(axis=2, keepdims=True))
    wrong = counts[-1] * (1 - np.eye(len(names)))
    found = []
    for index in np.argsort(-wrong, axis=None, kind="stable")[:10]:
        true, said = np.unravel_index(index, wrong.shape)
        if wrong[true, said]:
            n = f"{counts[-1, true].sum():,.0f}"
            cells = [percent(share, 1) for share in shares[:, true, said]]
            found.append((names[true], names[said], n, *cells))
    return found


def accepted(report: Report) -> list[str]:
    """State for each model the highest accuracy at which half of the answers are accepted."""
    found = []
    for model in report.models:
        levels = model.accuracy.accepting.levels if model.accuracy.accepting else ()
        if most := [level for level in levels if (level.forecast or 0) >= 0.5]:
            found.append(
                f"**{escaped(model.name)}**: {most[-1].wished * 100:g} % right for "
                f"{percent(most[-1].forecast or 0, 0)} of the images, a person looks at the rest."
            )
    return found


def loads(report: Report) -> list[tuple[str, Load, str]]:
    """Name, load and colour of each model in the load test, the null model last."""
    found = [(m.name, m.load, colour(report, m)) for m in report.models if m.load]
    if report.null and report.null.load:
        found.append(("null", report.null.load, NULL_HUE))
    return found


def latencies(report: Report) -> list[tuple[str, Latency, str]]:
    """Name, session latency and colour of each model, the null model last."""
    found = [(m.name, m.latency, colour(report, m)) for m in report.models]
    return [*found, ("null", report.null.latency, NULL_HUE)] if report.null else found


def per_million(requests_per_s: float, price_per_hour: float | None = None) -> str:
    """Hours for a million images on a machine with this throughput, or their cost."""
    if not requests_per_s:
        return NONE
    hours = 1e6 / requests_per_s / 3600
    return f"{hours:.2f}" if price_per_hour is None else f"{hours * price_per_hour:,.3f}"


def reference(report: Report) -> dict[str, Any]:
    """Compare with the reference experiment: published, rerun, and ours. No rows for other data."""
    published: dict[str, Any] = json.loads(PUBLISHED.read_bytes())
    curves = sorted(report.curves, key=lambda curve: curve.variant == "default")
    variants = [curve.variant for curve in curves]
    both = "default" in variants and len(curves) > 1
    rows = []
    for known in published["results"] if report.dataset.name == published["dataset"] else ():
        found = {
            curve.variant: point.accuracies
            for curve in curves
            for point in curve.points
            if point.fraction == known["fraction"]
        }
        if not found:
            continue
        row = [percent(known["fraction"], 0), percent(known["accuracy"], 0)]
        row += [_accuracy(found.get(variant, ())) for variant in variants]
        if both:
            has = "default" in found and "reference" in found
            gain = np.mean(found["default"]) - np.mean(found["reference"]) if has else 0.0
            row.append(points(float(gain)) if has else NONE)
        rows.append(row)
    header = ["fraction", "published", *(f"{variant}, rerun" for variant in variants)]
    header += ["default minus reference, points"] if both else []
    return {"published": published, "header": header, "rows": rows}


def _accuracy(values: Sequence[float]) -> str:
    if not values:
        return NONE
    if len(values) == 1:
        return percent(values[0])
    spread = np.std(values, ddof=1) * 100
    return f"{np.mean(values) * 100:.2f} ± {spread:.2f} % ({len(values)} seeds)"


def drop(shift: Any) -> str:
    """Change of accuracy under a corruption, in points: `-3.1 ± 0.4`."""
    half = (shift.drop.high - shift.drop.low) / 2
    return f"{points(-shift.drop.value, 1)} ± {half * 100:.1f}"
