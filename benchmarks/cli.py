"""The command `bench`: its options, and what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import processes, tables
from benchmarks.options import Bench
from benchmarks.record import Report
from bundle.errors import LabelcurveError
from bundle.machine import show_version

OTHERS = {
    "compare": "benchmarks.compare",
    "render": "benchmarks.render",
    "peers": "benchmarks.peers.cli",
}


def show(result: Report, paths: dict[str, Path]) -> None:
    """Prints the table, the warnings and the files for people."""
    table = Table(title=f"{result.dataset.name}, {result.dataset.n_test:,} test images")
    for name in tables.HEADER:
        table.add_column(name, justify="right", no_wrap=True)
    for row in tables.rows(result):
        table.add_row(*row)
    # As wide as it has to be where there is no terminal, so that no column is cut in a log.
    console = Console()
    if not sys.stdout.isatty():
        console = Console(width=max(120, Console(width=1000).measure(table).maximum))
    console.print(table)
    for warning in result.warnings:
        console.print(f"WARNING {warning}", style="bold red", markup=False, highlight=False)
    for curve in result.curves:
        for text in curve.text:
            console.print(f"{curve.variant}: {text}", markup=False, highlight=False)
    print(f"Report: {paths['html']}", flush=True)


def document(result: Report, paths: dict[str, Path]) -> dict[str, Any]:
    """What `bench` prints last: the report without its long parts, and where the files are."""
    short = result.model_dump(mode="json")
    for model in short["models"]:
        del model["history"], model["robustness"]
        for long in ("per_class", "confusion", "right", "calibration"):
            del model["accuracy"][long]
    for curve in short["curves"]:
        del curve["line"]
    return {"report": {kind: str(path) for kind, path in paths.items()}, **short}


def failed(result: Report) -> bool:
    """Whether a request of the load test failed."""
    return any(model.load is not None and model.load.errors for model in result.models)


def main(args: Sequence[str] | None = None) -> None:
    """The command `bench`: exits with 1 on an error, and when a request of the load test failed.

    `bench peers` compares this service with others, `bench compare A B` two reports, and `bench
    render A` makes a report's page again.
    """
    show_version()
    given = list(sys.argv[1:] if args is None else args)
    if given and (other := OTHERS.get(given[0])):
        import_module(other).main(given[1:])
        return
    if given and not given[0].startswith("-"):
        near = get_close_matches(given[0], OTHERS, n=1)
        sys.exit(
            f"error: no command {given[0]}{f': is {near[0]} meant?' if near else ''}; there are "
            f"{', '.join(OTHERS)}, and bench alone, which takes options only"
        )
    bench = tyro.cli(Bench, args=args, prog="bench")
    from benchmarks import job  # takes seconds, which help and a typing error need not wait for

    processes.end_on_signals()
    try:
        result, paths = job.run(bench, partial(print, flush=True))
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    show(result, paths)
    print(json.dumps(document(result, paths)), flush=True)
    if failed(result):
        sys.exit(f"error: requests failed, see {paths['html']}")


if __name__ == "__main__":
    main()
