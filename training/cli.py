"""The commands `train`, `pretrain`, `sweep`, `quantize`, `plan`, `suggest`, `audit`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from labelcurve.bundle import command, files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.text import percent
from labelcurve.training import STARTED, embedding_options, options, sweep_options
from labelcurve.training.runtime import console, interruption

T = TypeVar("T")

FIRST = (
    os.environ.get("RANK", "0") == "0"
    or os.environ.get("WORLD_SIZE", "1") == "1"
    or "MASTER_ADDR" not in os.environ
)
"""Whether this process is the first of several, or the only one, where RANK may be stale."""


def train(arguments: Sequence[str]) -> None:
    """Runs `train`.

    Raises:
        LabelcurveError: it failed; bundles already published are kept.
        SystemExit: 2 on unknown options, 130 on Ctrl-C, 143 on SIGTERM, 129 where the terminal was
            closed.
    """

    def given() -> options.Options:
        chosen = options.parse(arguments)
        if not chosen.self_test:
            from labelcurve.training.data.sources import check_there

            check_there(chosen.data)
        return chosen

    with _ending("bundles already published are kept, and the same command resumes from here"):
        chosen = _parsed(given)
        # torch is imported only now: `--help` and typing errors answer at once.
        from labelcurve.training.jobs import selftest
        from labelcurve.training.jobs import train as job
        from labelcurve.training.runtime import distributed

        def work() -> dict[str, Any]:
            return selftest.run(chosen.device) if chosen.self_test else job.run(chosen, STARTED)

        _answer(distributed.run(work, chosen.device))


def pretrain(arguments: Sequence[str]) -> None:
    """Runs `pretrain`; ends as `train` does."""
    with _ending("the same command resumes from here"):
        chosen = _parsed(lambda: options.parse_pretrain(arguments))
        from labelcurve.training.jobs import pretrain as job
        from labelcurve.training.runtime import distributed

        _answer(distributed.run(lambda: job.run(chosen, STARTED), chosen.device))


def sweep(arguments: Sequence[str]) -> None:
    """Runs `sweep`; ends as `train` does."""
    with _ending("bundles already published are kept, and the same command resumes from here"):
        chosen, others = sweep_options.parse_sweep(arguments)
        from labelcurve.training.jobs import sweep as job

        _answer(job.run(chosen, others))


def quantize(arguments: Sequence[str]) -> None:
    """Runs `quantize`; ends as `train` does."""
    with _ending("bundles already published are kept"):
        chosen = options.parse_quantize(arguments)
        from labelcurve.training.jobs import quantize as job

        _answer(job.run(chosen))


def plan(arguments: Sequence[str]) -> None:
    """Runs `plan`; ends as `train` does."""
    with _ending("no page was written"):
        chosen = embedding_options.parse_plan(arguments)
        from labelcurve.training.jobs import plan as job

        _answer(job.run(chosen, STARTED))


def suggest(arguments: Sequence[str]) -> None:
    """Runs `suggest`; ends as `train` does."""
    with _ending("nothing was written"):
        chosen = embedding_options.parse_suggest(arguments)
        from labelcurve.training.jobs import suggest as job

        _answer(job.run(chosen, STARTED))


def audit(arguments: Sequence[str]) -> None:
    """Runs `audit`; ends as `train` does."""
    with _ending("no table was written"):
        chosen = embedding_options.parse_audit(arguments)
        from labelcurve.training.jobs import audit as job

        _answer(job.run(chosen, STARTED))


def _parsed(parse: Callable[[], T]) -> T:
    """The options. Of several processes only the first reports what is wrong with them."""
    if FIRST:
        return parse()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return parse()
        except LabelcurveError:
            sys.exit(1)


@contextmanager
def _ending(hint: str) -> Iterator[None]:
    """Ends a command that a signal stops, with its exit code and a hint."""
    interruption.install()
    try:
        files.check_temporary()
        yield
    except interruption.Stopped as stopped:
        for signum in interruption.CODES:  # it is ending already
            signal.signal(signum, signal.SIG_IGN)
        if FIRST:
            console.tell(f"\nstopped; {hint}")
        sys.exit(stopped.code)


def _answer(document: dict[str, Any] | None) -> None:
    if document is not None:  # of several processes, only the first has a document
        command.answer(document, partial(_show, document))


def _show(document: dict[str, Any]) -> None:
    """A table of what was made; `sweep`, `--dry-run` and `--self-test` have printed theirs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    if "audit" in document:
        for header in ("image", "label", "suggested", "score", "reason"):
            table.add_column(header, overflow="fold")
        for row in document["first"]:
            score = f"{row['score']:.2f}"
            table.add_row(row["path"], row["label"], row["suggested"], score, row["reason"])
        if document["doubtful"] > len(document["first"]):
            more = document["doubtful"] - len(document["first"])
            table.add_row(f"and {more:,} more", "", "", "", "")
    elif "extractor" in document:
        made = document["extractor"]
        for header in ("extractor", "epochs", "k-NN", "linear probe"):
            table.add_column(header, overflow="fold")
        judged = (_share(made["knn"]), _share(made["probe"]))
        table.add_row(made["path"], f"{made['epochs']:g}", *judged)
    elif "bundles" in document and "summary" not in document:
        variant = any("variant" in bundle for bundle in document["bundles"])
        for header in ("model", "precision" if variant else "labels", "accuracy", "path"):
            table.add_column(header, overflow="fold")
        for bundle in (*document["bundles"], *document.get("final", ())):
            made = bundle.get("variant", bundle)
            judged, what = (made["test"], "test") if made["test"] else (made["val"], "validation")
            labels = f"{bundle.get('n_labels_train', 0) + bundle.get('n_labels_val', 0):,}"
            kind = made["precision"] if variant else labels
            if "measured" in bundle:
                what += f" of {bundle['measured']['name']}"
            accuracy = f"{percent(judged['accuracy'])} ({what})"
            table.add_row(bundle["name"], kind, accuracy, bundle["path"])
    else:
        return
    # Names and labels are no markup: brackets in them are not style tags.
    Console(markup=False, emoji=False).print(table)


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)
