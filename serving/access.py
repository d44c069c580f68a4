"""Who may ask: API keys, limits for each of them, other sites' scripts, security headers.

A file of keys holds a line for each: NAME, SHA-256 of the key in hexadecimal, and requests per
second (0: no limit). Keys are random, 256 bits, so a plain hash is as good as a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from bundle.errors import LabelcurveError
from serving.problems import respond

OPEN = frozenset(("/", "/docs", "/livez", "/readyz", "/openapi.json"))
"""Paths that need no key; below `/page/` lies what the page is made of."""

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"geolocation=(), microphone=()"),
)
"""Of every answer."""

RATES = (0.001, 1e6)
"""Requests per second that a limit may be."""

logger = logging.getLogger("labelcurve")

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<hash>[0-9a-f]{64})\s+(?P<rate>[0-9.]+)")


@dataclass
class Key:
    """One key, known by its hash alone, and what is left of its limit."""

    name: str
    digest: bytes
    rate: float
    """Requests per second; 0 for no limit."""
    left: float = 0.0
    since: float = 0.0

    def wait(self, share: float) -> float:
        """Seconds until the next request is allowed; 0 when this one is.

        A second's worth may come at once.

        Args:
            share: of the limit that this process may give: 1 / workers.
        """
        if self.rate == 0:
            return 0.0
        rate = self.rate * share
        now = monotonic()
        self.left = min(max(1.0, rate), self.left + (now - self.since) * rate)
        self.since = now
        if self.left < 1:
            return (1 - self.left) / rate
        self.left -= 1
        return 0.0


def read_keys(path: Path) -> list[Key]:
    """The keys in a file.

    Raises:
        LabelcurveError: it cannot be read, a line is not what it should be, or it holds no key.
    """
    if keys := _parse(path):
        return keys
    raise LabelcurveError(f"{path} holds no API key: `api-key NAME --file {path}` adds one")


def _parse(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LabelcurveError(f"cannot read the API keys in {path}: {error}") from error
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match["rate"].count(".") > 1:
            raise LabelcurveError(
                f"{path}, line {number}: expected is NAME SHA256 REQUESTS_PER_SECOND; "
                f"`api-key NAME --file {path}` writes such a line"
            )
        keys.append(Key(match["name"], bytes.fromhex(match["hash"]), float(match["rate"])))
    return keys


class Access:
    """Who may pass."""

    def __init__(self, keys: Path | None = None, workers: int = 1) -> None:
        """Reads the file of keys; without one everybody passes.

        Raises:
            LabelcurveError: as `read_keys`.
        """
        self._path = keys
        self._share = 1 / workers
        self._keys = read_keys(keys) if keys else None
        self._stamp = self._stamped()
        self._looked = monotonic()

    def refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass; None for one that may."""
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
        for key in self._keys or ():  # all of them, so that the time does not tell which
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
        if wait := found.wait(self._share):
            return respond(
                request,
                429,
                f"the key {found.name} may send {found.rate:g} requests per second",
                {"Retry-After": str(max(1, round(wait + 0.5)))},
            )
        return None

    def _look(self) -> None:
        """Reads the file again where it has changed, at most once a second."""
        now = monotonic()
        if self._path is None or now - self._looked < 1:
            return
        self._looked = now
        stamp = self._stamped()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = _parse(self._path)
        except LabelcurveError as error:  # a slip in one line must not lock everybody out
            logger.error("%s. The keys of before go on", error)
            return
        if not keys:
            logger.warning("%s holds no API key any more: nobody may pass", self._path)
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


@dataclass(frozen=True)
class NewKey:
    """Makes an API key for `serve --api-keys FILE`, adds its hash to the file, and prints it."""

    name: str
    """Whose it is; letters, digits, dot, dash and underscore."""
    file: Path = Path("api-keys")
    """The file that `serve --api-keys` reads; a running `serve` sees the new key in a second."""
    rate: float = 0.0
    """Requests per second that it may send; 0 for no limit."""


def main() -> None:
    """The entry point of `api-key`."""
    import tyro  # of the commands alone: a worker starts without it

    options = tyro.cli(NewKey, prog="api-key", config=(tyro.conf.PositionalRequiredArgs,))
    try:
        print(make_key(options))
    except LabelcurveError as error:
        sys.exit(f"error: {error}")


def make_key(options: NewKey) -> str:
    """Adds a line to the file, which only its owner may read.

    Returns:
        The key: this is the only time that it is seen.

    Raises:
        LabelcurveError: the name cannot be used or is taken, the rate cannot be meant, or the file
            cannot be written.
    """
    if options.rate and not RATES[0] <= options.rate <= RATES[1]:
        raise LabelcurveError(
            f"--rate {options.rate:g}: {RATES[0]:g} to {RATES[1]:,.0f} requests per second, or 0 "
            "for no limit"
        )
    token = f"lc_{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(token.encode()).hexdigest()
    rate = f"{options.rate:.3f}".rstrip("0").rstrip(".")
    line = f"{options.name} {digest} {rate}\n"
    if _LINE.fullmatch(line.strip()) is None:
        raise LabelcurveError(
            f"{options.name!r}: a name has 1 to 64 letters, digits, dots, dashes and underscores"
        )
    there = read_keys(options.file) if options.file.exists() else []
    if options.name in {key.name for key in there}:
        raise LabelcurveError(f"{options.file} has a key for {options.name}: remove its line")
    try:
        options.file.touch(mode=0o600)
        with options.file.open("r+") as file:
            text = file.read()  # to its end, which editors may have left without a newline
            file.write(line if text.endswith("\n") or not text else f"\n{line}")
    except OSError as error:
        raise LabelcurveError(f"cannot write {options.file}: {error.strerror}") from error
    return token
