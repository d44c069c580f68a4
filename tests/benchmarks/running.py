"""Commands as a user runs them: in a separate process, and interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from threading import Timer

import psutil

from labelcurve.benchmarks.harness.processes import is_running


@dataclass(frozen=True)
class Ended:
    status: int
    output: str
    children: list[psutil.Process]
    """Child processes at the time of the interruption."""

    def survivors(self) -> list[psutil.Process]:
        return [process for process in self.children if is_running(process)]


def interrupted(module: str, arguments: list[str], marker: str, number: signal.Signals) -> Ended:
    """Runs `python -m MODULE` until it prints `marker`, then sends it a signal."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    guard = Timer(240, process.kill)
    guard.start()
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if marker in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        rest, _ = process.communicate()
        return Ended(process.returncode, "".join(lines) + rest, children)
    finally:
        guard.cancel()
