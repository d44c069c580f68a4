"""Error responses as RFC 9457 problem details."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from labelcurve.bundle.errors import ImageError, ImageTooLarge
from labelcurve.serving.errors import Problem
from labelcurve.serving.telemetry.logs import REQUEST_ID

MEDIA_TYPE = "application/problem+json"


def respond(
    request: Request,
    status: int,
    detail: str,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> Response:
    """A problem document; with the id of the request, by which its log line is found."""
    if request_id := request.scope.get(REQUEST_ID):
        members["request_id"] = request_id
    content = document(status, detail, **members)
    return Response(content, status, headers=headers, media_type=MEDIA_TYPE)


def document(status: int, detail: str, **members: Any) -> bytes:
    """The body of a problem."""
    title = HTTPStatus(status).phrase
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **members}
    return json.dumps(body, ensure_ascii=False).encode()


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return respond(request, error.status, error.detail, error.headers, **error.members)


def _image(request: Request, error: Exception) -> Response:
    assert isinstance(error, ImageError)
    if isinstance(error, ImageTooLarge):
        found, allowed = error.found, error.allowed
        return respond(request, error.status, str(error), found=found, allowed=allowed)
    return respond(request, error.status, str(error))


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = "no such path; /openapi.json lists those that exist"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.method} is not allowed here; allowed: {allowed}"
    else:
        detail = error.detail
    return respond(request, error.status_code, detail, dict(error.headers or {}))


def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # the client disconnected: only the metrics record it


def _unexpected(request: Request, _: Exception) -> Response:
    return respond(request, 500, "internal error; the log contains the traceback")


HANDLERS: dict[type[Exception], ExceptionHandler] = {
    Problem: _problem,
    ImageError: _image,
    HTTPException: _http,
    ClientDisconnect: _gone,
    Exception: _unexpected,
}
"""Exception handlers for Starlette."""


def answer(request: Request, error: Exception) -> Response:
    """The answer of the first of `HANDLERS` that is meant for `error`."""
    handler: Any = next(found for kind, found in HANDLERS.items() if isinstance(error, kind))
    response: Response = handler(request, error)
    return response
