"""Entry point of every command: signals, errors, exit codes, and the result printed last.

0: done. 1: an error that is explained. 2: usage. 130, 143, 129: ended by Ctrl-C, SIGTERM, or a
closed terminal. 141: the reader of the output closed it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn

from labelcurve.bundle.errors import LabelcurveError, MissingExtra

JSON = "--json"
"""An option of every command: the result as JSON, also on a terminal."""


def enter(
    main: Callable[[Sequence[str]], None],
    arguments: Sequence[str] | None = None,
    *,
    extra: str | None = None,
    terminated: int = 128 + signal.SIGTERM,
) -> NoReturn:
    """Runs a command in its process and ends it.

    Args:
        main: takes the arguments; a `LabelcurveError` is printed without a traceback.
        arguments: without the command's name; by default those of the process.
        extra: the extra of the project that installs what the command imports.
        terminated: exit code after SIGTERM, while `main` has not taken that signal itself.
    """
    _open_standard_files()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 gets escapes, not a traceback.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Handlers unwind the stack, so that child processes are ended. The first process of a container
    # has no default handlers: without these the kernel drops its signals.
    for number, code in ((signal.SIGTERM, terminated), (signal.SIGHUP, 128 + signal.SIGHUP)):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _exit_with(code))
    given = sys.argv[1:] if arguments is None else arguments
    status = _status(main, [word for word in given if word != JSON], extra)
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_output()
        gone = isinstance(error, BrokenPipeError)
        status = status or (141 if gone else f"error: output cannot be written: {error.strerror}")
    sys.exit(status)


def _open_standard_files() -> None:
    """Opens closed standard streams on the null device: the next file would get their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def answer(document: object, show: Callable[[], object] = lambda: None) -> None:
    """Prints the result of a command last: a table on a terminal, otherwise one line of JSON.

    Args:
        document: what programs read.
        show: prints the same for people.

    Raises:
        LabelcurveError: it could not be written.
    """
    if JSON not in sys.argv and sys.stdout.isatty():
        show()
        return
    try:
        print(json.dumps(document), flush=True)
    except OSError as error:
        discard_output()
        raise LabelcurveError(
            f"all is done, but its result cannot be written to stdout: {error.strerror}"
        ) from error


def discard_output() -> None:
    """Redirects further output to the null device: Python would otherwise fail again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _status(
    main: Callable[[Sequence[str]], None], arguments: Sequence[str], extra: str | None
) -> int | str | None:
    """The exit status, or the message of an error."""
    try:
        _check_given(arguments)
        main(arguments)
    except SystemExit as ended:
        return ended.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except LabelcurveError as error:
        return f"error: {error}"
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        discard_output()
        return 141
    except OSError as error:
        if error.filename is not None:
            return f"error: {error.filename}: {error.strerror}"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        discard_output()  # the output that may have failed
        return f"error: {error.strerror}"
    except (ImportError, MemoryError) as error:
        # Errors of torch's libraries where `ulimit -v` or the container leaves no memory for them.
        if isinstance(error, MemoryError) or "failed to map segment" in str(error):
            return (
                f"error: no memory is left ({error}): allow the process more (`ulimit -v`, the "
                "container's limit)"
            )
        if not isinstance(error, ModuleNotFoundError) or extra is None or _is_ours(error.name):
            raise
        return f"error: {MissingExtra(error.name or '', extra)}"
    return 0


def _check_given(arguments: Sequence[str]) -> None:
    """Refuses empty arguments: as a path they would mean the current folder.

    Raises:
        LabelcurveError: one is empty, as an unset shell variable leaves it.
    """
    for before, word in zip(("", *arguments), arguments, strict=False):
        flag, equals, value = word.partition("=")
        if not word or (flag.startswith("--") and equals and not value):
            option = flag or (before if before.startswith("-") else "an argument")
            raise LabelcurveError(f"{option} is empty: is a shell variable unset?")


def _is_ours(module: str | None) -> bool:
    """Returns whether a missing module belongs to this package; images contain only parts of it."""
    return module is None or (module.startswith("labelcurve.") and module.count(".") > 1)


def _exit_with(code: int) -> Callable[[int, FrameType | None], None]:
    def handle(*_: object) -> None:
        raise SystemExit(code)

    return handle


def _reader_is_gone() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLERR)
    return any(event & select.POLLERR for _, event in poll.poll(0))
