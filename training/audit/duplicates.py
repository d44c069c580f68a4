"""Near-duplicates: neighbours in the embedding whose pixels agree when one is laid over the other.

The embedding alone finds images of the same kind, too: other photos of the same model of a car. So
a pair counts only where the edges of a part of one image, also mirrored, lie on those of the other:
first of few grey parts, then of more and finer ones in colour, since small grey images of a cup and
of a lid on the same white table have the same outline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.training.forecast.head import Rows
from labelcurve.training.forecast.measurement import Progress

NEIGHBOURS = 8
"""Nearest images in the embedding that are compared with each, and as many by their grey values."""
LEAST_CORRELATION = 0.9
"""Minimum correlation of the edges of a near-duplicate, in colour (docs/log.md)."""
LEAST_GREY = 0.8
"""Correlation of the edges in grey from which a pair is compared in colour."""
MOST_DIFFERENCE = 0.5
"""1 minus the correlation of a near-duplicate in grey, over that of the image's other neighbours:
drawn digits all look much alike without being copies."""
LEAST_SIDE = 24
"""Minimum side of compared images: smaller ones have too few edges to recognize a copy."""
MOST_COPIES = 4
"""Maximum images that are like one in grey; with more, all images of its kind look alike."""
LEAST_WHOLE = 0.1
"""Correlation of the whole images from which their parts are compared."""
FAINT = 0.73
"""Root mean square of the differences of a part: below it they are noise of compression."""
SIDE, PART, COARSE = 32, 16, 8
"""Sides in pixels of the grey images, of the parts that are compared, and for neighbours."""
FINE_SIDE, FINE_PART = 48, 24
"""Sides in pixels of the colour images and of their parts."""
SCALES = (1.0, 0.95, 0.9, 0.85)
FINE_SCALES = (1.0, 0.975, 0.95, 0.925, 0.9, 0.875, 0.85)
"""Sides of the parts over the side of the image, in grey and in colour."""
BLOCK_BYTES = 64 * 2**20
"""Bytes of cosine similarities that are computed at once."""
AT_ONCE = 256
"""Pairs that are compared at once."""

Parts = list[tuple[Rows, Rows]]
"""Weights that take parts out of an image, [T, S] for its rows and for its columns."""
Read = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Returns the pixels of rows, uint8 [M, S, S, 3]."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images with the same content."""

    rows: NDArray[np.int64]
    """[M, 2] Rows, the smaller number first; each pair once."""
    similarity: NDArray[np.float64]
    """[M] Correlation of their edges, from `LEAST_CORRELATION` to 1."""


