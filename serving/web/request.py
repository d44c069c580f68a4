"""Extracts images from a request body: raw, multipart or JSON.

Nothing in a body is ever fetched, opened or unpickled: a body is image bytes, or holds them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from labelcurve.bundle.preprocess import MAX_BYTES
from labelcurve.serving.errors import Overloaded, Problem
from labelcurve.serving.web import multipart

MAX_OVERHEAD = 64 * 2**10
"""Bytes that JSON or multipart may add to the image bytes (for base64, in addition to a third)."""

INLINE_BYTES = 2**20
"""Bodies up to this size are parsed on the event loop. Twenty times as many take 0.5 s at worst."""

MAX_TOP_K = 999_999_999

MAX_HELD = 256 * 2**20
"""Bytes of the bodies that a worker holds at the same time."""

T = TypeVar("T")

_HEADERS = frozenset((b"content-encoding", b"content-length", b"content-type"))


class Upload(NamedTuple):
    """Content of a request."""

    images: list[bytes]
    several: bool
    """Whether the answer is a list for each image."""
    top_k: int | None
    """None where the body does not specify it."""


EXAMPLE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAIUlEQVR42mNggAJGBob/DAyMDAxMMBEmBgZGGIMBBwMO"
    "AD4WAQ3UJc3cAAAAAElFTkSuQmCC"
)
"""An image that may be sent, 8 x 8 pixels."""


class Parameters(BaseModel):
    """Parameters of `/classify` in a JSON body."""

    model_config = ConfigDict(extra="forbid", strict=True)
    top_k: int | None = Field(default=None, ge=1, le=MAX_TOP_K)
    function_to_apply: Literal["softmax"] | None = None


class Inputs(BaseModel):
    """One image, as image-classification clients of the Hugging Face Hub send it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    # `minLength` is only for the document: `_from_json` gives a better message than pydantic.
    inputs: str = Field(
        json_schema_extra={"contentEncoding": "base64", "minLength": 1, "examples": [EXAMPLE]}
    )
    parameters: Parameters = Parameters()


class Bodies:
    """Counts the bytes of all bodies that are being read or worked on."""

    def __init__(self, limit: int = MAX_HELD) -> None:
        self.held = 0
        self.limit = limit


class Claim:
    """One request's share of `Bodies`, released by `close`."""

    def __init__(self, bodies: Bodies) -> None:
        self.complete = False
        """Whether the body has been read to its end."""
        self.held = 0
        """Bytes that it holds."""
        self._bodies = bodies

    def add(self, n: int) -> None:
        """Claims `n` more bytes.

        Raises:
            Overloaded: the bodies of all requests would hold more than their limit.
        """
        if self._bodies.held + n > self._bodies.limit:
            raise Overloaded("too many large bodies at the same time: try again")
        self.held += n
        self._bodies.held += n

    def close(self) -> None:
        """Releases everything."""
        self._bodies.held -= self.held
        self.held = 0


async def read(scope: Scope, receive: Receive, claim: Claim) -> Upload:
    """The images in the body of a request, in whatever form they were sent.

    Raises:
        Problem: 400 for a body that is not what its content type says, 413 for one too large, 415
            for an encoded one.
        Overloaded: the bodies of all requests are too large together.
        ClientDisconnect: the client disconnected.
    """
    said = {name: value for name, value in reversed(scope["headers"]) if name in _HEADERS}
    if b"content-encoding" in said:
        check_encoding(scope)
    content_type = said.get(b"content-type", b"").decode("latin-1")
    announced = said.get(b"content-length", b"")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        limit = MAX_BYTES * 4 // 3 + MAX_OVERHEAD
        return await _parsed(_from_json, await read_body(receive, announced, limit, claim))
    if kind.startswith("multipart/"):
        body = await read_body(receive, announced, MAX_BYTES + MAX_OVERHEAD, claim)
        return _from_multipart(
            await _parsed(lambda body: multipart.parse(body, content_type), body)
        )
    body = await read_body(receive, announced, MAX_BYTES, claim)
    if not body:
        raise Problem("the body is empty: send the bytes of an image")
    if not kind and body.startswith(b"{"):  # as versions 0.28 to 0.35 of the Hub's client send it
        return await _parsed(_from_json, body)
    return Upload([body], several=False, top_k=None)


