"""How many CPU cores this process may use: what threads are sized from, in a container too."""

from __future__ import annotations

import math
import os
from pathlib import Path


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
