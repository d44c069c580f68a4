"""What commands print. A training outlives whoever reads it: `| head`, a full disk, a closed
terminal."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from bundle.errors import LabelcurveError

_lost = False
"""Whether it was said that a line could not be written."""


def say(text: str) -> None:
    """Prints a line at once; where that fails, says so once on stderr and goes on.

    What a full disk does not take is written with a later line, once there is room.
    """
    global _lost
    try:
        print(text, flush=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            _end()
        if not _lost:
            _lost = True
            tell(f"warning: output cannot be written ({error.strerror}); the work goes on")


def tell(text: str) -> None:
    """Prints a line on stderr, if that can be done."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def result(document: str) -> None:
    """Prints the last line of a command, which programs read.

    Raises:
        LabelcurveError: it could not be written.
    """
    try:
        print(document, flush=True)
    except OSError as error:
        _end()
        raise LabelcurveError(
            f"all is done, but its result cannot be written to stdout: {error.strerror}"
        ) from error


def _end() -> None:
    """Lets all further output go nowhere: Python would try again, and fail, as it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
