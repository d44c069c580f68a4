"""A bar with an estimate, on a terminal; where the output goes elsewhere, nothing."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

EVERY = 0.2
"""Seconds between two drawings."""


class Bar:
    """Shows how far a long work is, below the rows that are printed meanwhile.

    Args:
        title: of the work.
        console: by default the standard output.
    """

    def __init__(self, title: str, console: Console | None = None) -> None:
        console = console or Console()
        self.shown = console.is_terminal
        """Whether there is a terminal to draw on."""
        self._drawn = -EVERY
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

    def update(self, done: float, left: float) -> None:
        """Draws anew, a few times a second at most.

        Args:
            done: share of the work, from 0 to 1.
            left: seconds, estimated.
        """
        if self._progress is None or time.monotonic() - self._drawn < EVERY:
            return
        self._drawn = time.monotonic()
        shown = f"{duration(left)} left" if done > 0.01 else ""
        self._progress.update(self._task, completed=done, left=shown, refresh=True)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
