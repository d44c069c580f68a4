"""Coverage-guided fuzzing (libFuzzer through atheris) of the readers of headers, forms, JSON and
images.

`python -m benchmarks.resilience.fuzz --guided` runs this module in a separate process, since
atheris does not see what was imported before it. Pillow's C decoders run without coverage.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelcurve.bundle.errors import LabelcurveError

if TYPE_CHECKING:
    from labelcurve.serving.web.request import Upload

SEEN = ["PIL", "labelcurve.bundle", "labelcurve.serving", "python_multipart", "starlette"]
"""Packages that are instrumented."""

MAX_BYTES = 4096
SECONDS = 20
"""Time limit of one input."""

PNG = b"\x89PNG\r\n\x1a\n"
FORM = b"--x\r\nContent-Disposition: form-data; name=image\r\n\r\n%s\r\n--x--\r\n"
WAYS = ("raw", "form", "form around an image", "json", "json around an image", "headers", "query")
"""Ways of sending an input; chosen by its first byte."""


def run(inputs: int, seeds: dict[str, bytes]) -> dict[str, Any]:
    """Fuzz with `inputs` inputs, starting from `seeds` in each of the ways; count the outcomes.

    Raises:
        LabelcurveError: atheris is not installed, or libFuzzer ended early: an input crashed the
            process, hung, or took too much memory.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for file, data in seeds.items():
            for way in (0, 2, 4):
                (folder / "corpus" / f"{file}-{way}").write_bytes(bytes([way]) + data)
        for way, text in (
            (1, FORM % b"data"),
            (1, FORM.replace(b"image", b"images") % b"data"),
            (3, b'{"inputs": "aGk=", "parameters": {"top_k": 3}}'),
            (5, b"multipart/form-data; boundary=x\n" + FORM % b"data"),
            (5, b"application/json\ngzip\n{}"),
            (6, b"model=digits-10@0123456789ab&top_k=3"),
        ):
            (folder / "corpus" / f"text-{zlib.crc32(text)}").write_bytes(bytes([way]) + text)
        begin = time.perf_counter()
        command = [sys.executable, "-P", "-m", "labelcurve.benchmarks.resilience.guided"]
        command += [str(folder), str(inputs)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        said = done.stderr
        try:
            found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        except FileNotFoundError:
            crash = next(folder.glob("*-*"), None)
            what = f"; the input: {crash.read_bytes()[:500]!r}" if crash else ""
            raise LabelcurveError(
                f"the fuzzer ended before its last input:\n{said[-2000:]}{what}"
            ) from None
        return {
            **found,
            "branches": coverage(said),
            "seconds": round(time.perf_counter() - begin, 1),
        }


def coverage(said: str) -> dict[str, int]:
    """Parse libFuzzer's output: branches covered by the seeds and in all, and the number of inputs
    kept because they covered new ones."""
    progress = re.findall(r"#\d+\s+(\w+)\s+cov: (\d+).*? corp: (\d+)", said)
    seeds = next(int(cov) for event, cov, _ in progress if event == "INITED")
    return {"seeds": seeds, "all": int(progress[-1][1]), "kept_inputs": int(progress[-1][2])}


def _sent(body: bytes, *headers: tuple[bytes, bytes]) -> Upload:
    """Read a request as the service does."""
    from labelcurve.serving.web import request

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/classify", "headers": headers}
    return finished(request.read(scope, receive, request.Claim(request.Bodies())))


def _upload(way: str, data: bytes) -> Upload:
    """Send an input in one of the `WAYS`."""
    if way == "headers":
        kind, _, rest = data.partition(b"\n")
        encoding, newline, body = rest.partition(b"\n")
        more = [(b"content-encoding", encoding)] if newline else []
        return _sent(body if newline else rest, (b"content-type", kind), *more)
    if way == "form around an image":
        data = FORM % data
    if way == "json around an image":
        data = b'{"inputs": "%s"}' % base64.b64encode(data)
    kinds = {"form": b"multipart/form-data; boundary=x", "json": b"application/json"}
    named = [(b"content-type", kind) for start, kind in kinds.items() if way.startswith(start)]
    return _sent(data, *named)


def fuzz(folder: Path, inputs: int) -> None:
    """Try `inputs` inputs, write the result to `folder` and exit."""
    import atheris

    with atheris.instrument_imports(include=SEEN):
        from PIL import Image

        from labelcurve.bundle import preprocess
        from labelcurve.bundle.errors import ImageError
        from labelcurve.serving.errors import Problem
        from labelcurve.serving.models.decoder import MAX_MEMORY
        from labelcurve.serving.web import query, request  # noqa: F401 - instrumented here

    Image.preinit()
    Image.init()
    outcomes: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()
    tried, slowest = 0, 0.0

    def one(data: bytes) -> None:
        nonlocal tried, slowest
        start = time.process_time()
        way = WAYS[data[0] % len(WAYS)] if data else "raw"
        try:
            if way == "query":
                query.parse(data[1:])
                outcomes["query"] += 1
            else:
                for image in _upload(way, data[1:]).images:
                    preprocess.prepare(image, 32, max_memory=MAX_MEMORY)
                outcomes["image"] += 1
        except (ImageError, Problem) as error:
            outcomes[type(error).__name__] += 1
        except Exception as error:  # what this looks for
            unexpected[f"{way} {data[:200]!r}: {error!r}"[:400]] += 1
        slowest = max(slowest, time.process_time() - start)
        tried += 1
        if tried == inputs:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            result = {
                "inputs": tried,
                "outcomes": dict(outcomes),
                "unexpected": dict(unexpected.most_common(20)),
                "slowest_cpu_ms": round(slowest * 1000, 1),
                "peak_memory_mb": round(peak, 1),
                "atheris": importlib.metadata.version("atheris"),
            }
            temporary = folder / "result.new"
            temporary.write_text(json.dumps(result))
            temporary.rename(folder / "result.json")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        changed = atheris.Mutate(data, max_size)
        # Most corrupted PNG files fail at a checksum: three of four get correct ones.
        return with_checksums(changed)[:max_size] if seed % 4 else changed

    # `-runs` counts what comes after the seeds; two more let libFuzzer say its last line.
    options = [f"-runs={inputs + 2}", f"-max_len={MAX_BYTES}", "-seed=1", f"-timeout={SECONDS}"]
    options += ["-rss_limit_mb=2048", f"-artifact_prefix={folder}/", "-close_fd_mask=0"]
    atheris.Setup(["fuzz", *options, str(folder / "corpus")], one, custom_mutator=mutate)
    os.chdir(folder)
    atheris.Fuzz()


def finished(work: Coroutine[Any, Any, Upload]) -> Upload:
    """Return the result of a coroutine that never suspends."""
    try:
        work.send(None)
    except StopIteration as end:
        value: Upload = end.value
        return value
    work.close()
    raise RuntimeError("the coroutine waits")


def with_checksums(data: bytes) -> bytes:
    """Correct the checksums of the chunks of an input that is a PNG."""
    if data[1:9] != PNG:
        return data
    fixed = bytearray(data)
    at = 9
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)


if __name__ == "__main__":
    fuzz(Path(sys.argv[1]), int(sys.argv[2]))
