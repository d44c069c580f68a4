"""Hours of traffic with swaps and bad input mixed in: what leaks, and what fails.

`python -m benchmarks.soak --models DIR --minutes 60` copies the models, serves the copy and writes
one JSON with the load as it really was, memory and descriptors over time, and every unexpected
answer.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import tyro

from benchmarks import traffic
from benchmarks.processes import child, command, cpu_seconds, end_on_signals, tree
from benchmarks.provenance import check_out
from benchmarks.server import free_port
from benchmarks.traffic import Answer, Client
from bundle import store
from bundle.errors import LabelcurveError

SAMPLE_SECONDS = 10.0
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


@dataclass
class Options:
    """Serves a copy of a models folder for a while under mixed traffic."""

    models: Path
    """Folder of bundles; it is copied and left as it is."""
    images: Path
    """Folder of images to send."""
    minutes: float = 60.0
    """How long."""
    rate: float | None = None
    """Requests per second; by default 70 % of what the first seconds reach."""
    swap_seconds: float = 60.0
    """Between two new versions."""
    out: Path = Path("benchmarks/results/service/soak.json")
    """Where the result goes."""


async def soak(options: Options, root: Path, port: int, pid: int) -> dict[str, Any]:
    """Runs it against a service that is ready."""
    paths = sorted(p for p in options.images.rglob("*") if p.suffix.lower() in IMAGES)
    if not paths:
        raise LabelcurveError(f"{options.images} holds no image")
    images = [path.read_bytes() for path in paths[:64]]
    peak = await _peak(port, images)
    rate = options.rate or 0.7 * peak
    print(f"peak {peak:.0f} requests/s with 8 clients; the soak sends {rate:.0f}", flush=True)
    end = time.monotonic() + options.minutes * 60
    statuses: dict[str, Counter[str]] = {"good": Counter(), "bad": Counter()}
    unexpected: Counter[str] = Counter()
    latencies: list[float] = []
    versions: set[str] = set()
    samples: list[dict[str, float]] = []
    published = 0

    async def good(number: int) -> None:
        client: Client | None = None
        period = 8 / rate
        due = time.monotonic() + number * period / 8
        while (now := time.monotonic()) < end:
            if due > now:
                await asyncio.sleep(due - now)
            due = max(due + period, time.monotonic() - 1)
            try:
                if client is None or not client.open:
                    client = await Client.connect(port)
                answer = await client.ask(traffic.post(random.choice(images)))
            except ConnectionError as error:
                statuses["good"]["connection"] += 1
                unexpected[f"good: {error}"] += 1
                continue
            statuses["good"][str(answer.status)] += 1
            latencies.append(answer.seconds)
            if answer.status != 200 or answer.version is None:
                unexpected[f"good: {answer.status} {answer.body[:200]!r}"] += 1
            else:
                versions.add(answer.version)
        if client:
            client.close()

    async def bad() -> None:
        """A tenth of the rate: what must be refused, and clients that go away."""
        kinds = _bad(images)
        while time.monotonic() < end:
            await asyncio.sleep(10 / rate)
            name, request, allowed = random.choice(kinds)
            try:
                client = await Client.connect(port)
                if not allowed:
                    with suppress(TimeoutError, ConnectionError):
                        await asyncio.wait_for(client.ask(request), 0.05)
                    statuses["bad"][name] += 1
                else:
                    answer = await client.ask(request)
                    statuses["bad"][f"{name}: {answer.status}"] += 1
                    if answer.status not in allowed:
                        unexpected[f"{name}: {answer.status} {answer.body[:200]!r}"] += 1
                client.close()
            except ConnectionError as error:
                unexpected[f"{name}: {error}"] += 1

    async def swap() -> None:
        nonlocal published
        bundle = await asyncio.to_thread(lambda: store.read_all(root)[-1])
        while time.monotonic() < end - options.swap_seconds:
            await asyncio.sleep(options.swap_seconds)
            published += 1
            await asyncio.to_thread(traffic.publish, root, bundle, published % 10)

    async def watch() -> None:
        begin = time.monotonic()
        while time.monotonic() < end:
            samples.append(_sample(pid) | {"seconds": time.monotonic() - begin})
            await asyncio.sleep(SAMPLE_SECONDS)
            if len(samples) % 30 == 0:
                left = (end - time.monotonic()) / 60
                print(
                    f"{sum(statuses['good'].values())} answers, {published} swaps, "
                    f"{samples[-1]['memory_mb']:.0f} MB, {sum(unexpected.values())} unexpected, "
                    f"{left:.0f} minutes left",
                    flush=True,
                )

    before = cpu_seconds(pid) or 0.0
    begin = time.monotonic()
    await asyncio.gather(*[good(i) for i in range(8)], bad(), swap(), watch())
    seconds = time.monotonic() - begin
    return _summary(samples, latencies) | {
        "seconds": round(seconds, 1),
        "peak_requests_per_s": round(peak, 1),
        "rate_asked_per_s": round(rate, 1),
        "requests_per_s": round(sum(statuses["good"].values()) / seconds, 1),
        "server_cores_used": round(((cpu_seconds(pid) or 0.0) - before) / seconds, 3),
        "statuses": {kind: dict(found) for kind, found in statuses.items()},
        "unexpected": dict(unexpected),
        "versions_published": published,
        "versions_that_answered": len(versions),
        "samples": samples[:: max(1, len(samples) // 60)],
    }


async def _peak(port: int, images: Sequence[bytes]) -> float:
    n = 0
    end = time.monotonic() + 6

    def heard(_: int, answer: Answer | ConnectionError) -> None:
        nonlocal n
        n += isinstance(answer, Answer) and time.monotonic() > end - 5

    requests = [traffic.post(image) for image in images]
    await traffic.closed_loop(port, 8, lambda: time.monotonic() > end, requests, heard)
    return n / 5


def _bad(images: Sequence[bytes]) -> list[tuple[str, bytes, tuple[int, ...]]]:
    """Name, request, and the statuses that are right; none for a client that goes away."""
    image = images[0]
    json = "Content-Type: application/json\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n"
    return [
        ("noise", traffic.post(random.Random(0).randbytes(5000)), (415,)),
        ("truncated image", traffic.post(image[: len(image) * 2 // 3]), (200, 415, 422)),
        ("empty", traffic.post(b""), (400,)),
        ("malformed JSON", traffic.post(b'{"inputs": 1', headers=json), (400,)),
        ("a URL", traffic.post(b'{"inputs": "http://localhost/a.png"}', headers=json), (400,)),
        ("malformed form", traffic.post(b"--y\r\n", headers=form), (400,)),
        ("unknown model", traffic.post(image, "?model=../../etc/passwd"), (404,)),
        ("unknown parameter", traffic.post(image, "?topk=1"), (400,)),
        ("encoded", traffic.post(image, headers="Content-Encoding: gzip\r\n"), (415,)),
        ("unknown path", traffic.get("/admin"), (404,)),
        ("hangs up in the body", traffic.post(image)[:-5], ()),
        ("hangs up in the headers", b"POST /classify HTTP/1.1\r\nHos", ()),
        ("hangs up at once", b"", ()),
    ]


def _sample(pid: int) -> dict[str, float]:
    family = tree(pid)
    # The resident memory of each process that is not a file's: what leaks is there.
    return {
        "memory_mb": sum(p.memory_full_info().uss for p in family) / 2**20,
        "descriptors": float(sum(p.num_fds() for p in family)),
        "threads": float(sum(p.num_threads() for p in family)),
        "processes": float(len(family)),
    }


def _summary(samples: Sequence[dict[str, float]], latencies: list[float]) -> dict[str, Any]:
    """The last quarter against the second: the first is for caches to fill."""
    quarter = max(1, len(samples) // 4)
    found: dict[str, Any] = {}
    for key in ("memory_mb", "descriptors", "threads"):
        early = statistics.median(s[key] for s in samples[quarter : 2 * quarter] or samples)
        late = statistics.median(s[key] for s in samples[-quarter:])
        found[key] = {
            "second_quarter": round(early, 1),
            "last_quarter": round(late, 1),
            "change": round(late / early - 1, 4),
            "max": round(max(s[key] for s in samples), 1),
        }
    ordered = sorted(latencies)
    for share in (50, 99):
        found[f"p{share}_ms"] = round(ordered[len(ordered) * share // 100] * 1000, 2)
    return found


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.soak`."""
    options = tyro.cli(Options, args=args, prog="python -m benchmarks.soak")
    check_out(options.out)
    end_on_signals()
    try:
        with TemporaryDirectory() as folder:
            root, port = Path(folder, "models"), free_port()
            shutil.copytree(options.models, root, symlinks=True)
            log = options.out.with_suffix(".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            arguments = [command("serve"), "--models", str(root), "--port", str(port)]
            with log.open("wb") as output, child(arguments, output) as process:
                asyncio.run(traffic.ready(port, 180))
                result = asyncio.run(soak(options, root, port, process.pid))
            said = Counter(
                line[-120:]
                for line in log.read_text(errors="replace").splitlines()
                if "ERROR" in line or "Traceback" in line
            )
            traffic.write_result(options.out, result | {"errors_in_the_log": dict(said)})
            log.unlink()
    except (LabelcurveError, psutil.Error) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
