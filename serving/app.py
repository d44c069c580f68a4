"""The routes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from bundle.machine import cores
from serving import openapi, page, request
from serving.answer import ranked
from serving.catalogue import Catalogue, Model
from serving.device import Device
from serving.errors import Overloaded, Problem
from serving.request import Decoder
from serving.settings import Settings
from serving.tracing import Traces

DEFAULT_TOP_K = 5


class App:
    """What answers a request; one in each worker."""

    def __init__(self, catalogue: Catalogue, device: Device, settings: Settings) -> None:
        """Routes over `catalogue`, which may still be loading."""
        self._catalogue = catalogue
        self._device = device
        self._timeout = settings.timeout
        self._decoder = Decoder(cores())
        self.traces: Traces | None = None
        """Where they are sent, if they are."""

    def routes(self) -> list[Route]:
        """Every path but `/metrics`, which is BentoML's."""
        return [
            Route("/classify", self.classify, methods=["POST"]),
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

    async def classify(self, http: Request) -> Response:
        """`POST /classify`."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._classify(http)
        except TimeoutError:
            raise Problem(f"no answer within {self._timeout:g} s", status=504) from None

    async def _classify(self, http: Request) -> Response:
        model = self._catalogue.find(http.query_params.get("model"))
        top_k = _top_k(http.query_params.get("top_k"))
        upload = await request.read(http)
        pixels, decode = await self._decoder.decode(upload.images, model.engine.size)
        futures = model.batcher.submit(pixels)
        predictions = [await futures[0]] if len(futures) == 1 else await asyncio.gather(*futures)
        answers = [
            ranked(p.probabilities, model.bundle.manifest.class_names, upload.top_k or top_k)
            for p in predictions
        ]
        response = Response(
            json.dumps(answers if upload.several else answers[0], ensure_ascii=False).encode(),
            media_type="application/json",
        )
        response.raw_headers += [
            *model.headers,
            (
                b"server-timing",
                b"decode;dur=%.3f, queue;dur=%.3f, inference;dur=%.3f"
                % (
                    decode * 1000,
                    max(p.queue for p in predictions) * 1000,
                    max(p.inference for p in predictions) * 1000,
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
        if not self._catalogue.ready:
            raise Overloaded("the models are being loaded")
        return JSONResponse(
            {
                "ready": True,
                "device": {"kind": self._device.kind, "reason": self._device.reason},
                "models": [_readiness(model) for model in self._catalogue.models],
            }
        )

    async def openapi(self, _: Request) -> Response:
        """`GET /openapi.json`."""
        return JSONResponse(openapi.document())

    async def index(self, _: Request) -> Response:
        """`GET /` for programs: where to go from here."""
        return JSONResponse(
            {
                "service": "labelcurve",
                "classify": "POST an image to /classify",
                "links": ["/models", "/docs", "/openapi.json", "/livez", "/readyz", "/metrics"],
            }
        )


def _top_k(text: str | None) -> int:
    if text is None:
        return DEFAULT_TOP_K
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) > 0):
        raise Problem(f"top_k={text[:80]!r}: a whole number of at least 1 is needed")
    return int(text)


def _readiness(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "provider": model.engine.provider,
        "batch_sizes": list(model.engine.batch_sizes),
    }
