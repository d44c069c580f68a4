"""The greedy batcher: the next batch is whatever is queued when the session is free.

There is no timer. A lone request runs at once; under load, batches grow by themselves to what
arrived during the last one. Batches are assembled on the event loop, once in each of its
iterations: a thread that took them itself would run off with every first image, and the two would
wake each other for single images. A full batch cannot grow any more: it is handed to the thread
while the previous one still runs, so that a busy event loop does not keep the session waiting.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import repeat
from math import ceil, inf
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelcurve.serving.errors import DeviceLost, Overloaded
from labelcurve.serving.models.engine import Engine
from labelcurve.serving.telemetry import metrics

AHEAD = 2
"""Full batches queued for the thread in addition to the running one. With more, batches would be
less full when they run, where clients disconnect."""


class Prediction(NamedTuple):
    """The prediction for one image."""

    probabilities: NDArray[np.float32]
    """float32 [K]."""
    embedding: NDArray[np.float32] | None
    """float32 [D], where it was asked for."""
    queue: float
    """Seconds from submission to the start of its batch, plus those that it waited before."""
    inference: float
    """Seconds that its batch took in ONNX Runtime."""


_Result = tuple[NDArray[np.float32], NDArray[np.float32] | None]
"""Probabilities [N, K], and embeddings [N, D] where an image of the batch asks for one."""


class _Waiting(NamedTuple):
    image: NDArray[np.uint8]
    future: asyncio.Future[Prediction]
    since: float
    embed: bool


class Batcher:
    """One thread that feeds one engine. `submit` is called on the event loop."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        limit: int,
        answered: Callable[[NDArray[np.float32]], None] = lambda probabilities: None,
        lost: Callable[[DeviceLost], None] = lambda error: None,
    ) -> None:
        """Starts the thread.

        Args:
            engine: warmed; from now on only the batcher runs it.
            name: of the model, the metrics' label.
            limit: images that may wait.
            answered: is called on the event loop with the probabilities of each batch.
            lost: called on the event loop if the GPU failed.
        """
        self._engine = engine
        self._lost = lost
        self._limit = limit
        self._name = name
        self._answered = answered
        self._waiting: deque[_Waiting] = deque()
        self._handed = 0
        """Batches that the thread has: the running one, and full ones handed over early."""
        self._ahead: deque[list[_Waiting]] = deque()
        """Batches handed over early; their images still count as waiting."""
        self._n_ahead = 0
        """Their images; those of disconnected clients are dropped only when room is needed."""
        self._batch_seconds = 0.0
        self._purged = False
        self._woken = False
        """Whether `_next` is scheduled."""
        self._batches: SimpleQueue[list[_Waiting] | None] = SimpleQueue()
        self._metrics = (
            metrics.QUEUE.labels(name),
            metrics.INFERENCE.labels(name),
            metrics.BATCH_SIZE.labels(name),
        )
        self._thread = Thread(target=self._work, name=f"batcher {name}", daemon=True)
        self._thread.start()

    def submit(
        self,
        images: list[NDArray[np.uint8]],
        within: float = inf,
        waited: float = 0.0,
        embed: bool = False,
    ) -> list[asyncio.Future[Prediction]]:
        """Queues all of `images` (uint8 [size, size, 3]) or none; cancelled ones are not computed.

        Args:
            images: at least one.
            within: seconds after which the answer is useless.
            waited: seconds that they waited elsewhere, which count as time in the queue.
            embed: also compute the embedding; the engine must have one.

        Raises:
            Overloaded: they do not fit into the queue, or would wait for longer than `within`.
        """
        self.check(len(images), within)
        loop = asyncio.get_running_loop()
        since = perf_counter() - waited
        futures = [loop.create_future() for _ in images]
        self._waiting.extend(map(_Waiting, images, futures, repeat(since), repeat(embed)))
        if not self._woken and self._takes():
            self._woken = True
            loop.call_soon(self._next)
        return futures

    def check(self, n: int, within: float = inf) -> None:
        """Checks that `submit` would accept `n` images now; called before they are decoded.

        Raises:
            Overloaded: as `submit`.
        """
        if not self._waiting and not self._ahead:
            if n > self._limit:
                raise Overloaded(f"{n} images are more than the queue of {self._limit} holds")
            return
        if self._too_many(n, within):
            # Drops images of disconnected clients, at most once per batch: it takes time.
            if not self._purged:
                self._purged = True
                self._waiting = deque(item for item in self._waiting if not item.future.done())
                self._n_ahead = sum(not i.future.done() for batch in self._ahead for i in batch)
            if self._too_many(n, within):
                raise Overloaded(
                    f"{self._name} has {self._n_waiting()} images waiting: try again",
                    retry_after=max(1, ceil(self._wait(self._n_waiting()))),
                )

    def _too_many(self, n: int, within: float) -> bool:
        waiting = self._n_waiting() + n
        return waiting > self._limit or self._wait(waiting) > within

    def _n_waiting(self) -> int:
        return self._n_ahead + len(self._waiting)

    def _wait(self, n: int) -> float:
        """Estimated seconds until `n` waiting images are computed, from recent batches."""
        return (1 + ceil(n / self._engine.batch_sizes[-1])) * self._batch_seconds

    def end(self) -> None:
        """Stops the thread after its current batch, without waiting for it."""
        self._batches.put(None)

    def close(self) -> None:
        """Stops the thread after its current batch and waits for it."""
        self.end()
        self._thread.join()

    def _takes(self) -> bool:
        """Returns whether queued images should be passed to the thread."""
        full = len(self._waiting) >= self._engine.batch_sizes[-1]
        return self._handed == 0 or (full and self._handed <= AHEAD)

    def _next(self) -> None:
        self._woken = False
        largest = self._engine.batch_sizes[-1]
        while self._waiting and self._takes():
            batch: list[_Waiting] = []
            while self._waiting and len(batch) < largest:
                item = self._waiting.popleft()
                if not item.future.done():
                    batch.append(item)
            if batch:
                if self._handed:
                    self._ahead.append(batch)
                    self._n_ahead += len(batch)
                self._handed += 1
                self._batches.put(batch)

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            loop = batch[0].future.get_loop()
            # It may have waited here: skip clients that have disconnected since.
            batch = [item for item in batch if not item.future.done()]
            start = perf_counter()
            result: _Result | Exception | None = None
            if batch:
                try:
                    images = [item.image for item in batch]
                    if any(item.embed for item in batch):
                        result = self._engine.embed(images)
                    else:
                        result = self._engine.run(images), None
                except Exception as error:  # waiting requests must receive any error
                    result = error
            end = perf_counter()
            with suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(self._deliver, batch, result, start, end)

    def _deliver(
        self,
        batch: list[_Waiting],
        result: _Result | Exception | None,
        start: float,
        end: float,
    ) -> None:
        self._handed -= 1
        if self._ahead:
            self._ahead.popleft()  # it runs now
            self._n_ahead = sum(map(len, self._ahead))
        self._purged = False
        self._next()
        if result is None:
            return
        self._batch_seconds += 0.2 * (end - start - self._batch_seconds)
        if isinstance(result, Exception):
            if isinstance(result, DeviceLost):
                self._lost(result)
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(result)
            return
        queue_ms, inference_ms, size = self._metrics
        metrics.observe(inference_ms, ((end - start) * 1000,))
        metrics.observe(size, (len(batch),))
        metrics.observe(queue_ms, [(start - item.since) * 1000 for item in batch])
        rows, embeddings = result
        self._answered(rows)
        for index, (row, item) in enumerate(zip(rows, batch, strict=True)):
            if not item.future.done():
                embedding = embeddings[index] if item.embed and embeddings is not None else None
                item.future.set_result(Prediction(row, embedding, start - item.since, end - start))
