"""Model swaps, overload and restarts under load: what is lost, and how fast the service recovers.

`python -m benchmarks.resilience.faults --models DIR --images DIR` runs the three in turn and writes
one JSON document each to `benchmarks/results/service/`.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from labelcurve.benchmarks.harness import server
from labelcurve.benchmarks.harness.processes import child, cpu_seconds, labelcurve
from labelcurve.benchmarks.resilience import client as http
from labelcurve.benchmarks.resilience import sleeper, versions
from labelcurve.benchmarks.resilience.client import Answer, Client
from labelcurve.bundle import command, files, store
from labelcurve.bundle.errors import LabelcurveError

N_IMAGES = 16
BATCH = 4
SLEEP_SECONDS = 0.02
"""Duration of an inference in the overload test: the capacity is BATCH / SLEEP_SECONDS."""


@dataclass
class Options:
    """Measures what a service loses under swaps, overload and restarts."""

    models: Path
    """Folder of bundles; it is copied and stays unchanged."""
    images: Path
    """Folder of images to send."""
    swaps: int = 20
    """New versions while 8 clients send requests; every fourth returns to an older version."""
    connections: int = 2000
    """Number of connections of the overload test."""
    seconds: float = 15.0
    """Duration of the overload test."""
    restarts: int = 4
    """Restarts of one of two replicas behind a proxy while 8 clients send requests."""
    only: tuple[Literal["swaps", "overload", "restarts"], ...] = ("swaps", "overload", "restarts")
    """The tests to run, of these three."""
    out: Path = Path("benchmarks/results/service")
    """Folder of the results."""


async def swaps(options: Options, root: Path, port: int) -> dict[str, Any]:
    """Swap versions under load and compare every answer with the version that it names."""
    images = http.images(options.images, N_IMAGES, N_IMAGES)
    bundle = store.read_all(root)[-1]
    names = bundle.manifest.class_names
    computed = {bundle.version: versions.expected(bundle, images)}
    requests = [http.post(image, f"?top_k={len(names)}") for image in images]
    pinned = f"?top_k={len(names)}&model={bundle.name}@{bundle.version}"
    requests.append(http.post(images[0], pinned))
    answers: list[tuple[int, Answer]] = []
    errors: Counter[str] = Counter()
    seen: dict[str, float] = {}  # when each version first answered a request that names none
    done = asyncio.Event()

    def heard(number: int, answer: Answer | ConnectionError) -> None:
        if isinstance(answer, ConnectionError) or answer.status != 200:
            errors[str(answer)[:200]] += 1
            return
        answers.append((number, answer))
        if number < N_IMAGES:
            seen.setdefault(answer.version or "", time.monotonic())

    load = asyncio.create_task(http.closed_loop(port, 8, done.is_set, requests, heard))
    order, delays = [bundle.version], []
    for number in range(1, options.swaps + 1):
        await asyncio.sleep(0.5)
        seen.clear()
        begin = time.monotonic()
        if number % 4 == 0:
            version = order[-2]
            versions.point(root, bundle.name, version)
        else:
            version = await asyncio.to_thread(versions.publish, root, bundle, number)
            fresh = store.read(root, bundle.name, version)
            computed[version] = await asyncio.to_thread(versions.expected, fresh, images)
        order.append(version)
        while version not in seen and time.monotonic() < begin + 30:
            await asyncio.sleep(0.01)
        if version not in seen:
            raise LabelcurveError(f"{version} did not answer within 30 s")
        delays.append(seen[version] - begin)
    broken = await asyncio.to_thread(versions.publish, root, bundle, 10_000)
    with (root / bundle.name / broken / store.GRAPH).open("ab") as file:
        file.write(b"\0")
    await asyncio.sleep(3)
    done.set()
    await load
    return {
        "swaps": len(delays),
        "ways_back": options.swaps // 4,
        "answers": len(answers),
        "errors": dict(errors),
        **_differences(answers, computed, names, bundle.version),
        "versions_that_answered": len({answer.version for _, answer in answers}),
        "seconds_to_the_first_answer": {
            "median": round(float(np.median(delays)), 3),
            "max": round(max(delays), 3),
        },
        "broken_version_answered": broken in {answer.version for _, answer in answers},
    }


def _differences(
    answers: Sequence[tuple[int, Answer]],
    computed: dict[str, NDArray[np.float32]],
    names: Sequence[str],
    pinned: str,
) -> dict[str, Any]:
    wrong, worst = 0, 0.0
    for number, answer in answers:
        expected = computed[answer.version or ""][number % N_IMAGES]
        apart = float(np.abs(versions.probabilities(answer, names) - expected).max())
        worst = max(worst, apart)
        wrong += apart > 1e-6 or (number == N_IMAGES and answer.version != pinned)
    return {
        "answers_unlike_the_version_that_they_name": wrong,
        "largest_difference_from_the_named_version": worst,
        "smallest_difference_between_two_versions": min(
            float(np.abs(a - b).max(axis=1).min()) for a, b in combinations(computed.values(), 2)
        ),
    }


async def overload(options: Options, port: int, pid: int) -> dict[str, Any]:
    """Measure the peak with 64 clients, then offer five times the capacity."""
    capacity = BATCH / SLEEP_SECONDS
    requests = [http.post(image) for image in http.images(options.images, N_IMAGES, N_IMAGES)]
    peak = await _timed(port, pid, requests, 64, 8, 0)
    # Refused clients retry so often that five times the capacity is offered; requests worth up to
    # two seconds of capacity wait for their answers.
    pause = (options.connections - 2 * capacity) / (5 * capacity)
    over = await _timed(port, pid, requests, options.connections, options.seconds, pause)
    stopped = time.monotonic()
    recovered, calm = None, 0
    while time.monotonic() < stopped + 15 and calm < 10:
        client = await Client.connect(port)
        answer = await client.ask(requests[0])
        client.close()
        calm = calm + 1 if answer.status == 200 and answer.seconds < 0.1 else 0
        if calm == 1:
            recovered = time.monotonic() - stopped
    good, best = over["per_s"].get("200", 0.0), peak["per_s"].get("200", 0.0)
    return {
        "inference_sleeps_s": SLEEP_SECONDS,
        "largest_batch": BATCH,
        "capacity_per_s": capacity,
        "peak": peak,
        "overload": over,
        "goodput_of_peak": round(good / best, 3),
        "offered_of_capacity": round(over["offered_per_s"] / capacity, 2),
        "server_errors_other_than_503": {
            s: n for s, n in over["per_s"].items() if s not in ("200", "503")
        },
        "seconds_to_recover": recovered and round(recovered, 3),
    }


async def _timed(
    port: int, pid: int, requests: Sequence[bytes], clients: int, seconds: float, pause: float
) -> dict[str, Any]:
    """Load the service; each client pauses about `pause` seconds after an answer."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    cpu, own, begin = cpu_seconds(pid) or 0.0, time.process_time(), time.monotonic()
    warm, until = min(3.0, seconds / 3), begin + seconds

    def heard(_: int, answer: Answer | ConnectionError) -> Awaitable[None] | None:
        # Answers after the end belong to requests that were sent before it.
        if begin + warm < time.monotonic() < until:
            statuses[str(answer.status) if isinstance(answer, Answer) else "connection"] += 1
            if isinstance(answer, Answer) and answer.status == 200:
                latencies.append(answer.seconds)
        return asyncio.sleep(pause * random.uniform(0.5, 1.5)) if pause else None

    await http.closed_loop(port, clients, lambda: time.monotonic() > until, requests, heard)
    took = time.monotonic() - begin
    rates = {status: round(n / (seconds - warm), 1) for status, n in statuses.items()}
    p50, p99 = np.percentile(latencies or [0.0], (50, 99)) * 1000
    return {
        "connections": clients,
        "per_s": rates,
        "offered_per_s": round(sum(rates.values()), 1),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "server_cores": round(((cpu_seconds(pid) or 0.0) - cpu) / took, 2),
        "client_cores": round((time.process_time() - own) / took, 2),
    }


