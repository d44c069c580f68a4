"""Output of commands and a progress bar. A training survives a closed pipe, a full disk and a
closed terminal."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from labelcurve.bundle.command import discard_output
from labelcurve.bundle.manifest import Epoch
from labelcurve.bundle.text import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EPOCHS = (
    "epoch       loss  accuracy  val loss  val accuracy  val F1       lr  images/s  seconds"
    "     left"
)
"""Columns of `epoch`."""

EVERY = 0.2
"""Seconds between two drawings of a bar."""

_lost = False
"""Whether it was said that a line could not be written."""


def say(text: str) -> None:
    """Prints a line at once; where that fails, says so once on stderr and continues.

    What a full disk does not take is written with a later line, once there is room.
    """
    global _lost
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:  # the encoding of the locale, or a path that is not UTF-8
            print(text.encode("ascii", "backslashreplace").decode(), flush=True)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            discard_output()
        if not _lost:
            _lost = True
            tell(f"warning: output cannot be written ({error.strerror}); the work continues")


def tell(text: str) -> None:
    """Prints a line on stderr, if that can be done."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


class Bar:
    """Shows the progress of a long task, below the rows that are printed meanwhile.

    Args:
        console: by default the standard output.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        console = console or Console()
        self.shown = console.is_terminal
        """Whether there is a terminal to draw on."""
        self._began, self._drawn = time.monotonic(), -EVERY
        self._progress: Progress | None = None
        if self.shown:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
                console=console,
                transient=True,
                auto_refresh=False,
            )
            self._task = self._progress.add_task(title, total=1.0, left="")

    def update(self, done: float, left: float | None = None) -> None:
        """Redraws the bar, a few times a second at most.

        Args:
            done: share of the task, from 0 to 1.
            left: seconds, estimated; None takes as many for each share as up to now.
        """
        now = time.monotonic()
        if self._progress is None or now - self._drawn < EVERY:
            return
        self._drawn = now
        if left is None:
            left = (now - self._began) * (1 / max(done, 1e-6) - 1)
        shown = f"{duration(left)} left" if done > 0.01 else ""
        self._progress.update(self._task, completed=done, left=shown, refresh=True)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()


def epoch(row: Epoch, of: str, left: float) -> str:
    """A line below `EPOCHS`.

    Args:
        row: an epoch of fine-tuning.
        of: `/` and the number of epochs, where it is known.
        left: seconds to go.
    """
    judged = zip((row.val_loss, row.val_accuracy, row.val_f1), (9, 13, 7), strict=True)
    figures = [f"{'-':>{width}}" if x is None else f"{x:{width}.4f}" for x, width in judged]
    return (
        f"{row.epoch:3d}{of:<4} {row.train_loss:8.4f} {row.train_accuracy:9.4f} "
        f"{' '.join(figures)} {row.lr:8.5f} "
        f"{row.images_per_s:9.0f} {row.seconds:8.1f} {left:6.0f} s"
    )
