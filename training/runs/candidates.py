"""The network that is cheap enough for `--max-latency`, found before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from torch import nn

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.dataset import Data
from labelcurve.training.models import export
from labelcurve.training.models.backbones import build
from labelcurve.training.models.export import p50_ms
from labelcurve.training.models.extractor import differing
from labelcurve.training.recipes import LIBRARIES, Backbone, divided
from labelcurve.training.runtime.console import say

TIMES = "times.json"
"""File in the folder of the first model of a command."""

FACTORS = (2, 4)
"""Divisors of the image side for the network with the same pretrained weights."""

COMPACT_FACTORS = (1, 2, 4, 8)
COMPACT_SIDES = range(8, 65)
"""Sides in pixels at which the compact network is worth trying."""


class Times:
    """Times of one image in ms, measured once per command, interruptions included: a resumed
    command must decide as it did at first, though no two measurements are the same.

    Args:
        path: of a file that keeps them.
        fresh: measure again what an interrupted command left.
        keep: write them to the file; a dry run writes nothing.
    """

    def __init__(self, images: Data, path: Path, *, fresh: bool = False, keep: bool = True) -> None:
        self._images, self._path, self._keep = images, path, keep
        self._found: dict[str, float] = {}
        if not fresh:
            with suppress(OSError, ValueError):
                self._found = json.loads(path.read_text())

    def __call__(self, backbone: Backbone) -> float:
        """The time of a network; an untrained graph takes as long as a trained one."""
        key = f"{backbone} at {self._images.size} px"
        if key not in self._found:
            self._found[key] = _took(self._images, backbone)
            if self._keep:
                with suppress(OSError):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    files.replace(self._path, json.dumps(self._found).encode())
        return self._found[key]


def choose(limit: float, images: Data, backbone: Backbone, times: Times) -> Backbone | None:
    """The first network of a short list that takes at most `limit` ms an image.

    First the wanted one itself, then the same with its pretrained weights on smaller images, then
    the compact one.

    Args:
        limit: of `--max-latency`.
        backbone: of the models that learn from the labels.

    Returns:
        The network that is to learn from their answers; None where they are cheap enough.

    Raises:
        LabelcurveError: none is cheap enough; the message has the cheapest.
    """
    found = {backbone: times(backbone)}
    took = f"one image takes {backbone} {found[backbone]:.2f} ms on one thread"
    if found[backbone] <= limit:
        say(f"{took}: --max-latency {limit:g} needs no other network")
        return None
    for candidate in _candidates(backbone, images):
        found[candidate] = times(candidate)
        if found[candidate] <= limit:
            say(
                f"{took}, and {candidate} (on images of 1/{divided(candidate)[1]} the side) "
                f"{found[candidate]:.2f}: --max-latency {limit:g} distils the larger one into it"
            )
            return candidate
    cheapest = min(found, key=found.__getitem__)
    raise LabelcurveError(
        f"--max-latency {limit:g}: the cheapest network for {images.size} px is {cheapest} with "
        f"{found[cheapest]:.2f} ms an image on one thread of this CPU, so nothing was trained. "
        "Allow more than that, or give a smaller --image-size"
    )


def _candidates(backbone: Backbone, images: Data) -> Iterator[Backbone]:
    if backbone.startswith(LIBRARIES):
        wanted = build(backbone, images.train.images[:1], 2)
        for factor in FACTORS:
            name = f"{backbone}/{factor}"
            if images.size % factor == 0 and _fits(name, images, wanted):
                yield name
    for factor in COMPACT_FACTORS:
        name = "convnet" if factor == 1 else f"convnet/{factor}"
        side, rest = divmod(images.size, factor)
        if not rest and side in COMPACT_SIDES and name != backbone:
            yield name


def _fits(name: Backbone, images: Data, wanted: nn.Module) -> bool:
    """Whether a network takes the weights of another one: with an embedding of each position of the
    image, as some have, it does not."""
    try:
        own = build(name, images.train.images[:1], 2)
    except LabelcurveError:  # it cannot take images that small
        return False
    return not differing(own.state_dict(), wanted.state_dict())


def _took(images: Data, backbone: Backbone) -> float:
    network = build(backbone, images.train.images, len(images.class_names))
    graph = export.to_onnx(export.Served(network, 1.0), images.size, images.class_names)
    return p50_ms(graph, images.train.images)
