"""Whether locust measures the service or itself: the same load from wrk, in turn.

`python -m benchmarks.wrk --models models` needs the command wrk (Debian package `wrk`). Below the
client's own limit both must agree within 10 %; above it locust says that it is the bottleneck, and
wrk goes on. Where client and service share the cores, `--sleep-ms` keeps them from competing.
"""

from __future__ import annotations

import asyncio
import json
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

from benchmarks import load, processes, provenance, server, sleeper, tables, traffic
from benchmarks.peers import wrk
from benchmarks.peers.servers import Request
from benchmarks.server import Server
from benchmarks.windows import BUSY
from bundle.errors import LabelcurveError
from training import data as datasets

AGREE = 0.1


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
    sleep_ms: float = 0.0
    """A model that does nothing but sleep so long, which leaves the cores to client and service."""
    clients: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of clients."""
    seconds: int = 4
    """Of a round of one of the two."""
    rounds: int = 3
    """Turns of each."""


def run(options: Wrk, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measures both in turn at each number of clients.

    Raises:
        LabelcurveError: wrk is not there, or one of the two measured nothing.
    """
    wrk.found()
    data = datasets.load(options.data, say=lambda _: None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="labelcurve-wrk-")))
        if options.url:
            service = server.running(options.url)
        elif options.sleep_ms > 0:
            port, _ = stack.enter_context(
                sleeper.started(options.models, folder, options.sleep_ms / 1e3, 16)
            )
            asyncio.run(traffic.ready(port, 120))
            service = server.running(f"http://127.0.0.1:{port}")
        else:
            service = stack.enter_context(server.started(options.models, folder / "serve.log", say))
        load.write_images(folder / "images", data, 1)
        (image,) = (folder / "images").iterdir()
        model = f"?model={options.model}" if options.model else ""
        kind = {"Content-Type": "application/octet-stream"}
        request = Request(f"/classify{model}", kind, image.read_bytes())
        return [_both(options, service, folder, request, n, say) for n in options.clients]


def _both(
    options: Wrk,
    service: Server,
    folder: Path,
    request: Request,
    clients: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float, float]]] = {"locust": [], "wrk": []}
    failed = 0
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
                turn = wrk.run(service.url, request, folder, clients, options.seconds)
                rate = (turn["n"] - turn["errors"]) / turn["seconds"]
                median, cpu = turn["p50_ms"], turn["client_cpu"]
                failed += turn["errors"]
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
