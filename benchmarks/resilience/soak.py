"""Hours of mixed traffic with model swaps and bad input: what leaks, and what fails.

`python -m benchmarks.resilience.soak --models DIR --images DIR` copies the models, serves the copy
and writes one JSON document: the load as measured, memory and file descriptors over time, and every
unexpected answer.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from PIL import Image

from labelcurve.benchmarks.harness import server
from labelcurve.benchmarks.harness.processes import cpu_seconds, tree
from labelcurve.benchmarks.harness.provenance import parsed
from labelcurve.benchmarks.resilience import client as http
from labelcurve.benchmarks.resilience import leaks, versions
from labelcurve.benchmarks.resilience.client import Answer, Client
from labelcurve.bundle import command, store
from labelcurve.bundle.errors import LabelcurveError

SAMPLE_SECONDS = 10.0
CLIENTS = 8
ANY_REFUSAL = (200, 413, 415, 422)


@dataclass
class Options:
    """Serves a copy of a models folder for a while under mixed traffic."""

    models: Path
    """Folder of bundles; it is copied and stays unchanged."""
    images: Path
    """Folder of images to send."""
    minutes: float = 60.0
    """Duration of the test."""
    rate: float | None = None
    """Requests per second; by default 70 % of the peak in the first seconds."""
    files: Path | None = None
    """Folder of further files that are sent among the bad requests, whatever their answer."""
    swap_seconds: float = 60.0
    """Interval between two new versions."""
    out: Path = Path("benchmarks/results/service/soak.json")
    """File of the result."""


class Soak:
    """Traffic against a service that is ready, and its measurements."""

    def __init__(
        self, images: Sequence[bytes], port: int, pid: int, seconds: float, files: Sequence[bytes]
    ) -> None:
        self.kinds = bad_requests(images[0])
        self.kinds += [("a file", request, ANY_REFUSAL) for request in files]
        self.images, self.port, self.pid = images, port, pid
        self.begin = time.monotonic()
        self.end = self.begin + seconds
        self.statuses: dict[str, Counter[str]] = {"good": Counter(), "bad": Counter()}
        self.unexpected: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.versions: set[str] = set()
        self.samples: list[dict[str, float]] = []
        self.published = 0

    async def good(self, number: int, rate: float) -> None:
        """Send valid images at a fixed rate over one connection."""
        client: Client | None = None
        period = CLIENTS / rate
        due = time.monotonic() + number * period / CLIENTS
        while (now := time.monotonic()) < self.end:
            if due > now:
                await asyncio.sleep(due - now)
            due = max(due + period, time.monotonic() - 1)
            try:
                client = await Client.connect(self.port, client)
                answer = await client.ask(http.post(random.choice(self.images)))
            except ConnectionError as error:
                self.statuses["good"]["connection"] += 1
                self.unexpected[f"good: {error}"] += 1
                continue
            self.statuses["good"][str(answer.status)] += 1
            self.latencies.append(answer.seconds)
            if answer.status != 200 or answer.version is None:
                self.unexpected[f"good: {answer.status} {answer.body[:200]!r}"] += 1
            else:
                self.versions.add(answer.version)
        if client:
            client.close()

    async def bad(self, rate: float) -> None:
        """Send requests that must be refused, or that break off, at a tenth of the rate."""
        while time.monotonic() < self.end:
            await asyncio.sleep(10 / rate)
            name, request, allowed = random.choice(self.kinds)
            try:
                client = await Client.connect(self.port)
                if not allowed:
                    with suppress(TimeoutError, ConnectionError):
                        await asyncio.wait_for(client.ask(request), 0.05)
                    self.statuses["bad"][name] += 1
                else:
                    answer = await client.ask(request)
                    self.statuses["bad"][f"{name}: {answer.status}"] += 1
                    if answer.status not in allowed:
                        self.unexpected[f"{name}: {answer.status} {answer.body[:200]!r}"] += 1
                client.close()
            except ConnectionError as error:
                self.unexpected[f"{name}: {error}"] += 1

    async def swap(self, root: Path, seconds: float) -> None:
        """Publish a new version every `seconds`."""
        bundle = await asyncio.to_thread(lambda: store.read_all(root)[-1])
        while time.monotonic() < self.end - seconds:
            await asyncio.sleep(seconds)
            self.published += 1
            await asyncio.to_thread(versions.publish, root, bundle, self.published % 10)

    async def watch(self) -> None:
        """Sample memory, file descriptors and threads; show progress."""
        while time.monotonic() < self.end:
            self.samples.append(_sample(self.pid) | {"seconds": time.monotonic() - self.begin})
            await asyncio.sleep(SAMPLE_SECONDS)
            if len(self.samples) % 30 == 0:
                print(
                    f"{self.statuses['good'].total()} answers, {self.published} swaps, "
                    f"{self.samples[-1]['memory_mb']:.0f} MB, {self.unexpected.total()} "
                    f"unexpected, {(self.end - time.monotonic()) / 60:.0f} minutes left",
                    flush=True,
                )


async def soak(options: Options, root: Path, port: int, pid: int) -> dict[str, Any]:
    """Run the test against a service that is ready."""
    images = http.images(options.images, 1, 64)
    peak = await _peak(port, images)
    rate = options.rate or 0.7 * peak
    print(f"peak {peak:.0f} requests/s with {CLIENTS} clients; the soak sends {rate:.0f}")
    files = leaks.files(options.files) if options.files else {}
    requests = [request for kind in files.values() for request in kind]
    run = Soak(images, port, pid, options.minutes * 60, requests)
    before = cpu_seconds(pid) or 0.0
    clients = [run.good(number, rate) for number in range(CLIENTS)]
    await asyncio.gather(*clients, run.bad(rate), run.swap(root, options.swap_seconds), run.watch())
    seconds = time.monotonic() - run.begin
    refused = {name: [request] for name, request, allowed in bad_requests(images[0]) if allowed}
    left = await leaks.by_kind(port, pid, {**refused, **files})
    return _summary(run.samples, run.latencies) | {
        "left_by_kind": left["kinds"],
        "seconds": round(seconds, 1),
        "peak_requests_per_s": round(peak, 1),
        "rate_asked_per_s": round(rate, 1),
        "requests_per_s": round(run.statuses["good"].total() / seconds, 1),
        "server_cores_used": round(((cpu_seconds(pid) or 0.0) - before) / seconds, 3),
        "statuses": {kind: dict(found) for kind, found in run.statuses.items()},
        "unexpected": dict(run.unexpected) | left["unexpected"],
        "versions_published": run.published,
        "versions_that_answered": len(run.versions),
        "samples": run.samples[:: max(1, len(run.samples) // 60)],
    }


async def _peak(port: int, images: Sequence[bytes]) -> float:
    n = 0
    end = time.monotonic() + 6

    def heard(_: int, answer: Answer | ConnectionError) -> None:
        nonlocal n
        n += isinstance(answer, Answer) and time.monotonic() > end - 5

    requests = [http.post(image) for image in images]
    await http.closed_loop(port, CLIENTS, lambda: time.monotonic() > end, requests, heard)
    return n / 5


def bad_requests(image: bytes) -> list[tuple[str, bytes, tuple[int, ...]]]:
    """List name, request and allowed statuses; none where the client disconnects."""
    json = "Content-Type: application/json\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n"
    return [
        ("noise", http.post(random.Random(0).randbytes(5000)), (415,)),
        ("large noise", http.post(random.Random(0).randbytes(500_000)), (415,)),
        ("large truncated WebP", http.post(_half_a_webp()), (422,)),
        ("truncated image", http.post(image[: len(image) * 2 // 3]), (200, 415, 422)),
        ("empty", http.post(b""), (400,)),
        ("malformed JSON", http.post(b'{"inputs": 1', headers=json), (400,)),
        ("a URL", http.post(b'{"inputs": "http://localhost/a.png"}', headers=json), (400,)),
        ("malformed form", http.post(b"--y\r\n", headers=form), (400,)),
        ("unknown model", http.post(image, "?model=../../etc/passwd"), (404,)),
        ("unknown parameter", http.post(image, "?topk=1"), (400,)),
        ("encoded", http.post(image, headers="Content-Encoding: gzip\r\n"), (415,)),
        ("unknown path", http.get("/admin"), (404,)),
        ("hangs up in the body", http.post(image)[:-5], ()),
        ("hangs up in the headers", b"POST /classify HTTP/1.1\r\nHos", ()),
        ("hangs up at once", b"", ()),
    ]


def _half_a_webp() -> bytes:
    """Make a file of half a megabyte that Pillow refuses with an exception of a different class."""
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    Image.fromarray(noise).save(file, "WEBP", lossless=True, method=0)
    return file.getvalue()[: len(file.getvalue()) // 2]


def _sample(pid: int) -> dict[str, float]:
    family = tree(pid)
    # Unique set size: it excludes pages of files and includes leaks.
    return {
        "memory_mb": sum(p.memory_full_info().uss for p in family) / 1e6,
        "descriptors": float(sum(p.num_fds() for p in family)),
        "threads": float(sum(p.num_threads() for p in family)),
        "processes": float(len(family)),
    }


def _summary(samples: Sequence[dict[str, float]], latencies: list[float]) -> dict[str, Any]:
    """Compare the last quarter with the second; in the first one caches fill."""
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
    p50, p99 = np.percentile(latencies, (50, 99)) * 1000
    return found | {"p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.resilience.soak`."""
    options = parsed(Options, arguments)
    try:
        with TemporaryDirectory() as folder:
            root, log = Path(folder, "models"), options.out.with_suffix(".log")
            shutil.copytree(options.models, root, symlinks=True)
            with server.started(root, log) as service:
                assert service.pid is not None
                result = asyncio.run(soak(options, root, service.port, service.pid))
            said = Counter(
                line[-120:]
                for line in log.read_text(errors="replace").splitlines()
                if "ERROR" in line or "Traceback" in line
            )
            http.write_result(options.out, result | {"errors_in_the_log": dict(said)})
            log.unlink()
    except psutil.Error as error:
        raise LabelcurveError(f"the service could not be watched: {error}") from error


if __name__ == "__main__":
    command.enter(main, extra="bench")