def near_duplicates(features: Rows, read: Read, progress: Progress = lambda _: None) -> Pairs:
    """The near-duplicates among some images; none where they are smaller than `LEAST_SIDE`.

    Compares each embedding with each other, so that the time grows with the square of N: for
    60,000 images of 256 features about 2 x 10^12 operations.

    Args:
        features: [N, D] embeddings.
    """
    none = Pairs(np.zeros((0, 2), np.int64), np.zeros(0))
    if len(features) < 2 or read(np.zeros(1, np.int64)).shape[1] < LEAST_SIDE:
        return none
    every = np.arange(len(features))
    small = np.concatenate(
        [grey(read(every[first : first + AT_ONCE])) for first in range(0, len(every), AT_ONCE)]
    )
    coarse = small.reshape(-1, COARSE, SIDE // COARSE, COARSE, SIDE // COARSE).mean(axis=(2, 4))
    coarse = coarse.reshape(len(coarse), -1)
    near = _neighbours(features - features.mean(axis=0), lambda share: progress(0.4 * share))
    like = _neighbours(
        coarse - coarse.mean(axis=1, keepdims=True), lambda share: progress(0.4 + 0.2 * share)
    )
    pairs = np.unique(np.concatenate([near, like]), axis=0)
    whole = _whole(small, pairs)
    usual = _usual(whole, pairs, len(small))
    pairs, usual = pairs[whole >= LEAST_WHOLE], usual[whole >= LEAST_WHOLE]
    similarity = _compared(
        pairs, lambda rows: small[rows], GREY, lambda share: progress(0.6 + 0.2 * share)
    )
    pairs = pairs[similarity >= np.maximum(LEAST_GREY, 1 - MOST_DIFFERENCE * (1 - usual))]
    degree = np.bincount(pairs.ravel(), minlength=len(small))
    pairs = pairs[(degree[pairs] <= MOST_COPIES).all(axis=1)]
    similarity = _compared(
        pairs, lambda rows: colour(read(rows)), FINE, lambda share: progress(0.8 + 0.2 * share)
    )
    same = similarity >= LEAST_CORRELATION
    return Pairs(pairs[same], similarity[same])


def _compared(
    pairs: NDArray[np.int64],
    images: Callable[[NDArray[np.int64]], Rows],
    parts: Parts,
    progress: Progress,
) -> NDArray[np.float64]:
    """The correlation of each pair, [M]."""
    found = np.empty(len(pairs))
    for first in range(0, len(pairs), AT_ONCE):
        one, other = pairs[first : first + AT_ONCE].T
        found[first : first + len(one)] = correlation(images(one), images(other), parts)
        progress((first + len(one)) / len(pairs))
    return found


def _whole(small: Rows, pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """The correlation of the edges of pairs as they are, or of one mirrored, [M]."""
    parts = _resampled(small, *GREY[0])
    edges, mirrored = _edges(parts), _edges(parts[..., ::-1])
    found = np.empty(len(pairs))
    for first in range(0, len(pairs), AT_ONCE):
        one, other = pairs[first : first + AT_ONCE].T
        found[first : first + len(one)] = np.maximum(
            *(np.einsum("ij,ij->i", edges[one], laid[other]) for laid in (edges, mirrored))
        )
    return found


def _usual(whole: NDArray[np.float64], pairs: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """The median correlation of an image with its neighbours, the larger of a pair's two, [M]."""
    rows, values = np.concatenate([pairs[:, 0], pairs[:, 1]]), np.concatenate([whole, whole])
    order = np.lexsort((values, rows))
    begin = np.searchsorted(rows[order], np.arange(n + 1))
    # Images without a pair are left out.
    middle = np.minimum((begin[:-1] + begin[1:]) // 2, len(order) - 1)
    median = values[order][middle]
    found: NDArray[np.float64] = np.maximum(median[pairs[:, 0]], median[pairs[:, 1]])
    return found


def groups(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number for each of `n` images, the same for those that pairs connect; [N]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    found: NDArray[np.int64] = connected_components(edges, directed=False)[1].astype(np.int64)
    return found


def correlation(first: Rows, second: Rows, parts: Parts) -> NDArray[np.float64]:
    """The largest correlation of a pair over all parts of one laid over the other.

    Args:
        first: [M, ..., S, S] values of pixels, such as `grey` or `colour` returns.
        parts: weights of the parts; those of the whole image first.

    Returns:
        [M], from -1 to 1.
    """
    best = np.full(len(first), -1.0)
    for one, other in ((first, second), (second, first)):
        small = _resampled(other, *parts[0])
        whole, mirrored = _edges(small), _edges(small[..., ::-1])
        for down, across in parts:
            part = _edges(_resampled(one, down, across))
            for laid in (whole, mirrored):
                best = np.maximum(best, np.einsum("ij,ij->i", part, laid))
    return best


def _neighbours(rows: Rows, progress: Progress) -> NDArray[np.int64]:
    """Each of the rows [N, D] with the nearest others by cosine, [M, 2], each pair once."""
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    n = len(rows)
    k = min(NEIGHBOURS, n - 1)
    step = max(1, BLOCK_BYTES // (4 * n))
    found = []
    for begin in range(0, n, step):
        cosines = rows[begin : begin + step] @ rows.T
        here = np.arange(begin, begin + len(cosines))
        cosines[np.arange(len(here)), here] = -2
        nearest = np.argpartition(cosines, -k, axis=1)[:, -k:]
        found.append(np.stack([np.repeat(here, k), nearest.ravel()], axis=1))
        progress((begin + len(here)) / n)
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def grey(pixels: NDArray[np.uint8]) -> Rows:
    """Grey values of images, uint8 [M, S, S, 3], averaged over areas to [M, 32, 32]."""
    size = pixels.shape[1]
    to_side = _resampling(size, 0.0, size, SIDE)
    return _resampled(pixels.mean(axis=3, dtype=np.float32), to_side, to_side)


def colour(pixels: NDArray[np.uint8]) -> Rows:
    """Images, uint8 [M, S, S, 3], averaged over areas to [M, 3, 48, 48]."""
    size = pixels.shape[1]
    to_side = _resampling(size, 0.0, size, FINE_SIDE)
    return _resampled(pixels.transpose(0, 3, 1, 2).astype(np.float32), to_side, to_side)


def _resampled(images: Rows, down: Rows, across: Rows) -> Rows:
    """Images [..., S, S] with weights [T, S] for their rows and their columns, [..., T, T]."""
    found: Rows = np.asarray(down @ images @ across.T, np.float32)
    return found


def _edges(parts: Rows) -> Rows:
    """Differences of neighbouring values, down and across, as rows of length 1, [M, D].

    By raw grey values any two skies would agree. A uniform part gives rows of 0.
    """
    down, across = np.diff(parts, axis=-2), np.diff(parts, axis=-1)
    flat = np.concatenate([each.reshape(len(parts), -1) for each in (down, across)], axis=1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    faint = FAINT * flat.shape[1] ** 0.5
    found: Rows = np.where(length > faint, flat / np.maximum(length, 1e-9), 0).astype(np.float32)
    return found


def _resampling(size: int, begin: float, length: float, out: int) -> Rows:
    """[out, size] weights that average a stretch of a line to fewer pixels, or interpolate it."""
    scale = length / out
    centres = begin + (np.arange(out) + 0.5) * scale - 0.5
    reach = max(scale, 1.0)
    distance = np.abs(np.arange(size)[None] - centres.clip(0, size - 1)[:, None]) / reach
    weights = np.maximum(0, 1 - distance)
    found: Rows = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def _parts(side: int, part: int, scales: Sequence[float], steps: int) -> Parts:
    """The weights of each part, down and across; the whole image first."""
    found = []
    for scale in scales:
        begins = np.linspace(0, side * (1 - scale), 1 if scale == 1 else steps)
        lines = [_resampling(side, begin, side * scale, part) for begin in begins]
        found += [(down, across) for down in lines for across in lines]
    return found


GREY = _parts(SIDE, PART, SCALES, 3)
FINE = _parts(FINE_SIDE, FINE_PART, FINE_SCALES, 5)
