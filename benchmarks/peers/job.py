"""A run of `bench peers`: environments, servers and load, in turn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import numpy as np
import platformdirs
import tyro
from PIL import Image

from labelcurve.benchmarks.harness import null_model, processes, provenance
from labelcurve.benchmarks.harness.server import free_port
from labelcurve.benchmarks.peers import limit, servers, table, wrk
from labelcurve.benchmarks.peers.record import Limit, Peer, Peers, Series, Turn
from labelcurve.benchmarks.peers.servers import Request, Server
from labelcurve.bundle import command, files, store
from labelcurve.bundle.command import Within
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores
from labelcurve.bundle.store import Bundle

OWN = Server("labelcurve", "Labelcurve (BentoML)", (), (), servers.raw)
READY_SECONDS = 90.0
WARM_SECONDS = 1.0
Clients = Annotated[tuple[int, ...], Within(1)]


@dataclass
class BenchPeers:
    """Compares this service with others on this machine, over the same model and image.

    Each has a separate environment, created once in the cache folder. All of them run at the same
    time and are loaded in turn, once with a model that does nothing and once with the real one.
    Writes peers.json and peers.md. Where stdout is no terminal, and with --json, its last line is
    one JSON document.
    """

    models: Path = Path("models")
    """Folder of bundles, as `labelcurve train --out` wrote it."""
    model: str | None = None
    """The bundle to serve; by default the one with the most labels."""
    image: Path | None = None
    """The image to send; by default a random PNG of the model's input size."""
    out: Path = Path("runs/peers")
    """Folder for results and the servers' logs."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Compare with this peer only; may be repeated."""
    null_clients: Clients = (1, 32, 64)
    """Numbers of clients with the model that does nothing."""
    clients: Clients = (32, 64)
    """Numbers of clients with the real model."""
    most_clients: Clients = (128, 256, 512)
    """Further numbers of clients with the model that does nothing, for this service alone."""
    seconds: Annotated[int, Within(1)] = 3
    """Length of each turn."""
    rounds: Annotated[int, Within(1)] = 3
    """Turns of each server under each load."""
    cache: Path | None = None
    """Folder of the environments; by default the user's cache folder."""


@dataclass
class _Running:
    server: Server
    url: str
    pid: int
    request: Request
    turns: dict[int, list[Turn]] = field(default_factory=dict)


