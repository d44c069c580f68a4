"""A request releases what it holds, however it ends; `/readyz` reports the true state."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from labelcurve.bundle.errors import UnreadableImage, UnsupportedImage
from labelcurve.serving.errors import Overloaded, Problem
from labelcurve.serving.models.catalogue import Catalogue
from labelcurve.serving.models.device import Device
from labelcurve.serving.settings import Settings
from labelcurve.serving.web import app as module
from labelcurve.serving.web.app import App
from tests.models import digit_png

CPU = Device("cpu", "a test")
PNG = digit_png(3)


@pytest.fixture(scope="module")
def catalogue(digits_models: Path) -> Iterator[Catalogue]:
    catalogue = Catalogue()
    catalogue.load(Settings(models=digits_models, threads=1), CPU)
    yield catalogue
    catalogue.close()


@pytest.fixture
def app(catalogue: Catalogue, digits_models: Path) -> Iterator[App]:
    app = App(catalogue, CPU, Settings(models=digits_models, threads=1, body_timeout=0.2))
    yield app
    app.close()


def ask(app: App, body: bytes, query: bytes = b"", then: Callable[[], Any] | None = None) -> Any:
    """The answer to a body in two pieces; `then` gives what comes in place of the second."""
    pieces = [body[:10], body[10:]]

    async def receive() -> Any:
        if len(pieces) == 1 and then:
            return await then()
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    scope = {"type": "http", "method": "POST", "query_string": query, "headers": []}
    return asyncio.run(app.classify(scope, receive))


async def gone() -> Any:
    return {"type": "http.disconnect"}


async def never() -> Any:
    await asyncio.Event().wait()


def users(app: App) -> list[int]:
    return [model.users for model in app._catalogue.models]


@pytest.mark.parametrize(
    ("body", "query", "then", "error"),
    [
        (PNG, b"", None, None),
        (PNG[:-60], b"", None, UnreadableImage),
        (b"no image at all", b"", None, UnsupportedImage),
        (PNG, b"top_k=0", None, Problem),
        (PNG, b"model=none", None, Problem),
        (PNG, b"", gone, ClientDisconnect),
        (PNG, b"", never, Problem),
    ],
)
def test_what_a_request_holds_is_released(
    app: App, body: bytes, query: bytes, then: Callable[[], Any] | None, error: type[Exception]
) -> None:
    if error is None:
        assert ask(app, body, query, then).status_code == 200
    else:
        with pytest.raises(error):
            ask(app, body, query, then)
    assert app._bodies.held == 0
    assert users(app) == [0, 0, 0]


def test_a_request_holds_its_body_and_its_model(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = app._decoder.decode

    async def watched(*arguments: Any) -> Any:
        assert app._bodies.held == len(PNG)
        assert users(app) == [0, 0, 1]  # the default has the most labels
        return await decode(*arguments)

    monkeypatch.setattr(app._decoder, "decode", watched)
    assert ask(app, PNG).status_code == 200


def test_refused_bodies_call_the_garbage_collector(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(app._refused))
    monkeypatch.setattr(module, "REFUSED_BYTES", 100)
    for _ in range(3):
        with pytest.raises(UnsupportedImage):
            ask(app, b"x" * 60)
    assert collected == [0]
    assert app._refused == 60


def test_it_is_not_ready_before_its_models_are_loaded_nor_when_it_leaves(
    app: App, digits_models: Path
) -> None:
    request = Request({"type": "http", "method": "GET", "headers": [], "path": "/readyz"})
    assert asyncio.run(app.readyz(request)).status_code == 200
    app.leaving = True
    with pytest.raises(Overloaded, match="this process is about to end"):
        asyncio.run(app.readyz(request))
    loading = App(Catalogue(), CPU, Settings(models=digits_models))
    with pytest.raises(Overloaded, match="the models are being loaded") as caught:
        asyncio.run(loading.readyz(request))
    assert caught.value.headers == {"Retry-After": "1"}
    assert asyncio.run(loading.livez(request)).status_code == 200
    loading.close()
