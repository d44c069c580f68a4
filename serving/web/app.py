"""The routes."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope

from labelcurve.bundle.errors import ImageError
from labelcurve.bundle.machine import cores
from labelcurve.bundle.preprocess import MAX_BYTES
from labelcurve.serving import page
from labelcurve.serving.connections.connection import TASK
from labelcurve.serving.deadline import Clock, Deadline
from labelcurve.serving.doubtful import Answer, Doubtful, table
from labelcurve.serving.errors import Overloaded, Problem
from labelcurve.serving.models import answer
from labelcurve.serving.models.batcher import Prediction
from labelcurve.serving.models.catalogue import Catalogue
from labelcurve.serving.models.decoder import Decoded, Decoder
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.model import Model
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry.tracing import Traces
from labelcurve.serving.web import inference_protocol, query, request
from labelcurve.serving.web.request import MAX_OVERHEAD, Bodies, Claim, Upload
from labelcurve.serving.web.verdicts import Row, Verdict, Verdicts

REFUSED_BYTES = 64 * 2**20
"""Size of refused bodies after which the garbage collector runs: reference cycles of exceptions and
frames left by a library would keep them in memory, since automatic collection is rare here."""


_JSON = (b"content-type", b"application/json")

Work = Callable[[Scope, Receive, Claim, Deadline], Awaitable[Response]]


class Answered(Response):
    """JSON, and headers as ASGI takes them; Starlette's own response takes twice as long."""

    def __init__(self, body: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status_code, self.body, self.background = 200, body, None
        self.raw_headers = [(b"content-length", b"%d" % len(body)), _JSON, *headers]


class App:
    """Request handlers; one instance per worker."""

    def __init__(self, catalogue: Catalogue, device: Device, settings: Settings) -> None:
        """Routes over `catalogue`, which may still be loading."""
        self._catalogue = catalogue
        self._device = device
        self._timeout = settings.timeout
        self._max_wait = settings.max_wait
        self._verdicts = Verdicts(settings.accept)
        self._doubtful = _doubtful(settings)
        self._metrics = settings.metrics_port is None
        """Whether `/metrics` is on this port."""
        self._body_timeout = settings.body_timeout
        self._arrivals, self._answers = Clock(settings.body_timeout), Clock(settings.timeout)
        """Deadlines of bodies, and of answers after those."""
        self._bodies = Bodies()
        self._refused = 0
        """Bytes of refused bodies since the last run of the garbage collector."""
        self.leaving = False
        """Whether it is about to stop: it still answers, but is not ready."""
        self._decoder = Decoder(cores())
        self.traces: Traces | None = None
        """Exporter of traces, if configured."""

    def routes(self) -> list[Route]:
        """Every path but `/metrics`, which is BentoML's, and `/classify`."""
        return [
            Route("/embed", self.embed, methods=["POST"]),
            Route("/models", self.models),
            Route("/livez", self.livez),
            Route("/readyz", self.readyz),
            Route("/openapi.json", self.openapi),
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.readyz),
            *(
                route
                for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
                for route in (
                    Route(path, self.model),
                    Route(f"{path}/ready", self.model),
                    Route(f"{path}/infer", self.infer, methods=["POST"]),
                )
            ),
            *([Route("/doubtful.csv", self.doubtful)] if self._doubtful else []),
            *page.routes(self.index),
        ]

    def close(self) -> None:
        """Ends the threads of the decoder, and sends the last traces."""
        self._decoder.close()
        if self._doubtful:
            self._doubtful.close()
        if self.traces:
            self.traces.close()

    async def classify(self, scope: Scope, receive: Receive) -> Response:
        """`POST /classify`.

        Raises:
            Problem, ImageError, HTTPException: the error response.
            ClientDisconnect: the client disconnected.
        """
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        return await self._within_limits(self._classify, scope, receive)

    async def embed(self, asked: Request) -> Response:
        """`POST /embed`."""
        return await self._within_limits(self._embed, asked.scope, asked.receive)

    async def infer(self, asked: Request) -> Response:
        """`POST /v2/models/NAME/infer`."""
        return await self._within_limits(self._infer, asked.scope, asked.receive)

    async def _within_limits(self, work: Work, scope: Scope, receive: Receive) -> Response:
        """Response of `work`, which is cancelled on timeout or when the client disconnects."""
        task = asyncio.current_task()
        assert task is not None
        scope[TASK] = task
        claim = Claim(self._bodies)
        deadline = Deadline(task, self._arrivals)
        try:
            return await work(scope, receive, claim, deadline)
        except asyncio.CancelledError:
            if scope[TASK] is None:  # cancelled by `Connection`: the client disconnected
                raise ClientDisconnect from None
            task.uncancel()
            if not deadline.passed:  # by uvicorn, at the end of `--drain`
                raise Overloaded("this process ends: try again") from None
            if claim.complete:
                raise Problem(f"no answer within {self._timeout:g} s", status=504) from None
            raise Problem(
                f"the body did not arrive within {self._body_timeout:g} s",
                status=408,
                headers={"Connection": "close"},
            ) from None
        except (Problem, ImageError):
            self._refused += claim.held
            if self._refused > REFUSED_BYTES:
                self._refused = 0
                gc.collect()
            raise
        finally:
            deadline.close()
            claim.close()

    async def _classify(
        self, scope: Scope, receive: Receive, claim: Claim, deadline: Deadline
    ) -> Response:
        # Most requests have no query, and parsing costs as much as finding the model.
        text = scope["query_string"]
        asked = query.parse(text) if text else query.NOTHING
        model, upload, until = await self._receive(scope, receive, claim, deadline, asked.model)
        try:
            verdicts = self._verdicts.of(model, asked.wish)  # refused before anything is decoded
            decoded, predictions = await self._predict(model, upload, until)
            start = perf_counter()
            n = upload.top_k or asked.top_k or query.DEFAULT_TOP_K
            answers = [answer.body(p.probabilities, model.heads, n) for p in predictions]
            if verdicts is None:
                return _answered(model, upload, answers, _timing(decoded, predictions, start))
            rows = [p.probabilities for p in predictions]
            if self._doubtful:
                self._keep(model, upload, rows, verdicts)
            answers = verdicts.bodies(answers, rows)
            response = _answered(model, upload, answers, _timing(decoded, predictions, start))
            response.raw_headers += verdicts.headers(rows)
            return response
        finally:
            model.release()

    def _keep(self, model: Model, upload: Upload, rows: Sequence[Row], verdict: Verdict) -> None:
        """Offers the uploads whose answer is not accepted to the folder for them."""
        assert self._doubtful
        for image, row in zip(upload.images, rows, strict=True):
            if not verdict.accepted(row):
                best = int(row.argmax())
                guess = model.bundle.manifest.class_names[best]
                self._doubtful.offer(image, Answer(guess, float(row[best]), str(model)))

    async def _embed(
        self, scope: Scope, receive: Receive, claim: Claim, deadline: Deadline
    ) -> Response:
        asked = query.parse(scope["query_string"])
        model, upload, until = await self._receive(scope, receive, claim, deadline, asked.model)
        try:
            if asked.top_k is not None or upload.top_k is not None:
                raise Problem("top_k is for /classify: an embedding is answered as a whole")
            if asked.wish:
                raise Problem("accept and set are for /classify: an embedding has no classes")
            if model.engine.embedding_size is None:
                raise Problem(
                    f"{model} has no embedding: its graph lacks the output `embedding`, float32 "
                    "[N, D]. Models that `labelcurve train` exports have it"
                )
            decoded, predictions = await self._predict(model, upload, until, embed=True)
            start = perf_counter()
            # In a thread: thousands of numbers in JSON would delay other requests.
            answers = await asyncio.to_thread(_embeddings, predictions)
            return _answered(model, upload, answers, _timing(decoded, predictions, start))
        finally:
            model.release()

    async def _receive(
        self,
        scope: Scope,
        receive: Receive,
        claim: Claim,
        deadline: Deadline,
        wanted: str | None,
    ) -> tuple[Model, Upload, float]:
        """The model, which the caller must release, the images, and the deadline."""
        model = self._catalogue.find(wanted)
        if model:
            # Before the body is read and decoded: a refusal should cost little.
            model.batcher.check(1, self._max_wait)
        upload = await request.read(scope, receive, claim)
        claim.complete = True
        until = deadline.move(self._answers)
        # Again: the folder may have changed while the body arrived.
        model = self._catalogue.find(wanted) or await self._catalogue.fetch(wanted or "")
        model.hold()
        return model, upload, until

    async def _predict(
        self, model: Model, upload: Upload, until: float, embed: bool = False
    ) -> tuple[Decoded, list[Prediction]]:
        decoded = await self._decoder.decode(upload.images, model.engine.size, self._max_wait)
        # A tenth is reserved for the answer itself, and for an estimate that was too low.
        left = until - asyncio.get_running_loop().time() - self._timeout / 10
        within = min(self._max_wait, left)
        futures = model.batcher.submit(decoded.pixels, within, decoded.waited, embed)
        if len(futures) == 1:
            return decoded, [await futures[0]]
        return decoded, await asyncio.gather(*futures)

    async def _infer(
        self, scope: Scope, receive: Receive, claim: Claim, deadline: Deadline
    ) -> Response:
        wanted = _model_of(scope["path_params"])
        model = self._catalogue.find(wanted)
        if model:
            model.batcher.check(1, self._max_wait)
        headers = Headers(scope=scope)
        request.check_encoding(scope)
        announced = headers.get("content-length", "").encode()
        body = await request.read_body(receive, announced, MAX_BYTES + MAX_OVERHEAD, claim)
        claim.complete = True
        until = deadline.move(self._answers)
        model = self._catalogue.find(wanted) or await self._catalogue.fetch(wanted)
        model.hold()
        try:
            length = headers.get(inference_protocol.HEADER_LENGTH)
            # In a thread: a JSON tensor of some megabytes would delay other requests.
            inference = await asyncio.to_thread(
                inference_protocol.parse, body, length, model.engine.size
            )
            decoded = await self._decoder.decode(inference.files, model.engine.size, self._max_wait)
            pixels = inference.pixels or decoded.pixels
            left = until - asyncio.get_running_loop().time() - self._timeout / 10
            futures = model.batcher.submit(pixels, min(self._max_wait, left), decoded.waited)
            predictions = await asyncio.gather(*futures)
            rows = np.stack([prediction.probabilities for prediction in predictions])
            content, answered = inference_protocol.answer(model, inference, rows)
            response = Response(content, headers=answered)
            response.raw_headers += model.headers
            return response
        finally:
            model.release()

    async def server(self, _: Request) -> Response:
        """`GET /v2`."""
        extensions = ["binary_tensor_data"]
        content = {"name": "labelcurve", "version": version("labelcurve"), "extensions": extensions}
        return JSONResponse(content)

    async def model(self, asked: Request) -> Response:
        """`GET /v2/models/NAME`, and whether it is ready."""
        wanted = _model_of(asked.path_params)
        model = self._catalogue.find(wanted) or await self._catalogue.fetch(wanted)
        if asked.url.path.endswith("/ready"):
            return JSONResponse({"name": model.name, "ready": True})
        return JSONResponse(inference_protocol.metadata(model, self._catalogue.versions(model)))

    async def models(self, _: Request) -> Response:
        """`GET /models`."""
        if not self._catalogue.ready:
            raise Overloaded("the models are being loaded")
        return JSONResponse(self._catalogue.describe())

    async def livez(self, _: Request) -> Response:
        """`GET /livez`: the process answers."""
        return PlainTextResponse("live\n")

    async def live(self, _: Request) -> Response:
        """`GET /v2/health/live`: the same in the form that KServe's client expects."""
        return JSONResponse({"live": True})

    async def readyz(self, _: Request) -> Response:
        """`GET /readyz`: every model is warm, and what it actually runs on."""
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
                "keeps_doubtful": self._doubtful is not None,
            }
        )

    async def doubtful(self, _: Request) -> Response:
        """`GET /doubtful.csv`: the uploads that are kept, for labelling."""
        assert self._doubtful
        content = await asyncio.to_thread(table, self._doubtful.folder)
        headers = {"content-disposition": 'attachment; filename="doubtful.csv"'}
        return Response(content, media_type="text/csv", headers=headers)

    async def openapi(self, _: Request) -> Response:
        """`GET /openapi.json`."""
        from labelcurve.serving.web import openapi  # imports models that no other request needs

        return JSONResponse(openapi.document(self._metrics, self._doubtful is not None))

    async def index(self, _: Request) -> Response:
        """`GET /` for programs: links to the other routes."""
        links = ["/models", "/docs", "/openapi.json", "/livez", "/readyz"]
        return JSONResponse(
            {
                "service": "labelcurve",
                "classify": "POST an image to /classify",
                "links": [*links, "/metrics"] if self._metrics else links,
            }
        )


