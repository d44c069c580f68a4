"""The greedy batcher: the next batch is whatever is queued when the session is free.

There is no timer. A lone request runs at once; under load, batches grow by themselves to what
arrived during the last one.
"""

from __future__ import annotations

import asyncio
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving import metrics
from serving.engine import Engine
from serving.errors import Overloaded


class Prediction(NamedTuple):
    """The answer for one image."""

    probabilities: NDArray[np.float32]
    """float32 [K]."""
    queue: float
    """Seconds from submission to the start of its batch."""
    inference: float
    """Seconds that its batch took in ONNX Runtime."""


class _Waiting(NamedTuple):
    image: NDArray[np.uint8]
    future: asyncio.Future[Prediction]
    since: float


class Batcher:
    """One thread that feeds one engine. `submit` is called on the event loop."""

    def __init__(self, engine: Engine, name: str, limit: int) -> None:
        """Starts the thread.

        Args:
            engine: warmed; nobody else runs it from now on.
            name: of the model, the metrics' label.
            limit: images that may wait.
        """
        self._engine = engine
        self._limit = limit
        self._name = name
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._metrics = (
            metrics.QUEUE.labels(name),
            metrics.INFERENCE.labels(name),
            metrics.BATCH_SIZE.labels(name),
        )
        self._thread = Thread(target=self._work, name=f"batcher {name}", daemon=True)
        self._thread.start()

    def submit(self, images: list[NDArray[np.uint8]]) -> list[asyncio.Future[Prediction]]:
        """Queues all of `images` (uint8 [size, size, 3]) or none; cancelled ones are not computed.

        Raises:
            Overloaded: they do not fit into the queue.
        """
        if self._queue.qsize() + len(images) > self._limit:
            raise Overloaded(f"{self._name} has {self._queue.qsize()} images waiting: try again")
        loop = asyncio.get_running_loop()
        now = perf_counter()
        waiting = [_Waiting(image, loop.create_future(), now) for image in images]
        for item in waiting:
            self._queue.put(item)
        return [item.future for item in waiting]

    def close(self) -> None:
        """Ends the thread after what is queued, and waits for it."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        largest = self._engine.batch_sizes[-1]
        while True:
            item = self._queue.get()
            batch: list[_Waiting] = []
            while item is not None:
                if not item.future.cancelled():
                    batch.append(item)
                if len(batch) == largest:
                    break
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
            if batch:
                self._run(batch)
            if item is None:
                return

    def _run(self, batch: list[_Waiting]) -> None:
        loop = batch[0].future.get_loop()
        start = perf_counter()
        try:
            rows = self._engine.run([item.image for item in batch])
        except Exception as error:  # the waiting requests must hear of any error
            loop.call_soon_threadsafe(_fail, batch, error)
            return
        inference = perf_counter() - start
        answers = [
            Prediction(row, start - item.since, inference)
            for row, item in zip(rows, batch, strict=True)
        ]
        loop.call_soon_threadsafe(_deliver, batch, answers)
        queue_ms, inference_ms, size = self._metrics
        for answer in answers:
            queue_ms.observe(answer.queue * 1000)
        inference_ms.observe(inference * 1000)
        size.observe(len(batch))


def _deliver(batch: list[_Waiting], answers: list[Prediction]) -> None:
    for item, answer in zip(batch, answers, strict=True):
        if not item.future.done():
            item.future.set_result(answer)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for item in batch:
        if not item.future.done():
            item.future.set_exception(error)
