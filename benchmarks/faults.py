"""Swaps, overload and restarts under load: what is lost, and how fast it is well again.

`python -m benchmarks.faults --models DIR --images DIR` runs the three one after the other and
writes a JSON each under `benchmarks/results/service/`.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro

from benchmarks import sleeper, traffic
from benchmarks.processes import child, command, cpu_seconds, end_on_signals
from benchmarks.server import free_port
from benchmarks.traffic import Answer, Client
from bundle import store
from bundle.errors import LabelcurveError

N_IMAGES = 16


@dataclass
class Options:
    """Measures what a service loses under swaps, overload and restarts."""

    models: Path
    """Folder of bundles; it is copied and left as it is."""
    images: Path
    """Folder of images to send."""
    swaps: int = 20
    """New versions while 8 clients ask; a quarter of them are ways back to an older one."""
    connections: int = 2000
    """Of the overload."""
    seconds: float = 15.0
    """Of the overload."""
    restarts: int = 4
    """Of one of two copies behind a proxy while 8 clients ask."""
    only: tuple[str, ...] = ("swaps", "overload", "restarts")
    """Which of the three."""
    out: Path = Path("benchmarks/results/service")
    """Folder of the results."""


async def swaps(options: Options, root: Path, port: int) -> dict[str, Any]:
    """Every answer is held against what the version that it names computes."""
    images = _images(options.images)
    bundle = store.read_all(root)[-1]
    names = bundle.manifest.class_names
    computed = {bundle.version: traffic.expected(bundle, images)}
    requests = [traffic.post(image, f"?top_k={len(names)}") for image in images]
    old = traffic.post(images[0], f"?top_k={len(names)}&model={bundle.name}@{bundle.version}")
    requests.append(old)
    answers: list[tuple[int, Answer]] = []
    errors: Counter[str] = Counter()
    seen: dict[str, float] = {}
    done = False

    def heard(number: int, answer: Answer | ConnectionError) -> None:
        if isinstance(answer, ConnectionError) or answer.status != 200:
            errors[str(answer)[:200]] += 1
            return
        answers.append((number, answer))
        if number < len(images):
            seen.setdefault(answer.version or "", time.monotonic())

    load = asyncio.create_task(traffic.closed_loop(port, 8, lambda: done, requests, heard))
    order = [bundle.version]
    delays = []
    for number in range(1, options.swaps + 1):
        await asyncio.sleep(0.5)
        seen.clear()
        begin = time.monotonic()
        if number % 4 == 0:
            version = order[-2]
            traffic.point(root, bundle.name, version)
        else:
            version = await asyncio.to_thread(traffic.publish, root, bundle, number)
            fresh = store.read(root, bundle.name, version)
            computed[version] = await asyncio.to_thread(traffic.expected, fresh, images)
        order.append(version)
        while version not in seen and time.monotonic() < begin + 30:
            await asyncio.sleep(0.01)
        if version not in seen:
            raise LabelcurveError(f"{version} did not answer within 30 s")
        delays.append(seen[version] - begin)
    broken = await asyncio.to_thread(traffic.publish, root, bundle, 10_000)
    with (root / bundle.name / broken / store.GRAPH).open("ab") as file:
        file.write(b"\0")
    await asyncio.sleep(3)
    done = True
    await load
    wrong = 0
    worst = 0.0
    for number, answer in answers:
        image = 0 if number == len(images) else number
        apart = np.abs(
            traffic.probabilities(answer, names) - computed[answer.version or ""][image]
        ).max()
        worst = max(worst, float(apart))
        wrong += bool(apart > 1e-6)
        wrong += number == len(images) and answer.version != bundle.version
    smallest = min(
        float(np.abs(a - b).max(axis=1).min())
        for i, a in enumerate(computed.values())
        for j, b in enumerate(computed.values())
        if i < j
    )
    return {
        "swaps": len(delays),
        "ways_back": sum(n % 4 == 0 for n in range(1, options.swaps + 1)),
        "answers": len(answers),
        "errors": dict(errors),
        "answers_unlike_the_version_that_they_name": wrong,
        "largest_difference_from_the_named_version": worst,
        "smallest_difference_between_two_versions": smallest,
        "versions_that_answered": len({answer.version for _, answer in answers}),
        "seconds_to_the_first_answer": {
            "median": round(float(np.median(delays)), 3),
            "max": round(max(delays), 3),
        },
        "broken_version_answered": broken in {answer.version for _, answer in answers},
    }


async def overload(options: Options, port: int, pid: int, capacity: float) -> dict[str, Any]:
    """Peak with 64 clients, then many more connections than there is capacity for."""
    requests = [traffic.post(image) for image in _images(options.images)]

    async def run(clients: int, seconds: float, pause: float) -> tuple[Counter[str], list[float]]:
        statuses: Counter[str] = Counter()
        latencies: list[float] = []
        begin = time.monotonic()
        warm = min(3.0, seconds / 3)
        until = begin + seconds

        def heard(_: int, answer: Answer | ConnectionError) -> Any:
            # After the end the clients wait for their last answers and ask no more.
            if begin + warm < time.monotonic() < until:
                failed = isinstance(answer, ConnectionError)
                statuses["connection" if failed else str(answer.status)] += 1  # type: ignore[union-attr]
                if isinstance(answer, Answer) and answer.status == 200:
                    latencies.append(answer.seconds)
            return asyncio.sleep(pause * random.uniform(0.5, 1.5)) if pause else None

        await traffic.closed_loop(port, clients, lambda: time.monotonic() > until, requests, heard)
        return Counter({k: round(v / (seconds - warm), 1) for k, v in statuses.items()}), latencies

    async def timed(clients: int, seconds: float, pause: float) -> dict[str, Any]:
        before = (cpu_seconds(pid) or 0.0, time.process_time(), time.monotonic())
        rates, latencies = await run(clients, seconds, pause)
        took = time.monotonic() - before[2]
        ordered = sorted(latencies) or [0.0]
        return {
            "connections": clients,
            "per_s": dict(rates),
            "offered_per_s": round(sum(rates.values()), 1),
            "p50_ms": round(ordered[len(ordered) // 2] * 1000, 1),
            "p99_ms": round(ordered[len(ordered) * 99 // 100] * 1000, 1),
            "server_cores": round(((cpu_seconds(pid) or 0.0) - before[0]) / took, 2),
            "client_cores": round((time.process_time() - before[1]) / took, 2),
        }

    peak = await timed(64, 8, 0)
    # Those that are refused come back so often that five times the capacity is offered; up to
    # two seconds' worth of the others wait for their answers.
    pause = (options.connections - 2 * capacity) / (5 * capacity)
    over = await timed(options.connections, options.seconds, pause)
    stopped = time.monotonic()
    recovered = None
    calm = 0
    while time.monotonic() < stopped + 15 and calm < 10:
        client = await Client.connect(port)
        answer = await client.ask(requests[0])
        client.close()
        calm = calm + 1 if answer.status == 200 and answer.seconds < 0.1 else 0
        if calm == 1:
            recovered = time.monotonic() - stopped
    good, best = over["per_s"].get("200", 0.0), peak["per_s"].get("200", 0.0)
    return {
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


class Proxy:
    """HTTP/1.1 to whichever backend is ready: asks each of them ten times a second."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ready = dict.fromkeys(ports, False)
        self._idle: dict[int, deque[Client]] = {port: deque() for port in ports}
        self._turn = 0
        self.retries = 0

    async def watch(self) -> None:
        """Asks for readiness until it is cancelled."""
        while True:
            for port in self._ready:
                self._ready[port] = await self._ask(port)
            await asyncio.sleep(0.1)

    async def _ask(self, port: int) -> bool:
        with suppress(ConnectionError, OSError, TimeoutError):
            client = await Client.connect(port)
            answer = await asyncio.wait_for(client.ask(traffic.get("/readyz")), 1)
            client.close()
            return answer.status == 200
        return False

    async def ask(self, request: bytes) -> Answer:
        """Sends a request to a backend; another one gets it only where none was connected."""
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
                if client is None or not client.open:
                    client = await Client.connect(port)
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
    """Two copies behind a proxy; each is ended with SIGTERM and started again in turn."""
    requests = [traffic.post(image) for image in _images(options.images)]
    statuses: Counter[str] = Counter()
    done = False
    with ExitStack() as stack:
        ports = [free_port() for _ in range(2)]
        log = stack.enter_context((folder / "restarts.log").open("wb"))

        def start(port: int) -> subprocess.Popen[bytes]:
            arguments = [command("serve"), "--models", str(root), "--port", str(port)]
            return stack.enter_context(child(arguments, log))

        running = [start(port) for port in ports]
        await asyncio.gather(*[traffic.ready(port, 120) for port in ports])
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
            await traffic.ready(port, 120)
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


