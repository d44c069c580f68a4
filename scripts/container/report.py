"""One line for each fact that was checked."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from container.engine import tail


class Report:
    """Counts and prints."""

    def __init__(self) -> None:
        self.passed = self.failed = 0

    def check(self, what: str, holds: object, detail: object = "") -> bool:
        """Prints a line for a fact that must hold."""
        if holds:
            self.passed += 1
            print(f"ok {what}", flush=True)
        else:
            self.failed += 1
            print(f"FAILED {what}", *(["\n   ", detail] if detail else []), flush=True)
        return bool(holds)

    def ran(self, what: str, done: subprocess.CompletedProcess[str]) -> bool:
        """Prints a line for a command that must have succeeded."""
        return self.check(what, done.returncode == 0, tail(done.stdout + done.stderr))

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Any exception inside is one failed check."""
        try:
            yield
        except Exception as error:  # the checks after this one still say something
            self.check(what, False, f"{type(error).__name__}: {error}")