def _doubtful(settings: Settings) -> Doubtful | None:
    """The folder that keeps doubtful uploads, where one is configured."""
    folder = settings.keep_doubtful
    if folder is None:
        return None
    return Doubtful(folder.absolute(), settings.doubtful_images, settings.doubtful_mb * 10**6)


def _model_of(path: dict[str, str]) -> str:
    """NAME or NAME@VERSION of a path of the inference protocol."""
    return "@".join(part for part in (path["name"], path.get("version")) if part)


def _embeddings(predictions: list[Prediction]) -> list[str]:
    return [json.dumps(p.embedding.tolist()) for p in predictions if p.embedding is not None]


def _answered(model: Model, upload: Upload, answers: list[str], timing: bytes) -> Response:
    text = f"[{', '.join(answers)}]" if upload.several else answers[0]
    return Answered(text.encode(), [*model.headers, (b"server-timing", timing)])


def _timing(decoded: Decoded, predictions: list[Prediction], start: float) -> bytes:
    return b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f, encode;dur=%.3f" % (
        decoded.seconds * 1000,
        max([p.queue for p in predictions]) * 1000,
        max([p.inference for p in predictions]) * 1000,
        (perf_counter() - start) * 1000,
    )


def _readiness(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "precision": model.precision,
        "provider": model.engine.provider,
        "batch_sizes": list(model.engine.batch_sizes),
    }
