"""Files that are never read half-written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bundle.errors import LabelcurveError


def replace(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that readers see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; nothing is left of the attempt.
    """
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".part", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.chmod(0o644)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def unfinished(path: Path) -> list[Path]:
    """What killed processes left of their attempts to replace `path`."""
    return list(path.parent.glob(f"{_prefix(path)}*.part"))


def check_temporary() -> None:
    """Before the work that needs one: a folder for temporary files.

    Raises:
        LabelcurveError: none can be written.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise LabelcurveError(
            f"no folder for temporary files can be written: {error.strerror}; TMPDIR names another "
            "(docker: --tmpfs /tmp)"
        ) from error


def check_out(path: Path) -> None:
    """Before the work whose results go there: `path` is a folder that can be written, or made.

    Raises:
        LabelcurveError: it cannot be written.
    """
    there = path
    try:
        while not there.exists():
            there = there.parent
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise LabelcurveError(
            f"{there} is no folder that can be written ({error.strerror}), and results are to be "
            f"in {path}: name another place with --out"
        ) from error


def _prefix(path: Path) -> str:
    return f".{path.name.lstrip('.')}-"
