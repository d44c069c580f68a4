"""`bench render REPORT --out DIR`: render an earlier report again, without measuring.

Curves and comparisons are recomputed from the predictions that the report holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from labelcurve.benchmarks import compare
from labelcurve.benchmarks.harness import statistics
from labelcurve.benchmarks.options import Price, Targets
from labelcurve.benchmarks.quality import learning_curve
from labelcurve.benchmarks.record import Report
from labelcurve.benchmarks.report import page
from labelcurve.bundle.command import check
from labelcurve.bundle.errors import LabelcurveError


@dataclass
class Render:
    """Renders report.html, report.md and plots/ again from a report.json."""

    report: tyro.conf.Positional[Path]
    """A report.json, or the folder that holds it."""
    out: Path = Path("runs/render")
    """Folder for the files."""
    target: Targets = ()
    """Forecast the labels that this accuracy needs, e.g. 0.95; may be repeated. By default the
    targets of the report."""
    note: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A further note for the top of the report; may be repeated."""
    price_per_hour: Price = None
    """Price of the serving machine, instead of the report's."""
    price_per_label: Price = None
    """Price of a label, instead of the report's."""


def renewed(report: Report, options: Render) -> Report:
    """Recompute curves and comparisons of the report."""
    right = {
        model.name: statistics.unpack(model.accuracy.right, model.accuracy.n)
        for model in report.models
        if model.accuracy.right is not None
    }
    prices = {
        name: getattr(report if getattr(options, name) is None else options, name)
        for name in ("price_per_hour", "price_per_label")
    }
    asked = options.target or tuple(
        dict.fromkeys(target.accuracy for curve in report.curves for target in curve.targets)
    )
    whole = len(right) == len(report.models)
    return report.model_copy(
        update={
            "notes": (*report.notes, *options.note),
            "curves": learning_curve.curves(report.models, right, asked, prices["price_per_label"]),
            "comparisons": (
                statistics.comparisons(report.models, right) if whole else report.comparisons
            ),
            **prices,
        }
    )


def main(arguments: Sequence[str]) -> None:
    """The command `labelcurve bench render`."""
    options = tyro.cli(Render, args=arguments, prog="labelcurve bench render")
    check(options)
    report = compare.read(options.report)
    source = options.report if options.report.is_dir() else options.report.parent
    if options.out.resolve() == source.resolve():
        raise LabelcurveError(
            f"--out {options.out} is the folder of the report: its pictures of test images, "
            "which report.json does not hold, would be lost. Choose another folder"
        )
    paths = page.write(options.out, renewed(report, options))
    print("The page has no pictures of test images, which report.json does not hold.")
    print(f"Report: {paths['html']}", flush=True)