async def _parsed(parse: Callable[[bytes], T], body: bytes) -> T:
    """What `parse` makes of a body: in a thread, where that would delay other requests."""
    return await asyncio.to_thread(parse, body) if len(body) > INLINE_BYTES else parse(body)


def check_encoding(scope: Scope) -> None:
    """Refuses bodies that would have to be decoded first.

    Raises:
        Problem: 415.
    """
    named = b", ".join(value for name, value in scope["headers"] if name == b"content-encoding")
    found = named.decode("latin-1").strip().lower()
    if found not in ("", "identity"):
        raise Problem(
            f"Content-Encoding {found[:80]!r} is not accepted: send the body as it is",
            status=415,
            headers={"Accept-Encoding": "identity"},
        )


async def read_body(receive: Receive, announced: bytes, limit: int, claim: Claim) -> bytes:
    """The whole body.

    Args:
        receive: of ASGI.
        announced: its Content-Length, if it has one.
        limit: bytes that it may have.
        claim: called with the size of each part.

    Raises:
        Problem: 413 for one too large.
        Overloaded: the bodies of all requests are too large together.
        ClientDisconnect: the client disconnected.
    """
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(int(announced), limit)
    chunks, found = [], 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        found += len(chunk)
        if found > limit:
            raise _too_large(found, limit)
        claim.add(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(found: int, allowed: int) -> Problem:
    return Problem(
        f"the body has {found:,} bytes or more: at most {allowed:,} are allowed",
        status=413,
        found=found,
        allowed=allowed,
    )


def check_json(body: bytes, strings: int, objects: int, arrays: int) -> None:
    """Refuses JSON of more parts than a request can need: parsed, each takes a hundred bytes.

    Args:
        body: that is not parsed yet.
        strings: of them, keys included, this many are allowed.
        objects: likewise.
        arrays: likewise.

    Raises:
        Problem: 400, with what is allowed.
    """
    for what, mark, most in (
        ("strings", b'"', 2 * strings),
        ("objects", b"{", objects),
        ("arrays", b"[", arrays),
    ):
        if body.count(mark) > most:
            raise Problem(f"the JSON has more than {most:,} {mark.decode()}: too many {what}")


def _from_json(body: bytes) -> Upload:
    check_json(body, strings=32, objects=8, arrays=8)
    try:
        content = Inputs.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"]) or "the body"
        raise Problem(
            f"{where}: {first['msg']}; expected "
            '{"inputs": "<base64 of an image>", "parameters": {"top_k": 5}}'
        ) from error
    if content.inputs[:5].lower() in ("data:", "http:", "https"):
        raise Problem(
            "inputs: a URL; expected the base64 of an image alone (of a data URL, what follows "
            "the comma). URLs are not fetched"
        )
    try:
        image = base64.b64decode(content.inputs, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(f"inputs: not base64 ({error})") from error
    if not image:
        raise Problem("inputs: empty; expected the base64 of an image")
    return Upload([_checked(image)], several=False, top_k=content.parameters.top_k)


def _from_multipart(parts: list[tuple[str, bytes]]) -> Upload:
    fields = [field for field, _ in parts]
    images = [_checked(data) for _, data in parts]
    for field, data in parts:
        if field in ("image", "images") and not data:
            raise Problem(f"the part `{field}` is empty: send the bytes of an image")
    if fields == ["image"]:
        return Upload(images, several=False, top_k=None)
    if fields and set(fields) == {"images"}:
        return Upload(images, several=True, top_k=None)
    names = [field[:80] for field in fields[:8]]
    raise Problem(
        f"the form has the fields {names}: send one `image`, or one or more `images`; "
        "the model and top_k are named in the URL"
    )


def _checked(image: bytes) -> bytes:
    if len(image) > MAX_BYTES:
        raise _too_large(len(image), MAX_BYTES)
    return image
