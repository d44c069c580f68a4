"""The table of a report of `bench`: its cells, its conditions, and Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.record import Load, Model, Report

HEADER = (
    "fraction",
    "labels",
    "without labels",
    "accuracy",
    "balanced",
    "F1",
    "training time",
    "epochs",
    "p50 ms",
    "p99 ms",
    "requests/s",
)


UNSTABLE = " (unstable)"
"""Behind a rate whose last windows differed by more than 10 %."""


SHARED = " (shared)"
"""Behind a training time that other work on the machine has made longer."""


def groups(report: Report) -> list[list[Model]]:
    """Models that differ in nothing but the seed, fewest labels first."""
    found: dict[tuple[str, float, int], list[Model]] = {}
    for model in report.models:
        found.setdefault((model.variant, model.fraction, model.n_labels_train), []).append(model)
    return list(found.values())


def rows(report: Report) -> list[tuple[str, ...]]:
    """The cells under `HEADER`, a row a fraction: with several seeds mean ± standard deviation."""
    several = len({model.variant for model in report.models}) > 1
    return [_row(group, several) for group in groups(report)]


def _row(models: Sequence[Model], several: bool) -> tuple[str, ...]:
    first, epochs = models[0], [model.epochs for model in models]
    share = f"{first.fraction:.3g}"
    if first.fraction >= 0.01:
        share = f"{first.fraction:.0%}".replace("%", " %")
    return (
        share if not several or first.variant == "default" else f"{share}, {first.variant}",
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


def timed(models: Sequence[Model]) -> Sequence[Model]:
    """Those whose training time is a measurement; all, where each shared its machine."""
    return [model for model in models if not model.shared] or models


def training_time(models: Sequence[Model]) -> str:
    """Mean over the seeds, marked where it is none of a machine of its own."""
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
    """A mark for a rate that `bench` could not hold still; nothing for others."""
    return UNSTABLE if any(m.load and m.load.stable is False for m in models) else ""


def counted(n: int, thing: str) -> str:
    """`1 model`, `1,200 models`."""
    return f"{n:,} {thing}{'s' * (n != 1)}"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `3.2 s`, `4 min 05 s`, `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


_BAR = re.compile(r"(?<!\\)\|")


def markdown(header: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is aligned left, the others right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [[_BAR.sub(r"\|", str(cell)) for cell in cells] for cells in (header, rule, *body)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


COLUMNS = (
    "Labels: training + validation; without labels: other training images that taught, too, "
    "without theirs. Balanced: mean of the classes' recalls. "
)
"""What the table's columns are."""


def conditions(report: Report) -> str:
    """One sentence a figure cannot do without: n, seeds, clients, hardware, versions, command."""
    seeds = sorted({len(group) for group in groups(report)})
    runs = "one seed"
    if seeds != [1]:
        runs = f"mean ± standard deviation over {' or '.join(map(str, seeds))} seeds"
    text = f"{report.dataset.name}, {report.dataset.n_test:,} test images, {runs}. {COLUMNS}"
    if any(SHARED in training_time(group) for group in groups(report)):
        text += "Shared: other work ran on the machine meanwhile, alone it takes less. "
    trained = sorted({model.trained_on for model in report.models})
    text += f"{served(report)}{learned(report)}Trained on {'; '.join(trained)}. "
    return f"{text}{measured(report)}, with `{report.provenance.command}`."


def served(report: Report) -> str:
    """What the columns of the load test are; nothing where there was none."""
    load = next((model.load for model in report.models if model.load), None)
    if not load:
        return ""
    return (
        f"p50, p99 and requests/s: `POST /classify`, {load.users} clients in a closed loop "
        f"on {'the same' if load.same_machine else 'another'} machine, "
        f"{load.seconds:.0f} s a model in {load.rounds} round{'s' if load.rounds > 1 else ''}. "
    )


def learned(report: Report) -> str:
    """What the models began with; nothing where all had random weights."""
    times = pretraining_times(report)
    if not times:
        return ""
    text = f"The models began with an extractor that had been learned without labels in {times}"
    scratch = any(model.extractor is None for model in report.models)
    return text + (", `scratch` with random weights. " if scratch else ". ")


def pretraining_times(report: Report) -> str:
    """What the extractors took: `1 h 09 min (default) or 1 h 28 min (reference)`."""
    found: dict[float, set[str]] = {}
    for model in report.models:
        if model.pretraining_seconds:
            found.setdefault(model.pretraining_seconds, set()).add(model.variant)
    return " or ".join(
        duration(seconds) + f" ({', '.join(sorted(found[seconds]))})" * (len(found) > 1)
        for seconds in sorted(found)
    )


def measured(report: Report) -> str:
    """Where and when, without a full stop."""
    made = report.provenance
    versions = ", ".join(
        f"{name} {made.packages[name]}" for name in _SHOWN if name in made.packages
    )
    return (
        f"Measured on {made.cpu}, {counted(made.cores, 'core')}, Python {made.python}, {versions}, "
        f"{made.date[:10]}"
    )


_SHOWN = ("onnxruntime", "onnxruntime-gpu", "bentoml", "locust")
