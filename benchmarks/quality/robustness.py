"""Accuracy under the corruptions of real uploads: JPEG, blur, noise, downscaling, exposure.

Each test image is decoded, corrupted and preprocessed as the service does it. All models get the
same corrupted images, so drops are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from labelcurve.benchmarks.harness.session import Session
from labelcurve.benchmarks.harness.statistics import compare
from labelcurve.benchmarks.record import Robustness, Shift
from labelcurve.bundle.machine import cores
from labelcurve.bundle.preprocess import decode, prepare, resize
from labelcurve.bundle.store import Bundle
from labelcurve.training.data.dataset import Data

Corruption = Callable[[Image.Image, int, int], NDArray[np.uint8]]
"""Maps an RGB image, the model's input size and a seed to preprocessed pixels."""

CHUNK = 32
"""Images in memory at a time, at full size: 12 megapixels each are 1.2 GB."""
SHOWN = 256
"""Images between two lines of progress."""


def _jpeg(quality: int) -> Corruption:
    def corrupt(image: Image.Image, size: int, seed: int) -> NDArray[np.uint8]:
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return prepare(buffer.getvalue(), size)

    return corrupt


def _blur(share: float) -> Corruption:
    return lambda image, size, _: resize(
        image.filter(ImageFilter.GaussianBlur(share * min(image.size))), size
    )


def _noise(deviation: float) -> Corruption:
    def corrupt(image: Image.Image, size: int, seed: int) -> NDArray[np.uint8]:
        pixels = np.asarray(image, np.float32)
        noise = np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)
        noisy = np.clip(np.rint(pixels + deviation * noise), 0, 255).astype(np.uint8)
        return resize(Image.fromarray(noisy), size)

    return corrupt


def _shrink(share: float) -> Corruption:
    def corrupt(image: Image.Image, size: int, seed: int) -> NDArray[np.uint8]:
        width, height = (max(1, round(share * side)) for side in image.size)
        return resize(image.resize((width, height), Image.Resampling.BILINEAR), size)

    return corrupt


def _brightness(factor: float) -> Corruption:
    return lambda image, size, _: resize(ImageEnhance.Brightness(image).enhance(factor), size)


KINDS: dict[str, dict[str, Corruption]] = {
    "JPEG quality": {"90": _jpeg(90), "50": _jpeg(50), "20": _jpeg(20)},
    "blur, sigma of side": {"1.5 %": _blur(0.015), "3 %": _blur(0.03), "5 %": _blur(0.05)},
    "noise, sigma of 255": {"5": _noise(5), "15": _noise(15), "30": _noise(30)},
    "shrunk to": {"75 %": _shrink(0.75), "50 %": _shrink(0.5), "25 %": _shrink(0.25)},
    "darker": {"x 0.7": _brightness(0.7), "x 0.4": _brightness(0.4)},
    "brighter": {"x 1.5": _brightness(1.5)},
}
"""By kind and level, mildest first."""


def measure(
    bundles: Sequence[Bundle], data: Data, n: int, say: Callable[[str], None] = print
) -> dict[str, Robustness]:
    """Measure the accuracy of every bundle, by name, on corrupted test images.

    `n` of them are drawn at random (seed 0), or all where there are fewer.
    """
    rows = np.sort(np.random.default_rng(0).permutation(len(data.test.labels))[:n])
    truth = data.test.labels[rows]
    settings = [(kind, *each) for kind, levels in KINDS.items() for each in levels.items()]
    sizes = sorted({bundle.manifest.preprocessing.size for bundle in bundles})
    right: dict[tuple[str, str, str], list[NDArray[np.bool_]]] = {}
    clock, n_cores = perf_counter(), cores()
    sessions = {bundle.name: Session(bundle, n_cores) for bundle in bundles}
    with ThreadPoolExecutor(n_cores) as pool:
        for start in range(0, len(rows), CHUNK):
            some = rows[start : start + CHUNK]
            images = list(pool.map(lambda row: decode(data.test.read(int(row))), some))
            for kind, level, corrupt in [("", "", _blur(0)), *settings]:
                for size in sizes:
                    pairs = zip(images, some, strict=True)
                    corrupted = np.stack([corrupt(image, size, int(row)) for image, row in pairs])
                    for bundle in bundles:
                        if bundle.manifest.preprocessing.size == size:
                            answers = sessions[bundle.name].probabilities(corrupted).argmax(axis=1)
                            right.setdefault((bundle.name, kind, level), []).append(
                                answers == truth[start : start + CHUNK]
                            )
            done = start + len(some)
            if done % SHOWN == 0 or done == len(rows):
                left = (perf_counter() - clock) / done * (len(rows) - done)
                say(f"  {done:,} of {len(rows):,} corrupted test images, {left:.0f} s left")
    found = {}
    for bundle in bundles:
        clean = np.concatenate(right[bundle.name, "", ""])
        shifts = []
        for kind, level, _ in settings:
            corrupted_right = np.concatenate(right[bundle.name, kind, level])
            drop = compare("corrupted", "clean", corrupted_right, clean).difference
            shifts.append(
                Shift(kind=kind, level=level, accuracy=float(corrupted_right.mean()), drop=drop)
            )
        found[bundle.name] = Robustness(
            n=len(rows), accuracy=float(clean.mean()), shifts=tuple(shifts)
        )
    return found
