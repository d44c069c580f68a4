"""The web page: static files, no build step, nothing from another host."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy: nothing inline, nothing from elsewhere; blob: is the chosen image."""


class File(NamedTuple):
    """A file of the page, as it is sent."""

    content: bytes
    headers: dict[str, str]

    def respond(self, request: Request) -> Response:
        """The file; 304 to a client that has it."""
        known = request.headers.get("if-none-match", "")
        if self.headers["etag"] in (tag.strip().removeprefix("W/") for tag in known.split(",")):
            return Response(status_code=304, headers=self.headers)
        return Response(self.content, headers=self.headers)


def routes(index: Callable[[Request], Awaitable[Response]]) -> list[Route]:
    """`/`, `/docs` and the files that they need; `index` answers `/` to programs."""
    files = {path.name: read(path) for path in FOLDER.iterdir() if path.suffix in MEDIA_TYPES}
    page, docs = files.pop("index.html"), files.pop("docs.html")

    async def root(request: Request) -> Response:
        if wants_html(request.headers.get("accept", "")):
            return page.respond(request)
        response = await index(request)
        response.headers["vary"] = "Accept"
        return response

    return [
        Route("/", root),
        Route("/docs", answer(docs)),
        *(Route(f"/page/{name}", answer(file)) for name, file in sorted(files.items())),
    ]


def read(path: Path) -> File:
    """A file of the page; clients cache it and revalidate it each time."""
    content = path.read_bytes()
    headers = {
        "content-type": MEDIA_TYPES[path.suffix],
        "etag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        "cache-control": "no-cache",
    }
    if path.suffix == ".html":
        headers |= {
            "content-security-policy": POLICY,
            "vary": "Accept",
        }
    return File(content, headers)


def answer(file: File) -> Callable[[Request], Awaitable[Response]]:
    """A route's endpoint."""

    async def endpoint(request: Request) -> Response:
        return file.respond(request)

    return endpoint


def wants_html(accept: str) -> bool:
    """Returns whether an Accept header prefers HTML to JSON, as those of browsers do."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        if kind in weights:
            weights[kind] = 1.0
            for parameter in parameters:
                name, _, value = parameter.partition("=")
                if name.strip() == "q":
                    try:
                        weights[kind] = float(value)
                    except ValueError:
                        weights[kind] = 0.0
    return weights["text/html"] > weights["application/json"]
