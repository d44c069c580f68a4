from __future__ import annotations

import asyncio
import threading
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import UnreadableImage
from labelcurve.serving.errors import Overloaded
from labelcurve.serving.models.decoder import (
    INLINE_PIXELS,
    MAX_DECODING,
    MAX_MEMORY,
    Decoded,
    Decoder,
)
from labelcurve.serving.telemetry import metrics


def jpeg(side: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


LARGE, SMALL = jpeg(1000), jpeg(16)

Held = tuple[threading.Event, threading.Event]


def test_large_images_wait_for_a_thread_and_small_ones_for_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, began, go_on = [0.0], threading.Event(), threading.Event()
    prepare = preprocess.prepare

    def prepared(data: bytes, size: int, **limits: int) -> NDArray[np.uint8]:
        if data is LARGE:
            began.set()
            assert go_on.wait(60)
        return prepare(data, size, **limits)

    monkeypatch.setattr("labelcurve.serving.models.decoder.perf_counter", lambda: clock[0])
    monkeypatch.setattr(preprocess, "prepare", prepared)

    async def run() -> list[Decoded]:
        decoder = Decoder(1)
        first = asyncio.ensure_future(decoder.decode([LARGE], 16))
        await asyncio.to_thread(began.wait, 60)
        second = asyncio.ensure_future(decoder.decode([LARGE], 16))
        await asyncio.sleep(0)  # the second one requests a thread
        small = await decoder.decode([SMALL], 16)
        clock[0] = 2.0
        go_on.set()
        return [await first, await second, small]

    first, second, small = asyncio.run(run())
    assert (first.waited, first.seconds) == (0, 2)
    assert (second.waited, second.seconds) == (2, 0)
    assert (small.waited, small.seconds) == (0, 0)
    assert all(found.pixels[0].shape == (16, 16, 3) for found in (first, second, small))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    """Set when a decode has begun; it goes on when the second is set."""
    began, go_on = threading.Event(), threading.Event()

    def prepared(data: bytes, size: int, **limits: int) -> NDArray[np.uint8]:
        began.set()
        assert go_on.wait(60)
        return np.zeros((size, size, 3), np.uint8)

    monkeypatch.setattr(preprocess, "prepare", prepared)
    return began, go_on


def test_a_request_given_up_occupies_its_thread_to_the_end(held: Held) -> None:
    began, go_on = held

    async def run() -> None:
        decoder = Decoder(1)
        first, queued = (asyncio.ensure_future(decoder._in_thread(LARGE, 16, 9)) for _ in range(2))
        await asyncio.to_thread(began.wait, 60)
        first.cancel()
        queued.cancel()
        await asyncio.gather(first, queued, return_exceptions=True)
        await asyncio.sleep(0)
        assert decoder._large == 1  # the one that no thread had begun takes none
        go_on.set()
        await decoder._in_thread(LARGE, 16, 9)
        assert decoder._large == 0
        assert decoder._large_seconds > 0

    asyncio.run(run())


def test_a_wait_that_would_be_too_long_is_refused_before_it_begins() -> None:
    async def run() -> None:
        decoder = Decoder(1)
        # The duration is unknown, and nothing is ahead of it: it is accepted.
        await decoder.decode([LARGE], 16, within=0)
        busy = asyncio.ensure_future(decoder.decode([LARGE], 16))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=r"to be decoded \(1 of them\)"):
            await decoder.decode([LARGE], 16, within=0)
        await decoder.decode([SMALL], 16, within=0)
        await busy
        await decoder.decode([LARGE], 16, within=0)

    asyncio.run(run())


