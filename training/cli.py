"""The commands `train`, `pretrain` and `quantize`."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import tyro

from bundle.errors import LabelcurveError
from training.options import Options, PretrainOptions, QuantizeOptions

STARTED = time.monotonic()
"""Of the process, near enough."""


class Terminated(BaseException):
    """SIGTERM, raised where the job stands, so that it tidies up."""


def _terminated(*_: object) -> None:
    raise Terminated


def main() -> None:
    """Runs `train`.

    Exits with 1 on an error that is explained, 2 on unknown options, 130 on Ctrl-C and 143 on
    SIGTERM; bundles that were published before stay.
    """

    def run() -> dict[str, Any]:
        options = tyro.cli(Options, prog="train")
        # torch is imported only now: `--help` and typing errors answer at once.
        from training import job, selftest

        if options.self_test:
            return selftest.run(options.device)
        return job.run(options, STARTED)

    _main(run, "bundles that were published before stay")


def pretrain() -> None:
    """Runs `pretrain`; exits as `train` does."""

    def run() -> dict[str, Any]:
        options = tyro.cli(PretrainOptions, prog="pretrain")
        from training import pretrain_job

        return pretrain_job.run(options, STARTED)

    _main(run, "the same command goes on from the last checkpoint")


def quantize() -> None:
    """Runs `quantize`; exits as `train` does."""

    def run() -> dict[str, Any]:
        options = tyro.cli(QuantizeOptions, prog="quantize")
        from training import quantize_job

        return quantize_job.run(options)

    _main(run, "bundles that were published before stay")


def _main(run: Callable[[], dict[str, Any]], hint: str) -> None:
    # As the first process of a container, too, where the kernel ignores SIGTERM without this.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        document = run()
    except LabelcurveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, Terminated) as stop:
        print(f"\nstopped; {hint}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
