"""The run of `pretrain`, top to bottom: data, network, objective, learning, judging, file."""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bundle import files
from bundle.errors import DivergedError, LabelcurveError, near
from bundle.machine import git_commit, versions
from training import (
    checkpoint,
    compilation,
    data,
    distributed,
    extractor,
    fractions,
    interruption,
    lock,
)
from training.backbones import Network, build
from training.budget import AROUND, SPARE
from training.checkpoint import Checkpoint
from training.data import Data
from training.device import Device, choose, circumstances, hardware, to_device
from training.device import check as check_device
from training.extractor import Card, Extractor, lasted
from training.objectives import Contrastive, RelativePosition
from training.options import PretrainOptions
from training.output import say
from training.pretrain import Result, pretrain
from training.probe import Probe
from training.progress import Bar
from training.recipes import TORCHVISION, Objective, Pretraining, Recipe, pretraining
from training.stored import Images, take
from training.stream import reading
from training.views import Views

PACKAGES = ("labelcurve", "lightly", "numpy", "torch")

HELD_OUT = 5_000
"""Training images that judge the embedding, at most; or a tenth."""

PROBED_BYTES = 2**30
"""Of the images to learn from, so many are on the device to judge it."""

SMALLEST = 200
"""Training images; from fewer, nothing is learnt without labels."""

SHORT_IMAGES = 150_000
SHORT_EPOCHS = 20
"""A short pretraining has so many epochs, or sees so many images where that is less."""


@dataclass(frozen=True)
class Request:
    """What to learn from, and how."""

    recipe: Pretraining
    flip: bool
    seed: int = 0
    labelled: bool = True
    """Labels are there to judge by; the extractor never sees them."""
    seconds: float | None = None
    """From `since` to the last figure, over all parts of an interrupted run."""
    since: float = field(default_factory=time.monotonic)
    start: Extractor | None = None
    """Weights to begin with."""


def run(options: PretrainOptions, start: float | None = None) -> dict[str, Any]:
    """Learns an extractor and writes it.

    Args:
        options: of the command.
        start: of the process, by `time.monotonic`; None means now.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the data, the device or the training is not as it must be.
    """
    began = time.monotonic() if start is None else start
    if options.out is not None:
        files.check_out(options.out.parent)
    check_device(options.device)
    first = None if options.start is None else extractor.read(options.start, "--start")
    if options.clear_cache:
        data.clear(options.cache, say)
    images = data.load(
        options.data,
        size=options.image_size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        labelled=not options.unlabelled,
        memory=options.memory,
        say=say,
    )
    say(
        f"data: {images.name}, {len(images.train):,} training images, {images.size} px, "
        f"pixels hash {images.pixels_hash[:12]}"
    )
    device = choose(options.device)
    say(f"device: {device.choice.value} ({device.choice.reason})")
    say(f"precision: {device.precision.value} ({device.precision.reason})")
    recipe = pretraining(options.objective, len(images.train), images.size)
    if options.epochs is not None:
        recipe = replace(recipe, epochs=options.epochs)
    elif options.max_minutes is not None:
        recipe = replace(recipe, epochs=10_000)
    if options.batch_size is not None:
        recipe = replace(recipe, batch_size=options.batch_size)
    request = Request(
        recipe,
        flip=not options.no_flip and options.data != "digits",
        seed=options.seed,
        labelled=not options.unlabelled,
        seconds=_left(options.max_minutes, time.monotonic() - began),
        start=first,
    )
    out = options.out or extractor.cached(
        images.pixels_hash,
        recipe.backbone,
        images.size,
        request.flip,
        options.cache or data.default_cache(),
    )
    busy = f"{{holder}} is making {out} right now: wait for it, or name another file with --out"
    with lock.hold(_lock(out), busy, say=say):
        with suppress(LabelcurveError):
            before = extractor.read(out).card
            say(f"{out} is there and will be replaced: {_summary(before)}")
        made = make(
            images,
            request,
            device,
            out,
            fresh=options.fresh,
            checkpoint_seconds=options.checkpoint_seconds,
        )
    say(f"\nwrote {made.path} and its card, {time.monotonic() - began:.0f} s")
    if options.out is None:
        taken = extractor.find(
            images.pixels_hash,
            recipe.backbone,
            images.size,
            request.flip,
            options.cache or data.default_cache(),
        )
        if taken is not None and taken.path != made.path:
            say(
                f"`train` takes {taken.path.name} by itself, which is no worse (k-NN "
                f"{taken.card.knn or 0:.4f}); --extractor {made.path} takes this one"
            )
    last = made.card.runs[-1]
    return {
        "extractor": {
            "path": str(made.path),
            "version": made.version,
            "objective": made.card.objective,
            "pixels_hash": made.card.pixels_hash,
            "epochs": last.epochs,
            "seconds": last.seconds,
            "knn": made.card.knn,
            "probe": made.card.probe,
        }
    }


