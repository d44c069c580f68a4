"""A lock that is released with its process: two runs never write the same thing."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from labelcurve.bundle.errors import LabelcurveError


@contextmanager
def hold(
    path: Path, busy: str, *, wait: bool = False, say: Callable[[str], None] = print
) -> Iterator[None]:
    """Holds the lock file `path`, and removes it at the end.

    Args:
        path: its folder is made.
        busy: the message when another process holds it; `{holder}` is who.
        wait: until the other process is done, instead of raising.
        say: receives `busy` when it waits, and that a file system has no locks.

    Raises:
        LabelcurveError: another process holds it, or it cannot be written.
    """
    reported = False
    while True:
        descriptor = _open(path)
        if _taken(descriptor, path, say) and _is(descriptor, path):
            break
        message = busy.format(holder=_holder(descriptor))
        os.close(descriptor)
        if not path.exists():  # its holder is done
            continue
        if not wait:
            raise LabelcurveError(message)
        if not reported:
            say(message)
            reported = True
        time.sleep(0.2)
    try:
        # For the message of the next process; without disk space for it the lock still holds.
        with suppress(OSError):
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def use(path: Path) -> int | None:
    """Marks a file as in use, as long as the process lives or the descriptor is open.

    Returns:
        The descriptor; None if the file no longer exists.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if _is(descriptor, path):
        return descriptor
    os.close(descriptor)
    return None


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Yields whether no process has marked the file with `use`; meanwhile none can."""
    descriptor, free = None, True
    try:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                free = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        yield free
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise LabelcurveError(
            f"{path} cannot be written: {error.strerror} for user {os.geteuid()}. Change the owner "
            "of the folder or the user (docker: --user), make room, or name another folder (--out, "
            "--cache)"
        ) from error


def _taken(descriptor: int, path: Path, say: Callable[[str], None]) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        say(f"{path}: this file system has no locks ({error.strerror}): continuing without one")
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Returns whether the open file is still the one at the path: a holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
