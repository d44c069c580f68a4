"""Measure the service alone against its performance targets (docs/speed.md).

`python -m benchmarks.peers.targets` starts it several times, with a model that does nothing and
with the real one, loads it with wrk, and says for each target what was found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import numpy as np
import tyro
from PIL import Image

from labelcurve.benchmarks.harness import null_model, processes, provenance, server
from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.peers import job, limit, servers, wrk
from labelcurve.benchmarks.peers.record import Finding, Targets, Turn
from labelcurve.bundle import command, files, store
from labelcurve.bundle.command import Within
from labelcurve.bundle.store import Bundle

say = partial(print, flush=True)

TURNS = 7
"""Turns of services that are compared."""


@dataclass
class Options:
    """Measures the service against the targets of docs/speed.md."""

    models: Path = Path("models")
    """Folder of bundles, as `labelcurve train --out` wrote it."""
    model: str | None = None
    """The real model; by default the one with the most labels."""
    out: Path = Path("runs/targets")
    """Folder for targets.json and the service's logs."""
    seconds: Annotated[int, Within(1)] = 20
    """Length of the longest load, that of one client."""


@dataclass(frozen=True)
class Measurement:
    """Input of every measurement, and ways to serve and load."""

    bundle: Bundle
    image: servers.Request
    work: Path
    options: Options

    def serve(self, models: str, *options: str) -> AbstractContextManager[Server]:
        """Run the service over a folder of models below `work`."""
        name = "-".join(["serve", models, *options]).replace("--", "")
        return server.started(
            self.work / models,
            self.options.out / f"{name}.log",
            options=(*options, "--device", "cpu"),
        )

    def load(
        self, service: Server, clients: int, seconds: float, request: servers.Request | None = None
    ) -> Turn:
        """Load a service with wrk."""
        assert service.pid is not None
        image = request or self.image
        return wrk.load(service.url, image, self.work, service.pid, clients, seconds)


