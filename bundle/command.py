"""Entry point of every command: numbers of its options, signals, errors, exit codes, its result.

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
from dataclasses import dataclass, fields
from io import TextIOWrapper
from math import inf
from types import FrameType
from typing import Any, NoReturn, get_type_hints

from labelcurve.bundle.errors import LabelcurveError, MissingExtra
from labelcurve.bundle.machine import cores

JSON = "--json"
"""An option of every command: the result as JSON, also on a terminal."""
MOST_A_CORE = 8
"""Processes or threads for each core, at most: more of them only take memory."""


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


def _fill_help() -> None:
    """Lets tyro fill the lines of its help.

    It would keep the line breaks of docstrings whose lines are indented or begin with no letter, so
    that on a terminal of another width each of them left a short line. The function is a private
    one: a release of tyro without it keeps the breaks.
    """
    try:
        from tyro import _strings
    except ImportError:
        return

    def paragraphs(helptext: str) -> str:
        return "\n\n".join(" ".join(part.split()) for part in helptext.split("\n\n")).strip()

    _strings.remove_single_line_breaks = paragraphs


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
        if {"-h", "--help"} & set(arguments):
            _fill_help()
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


@dataclass(frozen=True)
class Within:
    """Annotates an option, or each item of a tuple: `epochs: Annotated[int, Within(1)] = 6`.

    None is always allowed; NaN and infinity never are.
    """

    least: float = -inf
    most: float = inf
    above: bool = False
    """Whether `least` itself is excluded."""
    below: bool = False
    """Whether `most` itself is excluded."""
    note: str = ""
    """Unit or example at the end of the message."""

    def holds(self, value: float) -> bool:
        """Returns whether the value is allowed."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and -inf < value < inf

    def __str__(self) -> str:
        least, most = shown(self.least), shown(self.most)
        if self.most == inf:
            text = f"values above {least}" if self.above else f"{least} and more"
        elif self.above:
            text = f"values between {least} and {most}"
            if not self.below:
                text = f"values above {least} and up to {most}"
        else:
            text = f"{least} to {most}"
        return f"{text} {self.note}".rstrip()


@dataclass(frozen=True)
class PerCore:
    """Annotates an option that starts so many processes or threads."""

    def holds(self, value: float) -> bool:
        """Returns whether the value is allowed."""
        return 1 <= value <= MOST_A_CORE * cores()

    def __str__(self) -> str:
        n = cores()
        return (
            f"1 to {MOST_A_CORE * n}, {MOST_A_CORE} for each of the {n} cores that this process "
            "may use"
        )


def check(options: Any) -> None:
    """Check the annotated numbers of a dataclass of options.

    Raises:
        LabelcurveError: names the flag, the value and what is allowed.
    """
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        for bound in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(bound, Within | PerCore):
                value = getattr(options, field.name)
                for each in value if isinstance(value, tuple) else (value,):
                    if each is not None and not bound.holds(each):
                        flag = field.name.replace("_", "-")
                        raise LabelcurveError(f"--{flag} {shown(each)}: allowed are {bound}")


def shown(value: float) -> str:
    """A number as a person would type it."""
    return str(value) if isinstance(value, int) else f"{value:g}"
