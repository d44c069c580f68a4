"""The command `bench`: accuracy, latency, load and the report."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import accuracy, latency, load, processes, provenance, report, server, tables
from benchmarks.record import Dataset, Report
from bundle import store
from bundle.errors import LabelcurveError
from bundle.store import Bundle
from training import data as datasets


@dataclass
class Bench:
    """Measures accuracy, latency and load of every model in a folder, side by side.

    Writes report.html, report.md and report.json. The last line on stdout is one JSON document.
    """

    models: Path = Path("models")
    """Folder of bundles, as `train --out` wrote it."""
    data: str = "cifar10"
    """What the models were trained on: cifar10, digits, or a folder as `train --data` takes it."""
    url: str | None = None
    """A running service over the same models; without it bench starts one and stops it."""
    out: Path = Path("runs/bench")
    """Folder for the report and the service's log."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Measure only this model; may be repeated."""
    load: bool = True
    """Run the load test."""
    users: int = 8
    """Clients of the load test, each of which waits for its answer before it sends again."""
    load_seconds: int = 15
    """Load for each model, divided among the rounds."""
    rounds: int = 3
    """Turns of each model in the load test."""
    latency_seconds: float = 20.0
    """Session latency of all models and batch sizes together."""
    threads: int = 1
    """ONNX Runtime's threads in the latency measurement."""
    examples: bool = True
    """Show six test images in the HTML report."""
    cache: Path | None = None
    """Folder of downloads and decoded pixels; by default the user's cache folder."""
    skip_unreadable: bool = False
    """Leave unreadable images out and count them."""


def run(
    bench: Bench, say: Callable[[str], None], command: Sequence[str] | None = None
) -> tuple[Report, dict[str, Path]]:
    """Measures and writes the report.

    Args:
        bench: the options.
        say: receives progress, line by line.
        command: what to name as the command; None takes the arguments of this process.

    Returns:
        The report, and its files by kind.

    Raises:
        LabelcurveError: models, data or service cannot be used.
    """
    _check(bench)
    bundles = _chosen(store.read_all(bench.models), bench.only)
    service = server.running(bench.url) if bench.url and bench.load else None
    if service:
        server.check(service.url, bundles)
    data = datasets.load(
        bench.data,
        size=bundles[-1].manifest.preprocessing.size,
        cache=bench.cache,
        skip_unreadable=bench.skip_unreadable,
        say=say,
    )
    accuracy.check(bundles, data)

    say(f"Accuracy of {len(bundles)} models on {len(data.test.labels):,} test images")
    predictions = accuracy.predict(bundles, data.test, say)
    scores = {b.name: accuracy.score(b, predictions[b.name], data) for b in bundles}
    warnings = accuracy.doubts(scores)

    say(f"Session latency by batch size, about {bench.latency_seconds:.0f} s")
    times = latency.measure(bundles, bench.latency_seconds, threads=bench.threads, say=say)

    loads = {}
    if bench.load:
        say(f"Load: {bench.users} clients, {bench.load_seconds} s a model, {bench.rounds} rounds")
        with ExitStack() as stack:
            if service is None:
                service = stack.enter_context(
                    server.started(bench.models, bench.out / "serve.log", say)
                )
                server.check(service.url, bundles)
            loads = load.measure(
                service,
                data,
                predictions,
                users=bench.users,
                seconds=bench.load_seconds,
                rounds=bench.rounds,
                say=say,
            )
        warnings += [text for name, found in loads.items() for text in load.doubts(name, found)]

    result = Report(
        dataset=Dataset(
            name=data.name,
            hash=data.hash,
            n_test=len(data.test.labels),
            class_names=data.class_names,
        ),
        models=tuple(
            report.model(b, scores[b.name], times[b.name], loads.get(b.name)) for b in bundles
        ),
        warnings=tuple(warnings),
        provenance=provenance.here(command),
    )
    shown = report.examples(bundles, data, predictions) if bench.examples else ()
    return result, report.write(bench.out, result, shown)


def show(result: Report, paths: dict[str, Path]) -> None:
    """Prints the table, the warnings and the files for people."""
    table = Table(title=f"{result.dataset.name}, {result.dataset.n_test:,} test images")
    for name in tables.HEADER:
        table.add_column(name, justify="right", no_wrap=True)
    for row in tables.rows(result):
        table.add_row(*row)
    # A fixed width where there is no terminal, so that no column is cut in a log.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(table)
    for warning in result.warnings:
        console.print(f"WARNING {warning}", style="bold red", markup=False, highlight=False)
    print(f"Report: {paths['html']}", flush=True)


def document(result: Report, paths: dict[str, Path]) -> dict[str, Any]:
    """What `bench` prints last: the report without its long parts, and where the files are."""
    short = result.model_dump(mode="json")
    for model in short["models"]:
        del model["history"], model["accuracy"]["per_class"], model["accuracy"]["confusion"]
    return {"report": {kind: str(path) for kind, path in paths.items()}, **short}


def failed(result: Report) -> bool:
    """Whether a request of the load test failed."""
    return any(model.load is not None and model.load.errors for model in result.models)


def main(args: Sequence[str] | None = None) -> None:
    """The command `bench`: exits with 1 on an error, and when a request of the load test failed."""
    bench = tyro.cli(Bench, args=args, prog="bench")
    processes.end_on_signals()
    try:
        result, paths = run(bench, partial(print, flush=True))
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    show(result, paths)
    print(json.dumps(document(result, paths)), flush=True)
    if failed(result):
        sys.exit(f"error: requests failed, see {paths['html']}")


def _check(bench: Bench) -> None:
    for name in ("users", "load_seconds", "rounds", "threads"):
        value = getattr(bench, name)
        if value < 1:
            raise LabelcurveError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    if bench.latency_seconds < 0:
        raise LabelcurveError(f"--latency-seconds {bench.latency_seconds:g}: at least 0 is needed")
    # Now, not after minutes of measuring.
    try:
        bench.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelcurveError(
            f"--out {bench.out} cannot be made ({error.strerror}): choose another folder"
        ) from error
    if not os.access(bench.out, os.W_OK | os.X_OK):
        raise LabelcurveError(f"--out {bench.out} cannot be written: choose another folder")


def _chosen(bundles: list[Bundle], only: Sequence[str]) -> list[Bundle]:
    names = [bundle.name for bundle in bundles]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise LabelcurveError(
            f"--only {', '.join(unknown)}: no such model; there are {', '.join(names)}"
        )
    return [bundle for bundle in bundles if not only or bundle.name in only]


if __name__ == "__main__":
    main()