def test_no_more_large_images_wait_than_memory_is_meant_for() -> None:
    async def run() -> None:
        decoder = Decoder(1)
        waiting = [asyncio.ensure_future(decoder.decode([LARGE], 16)) for _ in range(MAX_DECODING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=rf"\({MAX_DECODING} of them\)") as caught:
            await decoder.decode([LARGE], 16)
        assert caught.value.headers == {"Retry-After": "1"}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await decoder.decode([LARGE], 16)
        decoder.close()

    asyncio.run(run())


def test_of_several_images_the_bad_one_is_named() -> None:
    decoder = Decoder(1)
    with pytest.raises(UnreadableImage, match="image 2 of 2: "):
        asyncio.run(decoder.decode([SMALL, SMALL[:200]], 16))
    with pytest.raises(UnreadableImage, match=r"^(?!image 1 of 1)"):
        asyncio.run(decoder.decode([SMALL[:200]], 16))


def test_who_would_wait_too_long_for_a_thread_is_told_for_how_long() -> None:
    decoder = Decoder(2)
    decoder._large, decoder._large_seconds = 7, 1.5  # three for each thread come first
    with pytest.raises(Overloaded) as caught:
        asyncio.run(decoder.decode([bytes(200_000)], 8, within=4.4))
    assert caught.value.headers == {"Retry-After": "5"}
    assert decoder._large == 7
    decoder.close()


def test_each_image_is_counted_once_in_milliseconds_and_within_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Half a second each; one with few bytes and many pixels takes as much to be told."""
    clock, seen, ran = [0.0], [], [False]
    prepare = preprocess.prepare

    def prepared(data: bytes, size: int, **limits: int) -> NDArray[np.uint8]:
        clock[0] += 0.5
        inline = threading.current_thread() is threading.main_thread()
        seen.append((inline, limits, ran[0]))
        return prepare(data, size, **limits)

    monkeypatch.setattr("labelcurve.serving.models.decoder.perf_counter", lambda: clock[0])
    monkeypatch.setattr(preprocess, "prepare", prepared)

    def counted() -> tuple[float, float]:
        metrics.write()
        found = [
            REGISTRY.get_sample_value(f"labelcurve_decode_milliseconds_{what}")
            for what in ("count", "sum")
        ]
        return found[0] or 0.0, found[1] or 0.0

    file = BytesIO()
    Image.new("1", (512, 512)).save(file, "PNG")
    wide = file.getvalue()

    async def run() -> tuple[Decoded, float]:
        decoder = Decoder(1)
        asyncio.get_running_loop().call_soon(lambda: ran.__setitem__(0, True))
        found = await decoder.decode([SMALL, wide, LARGE], 16)
        decoder.close()
        return found, decoder._large_seconds

    before = counted()
    found, average = asyncio.run(run())
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (3, 1500)
    assert (found.seconds, found.waited) == (2.0, 0.0)
    assert average == pytest.approx(0.2 * 0.5 + 0.2 * (0.5 - 0.2 * 0.5))
    inline, large = {"max_pixels": INLINE_PIXELS}, {"max_memory": MAX_MEMORY}
    assert seen == [  # other tasks run between two images
        (True, inline, False), (True, inline, True), (False, large, True), (False, large, True)
    ]  # fmt: skip


def test_the_waits_of_all_images_of_a_request_are_added() -> None:
    class Waiting(Decoder):
        async def _one(
            self, data: bytes, size: int, within: float
        ) -> tuple[NDArray[np.uint8], float]:
            return np.zeros((size, size, 3), np.uint8), float(len(data))

    found = asyncio.run(Waiting(1).decode([b"a", b"bb", b"cccc"], 8))
    assert found.waited == 7


def test_what_waits_when_it_is_closed_is_dropped(held: Held) -> None:
    began, go_on = held

    async def run() -> None:
        decoder = Decoder(1)
        first, queued = (asyncio.ensure_future(decoder.decode([LARGE], 16)) for _ in range(2))
        await asyncio.to_thread(began.wait, 60)
        decoder.close()
        go_on.set()
        found = await asyncio.gather(first, queued, return_exceptions=True)
        assert [type(each) for each in found] == [Decoded, asyncio.CancelledError]

    asyncio.run(run())