def _images(folder: Path) -> list[bytes]:
    suffixes = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if len(paths) < N_IMAGES:
        raise LabelcurveError(f"{folder} holds {len(paths)} images: {N_IMAGES} are needed")
    return [path.read_bytes() for path in paths[:N_IMAGES]]


def _swaps(options: Options, folder: Path) -> dict[str, Any]:
    root, port = _copy(options, folder / "swaps"), free_port()
    arguments = [command("serve"), "--models", str(root), "--port", str(port), "--watch", "0.2"]
    with (folder / "log").open("wb") as log, child(arguments, log):
        asyncio.run(traffic.ready(port, 120))
        return asyncio.run(swaps(options, root, port))


def _overload(options: Options, folder: Path) -> dict[str, Any]:
    seconds, batch = 0.02, 4
    with sleeper.started(options.models, folder, seconds, batch) as (port, pid):
        asyncio.run(traffic.ready(port, 120))
        result = asyncio.run(overload(options, port, pid, batch / seconds))
    return {"inference_sleeps_s": seconds, "largest_batch": batch, **result}


def _restarts(options: Options, folder: Path) -> dict[str, Any]:
    return asyncio.run(restarts(options, _copy(options, folder / "restarts"), folder))


def _copy(options: Options, root: Path) -> Path:
    shutil.copytree(options.models, root, symlinks=True)
    return root


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.faults`."""
    options = tyro.cli(Options, args=args, prog="python -m benchmarks.faults")
    end_on_signals()
    kinds = {"swaps": _swaps, "overload": _overload, "restarts": _restarts}
    for name in options.only:
        if name not in kinds:
            sys.exit(f"error: --only {name}: allowed are {', '.join(kinds)}")
    try:
        for name in options.only:
            print(f"{name} ...", flush=True)
            with TemporaryDirectory() as folder:
                result = kinds[name](options, Path(folder))
            traffic.write_result(options.out / f"{name}.json", result)
    except (LabelcurveError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
