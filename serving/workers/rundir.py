"""The folder through which workers and their supervisor communicate."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labelcurve.bundle.errors import LabelcurveError

PREFIX = "labelcurve-"

SOCKET_BYTES = 100
"""Maximum length of a Unix socket's path; the system allows 107 (104 on macOS)."""

logger = logging.getLogger("labelcurve")

RUN_DIR = "LABELCURVE_RUN_DIR"
"""The environment variable in which a worker finds the folder."""


class RunDir:
    """Private to one `serve`; it holds BentoML's metrics, its sockets and the workers' messages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextmanager
    def temporary(cls) -> Iterator[RunDir]:
        """One in the folder for temporary files, removed at the end.

        Those that a killed `serve` of this user left behind are also removed: a lock that ends with
        the process distinguishes them from those in use.

        Raises:
            LabelcurveError: no such folder can be written.
        """
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = (folder / ".lock").open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / ".lock").rename(folder / "lock")
            (folder / "metrics").mkdir()
        except OSError as error:
            raise LabelcurveError(
                f"no folder for temporary files can be written: {error}; set TMPDIR to another "
                "(docker: --tmpfs /tmp)"
            ) from error
        run_dir = cls(folder)
        try:
            if (excess := len(os.fsencode(folder / "control")) - SOCKET_BYTES) > 0:
                raise LabelcurveError(
                    f"the folder for temporary files {folder.parent} has too long a name for "
                    f"sockets, by {excess} bytes: set TMPDIR to another"
                )
            with lock:
                cls._remove_stale(folder.parent)
                yield run_dir
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @staticmethod
    def _remove_stale(root: Path) -> None:
        for path in root.glob(f"{PREFIX}*/lock"):
            try:
                if path.parent.stat().st_uid != os.getuid():
                    continue
                with path.open() as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent, ignore_errors=True)
            except OSError:  # in use, or already removed
                continue

    @classmethod
    def from_environment(cls) -> RunDir | None:
        """Returns the folder of this worker; None when it was started by hand."""
        path = os.environ.get(RUN_DIR)
        return cls(Path(path)) if path else None

    @property
    def metrics(self) -> Path:
        """PROMETHEUS_MULTIPROC_DIR."""
        return self.path / "metrics"

    def socket(self, name: str) -> str:
        """A ZeroMQ endpoint that only this user can reach."""
        return f"ipc://{self.path / name}"

    def ready(self) -> None:
        """Called by a worker whose models are warm."""
        self._say(f"ready-{os.getpid()}", "")

    def fail(self, message: str) -> None:
        """Called by a worker that cannot serve."""
        self._say(f"failed-{os.getpid()}", message)

    def serves(self, name: str, version: str) -> None:
        """Called by a worker when a version of a model begins to answer."""
        self._say(f"serves-{name}", version)

    def _say(self, name: str, text: str) -> None:
        """Writes a file atomically; neither a full disk nor a removed folder stops the service."""
        temporary = self.path / f".{name}-{os.getpid()}"
        try:
            self.path.mkdir(0o700, parents=True, exist_ok=True)
            temporary.write_text(text, errors="backslashreplace")  # of paths
            temporary.rename(self.path / name)
        except OSError as error:
            logger.warning("cannot write %s: %s. The service continues", self.path / name, error)

    def served(self) -> dict[str, str]:
        """Version by name of what workers served last."""
        paths = self.path.glob("serves-*")
        return {path.name.removeprefix("serves-"): path.read_text() for path in paths}

    def n_ready(self) -> int:
        """Workers that reported to be ready."""
        return len(list(self.path.glob("ready-*")))

    def failure(self, pid: int | None = None) -> str | None:
        """The message of a worker that failed: of `pid`, or of any."""
        paths = self.path.glob(f"failed-{'*' if pid is None else pid}")
        return next((path.read_text() for path in paths), None)

    def follow_supervisor(self) -> None:
        """Terminates this worker when its supervisor is killed (Linux only)."""
        if sys.platform == "linux":
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
