"""`bench compare A B`: compare two runs of `bench` and test which differences are significant.

Accuracy is compared image by image (McNemar's exact test), which needs the same test split. Rates
and latencies are compared over the windows of each run (Welch's t-test on logarithms), which does
not account for what else differed, such as the machine or its load on another day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from pydantic import ValidationError
from scipy.stats import ttest_ind

from labelcurve.benchmarks.harness import statistics
from labelcurve.benchmarks.record import Comparison, Estimate, Load, Model, Report
from labelcurve.bundle import command
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import table

SIGNIFICANT = 0.05
ROUNDS = 3
"""Below this, windows are parts of one round and vary less than two runs do."""
CONDITIONS = ("cpu", "cores", "gpu", "python")
LOADS = {
    "users": "the numbers of clients",
    "rounds": "the rounds of the load test",
    "same_machine": "the places of the load generator (same machine or not)",
}
"""Conditions of a load test that must agree for its figures to be comparable."""


@dataclass(frozen=True)
class Pair:
    """A model of one run and its counterpart in the other."""

    a: Model
    b: Model
    accuracy: Comparison | None
    """None where test images differ or predictions were not kept."""
    rate: Estimate | None
    """Requests/s of B over A, with a 95 % interval over windows."""
    p50: Estimate | None
    """Median latency of B over A, likewise."""


def pairs(a: Report, b: Report) -> list[Pair]:
    """Pair models of the same name, or the only model of each report.

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
    rights = (
        statistics.unpack(right, a.accuracy.n) for right in (a.accuracy.right, b.accuracy.right)
    )
    return statistics.compare(f"A {a.name}", f"B {b.name}", *rights)


def ratio(a: Load | None, b: Load | None, figure: str) -> Estimate | None:
    """Ratio of geometric means of a figure over the windows, `b` over `a`, with a 95 % interval."""
    if a is None or b is None:
        return None
    logs = []
    for load in (a, b):
        values = [getattr(window, figure) for window in load.windows]
        if len(values) < 2 or not all(values):
            return None
        logs.append(np.log(values))
    value = float(np.exp(logs[1].mean() - logs[0].mean()))
    if logs[0].var() == 0 and logs[1].var() == 0:
        return Estimate(value=value, low=value, high=value)
    interval = ttest_ind(logs[1], logs[0], equal_var=False).confidence_interval(0.95)
    return Estimate(value=value, low=float(np.exp(interval.low)), high=float(np.exp(interval.high)))


def doubts(a: Report, b: Report) -> list[str]:
    """List what differs between the runs besides the models."""
    found = []
    if a.dataset.hash != b.dataset.hash:
        found.append(
            f"the data differ ({a.dataset.name} {a.dataset.hash[:12]}, {b.dataset.name} "
            f"{b.dataset.hash[:12]}): accuracies cannot be compared"
        )
    for name in CONDITIONS:
        one, other = (getattr(report.provenance, name) or "none" for report in (a, b))
        if one != other:
            found.append(f"{name} differs ({one}, {other}): times differ for that reason, too")
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
                f"{what} differ ({one} and {other}): requests/s and p50 are not comparable"
            )
    for label, report in (("A", a), ("B", b)):
        unstable = [m.name for m in report.models if m.load and m.load.stable is False]
        if unstable:
            found.append(f"{label} was unstable under load: {', '.join(unstable)}")
    return found


def markdown(a: Report, b: Report) -> str:
    """Render the comparison."""
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
    text = table(header, body)
    text += "\nIn brackets: 95 % intervals, over test images and over windows of the load test. "
    text += "p: McNemar's exact test on the same images; it does not account for other seeds. "
    text += f"*: significant at {SIGNIFICANT:.0%}, not corrected for {3 * len(body)} comparisons; "
    text += f"rates and latencies need {ROUNDS} rounds and stable runs for a star.\n"
    return text + "".join(f"\nNOTE {doubt}\n" for doubt in doubts(a, b))


def _points(found: Comparison) -> str:
    d = found.difference
    return f"{d.value * 100:+.2f} ({d.low * 100:+.2f} to {d.high * 100:+.2f})"


def _still(load: Load | None) -> bool:
    """Whether a load test has enough stable windows for a significance test."""
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
    """Read a report.json.

    Raises:
        LabelcurveError: missing, or not of this schema.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        return Report.model_validate_json(file.read_bytes())
    except OSError as error:
        raise LabelcurveError(
            f"cannot read {file}: {error.strerror}. `labelcurve bench --out DIR` "
            "writes DIR/report.json"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise LabelcurveError(
            f"{file} is not a report.json of this release: {place}: {first['msg']}"
            f"{f' ({error.error_count()} faults)' if error.error_count() > 1 else ''}"
        ) from error


@dataclass
class Compare:
    """Compares two reports of `bench`; a star marks significant differences (5 %).

    Where stdout is not a terminal, and with --json, its last line is one JSON document.
    """

    a: tyro.conf.Positional[Path]
    """A report.json, or the folder that holds it."""
    b: tyro.conf.Positional[Path]
    """The other one."""


def main(arguments: Sequence[str]) -> None:
    """The command `labelcurve bench compare`."""
    options = tyro.cli(Compare, args=arguments, prog="labelcurve bench compare")
    a, b = read(options.a), read(options.b)
    print(markdown(a, b))
    document = []
    for pair in pairs(a, b):
        found = {"accuracy": pair.accuracy, "requests_per_s": pair.rate, "p50": pair.p50}
        figures = {name: value and value.model_dump() for name, value in found.items()}
        document.append({"a": pair.a.name, "b": pair.b.name, **figures})
    command.answer({"pairs": document, "notes": doubts(a, b)})