def run(options: Options) -> list[Finding]:
    """Measure target by target.

    Raises:
        LabelcurveError: wrk, the models or the service cannot be used.
    """
    wrk.found()
    command.check(options)
    files.check_out(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    bundle = job.chosen(options.models, options.model)
    image = servers.raw(job.png(bundle.manifest.preprocessing.size))
    with TemporaryDirectory(prefix="labelcurve-targets-") as folder:
        it = Measurement(bundle, image, Path(folder), options)
        null_model.publish(it.work / "null", bundle)
        (it.work / "real").mkdir()
        (it.work / "real" / bundle.name).symlink_to(bundle.path.parent.resolve())
        return [_one_client(it), *_many_models(it), _large_images(it), _cost(it), *_int8(it)]


def _one_client(it: Measurement) -> Finding:
    with it.serve("null") as service:
        turn = it.load(service, 1, it.options.seconds)
    return Finding(
        what=f"null model, 1 client, {it.options.seconds} s",
        target="p99 below 2 ms, none above 50 ms",
        found=f"p99 {turn.p99_ms:.2f} ms, slowest of {turn.n:,} {turn.max_ms:.1f} ms",
        kept=turn.p99_ms < 2 and turn.max_ms < 50,
    )


def _many_models(it: Measurement) -> list[Finding]:
    """Serve the bundle under 1, 3 and 50 names and ask for one of them."""
    bundle, asked = it.bundle, replace(it.image, path="/classify?model=m0")
    memory: dict[int, float] = {}
    services: dict[int, Server] = {}
    p50: dict[int, list[float]] = {1: [], 50: []}
    with ExitStack() as stack:
        for count in (3, 1, 50):
            for number in range(count):
                manifest = bundle.manifest.model_copy(update={"name": f"m{number}", "variants": ()})
                models, run = it.work / f"{count}-models", store.read_run(bundle.path)
                store.publish(models, manifest, bundle.graph, "#\n", run)
            with ExitStack() as inner:
                service = (stack if count in p50 else inner).enter_context(
                    it.serve(f"{count}-models")
                )
                assert service.pid is not None
                memory[count] = processes.memory_mb(service.pid) or 0.0
                services[count] = service
            say(f"  {count} models: {memory[count]:.0f} MB, ready after {service.ready_s:.1f} s")
        for turn in range(TURNS + 1):
            for count in list(p50)[:: 1 if turn % 2 else -1]:
                found = it.load(services[count], 1, 2, asked)
                if turn:  # the first warms up
                    p50[count].append(found.p50_ms)
    one, fifty = (median(p50[count]) for count in (1, 50))
    ready = services[3].ready_s
    return [
        Finding(
            what="three real models, from the start of the process to ready",
            target="below 3 s and 250 MB (proportional set size of the tree)",
            found=f"{ready:.1f} s, {memory[3]:.0f} MB",
            kept=ready < 3 and memory[3] < 250,
        ),
        Finding(
            what="p50 of one model, 1 client, with 1 and with 50 models loaded, "
            f"{TURNS} turns of 2 s each",
            target="within 5 %",
            found=f"{one:.2f} and {fifty:.2f} ms, {fifty / one - 1:+.1%}",
            kept=abs(fifty / one - 1) <= 0.05,
        ),
    ]


def _large_images(it: Measurement) -> Finding:
    file = BytesIO()
    small = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    photo = Image.fromarray(small).resize((4000, 3000), Image.Resampling.BICUBIC)
    photo.save(file, "JPEG", quality=90)
    stop, sent = threading.Event(), []

    def send(url: str) -> None:
        while not stop.is_set():
            began = time.monotonic()
            answer = httpx.post(
                f"{url}/classify", content=file.getvalue(), timeout=30, trust_env=False
            )
            assert answer.status_code == 200, answer.text
            sent.append(time.monotonic() - began)
            stop.wait(max(0.0, 1 - sent[-1]))

    with it.serve("null") as service:
        it.load(service, 8, 1)
        alone = it.load(service, 8, 8)
        thread = threading.Thread(target=send, args=(service.url,))
        thread.start()
        among = it.load(service, 8, 8)
        stop.set()
        thread.join()
    ratio = among.p99_ms / alone.p99_ms
    return Finding(
        what=f"null model, 8 clients, beside a 12-megapixel JPEG ({len(file.getvalue()) / 1e6:.1f} "
        "MB) each second",
        target="p99 of the small ones within 2 times",
        found=f"p99 {alone.p99_ms:.1f} and {among.p99_ms:.1f} ms, {ratio:.2f} times; a large one "
        f"takes {median(sent) * 1e3:.0f} ms ({len(sent)} sent)",
        kept=ratio <= 2,
    )


def _cost(it: Measurement) -> Finding:
    served, raw = [], []
    with it.serve("real") as service:
        it.load(service, 32, 1)
        for _ in range(TURNS):
            served.append(it.load(service, 32, 2).server_cpu_ms)
            raw.append(limit.measure(it.bundle.graph, it.image.body).total_ms)
    ratio = median(a / b for a, b in zip(served, raw, strict=True))
    return Finding(
        what="real model, 32 clients: CPU time a request against decoding and ONNX Runtime in a "
        f"loop, {TURNS} turns of 2 s",
        target="at most 1.35 times",
        found=f"{median(served):.2f} and {median(raw):.2f} ms, {ratio:.2f} times",
        kept=ratio <= 1.35,
    )


def _int8(it: Measurement) -> list[Finding]:
    """Compare INT8 with fp32; nothing where `quantize` has not added such a graph."""
    bundle = it.bundle
    variant = next((v for v in bundle.manifest.variants if v.precision == "int8"), None)
    if variant is None:
        say(f"{bundle.name} has no INT8 graph: left out; `quantize` adds one")
        return []
    graphs = (bundle.graph, bundle.variants["int8"])
    rates: list[list[float]] = [[], []]
    served: list[list[float]] = [[], []]
    with it.serve("real") as fp32, it.serve("real", "--precision", "int8") as int8:
        for turn in range(TURNS + 1):
            for number in (0, 1) if turn % 2 else (1, 0):
                found = it.load((fp32, int8)[number], 32, 2)
                if turn:  # the first warms up
                    served[number].append(found.requests_per_s)
    for turn in range(TURNS):
        for number in (0, 1) if turn % 2 else (1, 0):
            rates[number].append(1e3 / limit.measure(graphs[number], it.image.body).inference_ms)
    ratio = median(b / a for a, b in zip(*rates, strict=True))
    before, after = bundle.manifest.test or bundle.manifest.val, variant.test or variant.val
    return [
        Finding(
            what=f"{bundle.name} in INT8 against fp32, one thread of ONNX Runtime, {TURNS} turns",
            target="at least 2.3 times the images/s, at most 0.3 points of accuracy lost",
            found=f"{median(rates[1]):,.0f} and {median(rates[0]):,.0f} images/s, {ratio:.2f} "
            f"times; accuracy {after.accuracy:.2%} and {before.accuracy:.2%} on {after.n:,} "
            f"images; served to 32 clients {median(served[1]):,.0f} and {median(served[0]):,.0f} "
            "requests/s",
            kept=ratio >= 2.3 and (before.accuracy - after.accuracy) * 100 <= 0.3,
        )
    ]


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.peers.targets`."""
    options = tyro.cli(Options, args=arguments, prog="python -m benchmarks.peers.targets")
    findings = run(options)
    result = Targets(findings=tuple(findings), provenance=provenance.here())
    files.write_out(options.out / "targets.json", result.model_dump_json(indent=2) + "\n")
    for each in findings:
        say(f"{'met   ' if each.kept else 'MISSED'} {each.what}: {each.found} ({each.target})")
    command.answer({"out": str(options.out), "kept": [each.kept for each in findings]})


if __name__ == "__main__":
    command.enter(main, extra="bench")
