"""Chooses the extractor of `train --extractor`: shipped, cached, given as a file, or made first."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from labelcurve.bundle.errors import LabelcurveError, near
from labelcurve.bundle.text import counted, shown
from labelcurve.training.data.dataset import Data
from labelcurve.training.extractors.pretraining import Request, key, lock_file, make, split, summary
from labelcurve.training.models import extractor
from labelcurve.training.models.backbones import build
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.recipes import (
    LIBRARIES,
    TIMM,
    TORCHVISION,
    Backbone,
    Objective,
    Pretraining,
    pretraining,
)
from labelcurve.training.runtime import lock
from labelcurve.training.runtime.checkpoint import DEFAULT_POLICY, CheckpointPolicy
from labelcurve.training.runtime.console import say
from labelcurve.training.runtime.device import Device, Precision

SMALLEST = 200
"""Minimum number of training images: with fewer, pretraining does not help."""

GRAY_SAMPLE = 100
"""Images that are checked for colours."""

SHORT_IMAGES = 150_000
SHORT_EPOCHS = 20
"""A short pretraining has this many epochs, or sees this many images where that is less."""


@dataclass(frozen=True)
class Wanted:
    """Requirements on the extractor of a model."""

    backbone: Backbone
    flip: bool
    """Whether mirrored images keep their class."""
    cache: Path
    seconds: float | None = None
    """Time limit of a pretraining that has to come first."""
    precision: Precision = "auto"
    """`--precision` of that pretraining."""


def check(wanted: str) -> None:
    """Refuses an impossible value of `train --extractor` before any image is read.

    Raises:
        LabelcurveError: names the allowed values.
    """
    if wanted.startswith(TIMM):
        from labelcurve.training.models import timm_weights

        timm_weights.check(wanted)
    elif wanted.startswith(TORCHVISION):
        from labelcurve.training.models import torchvision_weights

        torchvision_weights.check(wanted)
    elif wanted not in ("auto", "none") and not (wanted and Path(wanted).is_file()):
        what = "a folder, not a file" if wanted and Path(wanted).is_dir() else "no such file"
        shown = wanted or "''"
        raise LabelcurveError(
            f"--extractor {shown}: {what}{near(wanted, ('auto', 'none'))}. Allowed: auto, "
            f"none, a file that `pretrain` wrote, {TIMM}NAME[=FILE] and {TORCHVISION}NAME[=FILE]"
        )


def obtain(
    name: str,
    images: Data,
    wanted: Wanted,
    device: Device,
    policy: CheckpointPolicy = DEFAULT_POLICY,
) -> Extractor | None:
    """The extractor that `train --extractor NAME` means, trained first where there is none.

    Args:
        policy: of the checkpoints of a pretraining that has to come first.

    Raises:
        LabelcurveError: no such extractor, or one that does not fit.
    """
    if name == "none":
        if unused := len(images.train) - images.train.n_labelled:
            say(f"extractor: none, so {counted(unused, 'image')} without a label are not used")
        return None
    if name.startswith(LIBRARIES):
        return _from_library(name, images.size)
    found: Extractor | None
    if name != "auto":
        found = extractor.read(Path(name))
        found.load_into(build(wanted.backbone, images.train.images[:1], 2))  # does it fit?
    else:
        found = _find(images, wanted)
    if found is None and len(images.train) < SMALLEST:
        say(f"extractor: none ({len(images.train)} images are too few to train one on)")
        return None
    if found is None:
        found = _make_first(images, wanted, device, policy)
    say(f"extractor: {found.path.name} {found.version}, {summary(found.card)}")
    for warning in doubts(found, images):
        say(f"WARNING: {warning}")
    return found


def _from_library(name: str, size: int) -> Extractor:
    """Weights that come with timm or torchvision, or fit one of their networks."""
    from labelcurve.training.models import timm_weights, torchvision_weights

    if name.startswith(TIMM):
        found = timm_weights.read(name, size, say)
    else:
        found = torchvision_weights.read(name, size)
    card = found.card
    labels = "without" if card.objective == "self-supervised" else "with"
    images = card.dataset if card.source else f"images that {card.dataset} does not name"
    said = f", license {card.license}" if card.license else ""
    say(f"extractor: {name} {found.version}, trained {labels} labels on {images}{said}")
    return found


def doubts(found: Extractor | None, images: Data) -> tuple[str, ...]:
    """Warnings about an extractor that was cut short, or made from other images or at another
    size."""
    if found is None or not found.card.runs:  # ImageNet weights are described elsewhere
        return ()
    card, name, said = found.card, shown(found.path.name), []
    if card.cut_short:
        said.append(
            f"the extractor {name} was trained for only {card.runs[-1].epochs:.3g} "
            "epochs, for lack of time: `pretrain`, or `train` without --max-minutes, makes a "
            "better one"
        )
    if card.pixels_hash != images.pixels_hash:
        said.append(
            f"the extractor {name} was trained on other images than these training "
            "images: if the test images were among them, without their labels, the test figures "
            "are not those of unseen images"
        )
    if card.image_size != images.size:
        said.append(
            f"the extractor {name} was trained at {card.image_size} px, and these "
            f"images have {images.size}: one made at --image-size {images.size} may do better"
        )
    return tuple(said)


def short(recipe: Pretraining, n_images: int) -> Pretraining:
    """The recipe with as many epochs as take some minutes on two cores."""
    if recipe.objective == "relative-position":
        return recipe
    return replace(recipe, epochs=min(SHORT_EPOCHS, max(1.0, SHORT_IMAGES / n_images)))


def _find(images: Data, wanted: Wanted) -> Extractor | None:
    """The shipped or cached extractor; without a time limit, none that such a limit cut short.

    Where none was made from these images, colour images take the shipped one of other images:
    minutes of pretraining on a few thousand images give a worse one (docs/log.md, 2026-11-29).
    """
    kind = wanted.backbone, images.size, wanted.flip
    found = extractor.find(images.pixels_hash, *kind, wanted.cache)
    if found is not None and wanted.seconds is None and found.card.cut_short:
        say(
            f"extractor: {found.path.name} in the cache was trained for only "
            f"{found.card.runs[-1].epochs:.3g} epochs, for lack of time (--max-minutes)"
        )
        found = None
    if found is None and not _gray(images) and (found := extractor.shipped(*kind)):
        say(
            f"extractor: none was made from these images, so the shipped {found.path.name} is "
            "taken; `pretrain` makes one from them"
        )
    return found


def _gray(images: Data) -> bool:
    """Whether the first images have no colours, as scans and digits have none."""
    first = images.train.images[:GRAY_SAMPLE]
    return bool((first == first[..., :1]).all())


def _make_first(
    images: Data, wanted: Wanted, device: Device, policy: CheckpointPolicy
) -> Extractor:
    """A short pretraining, unless another process makes the same extractor meanwhile."""
    say(
        "extractor: a short one is made from these images first (a longer `pretrain` gives a "
        "better one; --extractor none leaves it out)"
    )
    n = len(images.train)
    objective: Objective = "relative-position" if wanted.backbone == "reference" else "contrastive"
    plan = short(pretraining(objective, n, images.size), n)
    out = extractor.cached(
        images.pixels_hash, wanted.backbone, images.size, wanted.flip, _writable(wanted.cache)
    )
    request = Request(plan, wanted.flip, seconds=wanted.seconds, precision=wanted.precision)
    # The checkpoint is named by all its ingredients, so that it never collides with one that
    # `pretrain` left for the same file.
    ingredients = json.dumps(key(images, request, len(split(n)[0])), sort_keys=True)
    digest = hashlib.sha256(ingredients.encode()).hexdigest()[:12]
    with lock.hold(lock_file(out), "{holder} is making it: waiting", wait=True, say=say):
        return _find(images, wanted) or make(
            images,
            request,
            device,
            out,
            path=out.with_name(f".{out.stem}-{digest}.checkpoint"),
            policy=policy,
        )


def _writable(cache: Path) -> Path:
    """The cache, or a temporary folder where the cache cannot be written."""
    folder = cache / "extractors"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK | os.X_OK):
        return cache
    temporary = Path(tempfile.mkdtemp(prefix="labelcurve-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    say(f"the cache {folder} cannot be written: the extractor is not kept")
    return temporary
