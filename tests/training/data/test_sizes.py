from __future__ import annotations

import numpy as np
import pytest

from labelcurve.training.data.sizes import natural
from labelcurve.training.data.source import Rows, png


def rows(sides: list[tuple[int, int]], starts: list[int] | None = None) -> tuple[Rows, list[int]]:
    """Grey images of the given heights and widths, and the rows that were read."""
    read: list[int] = []

    def file(row: int) -> bytes:
        read.append(row)
        height, width = sides[row]
        return png(np.zeros((height, width), np.uint8)) if height else b"no image"

    groups = None if starts is None else np.array(starts)
    return Rows(np.zeros(len(sides), np.int32), file, str, groups), read


@pytest.mark.parametrize(
    ("short", "side"),
    [(8, 32), (45, 32), (46, 64), (64, 64), (100, 128), (160, 128), (256, 224), (3000, 224)],
)
def test_the_nearest_side_is_taken(short: int, side: int) -> None:
    given, _ = rows([(short, short + 100)] * 3)
    assert natural(given)[0] == side


def test_it_is_the_median_of_the_short_sides_whichever_it_is() -> None:
    given, _ = rows([(40, 900), (900, 60), (300, 64), (2000, 2000), (30, 30)])
    assert natural(given) == (64, "the short sides of 5 images have a median of 60 px")


def test_what_cannot_be_read_does_not_count() -> None:
    given, _ = rows([(0, 0), (224, 300), (0, 0)])
    assert natural(given) == (224, "the short sides of 1 images have a median of 224 px")
    given, _ = rows([(0, 0)])
    assert natural(given) == (32, "no image could be read")


def test_a_hundred_images_are_read_at_most_and_of_four_groups() -> None:
    given, read = rows([(32, 32)] * 1000)
    natural(given)
    assert len(read) == 100
    assert (min(read), max(read)) == (0, 999)
    given, read = rows([(32, 32)] * 1000, starts=list(range(0, 1000, 50)))
    natural(given)
    assert len(read) == 100
    assert len({row // 50 for row in read}) == 4