def check(wanted: str) -> None:
    """Refuses what `train --extractor` cannot mean, before any image is read.

    Raises:
        LabelcurveError: names what there is.
    """
    if wanted.startswith(TORCHVISION):
        from training import imagenet

        imagenet.check(wanted)
    elif wanted not in ("auto", "none") and not (wanted and Path(wanted).is_file()):
        what = "a folder, not a file" if wanted and Path(wanted).is_dir() else "no such file"
        shown = wanted or "''"
        raise LabelcurveError(
            f"--extractor {shown}: {what}{near(wanted, ('auto', 'none'))}. Allowed: auto, "
            f"none, a file that `pretrain` wrote, {TORCHVISION}NAME and {TORCHVISION}NAME=FILE"
        )


def obtain(
    wanted: str,
    images: Data,
    recipe: Recipe,
    device: Device,
    *,
    flip: bool,
    cache: Path | None,
    seconds: float | None,
    fresh: bool = False,
    checkpoint_seconds: float = checkpoint.SECONDS,
) -> Extractor | None:
    """The extractor that `train --extractor` names.

    Args:
        seconds: a pretraining that is needed first ends after so many at the latest.
        fresh: a pretraining that was interrupted starts over.
        checkpoint_seconds: between two checkpoints of it.

    Raises:
        LabelcurveError: no such extractor, or one that does not fit.
    """
    if wanted == "none":
        return None
    if wanted.startswith(TORCHVISION):
        from training import imagenet

        theirs = imagenet.read(wanted, images.size)
        say(f"extractor: {wanted} {theirs.version}, learned with labels from {theirs.card.dataset}")
        return theirs
    found: Extractor | None
    cache = cache or data.default_cache()
    objective: Objective = "relative-position" if recipe.backbone == "reference" else "contrastive"
    plan = short(pretraining(objective, len(images.train), images.size), len(images.train))
    if wanted != "auto":
        found = extractor.read(Path(wanted))
        found.load_into(build(recipe.backbone, images.train.images[:1], 2))  # does it fit?
    else:
        found = _found(images, recipe, flip, cache, seconds)
    if found is None and len(images.train) < SMALLEST:
        say(f"extractor: none ({len(images.train)} images are too few to learn one from)")
        return None
    if found is None:
        say(
            "extractor: a short one is made from these images first (a longer `pretrain` gives a "
            "better one; --extractor none leaves it out)"
        )
        out = extractor.cached(
            images.pixels_hash, recipe.backbone, images.size, flip, _writable(cache)
        )
        request = Request(plan, flip, seconds=seconds)
        # Named by all that it depends on: what another `pretrain` left is not its business.
        learn, _ = split(len(images.train))
        key = json.dumps(_key(images, request, learn), sort_keys=True)
        of = hashlib.sha256(key.encode()).hexdigest()[:12]
        with lock.hold(_lock(out), "{holder} is making it: waiting", wait=True, say=say):
            found = _found(images, recipe, flip, cache, seconds) or make(
                images,
                request,
                device,
                out,
                path=out.with_name(f".{out.stem}-{of}.checkpoint"),
                fresh=fresh,
                checkpoint_seconds=checkpoint_seconds,
            )
    say(f"extractor: {found.path.name} {found.version}, {_summary(found.card)}")
    for warning in doubts(found, images):
        say(f"WARNING: {warning}")
    return found


def _summary(card: Card) -> str:
    judged = "" if card.knn is None else f", k-NN {card.knn:.4f}"
    return (
        f"{card.objective} on {card.n_images:,} images of {card.dataset}, "
        f"{lasted(card.seconds)}{judged}"
    )


def _found(
    images: Data, recipe: Recipe, flip: bool, cache: Path, seconds: float | None
) -> Extractor | None:
    """What is there already; without a limit of time nothing that such a limit cut short."""
    found = extractor.find(images.pixels_hash, recipe.backbone, images.size, flip, cache)
    if found is not None and seconds is None and found.card.cut_short:
        say(
            f"extractor: {found.path.name} in the cache had {found.card.runs[-1].epochs:.3g} "
            "epochs only, for want of time (--max-minutes)"
        )
        return None
    return found


