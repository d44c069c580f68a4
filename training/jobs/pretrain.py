"""The command `pretrain`: trains a feature extractor without labels and writes it to a file."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.sources import Selection
from labelcurve.training.extractors import photos
from labelcurve.training.extractors.pretraining import Request, lock_file, make, summary
from labelcurve.training.models import extractor
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.options import PretrainOptions
from labelcurve.training.recipes import Pretraining, extendable, pretraining
from labelcurve.training.runs.budget import AROUND, SPARE
from labelcurve.training.runs.grid import ENDLESS
from labelcurve.training.runtime import lock
from labelcurve.training.runtime.checkpoint import CheckpointPolicy
from labelcurve.training.runtime.console import say
from labelcurve.training.runtime.device import check as check_device
from labelcurve.training.runtime.device import choose


def run(options: PretrainOptions, start: float | None = None) -> dict[str, Any]:
    """Trains an extractor and writes it.

    Args:
        start: of the process, by `time.monotonic`; None means now.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the options, the data or the device cannot be used, or the run failed.
    """
    began = time.monotonic() if start is None else start
    for file in (options.out, options.trunk):
        if file is not None:
            files.check_out(file.parent)
    check_device(options.device)
    first = None if options.start is None else extractor.read(options.start, "--start")
    images = _load(options)
    device = choose(options.device, options.precision)
    say(f"device: {device.choice.value} ({device.choice.reason})")
    say(f"precision: {device.precision.value} ({device.precision.reason})")
    recipe = _recipe(options, images)
    request = Request(
        recipe,
        flip=not options.no_flip and options.data != "digits",
        seed=options.seed,
        labelled=not options.unlabelled,
        seconds=_time_left(options.max_minutes, time.monotonic() - began),
        start=first,
        precision=options.precision,
    )
    cache = options.cache or dataset.default_cache()
    out = options.out or extractor.cached(
        images.pixels_hash, recipe.backbone, images.size, request.flip, cache
    )
    with ExitStack() as held:
        for path, option in ((out, "--out"), (options.trunk, "--trunk")):
            if path is not None:
                busy = f"{{holder}} is making {path} right now: wait for it, or name another file"
                held.enter_context(lock.hold(lock_file(path), f"{busy} with {option}", say=say))
        with suppress(LabelcurveError):
            before = extractor.read(out).card
            say(f"{out} is there and will be replaced: {summary(before)}")
        policy = CheckpointPolicy(options.fresh, options.checkpoint_seconds)
        made = make(images, request, device, out, path=options.trunk, policy=policy)
    say(f"\nwrote {made.path} and its card, {time.monotonic() - began:.0f} s")
    if options.out is None:
        _compare_with_shipped(made, cache)
    return {"extractor": _entry(made)}


def _load(options: PretrainOptions) -> Data:
    if options.clear_cache:
        dataset.clear(options.cache, say)
    images = dataset.load(
        Selection(
            options.data, options.layout, options.label_column, labelled=not options.unlabelled
        ),
        size=options.image_size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        memory=options.memory,
        say=say,
        choose_size=photos.Settled("none", say).choose_size,
    )
    say(
        f"data: {images.name}, {len(images.train):,} training images, {images.size} px, "
        f"pixels hash {images.pixels_hash[:12]}"
    )
    return images


def _recipe(options: PretrainOptions, images: Data) -> Pretraining:
    recipe = pretraining(options.objective, len(images.train), images.size)
    if options.epochs is not None:
        recipe = replace(recipe, epochs=options.epochs)
    elif options.max_minutes is not None:
        recipe = replace(recipe, epochs=ENDLESS)
    if options.batch_size is not None:
        recipe = replace(recipe, batch_size=options.batch_size)
    return recipe if options.trunk is None else extendable(recipe)


def _compare_with_shipped(made: Extractor, cache: Path) -> None:
    """Says so where `train` would prefer the shipped extractor."""
    card = made.card
    taken = extractor.find(card.pixels_hash, card.backbone, card.image_size, card.flip, cache)
    if taken is not None and taken.path != made.path:
        say(
            f"`train` takes {taken.path.name} by default, which is at least as good (k-NN "
            f"{taken.card.knn or 0:.4f}); --extractor {made.path} takes this one"
        )


def _entry(made: Extractor) -> dict[str, Any]:
    last = made.card.runs[-1]
    return {
        "path": str(made.path),
        "version": made.version,
        "objective": made.card.objective,
        "pixels_hash": made.card.pixels_hash,
        "epochs": last.epochs,
        "seconds": last.seconds,
        "knn": made.card.knn,
        "probe": made.card.probe,
    }


def _time_left(minutes: float | None, startup: float) -> float | None:
    """Returns the seconds left for training; None without a limit."""
    if minutes is None:
        return None
    left = minutes * 60 * (1 - SPARE) - AROUND - startup
    if left <= 1:
        raise LabelcurveError(
            f"--max-minutes {minutes:g} leaves no time to learn: the start of the process and "
            f"reading the data took {startup:.0f} s. Allow more minutes"
        )
    return left
