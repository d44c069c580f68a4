"""`bench compare A B`: two runs of `bench`, with what of their difference is more than chance.

Accuracy is compared image by image (McNemar's exact test), which needs the same test split. Rates
and latencies are compared between the windows of each run (Welch's t-test on logarithms), which
says nothing of what else differed: another machine, or the same one on another day.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from pydantic import ValidationError
from scipy.stats import ttest_ind

from benchmarks import statistics, tables
from benchmarks.record import Comparison, Estimate, Load, Model, Report
from bundle.errors import LabelcurveError

SIGNIFICANT = 0.05
ROUNDS = 3
"""Windows of fewer are parts of one run, and vary less than two runs do."""
CONDITIONS = ("cpu", "cores", "python")
LOADS = {
    "users": "the numbers of clients",
    "rounds": "the rounds of the load test",
    "same_machine": "the places of the load generator (same machine or not)",
}
"""What of a load test must be the same for its figures to be."""


@dataclass(frozen=True)
class Pair:
    """A model of the one run and its counterpart in the other."""

    a: Model
    b: Model
    accuracy: Comparison | None
    """None when the runs did not use the same test images, or kept no answers."""
    rate: Estimate | None
    """Requests/s of the second run over the first, with a 95 % interval over windows."""
    p50: Estimate | None
    """The same of the median latency."""


def pairs(a: Report, b: Report) -> list[Pair]:
    """Models of the same name, or the two only ones.

    Raises:
        LabelcurveError: the reports have no model in common.
    """
    theirs = {model.name: model for model in b.models}
    found = [(model, theirs[model.name]) for model in a.models if model.name in theirs]
    if not found and len(a.models) == len(b.models) == 1:
        found = [(a.models[0], b.models[0])]
    if not found:
        raise LabelcurveError(
            f"no model is in both reports: {', '.join(m.name for m in a.models)} and "
            f"{', '.join(m.name for m in b.models)}"
        )
    same = a.dataset.hash == b.dataset.hash
    return [
        Pair(
            one,
            other,
            _accuracy(one, other) if same else None,
            ratio(one.load, other.load, "requests_per_s"),
            ratio(one.load, other.load, "p50_ms"),
        )
        for one, other in found
    ]


def _accuracy(a: Model, b: Model) -> Comparison | None:
    if a.accuracy.right is None or b.accuracy.right is None:
        return None
    n = a.accuracy.n
    return statistics.compare(
        f"A {a.name}",
        f"B {b.name}",
        statistics.unpack(a.accuracy.right, n),
        statistics.unpack(b.accuracy.right, n),
    )


def ratio(a: Load | None, b: Load | None, figure: str) -> Estimate | None:
    """Geometric mean of a figure of the windows of `b` over that of `a`, with a 95 % interval."""
    if a is None or b is None:
        return None
    logs = []
    for load in (a, b):
        values = [getattr(window, figure) for window in load.windows]
        if len(values) < 2 or not all(values):
            return None
        logs.append(np.log(values))
    if logs[0].var() == 0 and logs[1].var() == 0:
        value = float(np.exp(logs[1].mean() - logs[0].mean()))
        return Estimate(value=value, low=value, high=value)
    interval = ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(0.95)
    return Estimate(
        value=float(np.exp(logs[1].mean() - logs[0].mean())),
        low=float(np.exp(interval.low)),
        high=float(np.exp(interval.high)),
    )


def doubts(a: Report, b: Report) -> list[str]:
    """What differs between the runs besides the models."""
    found = []
    if a.dataset.hash != b.dataset.hash:
        found.append(
            f"the data differ ({a.dataset.name} {a.dataset.hash[:12]}, {b.dataset.name} "
            f"{b.dataset.hash[:12]}): accuracies cannot be compared"
        )
    for name in CONDITIONS:
        one, other = getattr(a.provenance, name), getattr(b.provenance, name)
        if one != other:
            found.append(f"{name} differs ({one}, {other}): times are not those of the code alone")
    packages = sorted({*a.provenance.packages, *b.provenance.packages})
    for name in packages:
        one, other = (r.provenance.packages.get(name, "none") for r in (a, b))
        if one != other:
            found.append(f"{name} differs ({one}, {other})")
    for name, what in LOADS.items():
        values = [
            sorted({getattr(m.load, name) for m in report.models if m.load}) for report in (a, b)
        ]
        if all(values) and values[0] != values[1]:
            one, other = (", ".join(map(str, found)) for found in values)
            found.append(
                f"{what} differ ({one} and {other}): requests/s and p50 are not to be compared"
            )
    for label, report in (("A", a), ("B", b)):
        unstable = [m.name for m in report.models if m.load and m.load.stable is False]
        if unstable:
            found.append(f"{label} was unstable under load: {', '.join(unstable)}")
    return found


def markdown(a: Report, b: Report) -> str:
    """The comparison for people."""
    body = []
    comparable = a.dataset.hash == b.dataset.hash
    for pair in pairs(a, b):
        name = pair.a.name if pair.a.name == pair.b.name else f"{pair.a.name}, {pair.b.name}"
        same = " (same version)" if pair.a.version == pair.b.version else ""
        one, other = pair.a.accuracy.accuracy, pair.b.accuracy.accuracy
        change = f"{(other - one) * 100:+.2f}" if comparable else "–"
        still = _still(pair.a.load) and _still(pair.b.load)
        body.append(
            (
                name + same,
                f"{one:.2%}",
                f"{other:.2%}",
                _points(pair.accuracy) if pair.accuracy else change,
                _p(pair.accuracy.p_value) if pair.accuracy else "–",
                _times(pair.rate, still),
                _times(pair.p50, still),
            )
        )
    header = ("model", "A", "B", "B minus A, points", "p", "requests/s, B / A", "p50, B / A")
    text = tables.markdown(header, body)
    text += "\nIn brackets: 95 % intervals, over test images and over windows of the load test. "
    text += "p: McNemar's exact test, two models on the same images; other seeds are not in it. "
    text += f"A star is a difference that chance alone shows once in {1 / SIGNIFICANT:.0f} times, "
    text += f"and here are {3 * len(body)} comparisons. Rates and latencies "
    text += f"have none where a run was unstable or had less than {ROUNDS} rounds.\n"
    return text + "".join(f"\nNOTE {doubt}\n" for doubt in doubts(a, b))


def _points(found: Comparison) -> str:
    d = found.difference
    return f"{d.value * 100:+.2f} ({d.low * 100:+.2f} to {d.high * 100:+.2f})"


def _still(load: Load | None) -> bool:
    """Whether windows of a load test are enough apart, and alike, to tell chance from more."""
    return load is not None and load.rounds >= ROUNDS and load.stable is not False


def _times(found: Estimate | None, still: bool) -> str:
    if found is None:
        return "–"
    text = f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    return f"{text} *" if still and not found.low <= 1 <= found.high else text


def _p(value: float) -> str:
    text = "< 0.001" if value < 0.001 else f"{value:.3f}"
    return f"{text} *" if value < SIGNIFICANT else text


def read(path: Path) -> Report:
    """A report.json.

    Raises:
        LabelcurveError: missing, or not of this schema.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise LabelcurveError(
            f"cannot read {file}: {error.strerror}. `bench --out DIR` writes DIR/report.json"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise LabelcurveError(
            f"{file} is no report.json of this release: {place}: {first['msg']}"
            f"{f' ({error.error_count()} faults)' if error.error_count() > 1 else ''}"
        ) from error


@dataclass
class Compare:
    """Compares two reports of `bench`; a star marks what is more than chance (5 %).

    The last line on stdout is one JSON document.
    """

    a: tyro.conf.Positional[Path]
    """A report.json, or the folder that holds it."""
    b: tyro.conf.Positional[Path]
    """The other one."""


def main(args: Sequence[str] | None = None) -> None:
    """The command `bench compare`."""
    options = tyro.cli(Compare, args=args, prog="bench compare")
    try:
        a, b = read(options.a), read(options.b)
        print(markdown(a, b))
        document = [
            {
                "a": pair.a.name,
                "b": pair.b.name,
                "accuracy": pair.accuracy.model_dump() if pair.accuracy else None,
                "requests_per_s": pair.rate.model_dump() if pair.rate else None,
                "p50": pair.p50.model_dump() if pair.p50 else None,
            }
            for pair in pairs(a, b)
        ]
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"pairs": document, "notes": doubts(a, b)}), flush=True)
