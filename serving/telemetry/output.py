"""Non-blocking standard output and error.

The reader of a pipe or terminal may stop reading. Once it is full, the next line would block the
event loop, and with it every response.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

logger = logging.getLogger("labelcurve")

HELD_BYTES = 2**20
"""Size of the buffer for a slow reader; lines beyond it are dropped and counted."""

CLOSE_SECONDS = 1.0
"""Time limit for flushing the last lines when the process ends."""


class Output(io.TextIOBase):
    """A text stream whose lines are written to a file descriptor by a separate thread."""

    def __init__(self, descriptor: int, dropped: Callable[[int], None] | None = None) -> None:
        """Starts the thread.

        Args:
            descriptor: where the lines go.
            dropped: called with the number of lines that were not written.
        """
        self._descriptor = descriptor
        self._dropped = dropped or (lambda count: None)
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._taken = self._written = 0
        """Bytes, each counter written by one side only."""
        self._lost = 0
        """Lines that were dropped."""
        self._idle = Event()
        self._idle.set()
        Thread(target=self._work, name="output", daemon=True).start()

    def write(self, text: str) -> int:
        """Queues lines, or drops them once `HELD_BYTES` are queued; never blocks."""
        data = text.encode(errors="backslashreplace")
        if self._taken - self._written + len(data) > HELD_BYTES:
            lines = text.count("\n") or 1
            self._lost += lines
            self._dropped(lines)
        elif data:
            self._taken += len(data)
            self._idle.clear()
            self._queue.put(data)
        return len(text)

    def flush(self) -> None:
        """Does nothing, since the thread writes."""

    def fileno(self) -> int:
        """The descriptor that lines are written to."""
        return self._descriptor

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Returns whether the output is a terminal."""
        return os.isatty(self._descriptor)

    def finish(self) -> None:
        """Waits up to `CLOSE_SECONDS` until everything is written."""
        end = time.monotonic() + CLOSE_SECONDS
        while self._written < self._taken and time.monotonic() < end:
            self._idle.wait(0.02)

    def _work(self) -> None:
        said = 0
        while True:
            data = self._queue.get()
            written = self._put(data)
            self._written += len(data)
            if self._queue.empty():
                if written and (lost := self._lost) != said:
                    logger.warning("%d log lines were dropped: nothing read them", lost - said)
                    said = lost
                self._idle.set()

    def _put(self, data: bytes) -> bool:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except OSError:  # no reader left: a closed pipe or terminal
                self._dropped(data.count(b"\n") or 1)
                return False
        return True


def install(dropped: Callable[[int], None] | None = None) -> None:
    """Makes standard output and error of this process non-blocking."""
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout = Output(1, dropped)
    # In the order in which they were written, where both go to the same place.
    sys.stderr = sys.stdout if os.path.sameopenfile(1, 2) else Output(2, dropped)
    for output in {sys.stdout, sys.stderr}:
        atexit.register(output.finish)
