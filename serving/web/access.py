"""Authentication by API key, rate limits per key, and security headers.

A file of keys has one line per key: its name, the SHA-256 of the key in hexadecimal, and its limit
in requests per second (0 for none). Keys are 256 random bits, so a slow hash would add nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import monotonic

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.web.problems import respond

OPEN = frozenset(
    ("/", "/docs", "/livez", "/readyz", "/openapi.json", "/v2/health/live", "/v2/health/ready")
)
"""Paths that need no key; `/page/` has the static files of the page."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"geolocation=(), microphone=()"),
)
"""Security headers of every response."""

logger = logging.getLogger("labelcurve")

LINE = re.compile(
    r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<hash>[0-9a-f]{64})\s+"
    r"(?P<rate>(?=\.?[0-9])[0-9]{0,9}(\.[0-9]{0,9})?)"
)
"""One line of the file. More digits would make a rate that is infinite, or practically 0."""


STATE = struct.Struct("dd")
"""A token bucket in a file: requests left, and when that was."""


@dataclass
class Key:
    """One key, known by its hash alone, and the state of its token bucket."""

    name: str
    digest: bytes
    rate: float
    """Requests per second; 0 for no limit."""
    left: float = 0.0
    since: float = 0.0

    def wait(self, shared: Path | None = None) -> float:
        """Seconds until the next request is allowed; 0 if this one is.

        Args:
            shared: folder in which the workers keep the state of the buckets. Without it, or where
                another worker holds the file, this process counts for itself: the event loop must
                not wait.
        """
        if self.rate == 0:
            return 0.0
        with ExitStack() as stack:
            if shared:
                with suppress(OSError):
                    name = str(shared / f"rate-{self.digest.hex()}")
                    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    stack.callback(os.close, file)  # ends the lock, as does the end of the process
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    stack.callback(self._save, file)
                    if len(state := os.read(file, STATE.size)) == STATE.size:
                        self.left, self.since = STATE.unpack(state)
            return self._take()

    def _take(self) -> float:
        """Takes a request from the bucket, which holds those of one second."""
        now = monotonic()
        self.left = min(max(1.0, self.rate), self.left + (now - self.since) * self.rate)
        self.since = now
        if self.left < 1:
            return (1 - self.left) / self.rate
        self.left -= 1
        return 0.0

    def _save(self, file: int) -> None:
        with suppress(OSError):  # a full disk
            os.pwrite(file, STATE.pack(self.left, self.since), 0)


def read_keys(path: Path) -> list[Key]:
    """Read the keys in a file.

    Raises:
        LabelcurveError: the file cannot be read, has a malformed line, or holds no key.
    """
    if keys := parse_keys(path):
        return keys
    raise LabelcurveError(
        f"{path} holds no API key: `labelcurve api-key NAME --file {path}` adds one"
    )


def parse_keys(path: Path) -> list[Key]:
    """As `read_keys`, of a file that may hold none."""
    try:
        lines = files.read(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelcurveError(f"cannot read the API keys in {path}: {error}") from error
    keys = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise LabelcurveError(
                f"{path}, line {number}: expected NAME SHA256 REQUESTS_PER_SECOND; "
                f"`labelcurve api-key NAME --file {path}` writes such a line"
            )
        keys.append(Key(match["name"], bytes.fromhex(match["hash"]), float(match["rate"])))
    return keys


class Access:
    """Decides which requests are let through."""

    def __init__(self, keys: Path | None = None, shared: Path | None = None) -> None:
        """Read the file of keys; without one, authentication is disabled.

        Args:
            keys: the file.
            shared: a folder of all workers, if there are several: the limits are theirs together.

        Raises:
            LabelcurveError: as `read_keys`.
        """
        self._path = keys
        self._shared = shared
        self._stamp = self._stamped()  # first: the file may change while it is read
        self._keys = read_keys(keys) if keys else None
        self._looked = monotonic()

    def refusal(self, scope: Scope) -> Response | None:
        """The response to a request that is refused; None if it is allowed."""
        if self._keys is None or self._open(scope):
            return None
        return self._check(Request(scope))

    @staticmethod
    def _open(scope: Scope) -> bool:
        path: str = scope["path"]
        return path in OPEN or path.startswith("/page/") or scope["method"] == "OPTIONS"

    def _check(self, request: Request) -> Response | None:
        self._look()
        headers = request.headers
        kind, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for key in self._keys or ():  # no early exit: the time must not depend on the key
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            said = "this API key is not known" if token else "an API key is needed"
            return respond(
                request,
                401,
                f"{said}: Authorization: Bearer KEY, or X-API-Key: KEY",
                {"WWW-Authenticate": "Bearer"},
            )
        if wait := found.wait(self._shared):
            return respond(
                request,
                429,
                f"the key {found.name} may send {found.rate:g} requests per second",
                {"Retry-After": str(ceil(wait))},
            )
        return None

    def _look(self) -> None:
        """Reload the file if it has changed, at most once a second."""
        now = monotonic()
        if self._path is None or now - self._looked < 1:
            return
        self._looked = now
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = parse_keys(self._path)
        except LabelcurveError as error:  # one malformed line must not lock all clients out
            logger.error("%s. The previous keys remain valid", error)
            return
        if not keys:
            logger.warning("%s holds no API keys any more: all requests are refused", self._path)
        before = {key.digest: key for key in self._keys or ()}
        for key in keys:
            if old := before.get(key.digest):
                key.left, key.since = old.left, old.since
        self._keys = keys

    def _stamped(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat() if self._path else None
        except OSError:
            return None
        return status and (status.st_mtime_ns, status.st_size)
