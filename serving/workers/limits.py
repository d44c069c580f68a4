"""Number of connections that the limit of open files allows."""

from __future__ import annotations

import resource

from labelcurve.bundle.errors import LabelcurveError

SPARE_FILES = 256
"""File descriptors reserved for everything but connections."""

LEAST_CONNECTIONS = 16
"""Below this a service is of no use."""


def connections(wanted: int, *, raise_limit: bool = False) -> int:
    """Number of connections, up to `wanted`, that a process may hold.

    Args:
        wanted: as `--connections` says.
        raise_limit: whether this process is the one that holds them: its soft limit of open files
            is raised to what they need, as far as the hard limit allows.

    Raises:
        LabelcurveError: the hard limit leaves fewer than `LEAST_CONNECTIONS`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    allowed = files - SPARE_FILES
    if allowed < min(wanted, LEAST_CONNECTIONS):
        raise LabelcurveError(
            f"the limit of open files is {hard} (ulimit -Hn): {SPARE_FILES} are for the service "
            f"itself, and at least {LEAST_CONNECTIONS} for connections are needed; raise it to "
            f"{needed} for all of --connections {wanted} (docker: --ulimit nofile={needed})"
        )
    if raise_limit and soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return allowed
