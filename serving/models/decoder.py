"""Decodes images: small ones immediately, large ones in threads."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from math import ceil, inf
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import ImageError, ImageTooLarge
from labelcurve.serving.errors import Overloaded
from labelcurve.serving.telemetry import metrics

INLINE_BYTES, INLINE_PIXELS = 128 * 2**10, 128 * 2**10
"""Images up to this size are decoded on the event loop, in less time than handing them to a thread
and back takes; larger ones would delay other requests."""

MAX_MEMORY = 170_000_000
"""Bytes that decoding one image may take: with its body, a request stays below 200 MB."""

# Pillow warns of odd metadata in uploads, and Python keeps each warning's text.
warnings.filterwarnings("ignore", module=r"PIL\b")

MAX_DECODING = 64
"""Large images that may wait for a thread of the decoder."""


Pixels = NDArray[np.uint8]


class Decoded(NamedTuple):
    """The images of one request."""

    pixels: list[NDArray[np.uint8]]
    """uint8 [size, size, 3] each."""
    seconds: float
    """Duration of the decoding."""
    waited: float
    """Seconds that they waited for a thread."""


class Decoder:
    """`bundle.preprocess.prepare`, small images at once and large ones in threads."""

    def __init__(self, threads: int) -> None:
        """Starts threads on demand, at most `threads`."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._threads = threads
        self._large = 0
        """Large images that are decoded or wait for it."""
        self._large_seconds = 0.0
        """Moving average of the duration of one of them."""

    async def decode(self, images: list[bytes], size: int, within: float = inf) -> Decoded:
        """Pixels of all `images`.

        Args:
            images: the bytes of files.
            size: of the pixels, [size, size, 3].
            within: seconds after which a large one should have a thread.

        Raises:
            ImageError: one of them cannot be used; of several, it says which.
            Overloaded: too many large images are waiting, or one would wait for longer than
                `within`.
        """
        start, waited, pixels = perf_counter(), 0.0, []
        for number, data in enumerate(images, 1):
            if number > 1:  # lets other requests, and this one's deadline, run in between
                await asyncio.sleep(0)
            try:
                found, since = await self._one(data, size, within)
            except ImageError as error:
                if len(images) > 1:
                    error.args = (f"image {number} of {len(images)}: {error}",)
                raise
            pixels.append(found)
            waited += since
        return Decoded(pixels, perf_counter() - start - waited, waited)

    async def _one(self, data: bytes, size: int, within: float) -> tuple[NDArray[np.uint8], float]:
        """The pixels, and the seconds that they waited for a thread."""
        began, small = perf_counter(), len(data) <= INLINE_BYTES
        try:
            if small:
                return preprocess.prepare(data, size, max_pixels=INLINE_PIXELS), 0.0
        except ImageTooLarge:
            small = False
        finally:
            if small:
                metrics.observe(metrics.DECODE, ((perf_counter() - began) * 1000,))
        return await self._in_thread(data, size, within)

    async def _in_thread(
        self, data: bytes, size: int, within: float
    ) -> tuple[NDArray[np.uint8], float]:
        ahead = self._large // self._threads * self._large_seconds
        if self._large >= MAX_DECODING or ahead > within:
            raise Overloaded(
                f"large images are waiting to be decoded ({self._large} of them): try again",
                retry_after=max(1, ceil(ahead)),
            )
        asked, began = perf_counter(), 0.0

        def work() -> Pixels:
            nonlocal began
            began = perf_counter()
            return preprocess.prepare(data, size, max_memory=MAX_MEMORY)

        def ended() -> None:
            self._large -= 1
            if began:  # not where its client disconnected before a thread had time for it
                seconds = perf_counter() - began
                self._large_seconds += 0.2 * (seconds - self._large_seconds)
                metrics.observe(metrics.DECODE, (seconds * 1000,))

        self._large += 1
        # No name for the future: its exception would hold this frame, and that the file's bytes.
        return await asyncio.wrap_future(self._submitted(work, ended)), began - asked

    def _submitted(self, work: Callable[[], Pixels], ended: Callable[[], None]) -> Future[Pixels]:
        """`ended` is called on the event loop when a thread is through with `work`.

        That is later than the end of its request where that is given up at its deadline.
        """
        loop = asyncio.get_running_loop()

        def tell(_: Future[Pixels]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(ended)

        future = self._pool.submit(work)
        future.add_done_callback(tell)
        return future

    @staticmethod
    def warm() -> None:
        """Decodes an image of each format, since the first one imports its plug-in."""
        for name in preprocess.FORMATS:
            file = BytesIO()
            Image.new("RGB", (2, 2)).save(file, name)
            preprocess.prepare(file.getvalue(), 2)

    def close(self) -> None:
        """Stops the threads; queued images are dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
