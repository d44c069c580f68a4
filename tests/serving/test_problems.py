from __future__ import annotations

import httpx
import pytest

from tests.serving.test_request import problem


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
