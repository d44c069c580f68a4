"""Damaged files by the hundred thousand: in the process, and over HTTP against a running `serve`.

`python -m benchmarks.fuzz --models DIR` starts from real files of every accepted format (and some
that are not), damages them at random, and counts what comes of it. `--guided` lets coverage guide
the damage instead, in the process alone, to requests and images (guided.py).
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro
from PIL import Image

from benchmarks import guided, traffic
from benchmarks.processes import child, command, tree
from benchmarks.provenance import check_out
from benchmarks.server import free_port
from benchmarks.traffic import Answer, Client
from bundle import preprocess
from bundle.errors import ImageError, LabelcurveError

NUMBERS = (b"\x00\x00\x00\x00", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff")
RESULTS = Path("benchmarks/results/service")
MEMORY = 170_000_000


@dataclass
class Options:
    """Feeds damaged images to the decoder and to the service."""

    models: Path = Path("models")
    """Folder of bundles, for the service."""
    inputs: int = 200_000
    """To the decoder, in this process."""
    requests: int = 10_000
    """To the service: damaged images, and damaged forms and JSON around them."""
    guided: bool = False
    """Only in this process, and guided by coverage: atheris is needed, which the extra dev has."""
    out: Path | None = None
    """Where the result goes; by default benchmarks/results/service/fuzz.json or guided.json."""


def seeds() -> dict[str, bytes]:
    """Small real files by name: every accepted format in the modes that it has, and others."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), np.uint8)
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
    """One of many damaged versions of `data`; the same number gives the same."""
    chance = random.Random(number)
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        # Headers are where decoders decide: half of the damage is there.
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
    """What the decoder says of each input."""
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
    """What the service says of each request, and what memory it takes."""
    files = sorted(seeds().items())
    outcomes: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()

    def memory() -> float:
        return float(sum(process.memory_info().rss for process in tree(pid))) / 2**20

    before = memory()
    client: Client | None = None
    for number in range(requests):
        name, data = files[number % len(files)]
        image = mutate(data, number)
        headers = ""
        if number % 10 == 8:
            body = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n%s\r\n--x--\r\n'
            image, headers = body % image, "Content-Type: multipart/form-data; boundary=x\r\n"
            image = mutate(image, number)
        elif number % 10 == 9:
            image = mutate(b'{"inputs": "aGk=", "parameters": {"top_k": 3}}', number)
            headers = "Content-Type: application/json\r\n"
        try:
            if client is None or not client.open:
                client = await Client.connect(port)
            answer: Answer = await client.ask(traffic.post(image, headers=headers))
            outcomes[str(answer.status)] += 1
            if answer.status >= 500:
                unexpected[f"{name} {number}: {answer.status} {answer.body[:100]!r}"] += 1
        except ConnectionError as error:
            unexpected[f"{name} {number}: {error}"] += 1
    return {
        "requests": requests,
        "statuses": dict(outcomes),
        "unexpected": dict(unexpected.most_common(20)),
        "memory_mb": {"before": round(before, 1), "after": round(memory(), 1)},
    }


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.fuzz`."""
    options = tyro.cli(Options, args=args, prog="python -m benchmarks.fuzz")
    check_out(options.out)
    out = options.out or RESULTS / ("guided.json" if options.guided else "fuzz.json")
    try:
        if options.guided:
            traffic.write_result(out, guided.run(options.inputs, seeds()))
            return
        result = {"in_process": in_process(options.inputs)}
        port = free_port()
        arguments = [command("serve"), "--models", str(options.models), "--port", str(port)]
        with TemporaryDirectory() as folder, Path(folder, "log").open("wb") as log:
            with child(arguments, log) as process:
                asyncio.run(traffic.ready(port, 120))
                found = asyncio.run(over_http(port, process.pid, options.requests))
            text = Path(folder, "log").read_text(errors="replace")
        result["over_http"] = {**found, "tracebacks_in_the_log": text.count("Traceback")}
        traffic.write_result(out, result)
    except (LabelcurveError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
