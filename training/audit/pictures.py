"""Images that show nothing: of one colour, or too dark or too bright to see anything."""

from __future__ import annotations

import numpy as np

from labelcurve.training.audit.duplicates import Read

LEAST_RANGE = 10.0
"""Grey values between the 1st and the 99th percentile, below which an image is blank."""
DARK, BRIGHT = 32.0, 223.0
"""Grey values: dark where the 99th percentile lies below, bright where the 1st lies above."""
AT_ONCE = 256


def empty(n: int, read: Read) -> dict[int, tuple[str, float]]:
    """The images that show nothing: by row the reason, and how sure it is, from 0.5 to 1.

    Args:
        n: images.
        read: returns the pixels of rows, uint8 [M, S, S, 3].
    """
    found: dict[int, tuple[str, float]] = {}
    for first in range(0, n, AT_ONCE):
        grey = read(np.arange(first, min(n, first + AT_ONCE))).mean(axis=3, dtype=np.float32)
        low, high = np.percentile(grey.reshape(len(grey), -1), (1, 99), axis=1)
        for row in np.flatnonzero((high - low < LEAST_RANGE) | (high < DARK) | (low > BRIGHT)):
            place = first + int(row)
            if high[row] - low[row] < LEAST_RANGE:
                found[place] = "blank", 1 - 0.5 * float(high[row] - low[row]) / LEAST_RANGE
            elif high[row] < DARK:
                found[place] = "dark", 1 - 0.5 * float(high[row]) / DARK
            else:
                found[place] = "bright", 1 - 0.5 * float(255 - low[row]) / (255 - BRIGHT)
    return found
