"""The service alone against the limits that it is meant to keep.

`python -m benchmarks.peers.targets` starts it several times, with a model that does
nothing and with the real one, and says for each limit what was found. wrk sends the load.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import httpx
import numpy as np
import tyro
from PIL import Image

from benchmarks import null, processes, provenance
from benchmarks.peers import cli, limit, servers, wrk
from benchmarks.peers.record import Finding, Targets
from benchmarks.server import free_port
from bundle import store
from bundle.errors import LabelcurveError
from bundle.store import Bundle

say = partial(print, flush=True)

TURNS = 7
"""Of services that are compared."""


@dataclass
class Options:
    """Measures the service against the limits of docs/speed.md."""

    models: Path = Path("models")
    """Folder of bundles, as `train --out` wrote it."""
    model: str | None = None
    """The real model; by default the one with the most labels."""
    out: Path = Path("runs/targets")
    """Folder for targets.json and the service's logs."""
    seconds: int = 20
    """Of the longest load, that of one client."""


def run(options: Options) -> list[Finding]:
    """Measures one after the other.

    Raises:
        LabelcurveError: wrk, the models or the service cannot be used.
    """
    wrk.found()
    options.out.mkdir(parents=True, exist_ok=True)
    bundle = cli._bundle(cli.BenchPeers(models=options.models, model=options.model))
    image = servers.raw(cli._image(bundle.manifest.preprocessing.size))
    with TemporaryDirectory(prefix="labelcurve-targets-") as folder:
        work = Path(folder)
        return [
            _one_client(bundle, image, work, options),
            *_many_models(bundle, image, work, options),
            _large_images(bundle, image, work, options),
            _cost(bundle, image, work, options),
            *_int8(bundle, image, work, options),
        ]


def _one_client(bundle: Bundle, image: servers.Request, work: Path, options: Options) -> Finding:
    null.publish(work / "null", bundle)
    with _serve(work / "null", options) as (url, pid, _):
        turn = wrk.load(url, image, work, pid, 1, options.seconds)
    return Finding(
        what=f"null model, 1 client, {options.seconds} s",
        target="p99 below 2 ms, none above 50 ms",
        found=f"p99 {turn.p99_ms:.2f} ms, slowest of {turn.n:,} {turn.max_ms:.1f} ms",
        kept=turn.p99_ms < 2 and turn.max_ms < 50,
    )


def _many_models(
    bundle: Bundle, image: servers.Request, work: Path, options: Options
) -> list[Finding]:
    """The same bundle under 1, 3 and 50 names; one of them is asked, of the services in turn."""
    asked = replace(image, path="/classify?model=m0")
    memory, ready = {}, {}
    services: dict[int, tuple[str, int]] = {}
    p50: dict[int, list[float]] = {1: [], 50: []}
    with ExitStack() as stack:
        for count in (3, 1, 50):
            models = work / f"{count}-models"
            for number in range(count):
                manifest = bundle.manifest.model_copy(update={"name": f"m{number}", "variants": ()})
                store.publish(models, manifest, bundle.graph, "#\n", store.read_run(bundle.path))
            with ExitStack() as inner:
                serving = _serve(models, options)
                url, pid, ready[count] = (stack if count in p50 else inner).enter_context(serving)
                memory[count] = cli._memory(pid)
            services[count] = url, pid
            say(f"  {count} models: {memory[count]:.0f} MB, ready after {ready[count]:.1f} s")
        for turn in range(TURNS + 1):
            for count in list(p50)[:: 1 if turn % 2 else -1]:
                found = wrk.load(services[count][0], asked, work, services[count][1], 1, 2)
                if turn:  # the first warms
                    p50[count].append(found.p50_ms)
    one, fifty = (median(p50[count]) for count in (1, 50))
    ratio = fifty / one
    return [
        Finding(
            what="three real models, from the start of the process to ready",
            target="below 3 s and 250 MB (proportional set size of the tree)",
            found=f"{ready[3]:.1f} s, {memory[3]:.0f} MB",
            kept=ready[3] < 3 and memory[3] < 250,
        ),
        Finding(
            what="p50 of one model, 1 client, with 1 and with 50 models loaded, "
            f"{TURNS} turns of 2 s each",
            target="within 5 %",
            found=f"{one:.2f} and {fifty:.2f} ms, {ratio - 1:+.1%}",
            kept=abs(ratio - 1) <= 0.05,
        ),
    ]


def _large_images(bundle: Bundle, image: servers.Request, work: Path, options: Options) -> Finding:
    models = work / "null"
    file = BytesIO()
    small = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(small).resize((4000, 3000), Image.Resampling.BICUBIC).save(
        file, "JPEG", quality=90
    )
    with _serve(models, options) as (url, pid, _):
        wrk.load(url, image, work, pid, 8, 1)
        alone = wrk.load(url, image, work, pid, 8, 8)
        stop, sent = threading.Event(), []

        def send() -> None:
            while not stop.is_set():
                began = time.monotonic()
                answer = httpx.post(f"{url}/classify", content=file.getvalue(), timeout=30)
                assert answer.status_code == 200, answer.text
                sent.append(time.monotonic() - began)
                stop.wait(max(0.0, 1 - sent[-1]))

        thread = threading.Thread(target=send)
        thread.start()
        among = wrk.load(url, image, work, pid, 8, 8)
        stop.set()
        thread.join()
    ratio = among.p99_ms / alone.p99_ms
    return Finding(
        what=f"null model, 8 clients, beside a 12-megapixel JPEG ({len(file.getvalue()) / 1e6:.1f} "
        f"MB) each second",
        target="p99 of the small ones within 2 times",
        found=f"p99 {alone.p99_ms:.1f} and {among.p99_ms:.1f} ms, {ratio:.2f} times; a large one "
        f"takes {median(sent) * 1e3:.0f} ms ({len(sent)} sent)",
        kept=ratio <= 2,
    )


