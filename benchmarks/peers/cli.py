"""`bench peers`: this service beside others, the same model and image, loaded in turn by wrk."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import numpy as np
import platformdirs
import psutil
import tyro

from benchmarks import null, processes, provenance
from benchmarks.peers import limit, servers, table, wrk
from benchmarks.peers.record import Limit, Peer, Peers, Series, Turn
from benchmarks.peers.servers import Request, Server
from benchmarks.server import free_port
from bundle import store
from bundle.errors import LabelcurveError
from bundle.machine import cores
from bundle.store import Bundle

OWN = Server("labelcurve", "Labelcurve (BentoML)", (), (), servers.raw)
READY_SECONDS = 90.0
WARM_SECONDS = 1.0


@dataclass
class BenchPeers:
    """Compares this service with others on this machine, over the same model and image.

    Each has an environment of its own, which is made once in the cache folder. All of them run at
    the same time and take turns under the load, once with a model that does nothing and once with
    the real one. Writes peers.json and peers.md. The last line on stdout is one JSON document.
    """

    models: Path = Path("models")
    """Folder of bundles, as `train --out` wrote it."""
    model: str | None = None
    """The bundle to serve; by default the one with the most labels."""
    image: Path | None = None
    """The image that is sent; by default a random one of 32 x 32 pixels as PNG."""
    out: Path = Path("runs/peers")
    """Folder for results and the servers' logs."""
    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Only this peer beside the service; may be repeated."""
    null_clients: tuple[int, ...] = (1, 32, 64)
    """Clients of the model that does nothing."""
    clients: tuple[int, ...] = (32, 64)
    """Clients of the real model."""
    most_clients: tuple[int, ...] = (128, 256, 512)
    """Clients that the service alone gets besides, with the model that does nothing."""
    seconds: int = 3
    """Of each turn."""
    rounds: int = 3
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


def run(bench: BenchPeers, say: Callable[[str], None]) -> Peers:
    """Installs, starts and measures.

    Raises:
        LabelcurveError: wrk, the models or the service itself cannot be used. A peer that cannot
            be installed or started is reported and left out.
    """
    wrk.found()
    _check(bench)
    bundle = _bundle(bench)
    data = bench.image.read_bytes() if bench.image else _image(bundle.manifest.preprocessing.size)
    cache = bench.cache or platformdirs.user_cache_path("labelcurve", appauthor=False)
    peers = {OWN.name: Peer(name=OWN.name, label=OWN.label, packages={}, ready_s={}, memory_mb={})}
    interpreters = {}
    say("Environments")
    for server in servers.PEERS:
        if bench.only and server.name not in bench.only:
            continue
        try:
            interpreters[server.name] = servers.python(server, cache, say)
            found = servers.packages(server, interpreters[server.name])
            error = None
        except (LabelcurveError, subprocess.CalledProcessError) as failure:
            found, error = {}, f"not installed: {failure}"
            say(f"  {server.name}: {error}")
        peers[server.name] = Peer(
            name=server.name,
            label=server.label,
            packages=found,
            ready_s={},
            memory_mb={},
            error=error,
        )
    limits: dict[str, Limit] = {}
    series: list[Series] = []
    with TemporaryDirectory(prefix="labelcurve-peers-") as folder:
        work = Path(folder)
        for name, clients in (("null", bench.null_clients), ("real", bench.clients)):
            models = work / name
            models.mkdir()
            if name == "null":
                graph, manifest = null.publish(models, bundle).path / store.GRAPH, None
            else:
                graph, manifest = bundle.path / store.GRAPH, bundle.manifest
                (models / bundle.name).symlink_to(bundle.path.parent.resolve())
            say(f"\nThe {name} model: {graph.stat().st_size / 1e6:.2f} MB")
            limits[name] = limit.measure(graph.read_bytes(), data)
            say(
                f"  limit: {limits[name].decode_ms:.3f} ms of CPU to decode and "
                f"{limits[name].inference_ms:.3f} ms in ONNX Runtime an image"
            )
            most = bench.most_clients if name == "null" else ()
            series += _model(
                bench,
                name,
                models,
                graph,
                clients,
                most,
                data,
                interpreters,
                peers,
                work,
                say,
                manifest.class_names if manifest else (),
            )
    return Peers(
        bundle=f"{bundle.name}@{bundle.version}",
        parameters=bundle.manifest.n_parameters,
        image=f"{len(data)} bytes" + (f", {bench.image.name}" if bench.image else ", random PNG"),
        threads=cores(),
        rounds=bench.rounds,
        limits=limits,
        peers=tuple(peers.values()),
        series=tuple(series),
        provenance=provenance.here(),
    )


def _model(
    bench: BenchPeers,
    name: str,
    models: Path,
    graph: Path,
    clients: Sequence[int],
    most: Sequence[int],
    data: bytes,
    interpreters: dict[str, Path],
    peers: dict[str, Peer],
    work: Path,
    say: Callable[[str], None],
    names: Sequence[str],
) -> list[Series]:
    running: list[_Running] = []
    expected = ""
    with ExitStack() as stack:
        for server in (OWN, *servers.PEERS):
            peer = peers.get(server.name)
            if peer is None or peer.error:
                continue
            port = free_port(3)  # MLServer takes two more, for gRPC and metrics
            log = bench.out / f"{server.name}-{name}.log"
            if server is OWN:
                command = [processes.command("serve"), "--models", str(models), "--port", str(port)]
                command += ["--threads", str(cores()), "--device", "cpu"]
                environment, place = None, None
            else:
                own = work / f"{server.name}-{name}"
                own.mkdir()
                interpreter = interpreters[server.name]
                command = servers.command(server, interpreter, port, own)
                environment = servers.environment(server, interpreter, graph, port, cores())
                place = servers.FOLDER
            began = time.monotonic()
            output = stack.enter_context(log.open("wb"))
            process = stack.enter_context(
                processes.child(command, output, environment=environment, folder=place)
            )
            one = _Running(server, f"http://127.0.0.1:{port}", process.pid, server.request(data))
            try:
                answer = _ready(one, process, log)
                best = _best(answer, names)
                expected = expected or best
                if names and best != expected:
                    raise LabelcurveError(f"it answers {best!r}, this service {expected!r}")
            except LabelcurveError as failure:
                if server is OWN:
                    raise
                processes.stop(process)
                say(f"  {server.name}: left out, {failure}")
                peers[server.name] = peer.model_copy(update={"error": str(failure)[-800:]})
                continue
            seconds = time.monotonic() - began
            say(f"  {server.name} answers after {seconds:.1f} s")
            ready = {**peer.ready_s, name: round(seconds, 2)}
            peers[server.name] = peer.model_copy(update={"ready_s": ready})
            running.append(one)
        for one in running:
            wrk.load(one.url, one.request, work, one.pid, 8, WARM_SECONDS)
        for number in range(bench.rounds):
            for count in clients:
                # Forth and back, so that a drift within a round favours nobody.
                for one in running[:: 1 if number % 2 == 0 else -1]:
                    _turn(one, count, bench, work, say, number)
            for count in most:
                _turn(running[0], count, bench, work, say, number)
        for one in running:
            peer = peers[one.server.name]
            memory = {**peer.memory_mb, name: round(_memory(one.pid), 1)}
            peers[one.server.name] = peer.model_copy(update={"memory_mb": memory})
    return [
        Series(server=one.server.name, model=name, clients=count, turns=tuple(turns))
        for one in running
        for count, turns in one.turns.items()
    ]


def _turn(
    one: _Running,
    clients: int,
    bench: BenchPeers,
    work: Path,
    say: Callable[[str], None],
    number: int,
) -> None:
    turn = wrk.load(one.url, one.request, work, one.pid, clients, bench.seconds)
    one.turns.setdefault(clients, []).append(turn)
    say(
        f"  round {number + 1} of {bench.rounds}, {clients:3d} clients  {one.server.name:10s} "
        f"{turn.requests_per_s:7,.0f} requests/s, p99 {turn.p99_ms:6.1f} ms, "
        f"{turn.server_cpu_ms:.2f} ms of CPU each" + (f", {turn.errors} ERRORS" * bool(turn.errors))
    )


def _ready(one: _Running, process: subprocess.Popen[bytes], log: Path) -> Any:
    """Waits for the first answer and returns it."""
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
    # The last line alone: a traceback before it holds paths of this machine.
    tail = log.read_text(errors="replace").strip().rpartition("\n")[2][-500:]
    raise LabelcurveError(f"it did not get ready ({last}): {tail}")


def _best(answer: Any, names: Sequence[str]) -> str:
    """The class that an answer names first; the V2 protocol knows none, only probabilities."""
    if isinstance(answer, list):
        return str(answer[0]["label"])
    best = int(np.argmax(answer["outputs"][0]["data"]))
    return names[best] if names else str(best)


def _memory(pid: int) -> float:
    """Proportional set size of a process tree, in MB."""
    total = 0
    for process in processes.tree(pid):
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except psutil.Error:
            continue
    return total / 1e6


def _bundle(bench: BenchPeers) -> Bundle:
    bundles = store.read_all(bench.models)
    if bench.model is None:
        return bundles[-1]
    for bundle in bundles:
        if bundle.name == bench.model:
            return bundle
    names = ", ".join(bundle.name for bundle in bundles)
    raise LabelcurveError(f"--model {bench.model}: no such model; there are {names}")


def _image(size: int) -> bytes:
    """A PNG of a smooth random image, as compressible as a photograph."""
    from io import BytesIO

    from PIL import Image

    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def _check(bench: BenchPeers) -> None:
    names = [server.name for server in servers.PEERS]
    if unknown := set(bench.only) - set(names):
        raise LabelcurveError(
            f"--only {', '.join(sorted(unknown))}: no such peer; there are {', '.join(names)}"
        )
    if min(bench.seconds, bench.rounds, *bench.null_clients, *bench.clients) < 1:
        raise LabelcurveError("--seconds, --rounds and the numbers of clients: at least 1")
    try:
        bench.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelcurveError(f"--out {bench.out} cannot be made: {error.strerror}") from error


def main(args: Sequence[str] | None = None) -> None:
    """The command `bench peers`."""
    bench = tyro.cli(BenchPeers, args=args, prog="bench peers")
    processes.end_on_signals()
    try:
        result = run(bench, partial(print, flush=True))
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    text = table.markdown(result)
    (bench.out / "peers.json").write_text(result.model_dump_json(indent=2) + "\n")
    (bench.out / "peers.md").write_text(text)
    print(f"\n{text}")
    print(json.dumps({"out": str(bench.out), "peers": [p.name for p in result.peers]}), flush=True)


if __name__ == "__main__":
    main()
