from __future__ import annotations

import pytest

from labelcurve.training.runs.publication import few_tested


@pytest.mark.parametrize(("n", "half"), [(1, "45"), (8, "28"), (99, "10")])
def test_an_accuracy_on_few_images_has_a_warning(n: int, half: str) -> None:
    said = few_tested("test", n)
    assert said is not None
    images = "1 test image" if n == 1 else f"{n} test images"
    assert said.startswith(f"an accuracy of {images} says little: ")
    assert f"up to ±{half} points wide. 100 images make that ±10, 400 ±5" in said


@pytest.mark.parametrize("n", [0, 100, 5_000])
def test_of_enough_images_or_none_nothing_is_said(n: int) -> None:
    assert few_tested("test", n) is None
