"""Child processes that never outlive the command that started them."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

from bundle.errors import LabelcurveError

_libc = ctypes.CDLL(None)

PATIENCE = 10.0
"""Seconds that a process gets to end by itself before it is killed."""


def command(
    name: str,
    remedy: str = "install labelcurve with the extra that brings it (train, serve or bench)",
) -> str:
    """The command `name` of the environment that this interpreter belongs to, or of the system.

    Raises:
        LabelcurveError: it is not installed.
    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise LabelcurveError(f"no command `{name}` beside {sys.executable}: {remedy}")
    return found


def _follow() -> None:
    """Has the child end when this process is killed."""
    pr_set_pdeathsig = 1
    _libc.prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextmanager
def child(
    arguments: Sequence[str],
    output: IO[bytes] | int | None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a session of its own, and ends it and its descendants on the way out.

    Ctrl-C in a terminal therefore reaches only this process, which ends the child in order.

    Args:
        arguments: the command.
        output: where stdout and stderr go: a file, or `subprocess.PIPE`.
        environment: of the command; None takes this process's.
        folder: that it runs in; None takes this process's.
    """
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=folder,
        start_new_session=True,
        preexec_fn=_follow if sys.platform == "linux" else None,
    )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all its descendants: SIGTERM, then SIGKILL after `PATIENCE` seconds."""
    with _uninterrupted():
        family = tree(process.pid)
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            family += tree(process.pid)
            process.kill()
            process.wait()
        for relative in family:
            if relative.pid != process.pid:
                _signal(relative, signal.SIGTERM)
        for relative in _running(family, PATIENCE / 2):
            _signal(relative, signal.SIGKILL)
        _running(family, PATIENCE / 2)


def tree(pid: int) -> list[psutil.Process]:
    """The process `pid` and its descendants; empty when it is gone."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a process tree has used so far; None when it cannot be seen."""
    try:
        times = [process.cpu_times() for process in tree(pid)]
    except psutil.Error:
        return None
    return sum(time.user + time.system for time in times) if times else None


def memory_mb(pid: int) -> float | None:
    """Memory of a process tree in MB: proportional where the system tells (Linux), else resident,
    which counts what processes share more than once. None when it cannot be seen."""
    total = 0
    try:
        for process in tree(pid):
            full = process.memory_full_info()
            total += getattr(full, "pss", full.rss)
    except psutil.Error:
        return None
    return total / 2**20 or None


def end_on_signals() -> None:
    """Makes SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that children are ended."""
    signal.signal(signal.SIGTERM, _exit)
    signal.signal(signal.SIGHUP, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _running(family: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that still run after at most `seconds`; what only waits to be reaped does not."""
    end = time.monotonic() + seconds
    while True:
        alive = [process for process in family if is_running(process)]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.02)


def is_running(process: psutil.Process) -> bool:
    """Whether a process exists and is more than an entry that nobody has reaped."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds a second Ctrl-C off until everything is stopped."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
