"""A refused upload leaves nothing behind, whatever was wrong with it."""

from __future__ import annotations

import base64
import io
import json
import socket
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from labelcurve.bundle.preprocess import MAX_BYTES
from tests.serving.conftest import Service, wait_for, was_read

POSTS = 200
BODY_BYTES = 2**19
NOISE_BYTES = 20 * 2**20
"""Memory that the posts may leave behind: a fifth of their total size."""


@cache
def image_file(kind: str, side: int = 700, **options: object) -> bytes:
    """The bytes of a file: noise does not compress."""
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    checked = name + data
    return len(data).to_bytes(4, "big") + checked + zlib.crc32(checked).to_bytes(4, "big")


def png(*chunks: bytes, width: int = 8, height: int = 8) -> bytes:
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks)


FILLER = bytes(BODY_BYTES)


def half(file: bytes) -> bytes:
    return file[: len(file) // 2]


def form(field: bytes, data: bytes, end: bytes = b"\r\n--x--\r\n") -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    return head % field + data + end


def inputs(data: bytes) -> bytes:
    return json.dumps({"inputs": base64.b64encode(data).decode()}).encode()


JSON, FORM = "application/json", "multipart/form-data; boundary=x"
ANY = "application/octet-stream"

Kind = tuple[int, str, Callable[[], bytes]]

KINDS: dict[str, Kind] = {
    "WebP that broke off": (422, ANY, lambda: half(image_file("WEBP", 900, lossless=True))),
    "PNG that broke off": (422, ANY, lambda: half(image_file("PNG", 900))),
    "JPEG that broke off": (422, ANY, lambda: half(image_file("JPEG", 1000, quality=95))),
    "GIF that broke off": (422, ANY, lambda: half(image_file("GIF", 1200))),
    "BMP that broke off": (422, ANY, lambda: half(image_file("BMP", 800))),
    "PNG with an oversized text": (
        422,
        ANY,
        lambda: png(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 * 2**20))), FILLER),
    ),
    "PNG with a wrong checksum": (
        422,
        ANY,
        lambda: png(chunk(b"tEXt", b"a\0b")[:-1] + b"\0", FILLER),
    ),
    "PNG without pixels": (422, ANY, lambda: png(chunk(b"IEND", b""), FILLER)),
    "JPEG without a picture": (
        422,
        ANY,
        lambda: b"\xff\xd8" + (b"\xff\xe5\xff\xff" + bytes(65533)) * 8,
    ),
    "GIF without a picture": (
        422,
        ANY,
        lambda: b"GIF89a" + bytes(7) + (b"!\xfe\xff" + bytes(255) + b"\0") * 2000,
    ),
    "too many pixels": (413, ANY, lambda: png(chunk(b"IDAT", FILLER), width=60_000, height=60_000)),
    "too much memory": (413, ANY, lambda: png(chunk(b"IDAT", FILLER), width=7000, height=7000)),
    "no image": (415, ANY, lambda: FILLER),
    "an encoded body": (415, ANY, lambda: FILLER),
    "JSON that broke off": (400, JSON, lambda: inputs(FILLER)[:-2]),
    "JSON without base64": (400, JSON, lambda: json.dumps({"inputs": "ä" * BODY_BYTES}).encode()),
    "JSON with a URL": (
        400,
        JSON,
        lambda: json.dumps({"inputs": "https://" + "a" * BODY_BYTES}).encode(),
    ),
    "JSON with half a WebP": (
        422,
        JSON,
        lambda: inputs(half(image_file("WEBP", 900, lossless=True))),
    ),
    "form that broke off": (400, FORM, lambda: form(b"image", FILLER, b"")),
    "form with another field": (400, FORM, lambda: form(b"file", FILLER)),
    "form with half a WebP": (
        422,
        FORM,
        lambda: form(b"image", half(image_file("WEBP", 900, lossless=True))),
    ),
    "too many bytes": (413, ANY, lambda: bytes(MAX_BYTES + 1)),
}


@pytest.fixture(scope="module")
def serving(start_service: Callable[..., Service], digits_models: Path) -> Service:
    service = start_service(digits_models)
    service.wait_until_ready()
    return service


def memory(service: Service) -> int:
    """Bytes of anonymous memory of the worker."""
    (worker,) = service.workers()
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_upload_leaves_no_memory_behind(kind: str, serving: Service) -> None:
    status, content_type, make = KINDS[kind]
    headers = {"content-type": content_type}
    if kind == "an encoded body":
        headers["content-encoding"] = "gzip"
    body = make()
    posts = POSTS if len(body) < 10 * 2**20 else POSTS // 10
    with httpx.Client(base_url=serving.url, timeout=60) as client:

        def post() -> None:
            answer = client.post("/classify", content=body, headers=headers)
            assert answer.status_code == status, answer.text

        for _ in range(20):  # later requests reuse the memory of the first ones
            post()
        before = memory(serving)
        for _ in range(posts):
            post()
    left = memory(serving) - before
    assert left < NOISE_BYTES, f"{posts} posts of {len(body):,} bytes left {left:,}"


LENGTH = b"Host: x\r\nContent-Length: 9999999\r\n\r\n"

BROKEN: dict[str, bytes] = {
    "a client that disconnects": b"POST /classify HTTP/1.1\r\n" + LENGTH + FILLER,
    "an inference whose client disconnects": b"POST /v2/models/digits-10/infer HTTP/1.1\r\n"
    + LENGTH
    + FILLER,
    "a chunk without its end": b"POST /classify HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%szz\r\n" % (len(FILLER), FILLER),
    "headers without end": b"GET / HTTP/1.1\r\nA: " + FILLER,
    "an unknown path": b"POST /nothing HTTP/1.1\r\n" + LENGTH + FILLER,
    "an unknown model": b"POST /classify?model=x HTTP/1.1\r\n" + LENGTH + FILLER,
    "an inference that is no JSON": b"POST /v2/models/digits-10/infer HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(FILLER), FILLER),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_request_that_breaks_off_leaves_no_memory_behind(kind: str, serving: Service) -> None:
    def send() -> None:
        with socket.create_connection(("127.0.0.1", serving.port), timeout=30) as connection:
            connection.sendall(BROKEN[kind])
            wait_for(lambda: was_read(connection))

    for _ in range(10):
        send()
    before = memory(serving)
    for _ in range(2 * NOISE_BYTES // BODY_BYTES):
        send()
    # The last of them may still be held.
    wait_for(lambda: memory(serving) - before < NOISE_BYTES)
