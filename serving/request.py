"""A request's body to images: raw bytes, multipart or JSON, and their decoding.

Nothing in a body is ever fetched, opened or unpickled: a body is image bytes, or holds them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from bundle import preprocess
from bundle.errors import ImageError, ImageTooLarge
from bundle.preprocess import MAX_BYTES
from serving import metrics
from serving.errors import Overloaded, Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_IMAGES = 64
"""Images in one multipart request."""

MAX_OVERHEAD = 64 * 2**10
"""Bytes that JSON or multipart may add to the image bytes (base64: beside its third)."""

INLINE_BYTES, INLINE_PIXELS = 128 * 2**10, 128 * 2**10
"""Images up to this size are decoded on the event loop, in less time than it takes to hand them
to a thread and be heard by the others; larger ones would make them wait."""

MAX_DECODING = 64
"""Large images that may wait for a thread of the decoder."""


@dataclass(frozen=True)
class Upload:
    """What a request sent."""

    images: list[bytes]
    several: bool
    """Whether the answer is a list for each image."""
    top_k: int | None
    """None where the body does not say."""


class _Parameters(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    top_k: int | None = Field(default=None, ge=1)
    function_to_apply: Literal["softmax"] | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    inputs: str
    parameters: _Parameters = _Parameters()


async def read(request: Request) -> Upload:
    """The images in the body of `request`, whatever way they were sent.

    Raises:
        Problem: 400 for a body that is not what its content type says, 413 for one too large.
    """
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return _from_json(await _body(request, MAX_BYTES * 4 // 3 + MAX_OVERHEAD))
    if kind.startswith("multipart/"):
        return _from_multipart(await _body(request, MAX_BYTES + MAX_OVERHEAD), content_type)
    body = await _body(request, MAX_BYTES)
    if not body:
        raise Problem("the body is empty: send the bytes of an image")
    return Upload([body], several=False, top_k=None)


async def _body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(int(announced), limit)
    chunks, found = [], 0
    async for chunk in request.stream():
        found += len(chunk)
        if found > limit:
            raise _too_large(found, limit)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(found: int, allowed: int) -> Problem:
    return Problem(
        f"the body has {found:,} bytes or more: at most {allowed:,} are allowed",
        status=413,
        found=found,
        allowed=allowed,
    )


def _from_json(body: bytes) -> Upload:
    try:
        content = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        raise Problem(
            f"{where}: {first['msg']}; expected is "
            '{"inputs": "<base64 of an image>", "parameters": {"top_k": 5}}'
        ) from error
    try:
        image = base64.b64decode(content.inputs, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(f"inputs: not base64 ({error}); URLs are not fetched") from error
    if not image:
        raise Problem("inputs: empty; expected is the base64 of an image")
    return Upload([_checked(image)], several=False, top_k=content.parameters.top_k)


def _from_multipart(body: bytes, content_type: str) -> Upload:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Problem("the content type multipart needs a boundary")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise Problem(f"the multipart body is malformed: {error}") from error
    if not form.ended:
        raise Problem("the multipart body is truncated: its closing boundary is missing")
    fields = [field for field, _ in form.parts]
    images = [_checked(data) for _, data in form.parts]
    if fields == ["image"]:
        return Upload(images, several=False, top_k=None)
    if fields and set(fields) == {"images"}:
        return Upload(images, several=True, top_k=None)
    raise Problem(
        f"the form has the fields {fields}: send one `image`, or one or more `images`; "
        "the model and top_k are named in the URL"
    )


class _Form:
    """The parts of a multipart body, as `MultipartParser` reports them."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.ended = False
        self._field = b""
        self._value = b""
        self._name = ""
        self._data: list[bytes] = []

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._name, self._data = "", []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(self._value)[1].get(b"name", b"").decode()
        self._field = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _part_end(self) -> None:
        if len(self.parts) == MAX_IMAGES:
            raise Problem(f"more than {MAX_IMAGES} parts in one request", status=413)
        self.parts.append((self._name, b"".join(self._data)))

    def _end(self) -> None:
        self.ended = True


def _checked(image: bytes) -> bytes:
    if len(image) > MAX_BYTES:
        raise _too_large(len(image), MAX_BYTES)
    return image


class Decoder:
    """`bundle.preprocess.prepare`, small images at once and large ones in threads."""

    def __init__(self, threads: int) -> None:
        """Starts no thread before it is needed; at most `threads`."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._waiting = 0

    async def decode(self, images: list[bytes], size: int) -> tuple[list[NDArray[np.uint8]], float]:
        """Pixels uint8 [size, size, 3] of each image, and the seconds that decoding took.

        Raises:
            ImageError: one of them cannot be used; of several, it says which.
            Overloaded: too many large images are waiting.
        """
        start = perf_counter()
        if len(images) == 1:
            pixels = [await self._one(images[0], size)]
        else:
            pixels = []
            for number, data in enumerate(images, 1):
                try:
                    pixels.append(await self._one(data, size))
                except ImageError as error:
                    raise type(error)(f"image {number} of {len(images)}: {error}") from error
        seconds = perf_counter() - start
        return pixels, seconds

    async def _one(self, data: bytes, size: int) -> NDArray[np.uint8]:
        start = perf_counter()
        try:
            if len(data) > INLINE_BYTES:
                return await self._in_thread(data, size)
            try:
                return preprocess.prepare(data, size, max_pixels=INLINE_PIXELS)
            except ImageTooLarge:
                return await self._in_thread(data, size)
        finally:
            metrics.DECODE.observe((perf_counter() - start) * 1000)

    async def _in_thread(self, data: bytes, size: int) -> NDArray[np.uint8]:
        if self._waiting >= MAX_DECODING:
            raise Overloaded(f"{self._waiting} large images are waiting to be decoded: try again")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, preprocess.prepare, data, size)
        finally:
            self._waiting -= 1

    @staticmethod
    def warm() -> None:
        """Decodes an image of each format: the first of one imports its reader."""
        for name in preprocess.FORMATS:
            file = BytesIO()
            Image.new("RGB", (2, 2)).save(file, name)
            preprocess.prepare(file.getvalue(), 2)

    def close(self) -> None:
        """Ends the threads; what waits for them is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
