"""The commands `train`, `pretrain` and `quantize`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from bundle.errors import LabelcurveError
from training import interruption, options

STARTED = time.monotonic()
"""Of the process, near enough."""


def main() -> None:
    """Runs `train`.

    Exits with 1 on an error that is explained, 2 on unknown options, 130 on Ctrl-C and 143 on
    SIGTERM; bundles that were published before stay.
    """

    def run() -> dict[str, Any]:
        chosen = options.parse()
        # torch is imported only now: `--help` and typing errors answer at once.
        from training import job, selftest

        if chosen.self_test:
            return selftest.run(chosen.device)
        return job.run(chosen, STARTED)

    _main(run, "bundles that were published before stay, and the same command goes on from here")


def pretrain() -> None:
    """Runs `pretrain`; exits as `train` does."""

    def run() -> dict[str, Any]:
        chosen = options.parse_pretrain()
        from training import pretrain_job

        return pretrain_job.run(chosen, STARTED)

    _main(run, "the same command goes on from here")


def quantize() -> None:
    """Runs `quantize`; exits as `train` does."""

    def run() -> dict[str, Any]:
        chosen = options.parse_quantize()
        from training import quantize_job

        return quantize_job.run(chosen)

    _main(run, "bundles that were published before stay")


def _main(run: Callable[[], dict[str, Any]], hint: str) -> None:
    # As the first process of a container, too, where the kernel ignores SIGTERM without this.
    interruption.install()
    try:
        document = run()
    except LabelcurveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except interruption.Stopped as stopped:
        print(f"\nstopped; {hint}", file=sys.stderr)
        sys.exit(stopped.code)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
