"""What comes first: the figures of each number of labels, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks import tables
from benchmarks.curve_words import money
from benchmarks.record import Model, Report
from benchmarks.report.blocks import (
    Block,
    Card,
    Cards,
    Points,
    Rows,
    Section,
    Text,
    percent,
    points,
)
from benchmarks.report.cost import per_million
from benchmarks.report.drawing import colour
from benchmarks.report.shown import main_models, seeds, variants
from bundle.markdown import escaped

SURELY = 3.3
"""Standard errors: one in a thousand by chance."""


def section(report: Report) -> Section:
    """Cards, the table of the README, findings."""
    models = main_models(report)
    blocks: list[Block] = []
    if len(models) <= 6:
        blocks.append(Cards(tuple(_card(report, model) for model in models)))
    if found := findings(report):
        blocks.append(Points(tuple(found)))
    blocks += [
        Rows(tables.HEADER, tables.rows(report), headline=True),
        Text(tables.conditions(report)),
    ]
    return Section("", blocks)


def _card(report: Report, model: Model) -> Card:
    score = model.accuracy
    group = seeds(report, model)
    accuracies = np.asarray([each.accuracy.accuracy for each in group])
    spread = f"95 % interval {score.accuracy_low * 100:.1f} to {score.accuracy_high * 100:.1f}"
    if len(group) > 1:
        deviation = accuracies.std(ddof=1) * 100
        spread = f"mean of {len(group)} seeds, ±\N{NO-BREAK SPACE}{deviation:.1f}"
    below = [f"with {model.n_labels:,} labels", spread]
    if report.price_per_label is not None:
        below.append(f"{money(model.n_labels * report.price_per_label)} for the labels")
    figure = percent(float(accuracies.mean()), 1)
    return Card(model.name, figure, tuple(below), colour(report, model))


def findings(report: Report) -> list[str]:
    """The answers, in words: how many labels, which model, at what cost."""
    found: list[str] = []
    models = main_models(report)
    variant = variants(report)[0]
    curve = next((c for c in report.curves if c.variant == variant), None)
    if len(report.curves) > 1:
        found.append(
            f"These lines are about **{variant}**"
            + ("." if variant == "default" else ", of which the most fractions were trained.")
        )
    if curve:
        found += curve.text
    found += _variants(report, variant)
    if len(models) > 1:
        few, many = models[0], models[-1]
        pair = next(
            (c for c in report.comparisons if (c.a, c.b) == (few.name, many.name)),
            None,
        )
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
        names = report.dataset.class_names
        gains = {
            n: many.accuracy.per_class[n].recall - few.accuracy.per_class[n].recall for n in names
        }
        order = sorted(names, key=lambda n: -gains[n])
        *most, least = (f"{escaped(n)} ({points(gains[n], 1)})" for n in (*order[:3], order[-1]))
        found.append(
            "Labels help these classes most, in points of recall: "
            f"{', '.join(most)}; least: {least}."
        )
    served = [model for model in report.models if model.load]
    if served:
        model = next((m for m in reversed(models) if m.load), served[-1])
        assert model.load is not None
        load = model.load
        rate = load.requests_per_s
        words = (
            f"One machine of this kind answers {rate:,.0f} requests/s of {load.users} clients with "
            f"{model.name}"
        )
        if report.price_per_hour is not None and rate:
            cost = per_million(rate, report.price_per_hour)
            words += f": {cost:,.3f} a million images at {report.price_per_hour:g} an hour"
        if load.stable is False:
            words += " (UNSTABLE: measure again on a quieter machine)"
        if (found_at := report.saturation) and found_at.model == model.name:
            best = max(found_at.steps, key=lambda step: step.requests_per_s)
            if best.requests_per_s > rate:
                words += (
                    f"; its best were {best.requests_per_s:,.0f}, of "
                    f"{tables.counted(best.users or 0, 'client')}"
                )
        found.append(words + ".")
    return [*found, *_spoilt(models)]


def _spoilt(models: Sequence[Model]) -> list[str]:
    """Where more labels do not help, since the images are worse than those of the data set."""
    measured = [model for model in models if model.robustness]
    if len(measured) < 2:
        return []
    many = measured[-1].robustness
    assert many is not None
    worst: list[tuple[float, str]] = []
    for index, shift in enumerate(many.shifts):
        shown = [(m.robustness.shifts[index].accuracy, m.name) for m in measured if m.robustness]
        (a, name), (b, last) = max(shown[:-1]), shown[-1]
        # The same images, so this standard error, as if of others, is too large at most.
        error = ((a * (1 - a) + b * (1 - b)) / many.n) ** 0.5
        if a - b > SURELY * error:
            text = f"{shift.kind} {shift.level}: {name} {percent(a, 1)}, {last} {percent(b, 1)}"
            worst.append((a - b, text))
    if not worst:
        return []
    worst.sort(key=lambda pair: -pair[0])
    return [
        "More labels make it worse on some damaged images: "
        f"{'; '.join(text for _, text in worst[:2])} (n = {many.n:,}). See Robustness."
    ]


def _variants(report: Report, main: str) -> list[str]:
    """At the fewest labels that both have, each other variant against the main one."""
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
