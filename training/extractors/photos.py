"""The defaults for photos: a pretrained backbone, at its image size.

Networks for thumbnails are trained from scratch at the images' own size. For photos, few labels
are not enough unless the network was pretrained on many others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.recipes import LIBRARIES, PHOTO_BACKBONE

LEAST = 128
"""Side in pixels from which images count as photos."""
OWN = 64
"""Largest side that is chosen for a network that begins without pretrained weights: twice the side
takes four times the time."""


@dataclass
class Settled:
    """Image size and extractor, together: `choose_size` is for `dataset.load`.

    Attributes:
        extractor: value of `--extractor`; `auto` becomes the backbone for photos where the images
            are photos and it is available.
        say: receives the reason, and a warning where the weights are not available.
    """

    extractor: str
    say: Callable[[str], None]

    def choose_size(self, side: int, why: str) -> tuple[int, str]:
        """The side for images of a natural side, and the reason for it."""
        self.given_size(side)
        if self.extractor.startswith(LIBRARIES) or side <= OWN:
            return side, why
        return OWN, f"{why}; {OWN} px is the most for a network without pretrained weights"

    def given_size(self, side: int) -> None:
        """Chooses the extractor for images of a fixed side."""
        if self.extractor != "auto" or side < LEAST:
            return
        from labelcurve.training.models import timm_weights

        try:
            timm_weights.fetch(PHOTO_BACKBONE, self.say)
        except LabelcurveError as error:
            self.say(
                "WARNING: these are photos, and the pretrained backbone for them is unavailable. "
                f"{error}. The network learns from these images alone: with few labels expect much "
                "less than with it, which reaches about 0.8 at 10 % of the labels of TrashNet "
                "(2,527 photos, 6 classes)"
            )
        else:
            self.extractor = PHOTO_BACKBONE
