"""The folder through which workers and their supervisor hear of each other."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path


class RunDir:
    """Private to one `serve`; it holds BentoML's metrics, its sockets and the workers' words."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics(self) -> Path:
        """PROMETHEUS_MULTIPROC_DIR."""
        return self.path / "metrics"

    def socket(self, name: str) -> str:
        """A ZeroMQ endpoint that only this user can reach."""
        return f"ipc://{self.path / name}"

    def ready(self) -> None:
        """Called by a worker whose models are warm."""
        (self.path / f"ready-{os.getpid()}").touch()

    def fail(self, message: str) -> None:
        """Called by a worker that cannot serve."""
        beside = self.path / f".failed-{os.getpid()}"
        beside.write_text(message)
        beside.rename(self.path / f"failed-{os.getpid()}")

    def n_ready(self) -> int:
        """Workers that said that they are ready."""
        return len(list(self.path.glob("ready-*")))

    def failure(self) -> str | None:
        """The message of a worker that failed."""
        return next((path.read_text() for path in self.path.glob("failed-*")), None)

    def follow_supervisor(self) -> None:
        """Has this worker end when its supervisor is killed (Linux; elsewhere it stays)."""
        if sys.platform == "linux":
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