def doubts(found: Extractor | None, images: Data) -> tuple[str, ...]:
    """What is to be said of an extractor of other images or sizes, or of one that was cut short."""
    if found is None or not found.card.runs:  # ImageNet weights say themselves what they are
        return ()
    card, said = found.card, []
    if card.cut_short:
        said.append(
            f"the extractor {found.path.name} had {card.runs[-1].epochs:.3g} epochs only, for want "
            "of time: `pretrain`, or `train` without --max-minutes, makes a better one"
        )
    if card.pixels_hash != images.pixels_hash:
        said.append(
            f"the extractor {found.path.name} was learned from other images than these training "
            "images: if the test images were among them, without their labels, the test figures "
            "are not those of unseen images"
        )
    if card.image_size != images.size:
        said.append(
            f"the extractor {found.path.name} was learned at {card.image_size} px, and these "
            f"images have {images.size}: one made at --image-size {images.size} may do better"
        )
    return tuple(said)


def _writable(cache: Path) -> Path:
    """The cache, or a temporary folder where it cannot be written."""
    folder = cache / "extractors"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK | os.X_OK):
        return cache
    beside = Path(tempfile.mkdtemp(prefix="labelcurve-"))
    atexit.register(shutil.rmtree, beside, ignore_errors=True)
    say(f"the cache {folder} cannot be written: the extractor is not kept")
    return beside