@dataclass
class _Run:
    """State of a run."""

    bench: BenchPeers
    say: Callable[[str], None]
    work: Path
    image: bytes
    peers: dict[str, Peer] = field(default_factory=dict)
    """By name; those with an error are left out."""
    interpreters: dict[str, Path] = field(default_factory=dict)

    def update(self, name: str, **changes: Any) -> None:
        self.peers[name] = self.peers[name].model_copy(update=changes)

    def install(self) -> None:
        """Make the environments of the peers."""
        cache = self.bench.cache or platformdirs.user_cache_path("labelcurve", appauthor=False)
        for server in (OWN, *servers.PEERS):
            name = server.name
            if server is not OWN and self.bench.only and name not in self.bench.only:
                continue
            self.peers[name] = Peer(
                name=name, label=server.label, packages={}, ready_s={}, memory_mb={}
            )
            if server is OWN:
                continue
            try:
                self.interpreters[name] = servers.python(server, cache, self.say)
                self.update(name, packages=servers.packages(server, self.interpreters[name]))
            except (LabelcurveError, subprocess.CalledProcessError) as failure:
                self.update(name, error=f"not installed: {failure}")
                self.say(f"  {name}: {self.peers[name].error}")

    def measure(self, name: str, models: Path, graph: Path, names: Sequence[str]) -> list[Series]:
        """Load all servers over the model `null` or `real`.

        This service gets a folder of bundles with it alone, the peers its ONNX file. The names of
        its classes are empty for the null model, which every server answers alike.
        """
        bench = self.bench
        clients = bench.null_clients if name == "null" else bench.clients
        with ExitStack() as stack:
            running = self._start_all(name, models, graph, names, stack)
            for one in running:
                wrk.load(one.url, one.request, self.work, one.pid, 8, WARM_SECONDS)
            for number in range(bench.rounds):
                for count in clients:
                    # Back and forth, so that drift within a round favours none.
                    for one in running[:: 1 if number % 2 == 0 else -1]:
                        self._turn(one, count, number)
                for count in bench.most_clients if name == "null" else ():
                    self._turn(running[0], count, number)
            for one in running:
                memory = round(processes.memory_mb(one.pid) or 0.0, 1)
                before = self.peers[one.server.name].memory_mb
                self.update(one.server.name, memory_mb={**before, name: memory})
        return [
            Series(server=one.server.name, model=name, clients=count, turns=tuple(turns))
            for one in running
            for count, turns in one.turns.items()
        ]

    def _start_all(
        self, name: str, models: Path, graph: Path, names: Sequence[str], stack: ExitStack
    ) -> list[_Running]:
        running: list[_Running] = []
        expected = ""
        for server in (OWN, *servers.PEERS):
            peer = self.peers.get(server.name)
            if peer is None or peer.error:
                continue
            began = time.monotonic()
            log = self.bench.out / f"{server.name}-{name}.log"
            one, process = self._start(server, models, graph, log, stack)
            try:
                best = best_class(_ready(one, process, log), names)
                expected = expected or best
                if names and best != expected:
                    raise LabelcurveError(f"it answers {best!r}, this service {expected!r}")
            except LabelcurveError as failure:
                if server is OWN:
                    raise
                processes.stop(process)
                self.say(f"  {server.name}: left out, {failure}")
                self.update(server.name, error=str(failure)[-800:])
                continue
            seconds = time.monotonic() - began
            self.say(f"  {server.name} answers after {seconds:.1f} s")
            self.update(server.name, ready_s={**peer.ready_s, name: round(seconds, 2)})
            running.append(one)
        return running

    def _start(
        self, server: Server, models: Path, graph: Path, log: Path, stack: ExitStack
    ) -> tuple[_Running, subprocess.Popen[bytes]]:
        port = free_port(2)  # Triton takes another, for gRPC
        environment, folder = None, None
        if server is OWN:
            started = [*processes.labelcurve("serve"), "--models", str(models)]
            started += ["--port", str(port), "--threads", str(cores()), "--device", "cpu"]
        else:
            interpreter, folder = self.interpreters[server.name], servers.FOLDER
            words = (str(port) if word == "PORT" else word for word in server.arguments)
            started = [str(interpreter), *words]
            environment = servers.environment(interpreter, graph, port, cores())
        output = stack.enter_context(log.open("wb"))
        process = stack.enter_context(
            processes.child(started, output, environment=environment, folder=folder)
        )
        url = f"http://127.0.0.1:{port}"
        return _Running(server, url, process.pid, server.request(self.image)), process

    def _turn(self, one: _Running, clients: int, number: int) -> None:
        turn = wrk.load(one.url, one.request, self.work, one.pid, clients, self.bench.seconds)
        one.turns.setdefault(clients, []).append(turn)
        self.say(
            f"  round {number + 1} of {self.bench.rounds}, {clients:3d} clients  "
            f"{one.server.name:10s} {turn.requests_per_s:7,.0f} requests/s, p99 "
            f"{turn.p99_ms:6.1f} ms, {turn.server_cpu_ms:.2f} ms of CPU each"
            + (f", {turn.errors} ERRORS" * bool(turn.errors))
        )


