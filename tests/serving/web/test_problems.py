from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelcurve.serving.web.problems import HANDLERS
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
