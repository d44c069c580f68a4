from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import REGISTRY

from labelcurve.bundle import store
from labelcurve.serving.errors import DeviceLost, Overloaded
from labelcurve.serving.models.batcher import Batcher
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.engine import Engine
from labelcurve.serving.telemetry import metrics
from tests.models import SIZE
from tests.serving.models.test_engine import digits


class Gated(Engine):
    """Runs when `gate` is open, notes the batches, and fails on a black image."""

    def __init__(self, graph: bytes) -> None:
        super().__init__(graph, Device("cpu", "a test"), 1, size=SIZE, n_classes=10, name="digits")
        self.gate, self.busy = Event(), Event()
        self.batches: list[int] = []

    def run(self, images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.busy.set()
        assert self.gate.wait(30)
        self.batches.append(len(images))
        if any(not image.any() for image in images):
            raise RuntimeError("black")
        return super().run(images)


@pytest.fixture
def engine(digits_models: Path) -> Gated:
    return Gated(store.read(digits_models, "digits-100").graph)


@pytest.fixture
def batcher(engine: Gated) -> Iterator[Batcher]:
    batcher = Batcher(engine, "digits", limit=40)
    yield batcher
    engine.gate.set()
    batcher.close()


def test_what_arrives_during_a_batch_is_the_next_batch(engine: Gated, batcher: Batcher) -> None:
    images = digits(20)
    engine.gate.set()
    expected = np.concatenate([engine.run([image]) for image in images])
    engine.gate.clear()
    engine.busy.clear()
    engine.batches.clear()

    async def submit() -> list[NDArray[np.float32]]:
        first = batcher.submit(images[:1])
        await asyncio.to_thread(engine.busy.wait)
        others = [future for image in images[1:] for future in batcher.submit([image])]
        engine.gate.set()
        answers = await asyncio.gather(*first, *others)
        assert all(answer.queue >= 0 and answer.inference > 0 for answer in answers)
        return [answer.probabilities for answer in answers]

    rows = asyncio.run(submit())
    assert engine.batches == [1, 16, 3]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_two_full_batches_are_handed_over_early(engine: Gated) -> None:
    batcher = Batcher(engine, "digits", limit=100)

    async def submit() -> None:
        first = batcher.submit(digits(1))
        await asyncio.to_thread(engine.busy.wait)
        futures = batcher.submit(digits(80))
        await asyncio.sleep(0)
        assert (batcher._handed, batcher._n_ahead, len(batcher._waiting)) == (3, 32, 48)
        engine.gate.set()
        await asyncio.gather(*first, *futures)

    asyncio.run(submit())
    batcher.close()
    assert engine.batches == [1, 16, 16, 16, 16, 16]


def test_a_full_batch_does_not_wait_for_the_event_loop(
    engine: Gated, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Event()
    run = engine.run

    def counted(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        result = run(images)
        if len(engine.batches) == 2:
            done.set()
        return result

    monkeypatch.setattr(engine, "run", counted)

    async def submit() -> None:
        futures = batcher.submit(digits(1))
        await asyncio.to_thread(engine.busy.wait)
        futures += batcher.submit(digits(20))
        await asyncio.sleep(0)
        engine.gate.set()
        assert done.wait(30)  # the loop is blocked meanwhile
        await asyncio.gather(*futures)

    asyncio.run(submit())
    assert engine.batches == [1, 16, 4]


def test_what_was_cancelled_in_a_full_batch_is_not_computed(
    engine: Gated, batcher: Batcher
) -> None:
    async def submit() -> None:
        first = batcher.submit(digits(1))
        await asyncio.to_thread(engine.busy.wait)
        futures = batcher.submit(digits(16))
        await asyncio.sleep(0)
        for future in futures[:15]:
            future.cancel()
        engine.gate.set()
        await asyncio.gather(*first, futures[15])

    asyncio.run(submit())
    assert engine.batches == [1, 1]


def test_beyond_the_limit_all_or_nothing_is_queued(engine: Gated, batcher: Batcher) -> None:
    async def submit() -> None:
        first = batcher.submit(digits(1))
        await asyncio.to_thread(engine.busy.wait)
        waiting = batcher.submit(digits(38))
        with pytest.raises(Overloaded, match="38 images waiting") as caught:
            batcher.submit(digits(3))
        assert caught.value.headers == {"Retry-After": "1"}
        waiting += batcher.submit(digits(2))
        engine.gate.set()
        await asyncio.gather(*first, *waiting)

    asyncio.run(submit())
    assert sum(engine.batches) == 41


def test_a_wait_that_would_be_too_long_is_refused(engine: Gated, batcher: Batcher) -> None:
    async def submit() -> None:
        engine.gate.set()
        await asyncio.gather(
            *batcher.submit(digits(1), within=1e-9)
        )  # the queue is empty: it is tried
        engine.gate.clear()
        batcher._batch_seconds = 1.0
        running = batcher.submit(digits(1))
        await asyncio.to_thread(engine.busy.wait)
        waiting = batcher.submit(digits(16), within=2.5)
        with pytest.raises(Overloaded) as caught:
            batcher.submit(digits(1), within=2.5)
        assert caught.value.headers == {"Retry-After": "2"}
        engine.gate.set()
        await asyncio.gather(*running, *waiting)

    asyncio.run(submit())


def test_waits_are_estimated_and_counted_in_their_units(
    engine: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    batcher = Batcher(engine, "digits-timed", limit=100)
    engine.gate.set()
    clock = iter((10.0, 12.0, 13.0))  # submitted, begun, ended
    monkeypatch.setattr("labelcurve.serving.models.batcher.perf_counter", lambda: next(clock))

    async def submit() -> None:
        (answer,) = await asyncio.gather(*batcher.submit(digits(1), waited=0.5))
        assert (answer.queue, answer.inference) == (2.5, 1.0)

    asyncio.run(submit())
    # A fifth of the batch that took a second; a batch is under way, and 17 more are two.
    assert batcher._wait(1) == pytest.approx(2 * 0.2)
    assert batcher._wait(17) == pytest.approx(3 * 0.2)
    batcher.close()
    metrics.write()

    def total(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"labelcurve_{name}_sum", {"model": "digits-timed"})

    assert total("queue_milliseconds") == 2500
    assert total("inference_milliseconds") == 1000
    assert total("batch_size") == 1


def test_places_of_disconnected_clients_are_freed(engine: Gated, batcher: Batcher) -> None:
    async def submit() -> None:
        for _ in range(2):  # once for each batch
            engine.gate.clear()
            engine.busy.clear()
            running = batcher.submit(digits(1))
            await asyncio.to_thread(engine.busy.wait)
            for future in batcher.submit(digits(39)):
                future.cancel()
            waiting = batcher.submit(digits(30))
            engine.gate.set()
            await asyncio.gather(*running, *waiting)

    asyncio.run(submit())
    assert sum(engine.batches) == 62


def test_what_was_cancelled_is_not_computed(engine: Gated, batcher: Batcher) -> None:
    async def submit() -> None:
        first = batcher.submit(digits(1))
        await asyncio.to_thread(engine.busy.wait)
        gone, stays = batcher.submit(digits(2))
        gone.cancel()
        engine.gate.set()
        await asyncio.gather(*first, stays)

    asyncio.run(submit())
    assert engine.batches == [1, 1]


def test_an_error_reaches_its_batch_and_no_other(engine: Gated, batcher: Batcher) -> None:
    engine.gate.set()

    async def submit() -> None:
        (bad,) = batcher.submit([np.zeros((SIZE, SIZE, 3), np.uint8)])
        with pytest.raises(RuntimeError, match="black"):
            await bad
        await asyncio.gather(*batcher.submit(digits(1)))

    asyncio.run(submit())


@pytest.mark.parametrize("fails", [False, True])
def test_a_client_that_leaves_during_a_batch_costs_the_others_nothing(
    engine: Gated, batcher: Batcher, fails: bool
) -> None:
    async def submit() -> None:
        gone, stays = batcher.submit(
            [*np.zeros((2, SIZE, SIZE, 3), np.uint8)] if fails else digits(2)
        )
        await asyncio.to_thread(engine.busy.wait)
        gone.cancel()
        engine.gate.set()
        async with asyncio.timeout(10):
            if fails:
                with pytest.raises(RuntimeError, match="black"):
                    await stays
            else:
                assert (await stays).probabilities.shape == (10,)

    asyncio.run(submit())


def test_an_empty_queue_takes_as_many_images_as_its_limit(engine: Gated, batcher: Batcher) -> None:
    engine.gate.set()

    async def submit() -> None:
        with pytest.raises(Overloaded, match="41 images are more than the queue of 40 holds"):
            batcher.submit(digits(41))
        await asyncio.gather(*batcher.submit(digits(40)))

    asyncio.run(submit())
    assert sum(engine.batches) == 40


def test_of_a_batch_only_those_who_asked_get_an_embedding(engine: Gated) -> None:
    seen: list[NDArray[np.float32]] = []
    batcher = Batcher(engine, "digits", limit=40, answered=seen.append)
    images = digits(3)
    engine.gate.set()
    probabilities, embeddings = engine.embed(images)

    async def submit() -> None:
        futures = [
            *batcher.submit(images[:1]),
            *batcher.submit(images[1:2], embed=True),
            *batcher.submit(images[2:]),
        ]
        first, second, third = await asyncio.gather(*futures)
        assert first.embedding is third.embedding is None
        assert second.embedding is not None
        np.testing.assert_array_equal(second.embedding, embeddings[1])
        np.testing.assert_array_equal(third.probabilities, probabilities[2])

    asyncio.run(submit())
    batcher.close()
    assert engine.batches == []  # one run, that of the embeddings
    (rows,) = seen
    np.testing.assert_array_equal(rows, probabilities)


def test_the_estimate_of_the_wait_follows_the_last_batches(batcher: Batcher) -> None:
    """A moving average with a weight of 0.2, for this batch and each that is needed after it."""
    for _ in range(3):
        batcher._deliver([], RuntimeError(), 0.0, 1.0)
    seconds = 1 - 0.8**3
    assert batcher._wait(0) == pytest.approx(seconds)
    assert batcher._wait(1) == pytest.approx(2 * seconds)
    assert batcher._wait(17) == pytest.approx(3 * seconds)
    batcher._deliver([], RuntimeError(), 0.0, 0.0)
    assert batcher._wait(0) == pytest.approx(0.8 * seconds)


def test_a_gpu_that_failed_is_losses_once_a_batch_and_to_every_request(
    engine: Gated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(images: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        raise DeviceLost("the GPU failed: CUDA failure 700")

    monkeypatch.setattr(engine, "run", run)
    losses: list[DeviceLost] = []
    batcher = Batcher(engine, "digits", limit=40, lost=losses.append)

    async def ask() -> list[object]:
        return await asyncio.gather(*batcher.submit(digits(3)), return_exceptions=True)

    found = asyncio.run(ask())
    batcher.close()
    assert [type(each) for each in found] == [DeviceLost] * 3
    assert len(losses) == 1
