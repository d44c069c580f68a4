"""Child processes that never outlive the command that started them."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import psutil

from labelcurve.bundle.errors import LabelcurveError

_libc = ctypes.CDLL(None)

PATIENCE = 10.0
"""Seconds between SIGTERM and SIGKILL."""


def labelcurve(*arguments: str) -> tuple[str, ...]:
    """`labelcurve ARGUMENTS` by this interpreter, whatever lies in the working directory."""
    return sys.executable, "-P", "-m", "labelcurve", *arguments


def trained(arguments: Sequence[str], **environment: str) -> subprocess.Popen[str]:
    """Start a command of training outside the repository: a commit would change the manifest."""
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"GIT_DIR": os.devnull} | environment,
    )


def document(process: subprocess.Popen[str], seconds: float) -> tuple[dict[str, Any], str]:
    """Wait for a command; return the JSON document that it ends with, and all that it printed.

    Raises:
        LabelcurveError: it failed, or did not end in time.
    """
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise LabelcurveError(f"a command did not end within {seconds:g} s") from error
    finally:
        process.kill()
    if process.returncode:
        raise LabelcurveError(f"a command failed: {stderr.strip()}")
    return json.loads(stdout.splitlines()[-1]), stdout


def succeed(*command: str) -> None:
    """Run a command to its end.

    Raises:
        LabelcurveError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise LabelcurveError(f"`{' '.join(command[:3])}` failed: {done.stderr.strip()[-800:]}")


def environment(folder: Path, python: str, packages: Sequence[str]) -> Path:
    """Make a virtual environment with packages; return its interpreter.

    Raises:
        LabelcurveError: uv is not installed, or the packages cannot be.
    """
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise LabelcurveError("no command `uv`, which makes the environments: pip install uv")
    interpreter = folder / "bin" / "python"
    succeed(uv, "venv", "--quiet", "--python", python, str(folder))
    succeed(uv, "pip", "install", "--quiet", "--python", str(interpreter), *packages)
    return interpreter


def _follow() -> None:
    """Deliver SIGTERM to the child when this process dies: PR_SET_PDEATHSIG."""
    _libc.prctl(1, signal.SIGTERM)


@contextmanager
def child(
    arguments: Sequence[str],
    output: IO[bytes] | int | None,
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a new session, and stop it and its descendants on exit.

    Ctrl-C in a terminal therefore reaches only this process, which stops the child in order. Stdout
    and stderr go to `output`, a file or `subprocess.PIPE`; environment and working folder are by
    default those of this process.
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
    """Stop a process and its descendants: SIGTERM, then SIGKILL after `PATIENCE` seconds."""
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
            with suppress(psutil.NoSuchProcess):
                if relative.pid != process.pid:
                    relative.terminate()
        for relative in _running(family, PATIENCE / 2):
            with suppress(psutil.NoSuchProcess):
                relative.kill()
        _running(family, PATIENCE / 2)


def tree(pid: int | None) -> list[psutil.Process]:
    """List the process `pid` and its descendants; empty when it is unknown or gone."""
    if pid is None:
        return []
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int | None) -> float | None:
    """CPU time used by a process tree so far; None when it cannot be seen."""
    try:
        times = [process.cpu_times() for process in tree(pid)]
    except psutil.Error:
        return None
    return sum(time.user + time.system for time in times) if times else None


def memory_mb(pid: int | None) -> float | None:
    """Memory of a process tree in MB (1e6 bytes): proportional set size on Linux, else resident
    set size, which counts shared pages more than once. None when it cannot be seen."""
    total = 0
    try:
        for process in tree(pid):
            full = process.memory_full_info()
            total += getattr(full, "pss", full.rss)
    except psutil.Error:
        return None
    return total / 1e6 or None


def _running(family: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait up to `seconds` and list the processes that still run; zombies do not."""
    end = time.monotonic() + seconds
    while True:
        alive = [process for process in family if is_running(process)]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.02)


def is_running(process: psutil.Process) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block a second Ctrl-C until everything is stopped."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
