"""The command `train`."""

from __future__ import annotations

import json
import sys

import tyro

from bundle.errors import LabelcurveError
from training.options import Options


def main() -> None:
    """Runs the job; exits with 1 on an error that is explained, 2 on unknown options."""
    try:
        options = tyro.cli(Options, prog="train")
        # torch is imported only now: `--help` and typing errors answer at once.
        from training import job

        document = job.run(options)
    except LabelcurveError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nstopped; bundles that were published before stay", file=sys.stderr)
        sys.exit(130)
    print(json.dumps(document))


if __name__ == "__main__":
    main()
