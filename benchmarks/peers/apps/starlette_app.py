"""Bare Starlette on uvloop with a greedy batcher and nothing else: the limit of an ASGI server."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import uvicorn
from model import MAX_BATCH, PORT, Model
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

model = Model()
pool = ThreadPoolExecutor(1)
waiting: list[tuple[Any, asyncio.Future[Any]]] = []
arrived = asyncio.Event()


async def batches() -> None:
    """The next batch is whatever is queued when the session is free."""
    loop = asyncio.get_running_loop()
    while True:
        await arrived.wait()
        batch = waiting[:MAX_BATCH]
        del waiting[:MAX_BATCH]
        if not waiting:
            arrived.clear()
        images = np.stack([image for image, _ in batch])
        rows = await loop.run_in_executor(pool, model.run, images)
        for row, (_, future) in zip(rows, batch, strict=True):
            if not future.done():
                future.set_result(row)


async def classify(request: Request) -> JSONResponse:
    """The body is the file."""
    image = model.decode(await request.body())
    future = asyncio.get_running_loop().create_future()
    waiting.append((image, future))
    arrived.set()
    return JSONResponse(model.answer(await future))


@asynccontextmanager
async def lifespan(_: Starlette) -> Any:
    """Runs the batcher in the background."""
    task = asyncio.create_task(batches())
    yield
    task.cancel()


app = Starlette(routes=[Route("/classify", classify, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=PORT, loop="uvloop", http="httptools", access_log=False)
