"""`bench render REPORT --out DIR`: the page, the Markdown and the plots of an earlier report.

Nothing is measured again. Curves and comparisons that a report of an earlier release lacks are
made from the answers that it keeps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import compare, power_law, statistics
from benchmarks.options import check_asked
from benchmarks.record import Report
from benchmarks.report import page
from bundle.errors import LabelcurveError


@dataclass
class Render:
    """Makes report.html, report.md and plots/ again from a report.json."""

    report: tyro.conf.Positional[Path]
    """A report.json, or the folder that holds it."""
    out: Path = Path("runs/render")
    """Folder for the files."""
    target: Annotated[tuple[float, ...], tyro.conf.UseAppendAction] = ()
    """An accuracy whose labels are asked for, as 0.95; may be repeated. Without it those of the
    report."""
    note: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Something to say at the top of the report, beside what it says already; may be repeated."""
    price_per_hour: float | None = None
    """Of the machine that serves, in place of the report's."""
    price_per_label: float | None = None
    """In place of the report's."""


def renewed(report: Report, options: Render) -> Report:
    """The report with its curves and comparisons made anew."""
    right = {
        model.name: statistics.unpack(model.accuracy.right, model.accuracy.n)
        for model in report.models
        if model.accuracy.right is not None
    }
    per_hour, per_label = (
        old if new is None else new
        for new, old in (
            (options.price_per_hour, report.price_per_hour),
            (options.price_per_label, report.price_per_label),
        )
    )
    asked = options.target or tuple(
        dict.fromkeys(target.accuracy for curve in report.curves for target in curve.targets)
    )
    whole = len(right) == len(report.models)
    return report.model_copy(
        update={
            "notes": (*report.notes, *options.note),
            "curves": power_law.curves(report.models, right, asked, per_label),
            "comparisons": (
                statistics.comparisons(report.models, right) if whole else report.comparisons
            ),
            "price_per_hour": per_hour,
            "price_per_label": per_label,
        }
    )


def main(args: Sequence[str] | None = None) -> None:
    """The command `bench render`."""
    options = tyro.cli(Render, args=args, prog="bench render")
    try:
        check_asked(options.target, options.price_per_hour, options.price_per_label)
        report = compare.read(options.report)
        source = options.report if options.report.is_dir() else options.report.parent
        if options.out.resolve() == source.resolve():
            raise LabelcurveError(
                f"--out {options.out} is where the report lies: its pictures of test images, which "
                "report.json does not hold, would be lost. Choose another folder"
            )
        paths = page.write(options.out, renewed(report, options))
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    print("A report.json holds no test images: the page has no pictures; `bench` makes those.")
    print(f"Report: {paths['html']}", flush=True)