def run(bench: BenchPeers, say: Callable[[str], None]) -> Peers:
    """Install, start and measure.

    Raises:
        LabelcurveError: wrk, the models or the service itself cannot be used. A peer that cannot
            be installed or started is reported and left out.
    """
    wrk.found()
    check(bench)
    bundle = chosen(bench.models, bench.model)
    data = bench.image.read_bytes() if bench.image else png(bundle.manifest.preprocessing.size)
    limits: dict[str, Limit] = {}
    series: list[Series] = []
    with TemporaryDirectory(prefix="labelcurve-peers-") as folder:
        state = _Run(bench, say, Path(folder), data)
        say("Environments")
        state.install()
        for name in ("null", "real"):
            models = state.work / name
            models.mkdir()
            names: tuple[str, ...] = ()
            if name == "null":
                graph = null_model.publish(models, bundle).path / store.GRAPH
            else:
                graph, names = bundle.path / store.GRAPH, bundle.manifest.class_names
                (models / bundle.name).symlink_to(bundle.path.parent.resolve())
            say(f"\nThe {name} model: {graph.stat().st_size / 1e6:.2f} MB")
            found = limits[name] = limit.measure(graph.read_bytes(), data)
            say(
                f"  limit: {found.decode_ms:.3f} ms of CPU time to decode an image and "
                f"{found.inference_ms:.3f} ms in ONNX Runtime"
            )
            series += state.measure(name, models, graph, names)
    return Peers(
        bundle=f"{bundle.name}@{bundle.version}",
        parameters=bundle.manifest.n_parameters,
        image=f"{len(data)} bytes" + (f", {bench.image.name}" if bench.image else ", random PNG"),
        threads=cores(),
        rounds=bench.rounds,
        limits=limits,
        peers=tuple(state.peers.values()),
        series=tuple(series),
        provenance=provenance.here(),
    )


def _ready(one: _Running, process: subprocess.Popen[bytes], log: Path) -> Any:
    """Wait for the first answer and return it."""
    end = time.monotonic() + READY_SECONDS
    last = "no answer"
    while time.monotonic() < end and process.poll() is None:
        try:
            answer = httpx.post(
                one.url + one.request.path,
                content=one.request.body,
                headers=one.request.headers,
                timeout=10,
                trust_env=False,
            )
            if answer.status_code == 200:
                return answer.json()
            last = f"{answer.status_code} {answer.text[:200]}"
        except httpx.HTTPError as error:
            last = str(error)
        time.sleep(0.05)
    # Only the last line: a traceback before it holds paths of this machine.
    tail = log.read_text(errors="replace").strip().rpartition("\n")[2][-500:]
    raise LabelcurveError(f"it did not become ready ({last}): {tail}")


def best_class(answer: Any, names: Sequence[str]) -> str:
    """Read the first class of an answer; the V2 protocol has probabilities only."""
    if isinstance(answer, list):
        return str(answer[0]["label"])
    best = int(np.argmax(answer["outputs"][0]["data"]))
    return names[best] if names else str(best)


def chosen(models: Path, name: str | None) -> Bundle:
    """Read the bundle `name`; without one, that with the most labels.

    Raises:
        LabelcurveError: no such model.
    """
    bundles = {bundle.name: bundle for bundle in store.read_all(models)}
    if name is not None and name not in bundles:
        raise LabelcurveError(f"--model {name}: no such model; there are {', '.join(bundles)}")
    return bundles[name or list(bundles)[-1]]


def png(size: int) -> bytes:
    """Make a smooth random image, about as compressible as a photo."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def check(bench: BenchPeers) -> None:
    """Refuse options out of range, and an output folder that cannot be made.

    Raises:
        LabelcurveError: names the option.
    """
    names = [server.name for server in servers.PEERS]
    if unknown := set(bench.only) - set(names):
        raise LabelcurveError(
            f"--only {', '.join(sorted(unknown))}: no such peer; there are {', '.join(names)}"
        )
    command.check(bench)
    files.check_out(bench.out)
    bench.out.mkdir(parents=True, exist_ok=True)


def main(arguments: Sequence[str]) -> None:
    """The command `bench peers`."""
    bench = tyro.cli(BenchPeers, args=arguments, prog="labelcurve bench peers")
    result = run(bench, partial(print, flush=True))
    files.write_out(bench.out / "peers.json", result.model_dump_json(indent=2) + "\n")
    text = table.markdown(result)
    files.write_out(bench.out / "peers.md", text)
    print(f"\n{text}")
    command.answer({"out": str(bench.out), "peers": [p.name for p in result.peers]})
