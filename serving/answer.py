"""Probabilities to the classes that an answer names."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray


class Class(TypedDict):
    """One class of one image."""

    label: str
    score: float
    """Calibrated probability."""


def ranked(
    probabilities: NDArray[np.float32], class_names: tuple[str, ...], top_k: int
) -> list[Class]:
    """The `top_k` most probable classes of one image, best first.

    Args:
        probabilities: float32 [K].
        class_names: K names.
        top_k: how many; more than K gives K.
    """
    scores: list[float] = probabilities.tolist()
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    return [{"label": class_names[i], "score": scores[i]} for i in order[:top_k]]
