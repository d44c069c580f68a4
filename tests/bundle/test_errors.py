from __future__ import annotations

import pytest

from labelcurve.bundle import errors


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnsupportedImage, 415),
        (errors.ImageTooLarge, 413),
        (errors.UnreadableImage, 422),
    ],
)
def test_an_image_error_knows_its_http_status(error: type[errors.ImageError], status: int) -> None:
    assert error.status == status
    assert issubclass(error, errors.ImageError)


def test_every_error_is_caught_as_one_kind() -> None:
    found = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert errors.DivergedError in found
    assert all(issubclass(error, errors.LabelcurveError) for error in found)
