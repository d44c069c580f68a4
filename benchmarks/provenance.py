"""Hardware, versions, commit and command of a run."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import joblib
import psutil

from benchmarks.record import Provenance

PACKAGES = (
    "labelcurve",
    "onnxruntime",
    "onnxruntime-gpu",
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
        git_commit=_git_commit(),
        cpu=_cpu_model(),
        cores=joblib.cpu_count(),
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages=_versions(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime and onnxruntime-gpu exclude each other
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    elif platform.system() == "Darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    return platform.processor() or platform.machine()


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    return _output(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    )


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
