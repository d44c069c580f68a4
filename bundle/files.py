"""Reads of regular files, atomic writes, and checks that files can be written."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from glob import escape
from pathlib import Path

from labelcurve.bundle.errors import LabelcurveError

SYSTEM_FOLDERS = frozenset(
    (
        *("@eadir", "lost+found", "system volume information", "$recycle.bin", "recycler"),
        *("lost.dir", "__macosx", "__pycache__", "mlruns"),
        *("#recycle", "@recycle", "#snapshot", "@tmp"),
    )
)
"""Folders that a system puts among others, in lower case: no person put their images there."""


def read(path: Path) -> bytes:
    """The content of a regular file, or of a link to one: reading others may never finish.

    Raises:
        OSError: it cannot be read.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        message = "it is a pipe, a socket or a device, not a regular file"
        raise OSError(errno.EINVAL, message, str(path))
    return path.read_bytes()


def replace(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that readers see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; nothing is left of the attempt.
    """
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".part", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_out(path: Path, text: str) -> None:
    """Writes the file of `--out`, and the folder that it is in, as `replace`.

    Raises:
        LabelcurveError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text.encode())
    except OSError as error:
        raise LabelcurveError(f"--out {path} cannot be written: {error.strerror}") from error


def unfinished(path: Path) -> list[Path]:
    """Temporary files left by interrupted writes of `path`."""
    return list(path.parent.glob(f"{escape(_prefix(path))}*.part"))


def check_temporary() -> None:
    """Checks that there is a writable folder for temporary files before work begins.

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
    """Checks before work begins that the folder `path` can be created or written.

    Raises:
        LabelcurveError: it cannot be written.
    """
    there = path
    try:
        while not there.exists():
            if there.is_symlink():
                raise FileNotFoundError(errno.ENOENT, f"a link to {there.readlink()}, not there")
            there = there.parent
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise LabelcurveError(
            f"{there} is not a writable folder ({error.strerror}), and results go to {path}: "
            "choose another with --out"
        ) from error


def _prefix(path: Path) -> str:
    return f".{path.name.lstrip('.')}-"
