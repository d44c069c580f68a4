"""The side that images are scaled to, from the images themselves."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

from labelcurve.bundle.errors import ImageError
from labelcurve.bundle.preprocess import FORMATS
from labelcurve.training.data.source import Index, Rows

SIDES = (32, 64, 128, 224)
"""Image sides: those of thumbnails, up to those on which most networks were pretrained."""
SAMPLED = 100
"""Images whose headers are read."""
GROUPS = 4
"""Groups of rows that are read at once (Parquet) from which these are taken."""


def natural(rows: Rows) -> tuple[int, str]:
    """The side of `SIDES` that is nearest to the median of the images' short sides.

    Returns:
        Pixels, and the reason in words.
    """
    short = []
    for row in _spread(rows).tolist():
        try:
            with Image.open(BytesIO(rows.read(row)), formats=FORMATS) as image:
                short.append(min(image.size))
        except (ImageError, OSError, ValueError, SyntaxError):
            continue  # decoding says which cannot be read
    if not short:
        return SIDES[0], "no image could be read"
    median = float(np.median(short))
    # Nearest by ratio: 45 px are closer to 32 than to 64.
    side = min(SIDES, key=lambda each: abs(np.log(each / median)))
    return side, f"the short sides of {len(short)} images have a median of {median:.0f} px"


def _spread(rows: Rows) -> Index:
    n = len(rows.labels)
    if rows.starts is None or len(rows.starts) <= GROUPS:
        return np.unique(np.linspace(0, n - 1, min(n, SAMPLED)).astype(np.int64))
    chosen = rows.starts[np.linspace(0, len(rows.starts) - 1, GROUPS).astype(np.int64)]
    found = (chosen[:, None] + np.arange(SAMPLED // GROUPS)).reshape(-1)
    return np.unique(found[found < n])
