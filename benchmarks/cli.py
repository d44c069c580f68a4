"""The command `bench`: its options, and what it prints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from labelcurve.benchmarks.options import Bench
from labelcurve.benchmarks.record import Report
from labelcurve.benchmarks.report import tables
from labelcurve.bundle import command
from labelcurve.bundle.errors import LabelcurveError, near

OTHERS = {
    "compare": "labelcurve.benchmarks.compare",
    "render": "labelcurve.benchmarks.render",
    "peers": "labelcurve.benchmarks.peers.job",
}


def show(result: Report, paths: dict[str, Path]) -> None:
    """Prints the table, the warnings and the files for people."""
    table = Table(title=f"{result.dataset.name}, {result.dataset.n_test:,} test images")
    for name in tables.HEADER:
        table.add_column(name, justify="right", no_wrap=True)
    for row in tables.rows(result):
        table.add_row(*row)
    # As wide as needed: a narrow terminal wraps its lines, and no column is cut.
    console = Console()
    least = console.width if sys.stdout.isatty() else 120
    console = Console(width=max(least, Console(width=1000).measure(table).maximum))
    console.print(table)
    for warning in result.warnings:
        console.print(f"WARNING {warning}", style="bold red", markup=False, highlight=False)
    for curve in result.curves:
        for text in curve.text:
            console.print(f"{curve.variant}: {text}", markup=False, highlight=False)
    print(f"Report: {paths['html']}", flush=True)


def document(result: Report, paths: dict[str, Path]) -> dict[str, Any]:
    """Build the JSON document: the report without its long parts, and the paths of the files."""
    accuracy = {"per_class", "confusion", "right", "calibration"}
    of_model = {"history": True, "robustness": True, "accuracy": accuracy}
    long: dict[str, Any] = {"models": {"__all__": of_model}, "curves": {"__all__": {"line"}}}
    short = result.model_dump(mode="json", exclude=long)
    return {"report": {kind: str(path) for kind, path in paths.items()}, **short}


def failed(result: Report) -> bool:
    """Whether a request of the load test failed."""
    return any(model.load is not None and model.load.errors for model in result.models)


def main(arguments: Sequence[str]) -> None:
    """The command `bench`: exits with 1 on an error, and when a request of the load test failed.

    `bench peers` compares this service with others, `bench compare A B` two reports, and
    `bench render A` makes a report's page again.
    """
    first = arguments[0] if arguments else ""
    if other := OTHERS.get(first):
        import_module(other).main(arguments[1:])
        return
    if first and not first.startswith("-"):
        raise LabelcurveError(
            f"no command `bench {first}`{near(first, OTHERS)}; there are "
            f"{', '.join(OTHERS)}, and bench alone, which takes options only"
        )
    bench = tyro.cli(Bench, args=arguments, prog="labelcurve bench")
    from labelcurve.benchmarks import (
        job,  # takes seconds, which help and usage errors must not wait for
    )

    result, paths = job.run(bench, partial(print, flush=True))
    show(result, paths)
    command.answer(document(result, paths))
    if failed(result):
        raise LabelcurveError(f"requests failed, see {paths['html']}")
