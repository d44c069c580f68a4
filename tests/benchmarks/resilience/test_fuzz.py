from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from labelcurve.benchmarks.resilience import fuzz
from labelcurve.bundle import preprocess

ORIENTATION = 0x112

KINDS = {
    "png": ("PNG", "RGB", 1),
    "png-alpha": ("PNG", "RGBA", 1),
    "png-palette": ("PNG", "P", 1),
    "png-16": ("PNG", "I;16", 1),
    "apng": ("PNG", "RGB", 2),
    "jpeg": ("JPEG", "RGB", 1),
    "jpeg-progressive": ("JPEG", "RGB", 1),
    "jpeg-cmyk": ("JPEG", "CMYK", 1),
    "webp": ("WEBP", "RGB", 1),
    "webp-alpha": ("WEBP", "RGBA", 1),
    "webp-animated": ("WEBP", "RGB", 2),
    "gif-animated": ("GIF", "P", 2),
    "bmp": ("BMP", "RGB", 1),
    "tiff": ("TIFF", "RGB", 1),
}
"""Format, mode and number of images of each whole file."""


@pytest.mark.parametrize("scale", [1, 2])
def test_the_whole_files_are_what_their_names_say(scale: int) -> None:
    images = {name: Image.open(BytesIO(data)) for name, data in fuzz.seeds(scale).items()}
    found = {n: (i.format, i.mode, getattr(i, "n_frames", 1)) for n, i in images.items()}
    assert found == KINDS
    assert {image.size for image in images.values()} == {(31 * scale, 24 * scale)}
    turned = {n for n, image in images.items() if image.getexif().get(ORIENTATION) == 6}
    assert turned == {"png", "jpeg", "webp"}
    assert [n for n, image in images.items() if image.info.get("progressive")] == [
        "jpeg-progressive"
    ]
    assert images["png-palette"].info["transparency"] == 3


def test_a_number_gives_the_same_damage_again_and_another_one_another() -> None:
    data = fuzz.seeds()["png"]
    damaged = [fuzz.mutate(data, number) for number in range(100)]
    assert damaged == [fuzz.mutate(data, number) for number in range(100)]
    assert len(set(damaged)) > 80
    assert sum(each != data for each in damaged) > 80


def test_what_the_decoder_makes_of_the_files_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = fuzz.in_process(60)
    assert (found["inputs"], found["unexpected"]) == (60, {})
    assert sum(found["outcomes"].values()) == 60
    assert len(found["outcomes"]) > 1
    real, calls = preprocess.prepare, []

    def prepare(data: bytes, size: int, max_memory: int) -> NDArray[np.uint8]:
        calls.append(data)
        if len(calls) == 17:
            raise ZeroDivisionError("by a fault")
        return real(data, size, max_memory=max_memory)

    monkeypatch.setattr(preprocess, "prepare", prepare)
    again = fuzz.in_process(60)
    name = sorted(KINDS)[16 % len(KINDS)]
    assert again["unexpected"] == {f"{name} 16: ZeroDivisionError('by a fault')": 1}
    assert sum(again["outcomes"].values()) == 59
