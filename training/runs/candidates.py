"""The network that is cheap enough for `--max-latency`, found before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.dataset import Data
from labelcurve.training.models import export
from labelcurve.training.models.backbones import build
from labelcurve.training.models.latency import p50_ms
from labelcurve.training.recipes import LIBRARIES, Backbone, divided
from labelcurve.training.runtime.console import say

FACTORS = (2, 4)
"""Divisors of the image side for the network with the same pretrained weights."""

COMPACT_FACTORS = (1, 2, 4, 8)
COMPACT_SIDES = range(8, 65)
"""Sides in pixels at which the compact network is worth its time."""


def choose(limit: float, images: Data, backbone: Backbone) -> Backbone | None:
    """The first network of a short list that takes at most `limit` ms an image here.

    First the wanted one itself, then the same with its pretrained weights on smaller images, then
    the compact one. An untrained graph takes as long as a trained one.

    Args:
        limit: of `--max-latency`.
        images: the data set.
        backbone: of the models that learn from the labels.

    Returns:
        The network that is to learn from their answers; None where they are cheap enough.

    Raises:
        LabelcurveError: none is cheap enough; the message has the cheapest.
    """
    wanted, took = build(backbone, images.train.images, 2), _took(images, backbone)
    found = {backbone: took}
    if took <= limit:
        say(f"one image takes {backbone} {took:.2f} ms: --max-latency {limit:g} needs no other")
        return None
    for candidate in _candidates(backbone, images, wanted):
        found[candidate] = _took(images, candidate)
        if found[candidate] <= limit:
            say(
                f"one image takes {backbone} {took:.2f} ms on one thread, and {candidate} (on "
                f"images of 1/{divided(candidate)[1]} the side) {found[candidate]:.2f}: "
                f"--max-latency {limit:g} has it learn the answers of the larger one"
            )
            return candidate
    cheapest = min(found, key=found.__getitem__)
    raise LabelcurveError(
        f"--max-latency {limit:g}: the cheapest network for {images.size} px is {cheapest} with "
        f"{found[cheapest]:.2f} ms an image on one thread of this CPU, so nothing was trained. "
        "Allow more than that, or give a smaller --image-size"
    )


def _candidates(backbone: Backbone, images: Data, wanted: nn.Module) -> Iterator[Backbone]:
    if backbone.startswith(LIBRARIES):
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
    except LabelcurveError:  # it cannot see images that small
        return False
    shapes = [{key: v.shape for key, v in n.state_dict().items()} for n in (own, wanted)]
    return shapes[0] == shapes[1]


def _took(images: Data, backbone: Backbone) -> float:
    network = build(backbone, images.train.images, len(images.class_names))
    graph = export.to_onnx(export.Served(network, 1.0), images.size, images.class_names)
    return p50_ms(graph, images.train.images)
