"""Ends a run on SIGTERM, Ctrl-C or a closed terminal, soon and where it can be resumed.

While a loop with checkpoints runs, a signal waits for the end of the step, where the checkpoint is
written. Elsewhere, and at the second Ctrl-C, it ends the run where it stands. A process that has
not ended some seconds after SIGTERM, because a step takes long, ends without waiting for it.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

GRACE = 7.0
"""Seconds after SIGTERM; orchestrators kill after ten."""

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


_leftovers: list[Path] = []
"""Folders that are removed with the process."""


class Stopped(BaseException):
    """A signal ended the run, with this exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


_came: signal.Signals | None = None
_waits = False


def install() -> None:
    """Handles the signals of `CODES` from now on; for commands, in their main thread."""
    for signum in CODES:
        if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # nohup
            signal.signal(signum, _handle)
    read, write = os.pipe()
    os.set_blocking(write, False)
    # Bytes arrive here even while the main thread is inside one long operation of torch.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()


def remove_at_end(folder: Path) -> None:
    """Removes a folder when the process ends, also where it ends without waiting for a step."""
    _leftovers.append(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the first signal waits until `pending` is asked for; it is raised at the end."""
    global _waits
    before, _waits = _waits, True
    try:
        yield
    finally:
        _waits = before
    if pending() and not before:
        stop()


def pending() -> bool:
    """Returns whether a signal is pending."""
    return _came is not None


def came() -> int:
    """The number of the pending signal; 0 for none."""
    return _came or 0


def come(signum: signal.Signals) -> None:
    """Records a signal as pending, as if this process had received it."""
    global _came
    _came = signum


def stop() -> NoReturn:
    """Ends the run by the pending signal.

    Raises:
        Stopped: always.
    """
    global _came
    code = CODES[_came or signal.SIGINT]
    _came = None
    raise Stopped(code)


def _handle(signum: int, _: object) -> None:
    global _came
    # A launcher may forward a SIGTERM that all its processes have already received.
    again, _came = _came is not None and signum == signal.SIGINT, signal.Signals(signum)
    if not _waits or again:
        stop()


def _watch(pipe: int) -> None:
    while received := os.read(pipe, 1):
        if received[0] == signal.SIGTERM:
            break
    time.sleep(GRACE)
    message = "\nstopped in the middle of a step; the last checkpoint is what remains of the run\n"
    with suppress(OSError):  # its reader or the terminal may be gone
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())
    for folder in _leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(CODES[signal.SIGTERM])
