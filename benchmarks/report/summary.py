"""The answer that a report opens with, and its conclusions."""

from __future__ import annotations

from collections.abc import Sequence

from labelcurve.benchmarks.record import Estimate, Model, Report
from labelcurve.benchmarks.report.figures import classes, per_million
from labelcurve.benchmarks.report.tables import accuracy, main_models, seeds, variants
from labelcurve.benchmarks.report.templates import points
from labelcurve.bundle.text import counted, escaped, percent

SURELY = 3.3
"""Standard errors of a significant loss (p of 0.001)."""


def answer(report: Report) -> str:
    """The accuracy with all labels and the forecast for twice as many, in two sentences."""
    model = main_models(report)[-1]
    found = accuracy(seeds(report, model))
    text = (
        f"**{model.n_labels:,} labels give an accuracy of {percent(found.value, 1)}** "
        f"({_interval(found)}). "
    )
    curve = next(c for c in report.curves if c.variant == model.variant)
    if curve.check is None:
        return text + "There is no forecast for more: a curve needs five fractions of the labels."
    if not curve.check.inside:
        return text + "There is no forecast for more: the curve failed its check."
    double = curve.next[1]
    said = f"Twice as many would give {percent(double.accuracy.value, 1)} "
    said += f"({_interval(double.accuracy)})"
    if double.accuracy.value <= found.value:
        said += ", no more than was measured"
    return f"{text}{said}."


def _interval(found: Estimate) -> str:
    return f"95 % interval {found.low * 100:.1f} to {percent(found.high, 1)}"


def findings(report: Report) -> list[str]:
    """State the conclusions: how many labels, which model, at what cost."""
    found: list[str] = []
    models = main_models(report)
    variant = variants(report)[0]
    curve = next((c for c in report.curves if c.variant == variant), None)
    if len(report.curves) > 1:
        found.append(
            f"The following is about the recipe **{variant}**"
            + ("." if variant == "default" else ", the variant with the most fractions.")
        )
    if curve:
        found += curve.text
    found += _variants(report, variant)
    if len(models) > 1:
        few, many = models[0], models[-1]
        pair = next((c for c in report.comparisons if (c.a, c.b) == (few.name, many.name)), None)
        if pair:
            d = pair.difference
            several = max(len(seeds(report, model)) for model in (few, many)) > 1
            found.append(
                f"From {few.n_labels:,} to {many.n_labels:,} labels accuracy changes by "
                f"{points(d.value)} points ({points(d.low)} to {points(d.high)}; McNemar "
                f"p {'< 0.001' if pair.p_value < 0.001 else f'= {pair.p_value:.3f}'}, "
                f"n = {pair.n:,}"
                + (f"; {many.name} against {few.name}, of several seeds)." if several else ").")
            )
        ranked = [f"{escaped(row.name)} ({points(row.gain, 1)})" for row in classes(report)]
        found.append(
            "Classes that gain most, in points of recall: "
            f"{', '.join(ranked[:3])}; least: {ranked[-1]}."
        )
    served = [model for model in report.models if model.load]
    if served:
        model = next((m for m in reversed(models) if m.load), served[-1])
        assert model.load is not None
        load = model.load
        rate = load.requests_per_s
        words = (
            f"One machine of this kind answers {rate:,.0f} requests/s to {load.users} clients with "
            f"{model.name}"
        )
        if report.price_per_hour is not None and rate:
            cost = per_million(rate, report.price_per_hour)
            words += f": {cost} a million images at {report.price_per_hour:g} an hour"
        if load.stable is False:
            words += " (UNSTABLE: measure again on a quieter machine)"
        if (found_at := report.saturation) and found_at.model == model.name:
            best = max(found_at.steps, key=lambda step: step.requests_per_s)
            if best.requests_per_s > rate:
                words += (
                    f"; its best rate was {best.requests_per_s:,.0f}, of "
                    f"{counted(best.users or 0, 'client')}"
                )
        found.append(words + ".")
    return [*found, *_corrupted(models)]


def _corrupted(models: Sequence[Model]) -> list[str]:
    """Warn of corruptions under which more labels reduce accuracy."""
    measured = [model for model in models if model.robustness]
    if len(measured) < 2:
        return []
    many = measured[-1].robustness
    assert many is not None
    worst: list[tuple[float, str]] = []
    for index, shift in enumerate(many.shifts):
        shown = [(m.robustness.shifts[index].accuracy, m.name) for m in measured if m.robustness]
        (a, name), (b, last) = max(shown[:-1]), shown[-1]
        # The images are the same, so this standard error for independent samples is an upper bound.
        error = ((a * (1 - a) + b * (1 - b)) / many.n) ** 0.5
        if a - b > SURELY * error:
            text = f"{shift.kind} {shift.level}: {name} {percent(a, 1)}, {last} {percent(b, 1)}"
            worst.append((a - b, text))
    if not worst:
        return []
    worst.sort(key=lambda pair: -pair[0])
    return [
        "More labels reduce accuracy under some corruptions: "
        f"{'; '.join(text for _, text in worst[:2])} (n = {many.n:,}). See Robustness."
    ]


def _variants(report: Report, main: str) -> list[str]:
    """Compare each other variant with the main one at the fewest common labels."""
    named = {model.name: model for model in report.models}
    found: list[str] = []
    for variant in variants(report)[1:]:
        pairs = [
            (named[c.a], named[c.b], c)
            for c in report.comparisons
            if {named[c.a].variant, named[c.b].variant} == {main, variant}
        ]
        if pairs:
            a, b, pair = min(pairs, key=lambda row: row[0].n_labels)
            d = pair.difference
            found.append(
                f"With {a.n_labels:,} labels {b.name} has {percent(b.accuracy.accuracy, 1)}, "
                f"{a.name} {percent(a.accuracy.accuracy, 1)}: {d.value * 100:+.1f} points "
                f"({d.low * 100:+.1f} to {d.high * 100:+.1f})."
            )
    return found