class Proxy:
    """An HTTP/1.1 proxy over several backends that polls their readiness ten times a second."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ready = dict.fromkeys(ports, False)
        self._idle: dict[int, deque[Client]] = {port: deque() for port in ports}
        self._turn = 0
        self.retries = 0

    async def watch(self) -> None:
        """Poll readiness until cancelled."""
        while True:
            for port in self._ready:
                self._ready[port] = False
                with suppress(OSError, TimeoutError):
                    client = await Client.connect(port)
                    answer = await asyncio.wait_for(client.ask(http.get("/readyz")), 1)
                    client.close()
                    self._ready[port] = answer.status == 200
            await asyncio.sleep(0.1)

    async def ask(self, request: bytes) -> Answer:
        """Forward a request; another backend gets it only where no connection was made.

        Raises:
            ConnectionError: no backend was ready, or the connection was lost.
        """
        for _ in range(100):
            ready = [port for port, is_ready in self._ready.items() if is_ready]
            if not ready:
                await asyncio.sleep(0.05)
                continue
            self._turn += 1
            port = ready[self._turn % len(ready)]
            idle = self._idle[port]
            client = None
            while idle and (client is None or not client.open):
                client = idle.pop()
            try:
                client = await Client.connect(port, client)
            except OSError:
                self.retries += 1
                self._ready[port] = False
                continue
            answer = await client.ask(request)
            if client.open:
                idle.append(client)
            return answer
        raise ConnectionError("no backend was ready")


async def restarts(options: Options, root: Path, folder: Path) -> dict[str, Any]:
    """Restart two replicas behind a proxy in turn, with SIGTERM, under load."""
    images = http.images(options.images, N_IMAGES, N_IMAGES)
    requests = [http.post(image) for image in images]
    statuses: Counter[str] = Counter()
    done = False
    with ExitStack() as stack:
        ports = [server.free_port() for _ in range(2)]
        log = stack.enter_context((folder / "restarts.log").open("wb"))

        def start(port: int) -> subprocess.Popen[bytes]:
            arguments = [*labelcurve("serve"), "--models", str(root), "--port", str(port)]
            return stack.enter_context(child(arguments, log))

        running = [start(port) for port in ports]
        await asyncio.gather(*[http.ready(port, 120) for port in ports])
        proxy = Proxy(ports)
        watching = asyncio.create_task(proxy.watch())

        async def client(number: int) -> None:
            while not done:
                number += 1
                try:
                    answer = await proxy.ask(requests[number % len(requests)])
                    statuses[str(answer.status)] += 1
                except OSError as error:
                    statuses[f"lost: {error}"] += 1
                await asyncio.sleep(0.005)

        clients = [asyncio.create_task(client(n)) for n in range(8)]
        took = []
        for number in range(options.restarts):
            await asyncio.sleep(1)
            begin = time.monotonic()
            process, port = running[number % 2], ports[number % 2]
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 30)
            running[number % 2] = start(port)
            await http.ready(port, 120)
            took.append(time.monotonic() - begin)
        await asyncio.sleep(1)
        done = True
        await asyncio.gather(*clients)
        watching.cancel()
    return {
        "restarts": options.restarts,
        "statuses": dict(statuses),
        "lost": sum(n for status, n in statuses.items() if status != "200"),
        "connections_refused_and_sent_to_the_other": proxy.retries,
        "seconds_of_a_restart": round(float(np.median(took)), 2),
    }


def _run(name: str, options: Options, folder: Path) -> dict[str, Any]:
    if name == "overload":
        with sleeper.started(options.models, folder, SLEEP_SECONDS, BATCH) as (port, pid):
            asyncio.run(http.ready(port, 120))
            return asyncio.run(overload(options, port, pid))
    root = folder / "models"
    shutil.copytree(options.models, root, symlinks=True)
    if name == "restarts":
        return asyncio.run(restarts(options, root, folder))
    with server.started(root, folder / "log", options=("--watch", "0.2")) as service:
        return asyncio.run(swaps(options, root, service.port))


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.resilience.faults`."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.resilience.faults")
    files.check_out(options.out)
    for name in options.only:
        print(f"{name} ...", flush=True)
        with TemporaryDirectory() as folder:
            result = _run(name, options, Path(folder))
        http.write_result(options.out / f"{name}.json", result)


if __name__ == "__main__":
    command.enter(main, extra="bench")
