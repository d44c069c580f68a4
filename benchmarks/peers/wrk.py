"""One run of wrk against one server."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.peers.record import Turn
from benchmarks.peers.servers import Request
from benchmarks.processes import cpu_seconds
from bundle.errors import LabelcurveError

SCRIPT = Path(__file__).with_name("post.lua")


def found() -> str:
    """The command `wrk`.

    Raises:
        LabelcurveError: it is not installed.
    """
    command = shutil.which("wrk")
    if command is None:
        raise LabelcurveError(
            "no command `wrk`, the load generator: apt-get install wrk (Debian, Ubuntu), "
            "brew install wrk (macOS)"
        )
    return command


def load(url: str, request: Request, work: Path, pid: int, clients: int, seconds: float) -> Turn:
    """As `run`, with the CPU time of the server, whose root process is `pid`."""
    before = cpu_seconds(pid)
    result = run(url, request, work, clients, seconds)
    after = cpu_seconds(pid)
    if before is None or after is None:
        raise LabelcurveError(f"the server at {url} ended")
    return Turn(**result, server_cpu_ms=(after - before) / max(1, result["n"]) * 1e3)


def run(url: str, request: Request, work: Path, clients: int, seconds: float) -> dict[str, Any]:
    """Sends `request` from `clients` connections, each of which waits for its answer.

    Args:
        url: of the server, without a path.
        request: what is sent.
        work: folder for the body.
        clients: connections, all of one wrk thread.
        seconds: of load.

    Returns:
        The fields of `Turn`, but for the server's.

    Raises:
        LabelcurveError: wrk is not there, or measured nothing.
    """
    body = work / "body"
    body.write_bytes(request.body)
    headers = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
    arguments = [found(), "--threads", "1", "--connections", str(clients)]
    arguments += ["--duration", f"{seconds:.0f}s", "--timeout", "10s", "--script", str(SCRIPT)]
    own = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*arguments, url + request.path],
        env={**os.environ, "PEER_BODY": str(body), "PEER_HEADERS": headers},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise LabelcurveError(f"wrk measured nothing at {url}: {done.stdout}{done.stderr}"[-800:])
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    client = used.ru_utime + used.ru_stime - own.ru_utime - own.ru_stime
    return {**result, "client_cpu": client / result["seconds"]}
