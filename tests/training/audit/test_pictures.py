"""Images that show nothing."""

from __future__ import annotations

import numpy as np

from labelcurve.training.audit import pictures


def test_blank_dark_and_bright_images_are_named_and_others_are_not() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 24, (16, 16, 3))
    page = np.full((16, 16, 3), 255)
    page[4:8, 4:8] = 0  # a few dark strokes on white paper
    images = np.stack(
        [np.full((16, 16, 3), 128), noise, 255 - noise, noise * 10, page, 255 - page]
    ).astype(np.uint8)
    found = pictures.empty(len(images), lambda rows: images[rows])
    assert {row: kind for row, (kind, _) in found.items()} == {0: "blank", 1: "dark", 2: "bright"}
    assert all(0.5 <= score <= 1 for _, score in found.values())