def make(
    images: Data,
    request: Request,
    device: Device,
    out: Path,
    *,
    path: Path | None = None,
    fresh: bool = False,
    checkpoint_seconds: float = checkpoint.SECONDS,
) -> Extractor:
    """Learns an extractor from the training images, writes it to `out` and reads it back.

    Args:
        path: of the checkpoint, by default a hidden file beside `out`.
        fresh: do not go on from it.
        checkpoint_seconds: between two checkpoints.
    """
    commit = git_commit(Path(__file__))
    recipe = request.recipe
    learn, held = split(len(images.train))
    torch.manual_seed(request.seed)
    pixels = take(images.train.images, learn)
    network = build(recipe.backbone, pixels, 2)
    if request.start is not None:
        request.start.load_into(network)
    judges = None
    if request.labelled and len(held):
        bank = fractions.spread(learn, max(HELD_OUT, PROBED_BYTES * len(learn) // pixels.nbytes))
        judges = tuple(
            part
            for rows in (bank, held)
            for part in (images.train.images[rows], images.train.labels[rows])
        )
    say(
        f"\n{recipe.objective} on {len(learn):,} images; {len(held):,} held out "
        + ("to judge by k-NN" if judges else "(no labels to judge by)")
    )
    saved = Checkpoint(
        path or out.with_name(f".{out.stem}.checkpoint"),
        _key(images, request, learn),
        seconds=checkpoint_seconds,
        where=circumstances(device, commit, reading(images.train.images, len(learn))),
        say=say,
    )
    if fresh:
        saved.remove()
    try:
        with Bar("pretraining") as bar, interruption.deferred():
            result, knn, linear = distributed.together(
                learn_from,
                network,
                pixels,
                replace(request, start=None),
                device,
                mine={"judges": judges, "checkpoint": saved, "say": say, "on_step": bar.update},
            )
    except DivergedError:
        saved.remove()
        raise
    if knn is not None and linear is not None:
        say(f"k-NN {knn:.4f}, linear probe {linear:.4f} on {len(held):,} held-out training images")
    if request.seconds is not None and result.epochs < 1:
        say(
            f"WARNING: {result.epochs:.2f} epochs: the time ended before every image was seen, so "
            "expect little of this extractor. `pretrain` with more --max-minutes makes a better one"
        )
    this = extractor.Pretraining(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=result.started,
        epochs=round(result.epochs, 3),
        views_seen=result.views_seen,
        seconds=round(result.seconds, 1),
        hardware=hardware(device),
        precision=device.precision.value,
        seed=request.seed,
        recipe=asdict(recipe),
        packages={"python": platform.python_version(), **versions(PACKAGES)},
        git_commit=commit,
        loss=result.loss,
    )
    card = Card(
        dataset=images.name,
        pixels_hash=images.pixels_hash,
        n_images=len(learn),
        image_size=images.size,
        backbone=recipe.backbone,
        objective=recipe.objective,
        flip=request.flip,
        runs=(*(request.start.card.runs if request.start else ()), this),
        n_held_out=len(held),
        knn=knn,
        probe=linear,
    )
    extractor.write(out, network, card)
    saved.remove()
    return extractor.read(out)


def learn_from(
    network: Network,
    images: Images,
    request: Request,
    device: Device,
    *,
    judges: Sequence[NDArray[Any]] | None = None,
    checkpoint: Checkpoint | None = None,
    say: Callable[[str], None] = print,
    on_step: Callable[[float, float], None] = lambda *_: None,
) -> tuple[Result, float | None, float | None]:
    """Trains `network` in place; in every process, where there are several.

    Args:
        images: to learn from, [N, H, W, 3].
        judges: some of them with their labels, and held-out images with theirs.

    Returns:
        The result, the accuracy of k-NN and that of a linear probe.
    """
    recipe = request.recipe
    size = images.shape[1]
    network.to(device.device).to(memory_format=torch.channels_last)
    probe = None
    if judges is not None:
        bank, labels, held_out, held_out_labels = judges
        probe = Probe(
            to_device(bank, device), labels, to_device(held_out, device), held_out_labels, device
        )
    seconds = request.seconds
    if seconds is not None:
        # What made everything ready, and the figures at the end, are a part of the time.
        seconds = max(0.0, seconds - (time.monotonic() - request.since))
        closing = 0.0
        if probe is not None:
            cost, closing = probe.seconds(network)
            probe = replace(probe, cost=cost)
        if closing > seconds / 2:
            say(
                f"not judged: k-NN and linear probe would take some {closing:.0f} of "
                f"{seconds:.0f} s (--max-minutes)"
            )
            probe, closing = None, 0.0
        seconds = distributed.agree(max(0.0, seconds - closing))
    objective: Contrastive | RelativePosition
    if recipe.objective == "relative-position":
        objective = RelativePosition(size, device)
    else:
        side = max(8, round(recipe.view_share * size))
        views = Views(size=side, flip=request.flip)
        objective = Contrastive(network.dim, views, recipe.n_views, recipe.temperature, device)
    steps = recipe.epochs * len(images) / recipe.batch_size
    if seconds is not None and seconds < 300:
        steps = 0  # the time is needed for them
    choice = compilation.choose(device, steps)
    say(f"compilation: {choice.value} ({choice.reason})")
    with compilation.applied(network, choice):
        result = pretrain(
            network,
            objective,
            images,
            recipe,
            device,
            request.seed,
            probe=probe,
            checkpoint=checkpoint,
            seconds=seconds,
            say=say,
            on_step=on_step,
        )
    return result, result.knn, probe.linear(network) if probe else None


def split(n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rows to learn from and rows held out, evenly spaced in the order of the digests."""
    if n < 20:
        raise LabelcurveError(f"{n} training images: pretraining needs 20 at least")
    held = np.linspace(0, n - 1, min(HELD_OUT, n // 10)).astype(np.int32)
    learn = np.ones(n, bool)
    learn[held] = False
    return np.flatnonzero(learn).astype(np.int32), held


def short(recipe: Pretraining, n_images: int) -> Pretraining:
    """The same with as many passes as take some minutes on two cores."""
    if recipe.objective == "relative-position":
        return recipe
    return replace(recipe, epochs=min(SHORT_EPOCHS, max(1.0, SHORT_IMAGES / n_images)))


def _left(minutes: float | None, startup: float) -> float | None:
    """Seconds to learn in; None where there is no limit."""
    if minutes is None:
        return None
    left = minutes * 60 * (1 - SPARE) - AROUND - startup
    if left <= 1:
        raise LabelcurveError(
            f"--max-minutes {minutes:g} leaves no time to learn: the start of the process and "
            f"reading the data took {startup:.0f} s. Allow more minutes"
        )
    return left


def _lock(out: Path) -> Path:
    return out.with_name(f".{out.stem}.lock")


def _key(images: Data, request: Request, learn: NDArray[np.int32]) -> dict[str, object]:
    """What an extractor depends on, by the names that the user knows."""
    recipe = asdict(request.recipe)
    return {
        "the hash of the images": images.pixels_hash,
        "images to learn from:": len(learn),
        "--image-size": images.size,
        "--no-flip": not request.flip,
        "--seed": request.seed,
        "--start": request.start.version if request.start else None,
        "--objective": recipe.pop("objective"),
        "--epochs": recipe.pop("epochs"),
        **{f"the recipe's {name}": value for name, value in recipe.items()},
    }
