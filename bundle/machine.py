"""Facts about machine and code that are recorded with models and measurements."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from labelcurve.bundle.text import shown


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPU cores that this process may use: the affinity mask, or the cgroup's quota if lower."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = _quota(cgroup)
    return max(1, math.ceil(min(count or 1, quota)))


def _quota(cgroup: Path) -> float:
    try:
        v2 = cgroup / "cpu.max"
        if v2.exists():
            limit, period = v2.read_text().split()
            return math.inf if limit == "max" else int(limit) / int(period)
        limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
        period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if int(limit) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process may use.

    The machine's, or the cgroup's limit if lower, divided by the processes that a launcher such as
    `torchrun` started on this machine.
    """
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in (cgroup / "memory.max", cgroup / "memory/memory.limit_in_bytes"):
        try:
            found = min(found, int(file.read_text()))
        except (OSError, ValueError):  # not there, or `max`
            continue
    return found // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@dataclass(frozen=True)
class Scheduled:
    """Seconds of CPU time up to now."""

    ran: float
    """CPU time of this process's threads."""
    waited: float
    """Time in which its threads were runnable but had no core."""
    others: float
    """CPU time of everything else on the machine, including stolen time of a virtual machine."""


def scheduled(proc: Path = Path("/proc")) -> Scheduled | None:
    """CPU time of this process and of others; None where it is unavailable (other than Linux)."""
    ran = waited = 0
    try:
        for file in proc.glob("self/task/*/schedstat"):
            with suppress(FileNotFoundError, ProcessLookupError):  # that thread has just ended
                times = file.read_text().split()
                ran, waited = ran + int(times[0]), waited + int(times[1])
        user, nice, system, _idle, _iowait, *rest = map(
            int, (proc / "stat").read_text().partition("\n")[0].split()[1:9]
        )
    except (OSError, ValueError):
        return None
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    return Scheduled(ran / 1e9, waited / 1e9, max(0.0, busy - ran / 1e9)) if ran else None


def waited_share(before: Scheduled | None, after: Scheduled | None) -> float | None:
    """Share of the time in which threads were ready to run while other work had their cores."""
    if before is None or after is None:
        return None
    # The seconds of threads that ended meanwhile are missing.
    ran = max(0.0, after.ran - before.ran)
    waited = max(0.0, after.waited - before.waited)
    # Waiting beyond the time that others ran, they waited for one another.
    others = max(0.0, after.others - before.others)
    return round(min(waited, others) / (ran + waited), 4) if ran else None


def cpu_name() -> str:
    """The processor's model name."""
    named = _cpuinfo("model name", "hardware")
    if named is None and platform.system() == "Darwin":
        named = _output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return named or platform.processor() or platform.machine()


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the installed ones among these distributions.

    `onnxruntime` stands for `onnxruntime-gpu` too: one of them is installed.
    """
    found = {}
    for name in names:
        for candidate in (name, f"{name}-gpu") if name == "onnxruntime" else (name,):
            try:
                found[candidate] = importlib.metadata.version(candidate)
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def command_line() -> str:
    """The command of this process, for people to read."""
    return shown(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def git_commit(file: Path) -> str | None:
    """The commit of the repository that tracks `file`, with `+` when tracked files differ from it.

    An image has no repository: there it is in the environment, LABELCURVE_COMMIT.
    """
    if commit := os.environ.get("LABELCURVE_COMMIT"):
        return commit
    git = ["git", "-C", str(file.parent)]
    # An installed copy may lie in another project's repository, whose commit is meaningless.
    if _output([*git, "ls-files", "--error-unmatch", file.name]) is None:
        return None
    head = _output([*git, "rev-parse", "HEAD"])
    changed = _output([*git, "status", "--porcelain", "-uno"])
    return head and head + ("+" if changed else "")


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_flags() -> set[str]:
    """CPU feature flags as named by Linux; empty on other systems."""
    return set((_cpuinfo("flags") or "").split())


def _cpuinfo(*names: str) -> str | None:
    """The first entry of Linux under one of these names."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text(errors="replace").splitlines() if info.exists() else []:
        if line.lower().startswith(names):
            return line.partition(":")[2].strip()
    return None
