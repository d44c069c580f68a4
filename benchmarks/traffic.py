"""A lean HTTP client for thousands of connections, and versions of a model to swap between."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.provenance import here
from bundle import preprocess, store
from bundle.errors import LabelcurveError
from bundle.store import Bundle

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_VERSION = re.compile(rb"\r\nx-model-version: *([0-9a-f]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """One answer, as it came."""

    status: int
    head: bytes
    body: bytes
    seconds: float

    @property
    def version(self) -> str | None:
        """The version that computed it."""
        match = _VERSION.search(self.head)
        return match and match[1].decode()


class Client(asyncio.Protocol):
    """One keep-alive connection."""

    def __init__(self) -> None:
        self.open = True
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiting: asyncio.Future[Answer] | None = None
        self._since = 0.0

    @classmethod
    async def connect(cls, port: int) -> Client:
        """A connection to 127.0.0.1."""
        _, client = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return client

    async def ask(self, request: bytes) -> Answer:
        """Sends a request and waits for its answer.

        Raises:
            ConnectionError: the connection was closed before the answer was complete.
        """
        if not self.open or self._transport is None:
            raise ConnectionError("the connection is closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self._since = perf_counter()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        """Hangs up."""
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio calls this."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio calls this."""
        self.open = False
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(ConnectionError(f"closed before the answer: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Asyncio calls this."""
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        self._buffer = b""
        if _CLOSE.search(head):
            self.open = False
        if self._waiting and not self._waiting.done():
            took = perf_counter() - self._since
            self._waiting.set_result(Answer(int(head[9:12]), head, body, took))


def post(body: bytes, query: str = "", headers: str = "") -> bytes:
    """A request to `/classify`."""
    return (
        f"POST /classify{query} HTTP/1.1\r\nHost: localhost\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def get(path: str) -> bytes:
    """A request for `path`."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def closed_loop(
    port: int,
    clients: int,
    until: Callable[[], bool],
    requests: Sequence[bytes],
    heard: Callable[[int, Answer | ConnectionError], Awaitable[None] | None],
) -> None:
    """Each client sends its next request when it has the answer to the last, until `until` says so.

    `heard` gets the number of the request in `requests`, and what came of it.
    """

    async def run(first: int) -> None:
        client: Client | None = None
        number = first
        while not until():
            number = (number + 1) % len(requests)
            try:
                if client is None or not client.open:
                    client = await Client.connect(port)
                answer: Answer | ConnectionError = await client.ask(requests[number])
            except ConnectionError as error:
                answer = error
                await asyncio.sleep(0.01)
            if (pause := heard(number, answer)) is not None:
                await pause
        if client:
            client.close()

    await asyncio.gather(*[run(first) for first in range(clients)])


async def ready(port: int, seconds: float = 60.0) -> None:
    """Waits until `/readyz` is 200.

    Raises:
        LabelcurveError: it was not in time.
    """
    end = perf_counter() + seconds
    while perf_counter() < end:
        # A worker that died while it started leaves a socket that takes connections.
        with suppress(ConnectionError, TimeoutError):
            client = await Client.connect(port)
            try:
                async with asyncio.timeout(end - perf_counter()):
                    status = (await client.ask(get("/readyz"))).status
            finally:
                client.close()
            if status == 200:
                return
        await asyncio.sleep(0.05)
    raise LabelcurveError(f"port {port} was not ready after {seconds:g} s")


def variant(bundle: Bundle, seed: int) -> tuple[Bundle, bytes]:
    """The bundle with noise on the biases of its classes: another version, with other answers.

    Returns:
        The bundle whose manifest names the seed, and its graph.
    """
    model = onnx.load_from_string(bundle.graph)
    n_classes = len(bundle.manifest.class_names)
    random = np.random.default_rng(seed)
    changed = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.shape == (n_classes,) and values.dtype == np.float32:
            noise = random.normal(0, 0.5, n_classes).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
            changed += 1
    if not changed:
        raise LabelcurveError(f"{bundle.name}: no biases of {n_classes} classes in its graph")
    return bundle, model.SerializeToString()


def publish(root: Path, bundle: Bundle, seed: int) -> str:
    """Publishes a variant of `bundle` under `root` and makes it current; returns its version."""
    _, graph = variant(bundle, seed)
    manifest = bundle.manifest.model_copy(update={"seed": seed})
    return store.publish(root, manifest, graph, "", store.read_run(bundle.path)).name


def point(root: Path, name: str, version: str) -> None:
    """Moves `current` to a version that is there."""
    beside = root / name / ".beside"
    beside.symlink_to(version)
    beside.replace(root / name / store.CURRENT)


def expected(bundle: Bundle, images: Sequence[bytes]) -> NDArray[np.float32]:
    """Probabilities float32 [N, K] of N images, through ONNX Runtime one at a time."""
    session = onnxruntime.InferenceSession(bundle.graph, providers=["CPUExecutionProvider"])
    size = bundle.manifest.preprocessing.size
    rows = [
        session.run(["probabilities"], {"images": preprocess.prepare(image, size)[None]})[0][0]
        for image in images
    ]
    return np.asarray(rows, np.float32)


def probabilities(answer: Answer, class_names: Sequence[str]) -> NDArray[np.float32]:
    """Probabilities in the order of the classes, of an answer that names all of them."""
    by_label = {each["label"]: each["score"] for each in json.loads(answer.body)}
    return np.asarray([by_label[name] for name in class_names], np.float32)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """A result with where it was measured, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**result, "provenance": here().model_dump()}
    path.write_text(json.dumps(content, indent=2) + "\n")
    print(f"{path}: written")
