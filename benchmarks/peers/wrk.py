"""One run of wrk against one server."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

from labelcurve.benchmarks.harness.processes import cpu_seconds
from labelcurve.benchmarks.peers.record import Turn
from labelcurve.benchmarks.peers.servers import Request
from labelcurve.bundle.errors import LabelcurveError

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
    """Send `request` from `clients` connections, each of which waits for its answer.

    One thread of wrk has them all. `url` is without a path, `work` a folder for the body, `pid` the
    root of the server's processes, whose CPU time is measured.

    Raises:
        LabelcurveError: wrk is not installed, it measured nothing, or the server ended.
    """
    body = work / "body"
    body.write_bytes(request.body)
    headers = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
    arguments = [found(), "--threads", "1", "--connections", str(clients)]
    arguments += ["--duration", f"{seconds:.0f}s", "--timeout", "10s", "--script", str(SCRIPT)]
    before, own = cpu_seconds(pid), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*arguments, url + request.path],
        env={**os.environ, "PEER_BODY": str(body), "PEER_HEADERS": headers},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 60,
    )
    used, after = resource.getrusage(resource.RUSAGE_CHILDREN), cpu_seconds(pid)
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    if line is None:
        raise LabelcurveError(f"wrk measured nothing at {url}: {done.stdout}{done.stderr}"[-800:])
    if before is None or after is None:
        raise LabelcurveError(f"the server at {url} ended")
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    client = used.ru_utime + used.ru_stime - own.ru_utime - own.ru_stime
    return Turn(
        **result,
        client_cpu=client / result["seconds"],
        server_cpu_ms=(after - before) / max(1, result["n"]) * 1e3,
    )
