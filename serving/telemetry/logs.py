"""Logs of the service: lifecycle events and one line per request, as text or JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from itertools import count
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Literal

from starlette.types import Message, Scope

Format = Literal["text", "json"]

HEADER = b"x-request-id"
REQUEST_ID = "labelcurve.request_id"
"""Key of the id in the ASGI scope; BentoML uses `request_id` itself."""

ANSWERED = "labelcurve.answered"
"""Key in the scope of a request with an incomplete body: the status that its connection answered
and logged."""

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
"""Polled every few seconds by probes: logged only when they do not answer 200."""

FLUSH_SECONDS, FLUSH_BYTES = 0.05, 3500
"""Lines for requests are written together: after this time, or before a pipe would split them
between those of other workers (PIPE_BUF is 4096)."""

PEER = "labelcurve.peer"
"""Key in the scope of who is connected: a trusted proxy, where it names another client."""

ADDRESS_CHARACTERS = 45
"""Maximum length of an IP address."""

_GIVEN = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_PREFIX = os.urandom(6).hex().encode()
_numbers = count()


def rfc3339(timestamp: float) -> str:
    """A time in the format of the logs: UTC, milliseconds."""
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def event(form: Format, name: str, text: str, **fields: Any) -> None:
    """An event of the service's life on standard output: `text` for people, `fields` for programs.

    Args:
        form: which of the two is written.
        name: of the event.
        text: the line that people read.
        fields: members of the JSON besides time, level and event.
    """
    if form == "json":
        text = json.dumps({"time": _now(), "level": "info", "event": name, **fields}, default=str)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _now() -> str:
    return rfc3339(time.time())


class JsonLines(logging.Formatter):
    """A record of `logging` as one line of JSON; what `extra` gave as `fields` is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        entry = {
            "time": rfc3339(record.created),
            "level": record.levelname.lower(),
            "event": "log",
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure(form: Format) -> None:
    """Sets the format of every handler of this process. Text keeps BentoML's format."""
    if form != "json":
        return
    loggers = [logging.getLogger(), *map(logging.getLogger, tuple(logging.root.manager.loggerDict))]
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.StreamHandler(sys.stdout))
    for found in loggers:
        for handler in found.handlers:
            handler.setFormatter(JsonLines())
    logging.captureWarnings(True)


def given(scope: Scope | dict[str, Any]) -> bytes | None:
    """The id that the client sent, if it is one."""
    for name, value in scope["headers"]:
        if name == HEADER:
            return value if _GIVEN.fullmatch(value) else None
    return None


def client(scope: Scope) -> str:
    """The address of the client that a trusted proxy names; of the peer, if that is no address.

    `X-Forwarded-For` may say anything, also what looks like the rest of a line.
    """
    named = scope.get("client")
    if named and not _is_address(named[0][: ADDRESS_CHARACTERS + 1]):
        named = scope.get(PEER)
    return named[0] if named else ""


@lru_cache(1024)
def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # what follows it is not checked


def new_id() -> bytes:
    """A unique request id."""
    return b"%s-%x" % (_PREFIX, next(_numbers))


class AccessLog:
    """Lines for requests on standard output."""

    def __init__(self, form: Format) -> None:
        self._form = form
        self._lines: list[str] = []
        self._bytes = 0
        self._at_once = False

    def add(self, scope: Scope, answer: Message | None, seconds: float) -> None:
        """The line of a request; `answer` is its `http.response.start`, None without one."""
        status = answer["status"] if answer else 499
        if status == 200 and scope["path"] in PROBES:
            return
        line = _line(self._form, scope, status, answer["headers"] if answer else (), seconds)
        if self._bytes + len(line) > FLUSH_BYTES:
            self.flush()
        if not self._lines:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)
        self._lines.append(line)
        self._bytes += len(line)
        if self._at_once:
            self.flush()

    def close(self) -> None:
        """Flushes buffered lines, and writes each at once from now on: the process is ending."""
        self._at_once = True
        self.flush()

    def flush(self) -> None:
        """Flushes buffered lines."""
        if self._lines:
            text = "".join(self._lines)
            self._lines.clear()
            self._bytes = 0
            sys.stdout.write(text)
            sys.stdout.flush()


def _line(form: Format, scope: Scope, status: int, headers: Any, seconds: float) -> str:
    """Formatted manually, at a fifth of the cost of a dictionary, `isoformat` and `json.dumps`."""
    address = client(scope)
    path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
    said = dict(headers)
    name = said.get(b"x-model-name", b"").decode()
    version = said.get(b"x-model-version", b"").decode()
    begin = f"{_seconds(int(now := time.time()))}.{int(now * 1000) % 1000:03d}Z"
    if form == "text":
        model = f" {name}@{version}" if name else ""
        return (
            f"{begin} {status} {scope['method']} {ascii(path)[1:-1]} "
            f"{seconds * 1000:.2f} ms {address}{model} {scope[REQUEST_ID]}\n"
        )
    more = ""
    if name:
        more = f', "model": {quoted(name)}, "version": {quoted(version)}'
    if timing := said.get(b"server-timing"):
        parts = timing.decode().replace(", ", ', "').replace(";dur=", '_ms": ')
        more += f', "{parts}'
    if trace_id := scope.get("trace_id"):
        more += f', "trace_id": "{trace_id}"'
    level = "error" if status >= 500 and status != 503 else "info"
    return (
        f'{{"time": "{begin}", "level": "{level}", "event": "request", '
        f'"request_id": "{scope[REQUEST_ID]}", "method": {quoted(scope["method"])}, '
        f'"path": {quoted(path)}, "status": {status}, "ms": {seconds * 1000:.3f}, '
        f'"client": {quoted(address)}{more}}}\n'
    )


@lru_cache(2)
def _seconds(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def timings(header: bytes) -> dict[str, float]:
    """`Server-Timing: decode;dur=1.5, ...` as `decode_ms`, ..."""
    parts = (part.split(";dur=") for part in header.decode().split(", "))
    return {f"{name}_ms": float(value) for name, value in parts}
