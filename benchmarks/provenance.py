"""Hardware, versions, commit and command of a run."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.record import Provenance
from bundle.machine import cores, cpu_name, git_commit, versions

PACKAGES = (
    "labelcurve",
    "onnxruntime",
    "bentoml",
    "locust",
    "numpy",
    "pillow",
    "scikit-learn",
)


def here(command: Sequence[str] | None = None) -> Provenance:
    """Describes this machine and environment, now.

    Args:
        command: what to repeat for the same figures; None takes that of this process.
    """
    return Provenance(
        command=shlex.join(_command() if command is None else command),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(Path(__file__)),
        cpu=cpu_name(),
        cores=cores(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions(PACKAGES),
    )


def check_out(out: Path | None) -> None:
    """Ends the command before its work where its result could not be written after it."""
    if out is None:
        return
    if out.is_dir():
        sys.exit(
            f"error: --out {out} is a folder: name a file in it, such as {out / 'result.json'}"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out {out} cannot be written: {error.strerror}")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        sys.exit(f"error: --out {out} cannot be written: no permission")


def _command() -> list[str]:
    spec = sys.modules["__main__"].__spec__
    begin = ["python", "-m", spec.name] if spec else [Path(sys.argv[0]).name]
    # Folders by their last part: where they lie on this machine says nothing.
    return [*begin, *(Path(part).name if part.startswith("/") else part for part in sys.argv[1:])]
