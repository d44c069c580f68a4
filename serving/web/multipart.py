"""Multipart bodies."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from labelcurve.serving.errors import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# Malformed requests of clients belong into the access log, if anywhere.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

MAX_PARTS = 64
"""Parts, that is images, in one request."""


def parse(body: bytes, content_type: str) -> list[tuple[str, bytes]]:
    """Field name and bytes of each part; file names and the parts' own types are not looked at.

    Raises:
        Problem: 400 for a malformed or truncated body, 413 for too many parts.
    """
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
    return form.parts


def too_many(found: int, what: str) -> Problem:
    """A request has more images than are allowed."""
    detail = f"{found} {what} in one request: at most {MAX_PARTS} are allowed"
    return Problem(detail, status=413, found=found, allowed=MAX_PARTS)


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
        if len(self.parts) == MAX_PARTS:
            raise too_many(MAX_PARTS + 1, "parts or more")
        self.parts.append((self._name, b"".join(self._data)))

    def _end(self) -> None:
        self.ended = True
