"""Folders that cannot be read, for root too."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - imported on first use, where it may be out of reach
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def forbidden(folder: Path, mode: int = 0) -> Iterator[None]:
    """Takes the right to read `folder` from this process; root becomes another user meanwhile."""
    user = os.geteuid()
    os.seteuid(os.getuid())
    folder.chmod(mode)
    if os.getuid() == 0:  # whom no file mode restricts
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        folder.chmod(0o755)
        os.seteuid(user)


@contextmanager
def public_copy(models: Path) -> Iterator[Path]:
    """A copy of a models folder that other users reach; pytest's folders are private."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        copy = Path(shutil.copytree(models, Path(folder) / "models", symlinks=True))
        copy.chmod(0o755)
        yield copy
