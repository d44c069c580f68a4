"""The commands `train`, `pretrain`, `sweep`, `quantize`, `plan`, `suggest`, `audit`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
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

    def run() -> dict[str, Any] | None:
        chosen = _parsed(given)
        # torch is imported only now: `--help` and typing errors answer at once.
        from labelcurve.training.jobs import selftest
        from labelcurve.training.jobs import train as train_job
        from labelcurve.training.runtime import distributed

        def work() -> dict[str, Any]:
            if chosen.self_test:
                return selftest.run(chosen.device)
            return train_job.run(chosen, STARTED)

        return distributed.run(work, chosen.device)

    _main(run, "bundles already published are kept, and the same command resumes from here")


def pretrain(arguments: Sequence[str]) -> None:
    """Runs `pretrain`; ends as `train` does."""

    def run() -> dict[str, Any] | None:
        chosen = _parsed(lambda: options.parse_pretrain(arguments))
        from labelcurve.training.jobs import pretrain as pretrain_job
        from labelcurve.training.runtime import distributed

        return distributed.run(lambda: pretrain_job.run(chosen, STARTED), chosen.device)

    _main(run, "the same command resumes from here")


def sweep(arguments: Sequence[str]) -> None:
    """Runs `sweep`; ends as `train` does."""

    def run() -> dict[str, Any]:
        chosen, others = sweep_options.parse_sweep(arguments)
        from labelcurve.training.jobs import sweep as sweep_job

        return sweep_job.run(chosen, others)

    _main(run, "bundles already published are kept, and the same command resumes from here")


def quantize(arguments: Sequence[str]) -> None:
    """Runs `quantize`; ends as `train` does."""

    def run() -> dict[str, Any]:
        chosen = options.parse_quantize(arguments)
        from labelcurve.training.jobs import quantize as quantize_job

        return quantize_job.run(chosen)

    _main(run, "bundles already published are kept")


def plan(arguments: Sequence[str]) -> None:
    """Runs `plan`; exits as `train` does."""

    def run() -> dict[str, Any]:
        chosen = embedding_options.parse_plan(arguments)
        from labelcurve.training.jobs import plan as plan_job

        return plan_job.run(chosen, STARTED)

    _main(run, "no page was written")


def suggest(arguments: Sequence[str]) -> None:
    """Runs `suggest`; exits as `train` does."""

    def run() -> dict[str, Any]:
        chosen = embedding_options.parse_suggest(arguments)
        from labelcurve.training.jobs import suggest as suggest_job

        return suggest_job.run(chosen, STARTED)

    _main(run, "nothing was written")


def audit(arguments: Sequence[str]) -> None:
    """Runs `audit`; exits as `train` does."""

    def run() -> dict[str, Any]:
        chosen = embedding_options.parse_audit(arguments)
        from labelcurve.training.jobs import audit as audit_job

        return audit_job.run(chosen, STARTED)

    _main(run, "no table was written")


def _parsed(parse: Callable[[], T]) -> T:
    """The options. Of several processes only the first reports what is wrong with them."""
    if FIRST:
        return parse()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return parse()
        except LabelcurveError:
            sys.exit(1)


def _main(run: Callable[[], dict[str, Any] | None], hint: str) -> None:
    interruption.install()
    try:
        files.check_temporary()
        document = run()
        if document is not None:  # of several processes, only the first has a document
            command.answer(document, partial(_show, document))
    except interruption.Stopped as stopped:
        for signum in interruption.CODES:  # it is ending already
            signal.signal(signum, signal.SIG_IGN)
        if FIRST:
            console.tell(f"\nstopped; {hint}")
        sys.exit(stopped.code)


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
    Console().print(table)


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)
