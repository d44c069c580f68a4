"""The commands `train`, `pretrain`, `sweep` and `quantize`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from bundle import files
from bundle.errors import LabelcurveError
from bundle.machine import show_version
from training import STARTED, interruption, options, output

T = TypeVar("T")

FIRST = os.environ.get("RANK", "0") == "0"
"""Whether this process is the first of several, or the only one."""


def main() -> None:
    """Runs `train`.

    Exits with 1 on an error that is explained, 2 on unknown options, 130 on Ctrl-C, 143 on
    SIGTERM and 129 where the terminal was closed; bundles that were published before stay.
    """

    def run() -> dict[str, Any] | None:
        chosen = _parsed(options.parse)
        # torch is imported only now: `--help` and typing errors answer at once.
        from training import distributed, job, selftest

        def work() -> dict[str, Any]:
            if chosen.self_test:
                return selftest.run(chosen.device)
            return job.run(chosen, STARTED)

        return distributed.run(work, chosen.device)

    _main(run, "bundles that were published before stay, and the same command goes on from here")


def pretrain() -> None:
    """Runs `pretrain`; exits as `train` does."""

    def run() -> dict[str, Any] | None:
        chosen = _parsed(options.parse_pretrain)
        from training import distributed, pretrain_job

        return distributed.run(lambda: pretrain_job.run(chosen, STARTED), chosen.device)

    _main(run, "the same command goes on from here")


def sweep() -> None:
    """Runs `sweep`; exits as `train` does."""

    def run() -> dict[str, Any]:
        chosen, others = options.parse_sweep()
        from training import sweep

        return sweep.run(chosen, others)

    _main(run, "bundles that were published before stay, and the same command goes on from here")


def quantize() -> None:
    """Runs `quantize`; exits as `train` does."""

    def run() -> dict[str, Any]:
        chosen = options.parse_quantize()
        from training import quantize_job

        return quantize_job.run(chosen)

    _main(run, "bundles that were published before stay")


def _parsed(parse: Callable[[], T]) -> T:
    """The options. What is wrong with them, the first of several processes says alone."""
    if FIRST:
        return parse()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return parse()
        except LabelcurveError:
            sys.exit(1)


def _main(run: Callable[[], dict[str, Any] | None], hint: str) -> None:
    # As the first process of a container, too, where the kernel ignores SIGTERM without this.
    interruption.install()
    show_version()
    try:
        files.check_temporary()
        document = run()
        if document is not None:  # of several processes, the first has it
            output.result(json.dumps(document))
    except LabelcurveError as error:
        output.tell(f"error: {error}")
        sys.exit(1)
    except (ImportError, MemoryError) as error:
        # What torch's libraries say where `ulimit -v` or the container leaves no room for them.
        if isinstance(error, ImportError) and "failed to map segment" not in str(error):
            raise
        output.tell(
            f"error: no memory is left ({error}): allow the process more (`ulimit -v`, the "
            "container's limit)"
        )
        sys.exit(1)
    except interruption.Stopped as stopped:
        for signum in interruption.CODES:  # it ends already
            signal.signal(signum, signal.SIG_IGN)
        if FIRST:
            output.tell(f"\nstopped; {hint}")
        sys.exit(stopped.code)
