"""Whether locust measures the service or itself: the same load from wrk, in turn.

`python -m benchmarks.wrk --models models` needs the command wrk (Debian package `wrk`). Below the
client's own limit both must agree within 10 %; above it locust says that it is the bottleneck, and
wrk goes on.
"""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

from benchmarks import load, processes, provenance, server, tables
from benchmarks.server import Server
from benchmarks.windows import BUSY
from bundle.errors import LabelcurveError
from training import data as datasets

AGREE = 0.1
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SCRIPT = """local file = io.open("{path}", "rb")
wrk.method = "POST"
wrk.body = file:read("*all")
wrk.headers["Content-Type"] = "application/octet-stream"
"""


@dataclass
class Wrk:
    """Holds locust's figures against wrk's, side by side. The last line is one JSON document."""

    models: Path = Path("models")
    """Folder of bundles; the service over it is started and stopped."""
    data: str = "cifar10"
    """Where the test image comes from that is sent."""
    url: str | None = None
    """A running service instead."""
    model: str = ""
    """The model to ask; empty for the service's default."""
    clients: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of clients."""
    seconds: int = 4
    """Of a round of one of the two."""
    rounds: int = 3
    """Turns of each."""


def parse(text: str) -> tuple[float, float, int]:
    """Requests/s, median in ms and failed answers of what `wrk --latency` prints.

    Raises:
        LabelcurveError: there is no result in it.
    """
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    median = re.search(r"50%\s+([\d.]+)(us|ms|s)\b", text)
    if not rate or not median:
        raise LabelcurveError(f"wrk printed no result:\n{text[-1000:]}")
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    )
    n = int(failed[1]) if failed else 0
    n += sum(map(int, errors.groups())) if errors else 0
    return float(rate[1]), float(median[1]) * _UNITS[median[2]], n


def run(options: Wrk, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measures both in turn at each number of clients.

    Raises:
        LabelcurveError: wrk is not there, or one of the two measured nothing.
    """
    command = processes.command("wrk", "install it (Debian: apt-get install wrk)")
    data = datasets.load(options.data, say=lambda _: None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="labelcurve-wrk-")))
        service = (
            server.running(options.url)
            if options.url
            else stack.enter_context(server.started(options.models, folder / "serve.log", say))
        )
        load.write_images(folder / "images", data, 1)
        (image,) = (folder / "images").iterdir()
        script = folder / "post.lua"
        script.write_text(_SCRIPT.format(path=image))
        return [_both(options, command, service, folder, script, n, say) for n in options.clients]


def _both(
    options: Wrk,
    command: str,
    service: Server,
    folder: Path,
    script: Path,
    clients: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float, float]]] = {"locust": [], "wrk": []}
    failed = 0
    target = f"{service.url}/classify" + (f"?model={options.model}" if options.model else "")
    for number in range(options.rounds):
        for kind in ("locust", "wrk") if number % 2 == 0 else ("wrk", "locust"):
            if kind == "locust":
                arguments = ["--users", str(clients), "--spawn-rate", str(clients)]
                arguments += ["--measure", str(options.seconds)]
                record, _ = load.run(service, folder, options.model, arguments, options.seconds)
                done = load.read_round(record)
                seconds = done.end - done.begin
                rate = len(done.latencies) / seconds
                median = float(np.median(done.latencies)) if done.latencies else 0.0
                cpu = done.client_seconds / seconds
                failed += len(done.errors)
            else:
                before = _children()
                shown = subprocess.run(
                    [command, "-t1", f"-c{clients}", f"-d{options.seconds}s", "--latency", "-s",
                     str(script), target],
                    capture_output=True, text=True, check=False, timeout=options.seconds + 60,
                )  # fmt: skip
                rate, median, errors = parse(shown.stdout + shown.stderr)
                cpu = (_children() - before) / options.seconds
                failed += errors
            found[kind].append((rate, median, cpu))
    means = {kind: np.mean(rows, axis=0).tolist() for kind, rows in found.items()}
    ratio = means["locust"][0] / means["wrk"][0]
    bound = means["locust"][2] > BUSY
    row = {
        "clients": clients,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "failed": failed,
        "ratio": ratio,
        "locust_is_the_limit": bound,
        "agree": abs(ratio - 1) <= AGREE,
    }
    for kind, (rate, median, cpu) in means.items():
        row[kind] = {
            "requests_per_s": rate,
            "low": min(r[0] for r in found[kind]),
            "high": max(r[0] for r in found[kind]),
            "p50_ms": median,
            "cpu": cpu,
        }
    verdict = "locust is the limit" if bound else "agree" if row["agree"] else "DISAGREE"
    say(f"  {clients} clients: locust / wrk {ratio:.2f}, {verdict}, {failed} failed")
    return row


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.wrk`."""
    options = tyro.cli(Wrk, args=args, prog="python -m benchmarks.wrk")
    processes.end_on_signals()
    try:
        rows = run(options, partial(print, flush=True))
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    body = [
        (
            str(row["clients"]),
            *(f"{row[k]['requests_per_s']:,.0f}" for k in ("locust", "wrk")),
            f"{row['ratio']:.2f}",
            *(f"{row[k]['p50_ms']:.2f}" for k in ("locust", "wrk")),
            *(f"{row[k]['cpu']:.2f}" for k in ("locust", "wrk")),
        )
        for row in rows
    ]
    header = ("clients", "locust requests/s", "wrk requests/s", "ratio", "locust p50 ms")
    print(tables.markdown((*header, "wrk p50 ms", "locust CPU", "wrk CPU"), body))
    print(json.dumps({"rows": rows, "provenance": provenance.here().model_dump()}), flush=True)


if __name__ == "__main__":
    main()
