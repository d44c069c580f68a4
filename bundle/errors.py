"""Errors whose messages are meant for the user."""

from __future__ import annotations

import difflib
from collections.abc import Collection


class LabelcurveError(Exception):
    """States what was found, what is allowed and how to fix it; commands print it and exit 1."""


class BundleError(LabelcurveError):
    """A bundle is missing, damaged or of an unknown schema."""


class ImageError(LabelcurveError):
    """The bytes of one image cannot be used."""

    status = 422
    """The HTTP status that fits."""


class UnsupportedImage(ImageError):
    """The bytes are not an image, or its format is not accepted."""

    status = 415


class ImageTooLarge(ImageError):
    """The header announces more pixels, or more memory for them, than is allowed."""

    status = 413

    def __init__(self, message: str, found: int = 0, allowed: int = 0) -> None:
        """`found` and `allowed`: what was counted, pixels or bytes."""
        super().__init__(message)
        self.found = found
        self.allowed = allowed


class UnreadableImage(ImageError):
    """The format is accepted, but the pixels cannot be decoded."""


class DataError(LabelcurveError):
    """A data set cannot be used as it is."""


class ExportError(LabelcurveError):
    """The exported graph does not compute what the trained network computes."""


class DivergedError(LabelcurveError):
    """The training loss is NaN or infinite, so continuing is pointless."""


class DeviceError(LabelcurveError):
    """The requested device is not the one that would be used."""


class MissingExtra(LabelcurveError):
    """A package that belongs to an optional extra is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs {package}, which is not installed: it comes with the extra `{extra}`, "
            f"pip install 'labelcurve[{extra}]'"
        )


def near(wrong: str, allowed: Collection[str]) -> str:
    """Suggests a similar name, for the end of a sentence."""
    found = difflib.get_close_matches(wrong, sorted(allowed))
    return f" (perhaps you meant {' or '.join(found)})" if found else ""
