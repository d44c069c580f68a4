"""Near-duplicates of crops of two photos, changed as uploads are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from labelcurve.training.audit import duplicates
from labelcurve.training.audit.duplicates import LEAST_CORRELATION

SIDE = 96


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    """[60, 96, 96, 3] Parts of scikit-learn's two pictures that do not overlap."""
    from sklearn.datasets import load_sample_images

    found = [
        picture[top : top + SIDE, left : left + SIDE]
        for picture in load_sample_images().images
        for top in range(0, 384, SIDE)
        for left in range(0, 576, SIDE)
    ]
    return np.stack(found)


def as_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": lambda i: i.crop((8, 0, SIDE, SIDE - 8)).resize(i.size),
    "JPEG": partial(as_jpeg, quality=70),
    "strong JPEG": partial(as_jpeg, quality=30),
    "brightness": lambda i: ImageEnhance.Brightness(i).enhance(0.6),
    "mirror": lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


FOUND = dict.fromkeys(CHANGES, 0.85) | {"strong JPEG": 0.65}
"""Share of the changed copies that are found, at least: quality 30 blurs the colours of parts with
little contrast (docs/log.md)."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_correlates_and_another_part_of_the_photo_does_not(
    crops: NDArray[np.uint8], change: str
) -> None:
    changed = np.stack([np.asarray(CHANGES[change](Image.fromarray(crop))) for crop in crops])
    one, other = duplicates.colour(crops), duplicates.colour(changed)
    same = duplicates.correlation(one, other, duplicates.FINE)
    assert (same >= LEAST_CORRELATION).mean() > FOUND[change]
    different = duplicates.correlation(one, np.roll(other, 1, axis=0), duplicates.FINE)
    assert (different < LEAST_CORRELATION).all()


def test_the_same_outline_on_a_plain_background_is_no_copy() -> None:
    random = np.random.default_rng(0)
    inside = np.hypot(*np.mgrid[-1:1:96j, -1:1:96j]) < 0.4
    images = np.full((12, SIDE, SIDE, 3), 230, np.uint8)
    images[2:] = random.integers(0, 256, (10, SIDE // 8, SIDE // 8, 3)).repeat(8, 1).repeat(8, 2)
    images[0][inside] = 120, 110, 115
    images[1][inside] = 20, 80, 240
    grey = duplicates.grey(images[:2])
    assert duplicates.correlation(grey[:1], grey[1:], duplicates.GREY)[0] > 0.9
    features = random.normal(size=(12, 32)).astype(np.float32)
    features[1] = features[0]
    assert len(duplicates.near_duplicates(features, lambda rows: images[rows]).rows) == 0


def test_neighbours_count_only_where_their_pixels_agree(crops: NDArray[np.uint8]) -> None:
    random = np.random.default_rng(0)
    n = len(crops)
    mirrored = crops[18:23, :, ::-1]  # the lower ones: sky has no edges
    images = np.concatenate([crops, mirrored])
    features = random.normal(size=(n + 5, 32)).astype(np.float32)
    features[n:] = features[18:23] + random.normal(0, 0.1, (5, 32)).astype(np.float32)
    # As close in the embedding, but another image.
    features[40] = features[41]
    found = duplicates.near_duplicates(features, lambda rows: images[rows])
    assert {tuple(pair) for pair in found.rows.tolist()} == {(18 + i, n + i) for i in range(5)}
    assert (found.similarity > 0.99).all()


def test_long_embeddings_are_not_nearer_than_others(crops: NDArray[np.uint8]) -> None:
    n = len(crops)
    images = np.concatenate([crops, crops[18:23, :, ::-1]])
    features = np.random.default_rng(0).normal(size=(n + 5, 32)).astype(np.float32)
    features[n:] = features[18:23]
    # Of each two one is on the side of an image: nine of them, and eight neighbours are compared.
    features[:9] *= 100
    features[9:18] = -features[:9]
    found = duplicates.near_duplicates(features, lambda rows: images[rows])
    assert {tuple(pair) for pair in found.rows.tolist()} == {(18 + i, n + i) for i in range(5)}


def test_an_even_image_is_like_no_other() -> None:
    even = np.full((2, 32, 32), 90, np.float32)
    assert (duplicates.correlation(even, even, duplicates.GREY) == 0).all()


def test_what_pairs_connect_is_one_group() -> None:
    found = duplicates.groups(5, np.array([[0, 3], [3, 4]]))
    assert found[0] == found[3] == found[4]
    assert len(set(found.tolist())) == 3
