"""Hardware, versions, commit and command of a run."""

from __future__ import annotations

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
        command: what to repeat for the same figures; None takes the arguments of this process.
    """
    argv = [Path(sys.argv[0]).name, *sys.argv[1:]] if command is None else command
    return Provenance(
        command=shlex.join(argv),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        git_commit=git_commit(Path(__file__)),
        cpu=cpu_name(),
        cores=cores(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=versions(PACKAGES),
    )
