"""The main table of a report: its cells and conditions, and the models that it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot

import numpy as np

from labelcurve.benchmarks.quality.learning_curve import money
from labelcurve.benchmarks.record import Estimate, Load, Model, Report, groups, timed
from labelcurve.bundle.text import counted, duration, escaped, percent
from labelcurve.training.forecast.advice import DEVIATIONS

HEADER = (
    *("fraction", "labels", "unlabelled", "accuracy", "balanced", "F1"),
    *("training time", "epochs", "p50 ms", "p99 ms", "requests/s"),
)
UNSTABLE = " (unstable)"
"""Marks a rate whose last windows differ by more than 10 %."""
SHARED = " (shared)"
"""Marks a training time on a machine that did other work."""


def rows(report: Report) -> list[tuple[str, ...]]:
    """Build the rows below `HEADER`, one per fraction, as mean ± standard deviation over seeds."""
    several = len({model.variant for model in report.models}) > 1
    return [_row(group, several) for group in groups(report.models)]


def _row(models: Sequence[Model], several: bool) -> tuple[str, ...]:
    first, epochs = models[0], [model.epochs for model in models]
    part = share(first.fraction)
    return (
        part if not several or first.variant == "default" else f"{part}, {first.variant}",
        f"{first.n_labels_train:,} + {first.n_labels_val:,}",
        f"{first.n_unlabelled:,}" if first.n_unlabelled else "–",
        _mean([model.accuracy.accuracy * 100 for model in models], "{:.2f}", " %"),
        _mean([(model.accuracy.balanced_accuracy or 0) * 100 for model in models], "{:.2f}", " %"),
        _mean([model.accuracy.f1 for model in models], "{:.4f}"),
        training_time(models),
        _mean(epochs if len(set(epochs)) > 1 else epochs[:1], "{:.0f}"),
        _of_load(models, lambda load: load.p50_ms, "{:.1f}"),
        _of_load(models, lambda load: load.p99_ms, "{:.1f}"),
        _of_load(models, lambda load: load.requests_per_s, "{:,.0f}") + unstable(models),
    )


def share(fraction: float) -> str:
    """`10 %`, `12.5 %`."""
    return f"{fraction * 100:.3g} %"


MAIN_FRACTIONS = (0.1, 0.5, 1.0)
"""Fractions in the table that a report opens with, if they were trained."""


def opening(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that a report opens with: what the labels buy, at what price."""
    models, price = main_models(report), report.price_per_label
    shown = [m for m in models if m.fraction in MAIN_FRACTIONS] or models
    rows = []
    for model in shown:
        found = accuracy(seeds(report, model))
        row = [share(model.fraction), f"{model.n_labels:,}", percent(found.value, 1)]
        row.append(f"{found.low * 100:.1f} to {found.high * 100:.1f} %")
        rows.append(row + ([money(model.n_labels * price)] if price is not None else []))
    header = ["of the labels", "labels", "accuracy", "95 % interval"]
    return header + (["price"] if price is not None else []), rows


def accuracy(models: Sequence[Model]) -> Estimate:
    """Mean test accuracy of models that differ in the seed only, with its 95 % interval.

    Test images (Wilson's interval, the mean of the models') and, with several seeds, the standard
    error of their mean.
    """
    scores = [model.accuracy for model in models]
    values = [score.accuracy for score in scores]
    mean = float(np.mean(values))
    seeds = 0.0 if len(values) == 1 else float(np.std(values, ddof=1)) / len(values) ** 0.5
    below = mean - float(np.mean([score.accuracy_low for score in scores]))
    above = float(np.mean([score.accuracy_high for score in scores])) - mean
    return Estimate(
        value=mean,
        low=max(0.0, mean - hypot(below, DEVIATIONS * seeds)),
        high=min(1.0, mean + hypot(above, DEVIATIONS * seeds)),
    )


def training_time(models: Sequence[Model]) -> str:
    """Mean over seeds, marked where the machine did other work."""
    text = duration(float(np.mean([model.train_seconds for model in timed(models)])))
    return text + SHARED * all(model.shared for model in models)


def _mean(values: Sequence[float], form: str, unit: str = "") -> str:
    text = form.format(float(np.mean(values)))
    if len(values) > 1:
        text += f" ± {form.format(float(np.std(values, ddof=1)))}"
    return text + unit


