"""The routes."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import perf_counter
from typing import Any

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope

from bundle.machine import cores
from serving import answer, openapi, page, request
from serving.catalogue import Catalogue
from serving.connection import TASK
from serving.decoder import Decoder
from serving.device import Device
from serving.errors import Overloaded, Problem
from serving.model import Model
from serving.request import MAX_TOP_K, Bodies, Claim, Upload
from serving.settings import Settings
from serving.tracing import Traces

DEFAULT_TOP_K = 5


class Deadline:
    """Cancels a task when its time is over; `asyncio.timeout` costs twice as much."""

    def __init__(self, task: asyncio.Task[Any], seconds: float) -> None:
        """For `task`, `seconds` from now."""
        self.passed = False
        """Whether it cancelled the task."""
        self._task = task
        self._loop = task.get_loop()
        self._timer = self._loop.call_later(seconds, self._pass)

    def move(self, seconds: float) -> float:
        """To `seconds` from now, which it returns as a time of the loop."""
        self._timer.cancel()
        when = self._loop.time() + seconds
        self._timer = self._loop.call_at(when, self._pass)
        return when

    def close(self) -> None:
        """It cancels the task no more."""
        self._timer.cancel()

    def _pass(self) -> None:
        self.passed = True
        self._task.cancel()


class App:
    """What answers a request; one in each worker."""

    def __init__(self, catalogue: Catalogue, device: Device, settings: Settings) -> None:
        """Routes over `catalogue`, which may still be loading."""
        self._catalogue = catalogue
        self._device = device
        self._timeout = settings.timeout
        self._max_wait = settings.max_wait
        self._metrics = settings.metrics_port is None
        """Whether `/metrics` is on this port."""
        self._body_timeout = settings.body_timeout
        self._bodies = Bodies()
        self.leaving = False
        """Whether it is about to end: it answers all the same, but is not ready any more."""
        self._decoder = Decoder(cores())
        self.traces: Traces | None = None
        """Where they are sent, if they are."""

    def routes(self) -> list[Route]:
        """Every path but `/metrics`, which is BentoML's, and `/classify`."""
        return [
            Route("/models", self.models),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/openapi.json", self.openapi),
            *page.routes(self.index),
        ]

    def close(self) -> None:
        """Ends the threads of the decoder, and sends the last traces."""
        self._decoder.close()
        if self.traces:
            self.traces.close()

    async def classify(self, scope: Scope, receive: Receive) -> Response:
        """`POST /classify`.

        Raises:
            Problem, ImageError, HTTPException: what its answer is, other than 200.
            ClientDisconnect: the client hung up.
        """
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        task = asyncio.current_task()
        assert task is not None
        scope[TASK] = task
        claim = Claim(self._bodies)
        deadline = Deadline(task, self._body_timeout)
        try:
            return await self._classify(scope, receive, claim, deadline)
        except asyncio.CancelledError:
            if scope[TASK] is None:  # `Connection` cancelled it: nobody is there
                raise ClientDisconnect from None
            if not deadline.passed:
                raise
            task.uncancel()
            if claim.complete:
                raise Problem(f"no answer within {self._timeout:g} s", status=504) from None
            raise Problem(
                f"the body did not arrive within {self._body_timeout:g} s",
                status=408,
                headers={"Connection": "close"},
            ) from None
        finally:
            deadline.close()
            claim.close()

    async def _classify(
        self, scope: Scope, receive: Receive, claim: Claim, deadline: Deadline
    ) -> Response:
        # Most requests have none, and parsing costs as much as finding the model.
        query = scope["query_string"]
        wanted, top_k = _query(QueryParams(query)) if query else (None, DEFAULT_TOP_K)
        model = self._catalogue.find(wanted)
        if model:
            # Before the body is read and decoded: what will be refused should cost little.
            model.batcher.check(1, self._max_wait)
        upload = await request.read(scope, receive, claim)
        claim.complete = True
        until = deadline.move(self._timeout)
        # Again: the folder may have changed while the body arrived.
        model = self._catalogue.find(wanted) or await self._catalogue.fetch(wanted or "")
        model.hold()
        try:
            return await self._answer(model, upload, top_k, until)
        finally:
            model.release()

    async def _answer(self, model: Model, upload: Upload, top_k: int, until: float) -> Response:
        decoded = await self._decoder.decode(upload.images, model.engine.size, self._max_wait)
        # A tenth is left for the answer itself, and for an estimate that was too low.
        left = until - asyncio.get_running_loop().time() - self._timeout / 10
        futures = model.batcher.submit(decoded.pixels, min(self._max_wait, left), decoded.waited)
        predictions = [await futures[0]] if len(futures) == 1 else await asyncio.gather(*futures)
        start = perf_counter()
        answers = [
            answer.body(p.probabilities, model.heads, upload.top_k or top_k) for p in predictions
        ]
        text = f"[{', '.join(answers)}]" if upload.several else answers[0]
        response = Response(text.encode(), media_type="application/json")
        response.raw_headers += [
            *model.headers,
            (
                b"server-timing",
                b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f, encode;dur=%.3f"
                % (
                    decoded.seconds * 1000,
                    max(p.queue for p in predictions) * 1000,
                    max(p.inference for p in predictions) * 1000,
                    (perf_counter() - start) * 1000,
                ),
            ),
        ]
        return response

    async def models(self, _: Request) -> Response:
        """`GET /models`."""
        if not self._catalogue.ready:
            raise Overloaded("the models are being loaded")
        return JSONResponse(self._catalogue.describe())

    async def livez(self, _: Request) -> Response:
        """`GET /livez`: the process answers."""
        return PlainTextResponse("live\n")

    async def readyz(self, _: Request) -> Response:
        """`GET /readyz`: every model is warm, and what it really runs on."""
        if self.leaving:
            raise Overloaded("this process is about to end")
        if not self._catalogue.ready:
            raise Overloaded("the models are being loaded")
        return JSONResponse(
            {
                "ready": True,
                "device": {"kind": self._device.kind, "reason": self._device.reason},
                "models": [_readiness(model) for model in self._catalogue.models],
                "refused": self._catalogue.refused(),
            }
        )

    async def openapi(self, _: Request) -> Response:
        """`GET /openapi.json`."""
        return JSONResponse(openapi.document(self._metrics))

    async def index(self, _: Request) -> Response:
        """`GET /` for programs: where to go from here."""
        links = ["/models", "/docs", "/openapi.json", "/livez", "/readyz"]
        return JSONResponse(
            {
                "service": "labelcurve",
                "classify": "POST an image to /classify",
                "links": [*links, "/metrics"] if self._metrics else links,
            }
        )


def _query(parameters: QueryParams) -> tuple[str | None, int]:
    for name, count in Counter(name for name, _ in parameters.multi_items()).items():
        if name not in ("model", "top_k"):
            raise Problem(f"unknown parameter {name[:80]!r}: allowed are model and top_k")
        if count > 1:
            raise Problem(f"the parameter {name} is given {count} times")
    return parameters.get("model"), _top_k(parameters.get("top_k"))


def _top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    digits = text.isascii() and text.isdigit() and len(text) < 100
    if not (digits and 1 <= int(text) <= MAX_TOP_K):
        raise Problem(f"top_k={text[:80]!r}: a whole number from 1 to {MAX_TOP_K} is needed")
    return int(text)


def _readiness(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "precision": model.precision,
        "provider": model.engine.provider,
        "batch_sizes": list(model.engine.batch_sizes),
    }
