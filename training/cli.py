"""The command `train`."""

from __future__ import annotations

import json
import signal
import sys

import tyro

from bundle.errors import LabelcurveError
from training.options import Options


class Terminated(BaseException):
    """SIGTERM, raised where the job stands, so that it tidies up."""


def _terminated(*_: object) -> None:
    raise Terminated


def main() -> None:
    """Runs the job.

    Exits with 1 on an error that is explained, 2 on unknown options, 130 on Ctrl-C and 143 on
    SIGTERM; bundles that were published before stay.
    """
    # As the first process of a container, too, where the kernel ignores SIGTERM without this.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        options = tyro.cli(Options, prog="train")
        # torch is imported only now: `--help` and typing errors answer at once.
        from training import job

        document = job.run(options)
    except LabelcurveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, Terminated) as stop:
        print("\nstopped; bundles that were published before stay", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