def _of_load(models: Sequence[Model], pick: Callable[[Load], float | None], form: str) -> str:
    values = [pick(model.load) for model in models if model.load is not None]
    known = [value for value in values if value is not None]
    return _mean(known, form) if known else "–"


def unstable(models: Sequence[Model]) -> str:
    """Mark of an unstable rate, or nothing."""
    return UNSTABLE if any(m.load and m.load.stable is False for m in models) else ""


def conditions(report: Report) -> str:
    """State the conditions of the figures: n, seeds, clients, hardware, versions, command."""
    seeds = sorted({len(group) for group in groups(report.models)})
    runs = "one seed"
    if seeds != [1]:
        runs = f"mean ± standard deviation over {' or '.join(map(str, seeds))} seeds"
    text = (
        f"{escaped(report.dataset.name)}, {report.dataset.n_test:,} test images, {runs}. Labels: "
        "training + validation; unlabelled: further training images used without their labels. "
        "Balanced: mean recall over classes. "
    )
    if any(SHARED in training_time(group) for group in groups(report.models)):
        text += "Shared: the machine did other work meanwhile. "
    trained = sorted({model.trained_on for model in report.models})
    text += f"{served(report)}{learned(report)}Trained on {'; '.join(trained)}. "
    return f"{text}{measured(report)}, with `{report.provenance.command}`."


def served(report: Report) -> str:
    """Explain the columns of the load test; empty without one."""
    load = next((model.load for model in report.models if model.load), None)
    if not load:
        return ""
    return (
        f"p50, p99 and requests/s: `POST /classify`, {load.users} clients in a closed loop "
        f"on {'the same' if load.same_machine else 'another'} machine, "
        f"{load.seconds:.0f} s per model in {load.rounds} round{'s' if load.rounds > 1 else ''}. "
    )


def learned(report: Report) -> str:
    """Describe pretraining; empty where all models started from random weights."""
    times = pretraining_times(report)
    if not times:
        return ""
    text = f"Fine-tuning started from an extractor pretrained without labels in {times}"
    scratch = any(model.extractor is None for model in report.models)
    return text + ("; `scratch` from random weights. " if scratch else ". ")


def pretraining_times(report: Report) -> str:
    """Time of pretraining: `1 h 09 min (default) or 1 h 28 min (reference)`."""
    found: dict[float, set[str]] = {}
    for model in report.models:
        if model.pretraining_seconds:
            found.setdefault(model.pretraining_seconds, set()).add(model.variant)
    return " or ".join(
        duration(seconds) + f" ({', '.join(sorted(found[seconds]))})" * (len(found) > 1)
        for seconds in sorted(found)
    )


def measured(report: Report) -> str:
    """State hardware, versions and date, without a full stop."""
    made = report.provenance
    shown = ("onnxruntime", "onnxruntime-gpu", "bentoml", "locust")
    versions = ", ".join(f"{name} {made.packages[name]}" for name in shown if name in made.packages)
    gpu = f", {made.gpu}" if made.gpu else ""
    return (
        f"Measured on {made.cpu}, {counted(made.cores, 'core')}{gpu}, Python {made.python}, "
        f"{versions}, {made.date[:10]}"
    )


def variants(report: Report) -> list[str]:
    """List the variants: default first, if it has two fractions, then by number of fractions."""

    def place(variant: str) -> tuple[bool, int, str]:
        n = len({model.n_labels for model in report.models if model.variant == variant})
        return not (variant == "default" and n > 1), -n, variant

    return sorted({model.variant for model in report.models}, key=place)


def main_models(report: Report) -> list[Model]:
    """Choose one model per number of labels of the first variant, fewest labels first."""
    variant = variants(report)[0]
    chosen: dict[int, Model] = {}
    for model in sorted(report.models, key=lambda m: (m.n_labels, m.seed)):
        if model.variant == variant:
            chosen.setdefault(model.n_labels, model)
    return list(chosen.values())


def seeds(report: Report, model: Model) -> list[Model]:
    """List the models that differ from `model` only in the seed, and itself."""
    return next(g for g in groups(report.models) if any(each.name == model.name for each in g))
