"""Fuzz the decoder in process and the service over HTTP with corrupted files.

`python -m benchmarks.resilience.fuzz --models DIR` takes real files of every accepted format (and
of some that are not), corrupts them at random, and counts the outcomes. `--guided` fuzzes requests
and images guided by coverage instead, in process only (guided.py). `--files DIR` sends the files of
a folder as they are, such as Tests/images of Pillow's source, and measures what they leave behind.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from labelcurve.benchmarks.harness import server
from labelcurve.benchmarks.harness.provenance import parsed
from labelcurve.benchmarks.resilience import client as http
from labelcurve.benchmarks.resilience import guided, leaks
from labelcurve.bundle import command, preprocess
from labelcurve.bundle.errors import ImageError

NUMBERS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff")
RESULTS = Path("benchmarks/results/service")
MEMORY = 170_000_000
SCALE = 10
"""Scale of the files that are sent: leaks must be visible in the memory of the service."""


@dataclass
class Options:
    """Feeds corrupted images to the decoder and to the service."""

    models: Path = Path("models")
    """Folder of bundles, for the service."""
    inputs: int = 200_000
    """Number of inputs to the decoder, in this process."""
    requests: int = 10_000
    """Number of requests to the service: corrupted images, forms and JSON."""
    guided: bool = False
    """Coverage-guided, in process only; needs atheris, which the extra dev installs."""
    files: Path | None = None
    """Folder of files that are sent instead, each at least once and 200 of each ending."""
    out: Path | None = None
    """File of the result; by default fuzz.json, guided.json or files.json in
    benchmarks/results/service."""


def seeds(scale: int = 1) -> dict[str, bytes]:
    """Make real files by name: every accepted format in its modes, and others.

    Args:
        scale: 1 for 31 x 24 pixels of noise.
    """
    size = (24 * scale, 31 * scale, 4)
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    pixels[4:20, 4:20] = 77
    image = Image.fromarray(pixels)
    rgb = image.convert("RGB")
    exif = Image.Exif()
    exif[0x112] = 6
    found = {}

    def add(name: str, source: Image.Image, form: str, **options: Any) -> None:
        file = BytesIO()
        source.save(file, form, **options)
        found[name] = file.getvalue()

    add("png", rgb, "PNG", exif=exif)
    add("png-alpha", image, "PNG")
    add("png-palette", rgb.quantize(16), "PNG", transparency=3)
    add("png-16", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG")
    add("apng", rgb, "PNG", save_all=True, append_images=[rgb.rotate(180)])
    add("jpeg", rgb, "JPEG", exif=exif)
    add("jpeg-progressive", rgb, "JPEG", progressive=True)
    add("jpeg-cmyk", rgb.convert("CMYK"), "JPEG")
    add("webp", rgb, "WEBP", exif=exif)
    add("webp-alpha", image, "WEBP", lossless=True)
    add("webp-animated", rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)])
    add("gif-animated", rgb, "GIF", save_all=True, append_images=[rgb.rotate(180)])
    add("bmp", rgb, "BMP")
    add("tiff", rgb, "TIFF")
    return found


def mutate(data: bytes, number: int) -> bytes:
    """Corrupt `data`; the same number gives the same result."""
    chance = random.Random(number)
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        # Half of the corruption goes to headers, where decoders branch.
        end = min(len(damaged), 96) if chance.random() < 0.5 else len(damaged)
        at = chance.randrange(max(1, end))
        kind = chance.randrange(6)
        if kind == 0:
            damaged[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            damaged[at : at + 4] = chance.choice(NUMBERS)
        elif kind == 2:
            del damaged[at : at + chance.choice((1, 2, 8, 64))]
        elif kind == 3:
            damaged[at:at] = chance.randbytes(chance.choice((1, 4, 32)))
        elif kind == 4:
            damaged[at:at] = damaged[at : at + 32]
        else:
            del damaged[max(1, at) :]
    return bytes(damaged)


def in_process(inputs: int) -> dict[str, Any]:
    """Decode corrupted files and count the outcomes."""
    files = sorted(seeds().items())
    outcomes: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()
    slowest, begin = 0.0, time.perf_counter()
    for number in range(inputs):
        start = time.perf_counter()
        try:
            preprocess.prepare(mutate(files[number % len(files)][1], number), 32, max_memory=MEMORY)
            outcomes["image"] += 1
        except ImageError as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # what this looks for
            unexpected[f"{files[number % len(files)][0]} {number}: {error!r}"[:200]] += 1
        slowest = max(slowest, time.perf_counter() - start)
        if number % 20_000 == 19_999:
            left = (time.perf_counter() - begin) / (number + 1) * (inputs - number - 1)
            print(f"{number + 1:,} inputs, {len(unexpected)} unexpected, {left:.0f} s left")
    return {
        "inputs": inputs,
        "outcomes": dict(outcomes),
        "unexpected": dict(unexpected.most_common(20)),
        "slowest_ms": round(slowest * 1000, 1),
    }


async def over_http(port: int, pid: int, requests: int) -> dict[str, Any]:
    """Send corrupted requests, one kind after the other; count the statuses and measure the memory
    that each kind leaves behind."""
    files = seeds(SCALE)
    each = max(1, requests // 2 // (len(files) + 2))  # each is sent twice: see `leaks.by_kind`
    kinds = {
        name: [http.post(mutate(data, n)) for n in range(each)] for name, data in files.items()
    }
    form = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n%s\r\n--x--\r\n'
    headers = "Content-Type: multipart/form-data; boundary=x\r\n"
    bodies = [form % mutate(data, n) for n, data in zip(range(each), cycle(files.values()))]
    kinds["form"] = [http.post(mutate(body, n), headers=headers) for n, body in enumerate(bodies)]
    inputs = base64.b64encode(files["webp"])
    body = b'{"inputs": "%s", "parameters": {"top_k": 3}}' % inputs
    headers = "Content-Type: application/json\r\n"
    kinds["json"] = [http.post(mutate(body, n), headers=headers) for n in range(each)]
    return await leaks.by_kind(port, pid, kinds, each)


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.resilience.fuzz`."""
    options = parsed(Options, arguments)
    kind = "guided" if options.guided else "files" if options.files else "fuzz"
    out = options.out or RESULTS / f"{kind}.json"
    if options.guided:
        http.write_result(out, guided.run(options.inputs, seeds()))
        return
    result = {} if options.files else {"in_process": in_process(options.inputs)}
    sent = leaks.files(options.files) if options.files else {}
    with TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with server.started(options.models, log) as service:
            assert service.pid is not None
            if sent:
                found = asyncio.run(leaks.by_kind(service.port, service.pid, sent))
                found["files"] = sum(map(len, sent.values()))
            else:
                found = asyncio.run(over_http(service.port, service.pid, options.requests))
                found["requests"] = sum(kind["requests"] for kind in found["kinds"].values())
        text = log.read_text(errors="replace")
    result["over_http"] = {**found, "tracebacks_in_the_log": text.count("Traceback")}
    http.write_result(out, result)


if __name__ == "__main__":
    command.enter(main, extra="bench")
