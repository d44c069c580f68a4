"""The bytes of images to pixels: small ones at once, large ones in threads."""

from __future__ import annotations

import asyncio
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bundle import preprocess
from bundle.errors import ImageError, ImageTooLarge
from serving import metrics
from serving.errors import Overloaded

INLINE_BYTES, INLINE_PIXELS = 128 * 2**10, 128 * 2**10
"""Images up to this size are decoded on the event loop, in less time than it takes to hand them
to a thread and be heard by the others; larger ones would make them wait."""

MAX_MEMORY = 170_000_000
"""Bytes that decoding one image may take: with its body, a request stays below 200 MB."""

# Pillow warns of odd metadata in what clients send, and Python remembers each warning's text.
warnings.filterwarnings("ignore", module=r"PIL\b")

MAX_DECODING = 64
"""Large images that may wait for a thread of the decoder."""


class Decoder:
    """`bundle.preprocess.prepare`, small images at once and large ones in threads."""

    def __init__(self, threads: int) -> None:
        """Starts no thread before it is needed; at most `threads`."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decoder")
        self._waiting = 0

    async def decode(self, images: list[bytes], size: int) -> tuple[list[NDArray[np.uint8]], float]:
        """Pixels uint8 [size, size, 3] of each image, and the seconds that decoding took.

        Raises:
            ImageError: one of them cannot be used; of several, it says which.
            Overloaded: too many large images are waiting.
        """
        start = perf_counter()
        if len(images) == 1:
            pixels = [await self._one(images[0], size)]
        else:
            pixels = []
            for number, data in enumerate(images, 1):
                try:
                    pixels.append(await self._one(data, size))
                except ImageError as error:
                    error.args = (f"image {number} of {len(images)}: {error}",)
                    raise
        seconds = perf_counter() - start
        return pixels, seconds

    async def _one(self, data: bytes, size: int) -> NDArray[np.uint8]:
        start = perf_counter()
        try:
            if len(data) > INLINE_BYTES:
                return await self._in_thread(data, size)
            try:
                return preprocess.prepare(data, size, max_pixels=INLINE_PIXELS)
            except ImageTooLarge:
                return await self._in_thread(data, size)
        finally:
            metrics.observe(metrics.DECODE, ((perf_counter() - start) * 1000,))

    async def _in_thread(self, data: bytes, size: int) -> NDArray[np.uint8]:
        if self._waiting >= MAX_DECODING:
            raise Overloaded(f"{self._waiting} large images are waiting to be decoded: try again")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            work = partial(preprocess.prepare, data, size, max_memory=MAX_MEMORY)
            return await loop.run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1

    @staticmethod
    def warm() -> None:
        """Decodes an image of each format: the first of one imports its reader."""
        for name in preprocess.FORMATS:
            file = BytesIO()
            Image.new("RGB", (2, 2)).save(file, name)
            preprocess.prepare(file.getvalue(), 2)

    def close(self) -> None:
        """Ends the threads; what waits for them is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
