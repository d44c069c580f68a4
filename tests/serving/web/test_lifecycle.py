"""A request releases what it holds, however it ends; `/readyz` reports the true state."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.requests import ClientDisconnect, Request

from labelcurve.bundle.errors import UnreadableImage, UnsupportedImage
from labelcurve.serving.deadline import Clock
from labelcurve.serving.errors import Overloaded, Problem
from labelcurve.serving.models.batcher import Prediction
from labelcurve.serving.models.catalogue import Catalogue
from labelcurve.serving.models.decoder import Decoded
from labelcurve.serving.models.device import Device
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry.logs import timings
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
    ready = asyncio.run(app.readyz(request))
    assert ready.status_code == 200
    said = json.loads(bytes(ready.body))
    assert said.pop("models")[2] == {
        "name": "digits-100",
        "version": app._catalogue.models[2].version,
        "precision": "fp32",
        "provider": "CPUExecutionProvider",
        "batch_sizes": list(range(1, 17)),
    }
    assert said == {
        "ready": True,
        "device": {"kind": "cpu", "reason": "a test"},
        "refused": [],
        "keeps_doubtful": False,
    }
    assert json.loads(bytes(asyncio.run(app.server(request)).body)) == {
        "name": "labelcurve",
        "version": version("labelcurve"),
        "extensions": ["binary_tensor_data"],
    }
    app.leaving = True
    with pytest.raises(Overloaded, match="this process is about to end"):
        asyncio.run(app.readyz(request))
    loading = App(Catalogue(), CPU, Settings(models=digits_models))
    with pytest.raises(Overloaded, match="the models are being loaded") as caught:
        asyncio.run(loading.readyz(request))
    assert caught.value.headers == {"Retry-After": "1"}
    assert asyncio.run(loading.livez(request)).status_code == 200
    loading.close()


def test_a_request_that_is_late_says_whose_time_it_was(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's, whose body does not arrive, or that of the service."""

    async def late(answer: Any) -> tuple[Problem, int]:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(Problem) as caught:
            await answer
        return caught.value, task.cancelling()

    async def body() -> Any:
        return {"type": "http.request", "body": PNG, "more_body": False}

    async def decode(*_: Any) -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": []}
    error, cancelling = asyncio.run(late(app.classify({**scope}, never)))
    assert (error.status, error.headers, cancelling) == (408, {"Connection": "close"}, 0)
    assert error.detail == "the body did not arrive within 0.2 s"
    app._answers = Clock(0.01)
    monkeypatch.setattr(app._decoder, "decode", decode)
    error, cancelling = asyncio.run(late(app.classify({**scope}, body)))
    assert (error.status, error.headers, cancelling) == (504, None, 0)
    assert error.detail == "no answer within 10 s"
    assert users(app) == [0, 0, 0]


@pytest.mark.parametrize(("timeout", "wait", "most"), [(20.0, 30.0, 18.0), (100.0, 2.0, 2.0)])
def test_images_wait_for_no_longer_than_an_answer_takes(
    timeout: float, wait: float, most: float, catalogue: Catalogue, digits_models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    settings = Settings(models=digits_models, threads=1, timeout=timeout, max_wait=wait)
    app = App(catalogue, CPU, settings)
    assert catalogue.default is not None
    batcher, asked = catalogue.default.batcher, []
    submit, decode = batcher.submit, app._decoder.decode

    def submitted(pixels: Any, within: float, waited: float, embed: bool) -> Any:
        asked.append((within, waited, embed))
        return submit(pixels, within, waited, embed)

    async def decoded(images: Any, size: int, within: float) -> Decoded:
        assert (size, within) == (8, wait)
        return (await decode(images, size, within))._replace(waited=500.0)

    monkeypatch.setattr(batcher, "submit", submitted)
    monkeypatch.setattr(app._decoder, "decode", decoded)
    response = ask(app, PNG)
    app.close()
    ((within, waited, embed),) = asked
    assert 0 < within <= most
    assert within == most or most < wait
    assert (waited, embed) == (500.0, False)
    timing = timings(dict(response.raw_headers)[b"server-timing"])
    assert timing["queue_ms"] >= 500_000


def test_a_service_that_is_busy_refuses_a_body_before_it_is_read(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(n: int, within: float) -> None:
        assert (n, within) == (1, 2.0)
        raise Overloaded("busy")

    assert app._catalogue.default is not None
    monkeypatch.setattr(app._catalogue.default.batcher, "check", check)

    async def receive() -> Any:
        pytest.fail("the body was read")

    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": []}
    with pytest.raises(Overloaded, match="busy"):
        asyncio.run(app.classify(scope, receive))
    assert users(app) == [0, 0, 0]


def test_times_are_told_in_milliseconds_and_are_those_of_the_slowest_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "perf_counter", lambda: 10.25)
    row = np.zeros(3, np.float32)
    predictions = [Prediction(row, None, 0.003, 0.5), Prediction(row, None, 0.001, 0.75)]
    assert module._timing(Decoded([], 0.0015, 9.0), predictions, 10.0) == (
        b"decode;dur=1.500, queue;dur=3.000, inference;dur=750.000, encode;dur=250.000"
    )


@pytest.mark.parametrize("query", [b"accept=0.9", b"set=0.9", b"top_k=1"])
def test_an_embedding_has_no_classes_to_accept(app: App, query: bytes) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": PNG, "more_body": False}

    scope = {
        "type": "http", "method": "POST", "path": "/embed", "query_string": query, "headers": [],
    }  # fmt: skip
    with pytest.raises(Problem, match="for /classify: an embedding"):
        asyncio.run(app.embed(Request(scope, receive)))
    assert users(app) == [0, 0, 0]
