"""What stands before the routes, around small applications."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from labelcurve.serving.errors import Overloaded
from labelcurve.serving.telemetry.logs import HEADER
from labelcurve.serving.telemetry.requests import Traffic
from labelcurve.serving.web.access import HEADERS, Access
from labelcurve.serving.web.middleware import Front, Gate


async def nothing() -> Any:
    return {"type": "http.request", "body": b""}


def ask(app: Any, path: str, sent: list[Any]) -> None:
    """Asks an application for a path; `sent` receives its messages, also where it fails."""

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app({"type": "http", "method": "POST", "path": path, "headers": []}, nothing, send))


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("others", 203)(scope, receive, send)


def test_a_request_is_counted_under_its_route_alone() -> None:
    traffic = Traffic()
    front = Front(answering, paths=frozenset({"/classify"}), traffic=traffic, log=None)
    for path in ("/classify", "/classify/", "/v2/models/a", "/v2/models/a/ready",
                 "/v2/models/a/infer", "/v2/models/a/versions/1/infer", "/b/infer"):  # fmt: skip
        sent: list[Any] = []
        ask(front, path, sent)
        headers = sent[0]["headers"]
        assert set(HEADERS) < set(headers)
        assert [name for name, _ in headers].count(HEADER) == 1
    assert {key: len(seconds) for key, seconds in traffic._ended.items()} == {
        ("/classify", 203): 1,
        ("/unknown", 203): 2,
        ("/v2/models", 203): 2,
        ("/v2/models/infer", 203): 2,
    }
    assert set(traffic._running.values()) == {0}


def test_an_error_before_the_answer_ends_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("unforeseen")

    traffic = Traffic()
    with pytest.raises(RuntimeError, match="unforeseen"):
        ask(Front(broken, paths=frozenset(), traffic=traffic, log=None), "/x", [])
    assert caplog.text.count("internal error") == 1
    assert (dict(traffic._running), dict(traffic._ended)) == ({"/unknown": 0}, {})


def test_only_classify_goes_past_the_router_and_its_errors_are_answers() -> None:
    asked: list[str] = []

    async def classify(scope: Scope, receive: Receive) -> Response:
        asked.append(scope["path"])
        if len(asked) == 2:
            raise Overloaded("full")
        if len(asked) == 3:
            raise RuntimeError("secret")
        return PlainTextResponse("classified")

    gate = Gate(Access(), classify, answering)
    sent: list[Any] = []
    ask(gate, "/models", sent)
    ask(gate, "/classify", sent)
    ask(gate, "/classify", sent)
    with pytest.raises(RuntimeError, match="secret"):  # for the log
        ask(gate, "/classify", sent)
    found = [each["status"] for each in sent if each["type"] == "http.response.start"]
    assert found == [203, 200, 503, 500]
    assert asked == ["/classify"] * 3
    assert (b"retry-after", b"1") in sent[4]["headers"]
    said = json.loads(sent[-1]["body"])
    assert said["detail"] == "internal error; the log contains the traceback"