def _cost(bundle: Bundle, image: servers.Request, work: Path, options: Options) -> Finding:
    with _serve(_alone(bundle, work), options) as (url, pid, _):
        wrk.load(url, image, work, pid, 32, 1)
        served, raw = [], []
        for _ in range(TURNS):
            served.append(wrk.load(url, image, work, pid, 32, 2).server_cpu_ms)
            raw.append(limit.measure(bundle.graph, image.body).total_ms)
    ratio = median(a / b for a, b in zip(served, raw, strict=True))
    return Finding(
        what="real model, 32 clients: CPU time a request against decoding and ONNX Runtime in a "
        f"loop, {TURNS} turns of 2 s",
        target="at most 1.35 times",
        found=f"{median(served):.2f} and {median(raw):.2f} ms, {ratio:.2f} times",
        kept=ratio <= 1.35,
    )


def _int8(bundle: Bundle, image: servers.Request, work: Path, options: Options) -> list[Finding]:
    """Nothing where `quantize` has not added such a graph."""
    variant = next((v for v in bundle.manifest.variants if v.precision == "int8"), None)
    if variant is None:
        say(f"{bundle.name} has no INT8 graph: left out; `quantize` adds one")
        return []
    graphs = (bundle.graph, bundle.variants["int8"])
    rates: list[list[float]] = [[], []]
    served: list[list[float]] = [[], []]
    models = _alone(bundle, work)
    with _serve(models, options) as fp32, _serve(models, options, "--precision", "int8") as int8:
        services = (fp32, int8)
        for turn in range(TURNS + 1):
            for number in (0, 1) if turn % 2 else (1, 0):
                url, pid, _ = services[number]
                found = wrk.load(url, image, work, pid, 32, 2)
                if turn:  # the first warms
                    served[number].append(found.requests_per_s)
    for turn in range(TURNS):
        for number in (0, 1) if turn % 2 else (1, 0):
            rates[number].append(1e3 / limit.measure(graphs[number], image.body).inference_ms)
    fp32_rate, int8_rate = map(median, rates)
    fp32_served, int8_served = map(median, served)
    ratio = median(b / a for a, b in zip(*rates, strict=True))
    before, after = bundle.manifest.test or bundle.manifest.val, variant.test or variant.val
    lost = (before.accuracy - after.accuracy) * 100
    return [
        Finding(
            what=f"{bundle.name} in INT8 against fp32, one thread of ONNX Runtime, {TURNS} turns",
            target="at least 2.3 times the images/s, at most 0.3 points of accuracy lost",
            found=f"{int8_rate:,.0f} and {fp32_rate:,.0f} images/s, {ratio:.2f} times; accuracy "
            f"{after.accuracy:.2%} and {before.accuracy:.2%} on {after.n:,} images; served to 32 "
            f"clients {int8_served:,.0f} and {fp32_served:,.0f} requests/s",
            kept=ratio >= 2.3 and lost <= 0.3,
        )
    ]


def _alone(bundle: Bundle, work: Path) -> Path:
    """A folder of models with this one only."""
    models = work / "real"
    models.mkdir(exist_ok=True)
    link = models / bundle.name
    if not link.is_symlink():
        link.symlink_to(bundle.path.parent.resolve())
    return models


@contextmanager
def _serve(models: Path, options: Options, *more: str) -> Iterator[tuple[str, int, float]]:
    """URL, process and seconds until ready.

    Args:
        more: options of `serve`.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [processes.command("serve"), "--models", str(models), "--port", str(port)]
    log = options.out / f"serve-{'-'.join([models.name, *more]).replace('--', '')}.log"
    began = time.monotonic()
    with (
        log.open("wb") as output,
        processes.child([*command, *more, "--device", "cpu"], output) as process,
    ):
        while True:
            try:
                if httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() - began > 120:
                raise LabelcurveError(f"the service was not ready: {log.read_text()[-800:]}")
            time.sleep(0.02)
        yield url, process.pid, time.monotonic() - began


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.peers.targets`."""
    options = tyro.cli(Options, args=args, prog="python -m benchmarks.peers.targets")
    processes.end_on_signals()
    try:
        findings = run(options)
    except LabelcurveError as error:
        sys.exit(f"error: {error}")
    result = Targets(findings=tuple(findings), provenance=provenance.here())
    (options.out / "targets.json").write_text(result.model_dump_json(indent=2) + "\n")
    for each in findings:
        say(f"{'kept ' if each.kept else 'MISSED'} {each.what}: {each.found} ({each.target})")
    say(json.dumps({"out": str(options.out), "kept": [each.kept for each in findings]}))


if __name__ == "__main__":
    main()
