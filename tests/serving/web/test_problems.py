from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from labelcurve.bundle.errors import ImageTooLarge, UnsupportedImage
from labelcurve.serving.errors import DeviceLost, Overloaded, UnknownModel
from labelcurve.serving.telemetry.logs import REQUEST_ID
from labelcurve.serving.web.problems import HANDLERS, answer
from tests.serving.web.test_request import problem


@pytest.mark.parametrize("path", ["/nothing", "/classify/", "/models/digits-10", "/..%2f"])
def test_an_unknown_path_is_404(client: httpx.Client, path: str) -> None:
    body = problem(client.get(path), 404)
    assert body["title"] == "Not Found"
    assert body["type"] == "about:blank"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/classify", {"POST"}),
        ("PUT", "/classify", {"POST"}),
        ("POST", "/models", {"GET", "HEAD"}),
        ("DELETE", "/metrics", {"GET", "HEAD"}),
        ("PATCH", "/", {"GET", "HEAD"}),
    ],
)
def test_another_method_is_405(
    client: httpx.Client, method: str, path: str, allowed: set[str]
) -> None:
    response = client.request(method, path)
    problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == allowed


def test_an_error_of_ours_is_a_problem_too() -> None:
    async def broken(_: Request) -> Response:
        raise RuntimeError("secret")

    async def get() -> httpx.Response:
        app = Starlette(routes=[Route("/", broken)], exception_handlers=HANDLERS)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get("/")

    assert "secret" not in problem(asyncio.run(get()), 500)["detail"]


REQUEST = {"type": "http", "method": "PUT", "path": "/x", "headers": [], REQUEST_ID: "mine"}


@pytest.mark.parametrize(
    ("error", "status", "headers", "members"),
    [
        (Overloaded("full"), 503, {"retry-after": "1"}, {"detail": "full"}),
        (DeviceLost("gone"), 503, {"retry-after": "5"}, {"detail": "gone"}),
        (UnknownModel("none", models=["a@1"]), 404, {}, {"detail": "none", "models": ["a@1"]}),
        (
            UnsupportedImage("no image"),
            415,
            {},
            {"detail": "no image", "title": "Unsupported Media Type"},
        ),
        (ImageTooLarge("large", 9, 4), 413, {}, {"detail": "large", "found": 9, "allowed": 4}),
        (
            HTTPException(405, headers={"Allow": "GET"}),
            405,
            {"allow": "GET"},
            {"detail": "PUT is not allowed here; allowed: GET", "title": "Method Not Allowed"},
        ),
        (HTTPException(400, "odd"), 400, {}, {"detail": "odd"}),
        (RuntimeError("x"), 500, {}, {"detail": "internal error; the log contains the traceback"}),
    ],
)  # fmt: skip
def test_each_error_has_its_status_headers_and_members(
    error: Exception, status: int, headers: dict[str, str], members: dict[str, Any]
) -> None:
    response = answer(Request(REQUEST), error)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert headers.items() <= dict(response.headers).items()
    body = json.loads(bytes(response.body))
    assert members.items() <= body.items()
    assert (body["status"], body["request_id"], body["type"]) == (status, "mine", "about:blank")


def test_a_client_that_disconnected_gets_a_status_for_the_metrics_alone() -> None:
    response = answer(Request(REQUEST), ClientDisconnect())
    assert (response.status_code, response.body) == (499, b"")
