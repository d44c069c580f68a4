"""Trains a feature extractor on unlabelled images, evaluates it and writes it with its card."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelcurve.bundle.errors import DivergedError, LabelcurveError
from labelcurve.bundle.machine import command_line, git_commit, versions
from labelcurve.training.data import fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.stored import Images, take
from labelcurve.training.data.source import UNLABELLED
from labelcurve.training.learning import compilation
from labelcurve.training.learning.augment import Views
from labelcurve.training.learning.batches import reading
from labelcurve.training.learning.loop import SILENT, Control
from labelcurve.training.learning.objectives import Contrastive, RelativePosition
from labelcurve.training.learning.pretrain import Result, pretrain
from labelcurve.training.learning.probe import Probe
from labelcurve.training.models import extractor
from labelcurve.training.models.backbones import Network, build
from labelcurve.training.models.extractor import Card, Extractor, lasted
from labelcurve.training.recipes import Pretraining
from labelcurve.training.runtime import distributed, interruption
from labelcurve.training.runtime.checkpoint import DEFAULT_POLICY, Checkpoint, CheckpointPolicy
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import (
    Device,
    Precision,
    circumstances,
    continued,
    hardware,
    to_device,
)

PACKAGES = ("labelcurve", "numpy", "torch")

HELD_OUT = 5_000
"""Maximum number of held-out training images; at most a tenth of them are held out."""

PROBED_BYTES = 2**30
"""Memory on the device for the training images that the probe uses."""

SHORT_LIMIT = 300
"""Seconds; a shorter pretraining is not compiled."""


@dataclass(frozen=True)
class Request:
    """A pretraining: recipe, seed, time limit and initial weights."""

    recipe: Pretraining
    flip: bool
    seed: int = 0
    labelled: bool = True
    """Whether labels are available for evaluation; training never uses them."""
    seconds: float | None = None
    """Time limit counted from `since`, evaluation included, over all parts of a resumed run."""
    since: float = field(default_factory=time.monotonic)
    start: Extractor | None = None
    precision: Precision = "auto"
    """`--precision` as given; `Device.precision` is the one chosen."""


def make(
    images: Data,
    request: Request,
    device: Device,
    out: Path,
    *,
    path: Path | None = None,
    policy: CheckpointPolicy = DEFAULT_POLICY,
) -> Extractor:
    """Trains an extractor on the training images, writes it to `out` and reads it back.

    Args:
        path: of the checkpoint, by default a hidden file next to `out`. With an extendable recipe
            it stays, and holds the run as it was before its learning rate fell.
        policy: whether to resume from a checkpoint, and how often to write one.

    Raises:
        LabelcurveError: too few images, a diverged loss, or a checkpoint of another run.
    """
    commit = git_commit(Path(__file__))
    recipe = request.recipe
    learn, held = split(len(images.train))
    torch.manual_seed(request.seed)
    pixels = take(images.train.images, learn)
    network = build(recipe.backbone, pixels, 2)
    if request.start is not None:
        request.start.load_into(network)
    judges = _judges(images, pixels.nbytes, learn, held) if request.labelled else None
    n_judged = len(judges[-1]) if judges else len(held)
    say(
        f"\n{recipe.objective} on {len(learn):,} images; {n_judged:,} held out "
        + ("for k-NN evaluation" if judges else "(no labels to evaluate with)")
    )
    saved = Checkpoint(
        path or out.with_name(f".{out.stem}.checkpoint"),
        key(images, request, len(learn)),
        seconds=policy.seconds,
        about=lambda: {"precision": device.precision.model_dump()},
        say=say,
    )
    if policy.fresh:
        saved.remove()
    device = continued(device, saved.about(), say)
    saved.where = circumstances(device, commit, reading(images.train.images, len(learn)))
    try:
        with Bar("pretraining") as bar, interruption.deferred():
            control = Control(checkpoint=saved, say=say, on_step=bar.update)
            mine, wanted = {"judges": judges, "control": control}, replace(request, start=None)
            result, probe = distributed.together(
                learn_from, network, pixels, wanted, device, mine=mine
            )
    except DivergedError:
        if not recipe.extendable:  # the file of the earlier runs is still good
            saved.remove()
        raise
    if result.knn is not None and probe is not None:
        figures = f"k-NN {result.knn:.4f}, linear probe {probe:.4f}"
        say(f"{figures} on {n_judged:,} held-out training images")
    if request.seconds is not None and result.epochs < 1:
        say(
            f"WARNING: {result.epochs:.2f} epochs: the time ended before every image was seen, so "
            "expect little of this extractor. `pretrain` with more --max-minutes makes a better one"
        )
    judged = {"n_held_out": n_judged, "knn": result.knn, "probe": probe}
    record = _record(request, result, device, commit)
    extractor.write(out, network, _card(images, request, len(learn), judged, record))
    if result.trunk is None:
        saved.remove()
    else:
        saved.write(result.trunk)
        say(
            f"{saved.path}: {result.trunk['before']:,} steps before the learning rate fell; the "
            "same command resumes from there"
        )
    return extractor.read(out)


def learn_from(
    network: Network,
    images: Images,
    request: Request,
    device: Device,
    *,
    judges: Sequence[NDArray[Any]] | None = None,
    control: Control = SILENT,
) -> tuple[Result, float | None]:
    """Trains `network` in place; runs in every process of a distributed run.

    Args:
        images: to learn from, uint8 [N, H, W, 3].
        judges: some of them with their labels, and held-out images with theirs.
        control: observers and the checkpoint; the time limit is that of the request.

    Returns:
        The result, and the accuracy of the linear probe, None where there was no evaluation.
    """
    recipe = request.recipe
    network.to(device.device).to(memory_format=torch.channels_last)
    probe = None
    if judges is not None:
        bank, labels, held_out, held_out_labels = judges
        probe = Probe(
            to_device(bank, device), labels, to_device(held_out, device), held_out_labels, device
        )
    seconds = request.seconds
    if seconds is not None:
        # Setting up and the final evaluation count towards the limit.
        left = max(0.0, seconds - (time.monotonic() - request.since))
        probe, seconds = _share_time(probe, network, left, control.say)
    objective: Contrastive | RelativePosition
    if recipe.objective == "relative-position":
        objective = RelativePosition(images.shape[1], device)
    else:
        side = max(8, round(recipe.view_share * images.shape[1]))
        views = Views(size=side, flip=request.flip)
        objective = Contrastive(network.dim, views, recipe.n_views, recipe.temperature, device)
    steps = recipe.epochs * len(images) / recipe.batch_size
    if seconds is not None and seconds < SHORT_LIMIT:
        steps = 0  # compiling would use up the time
    choice = compilation.choose(device, steps)
    control.say(f"compilation: {choice.value} ({choice.reason})")
    with compilation.applied(network, choice):
        result = pretrain(
            network,
            objective,
            images,
            recipe,
            device,
            request.seed,
            probe,
            replace(control, seconds=seconds),
        )
    return result, probe.linear(network) if probe else None


def split(n: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rows to learn from and held-out rows, the latter evenly spaced in the order of the digests.

    Raises:
        LabelcurveError: fewer than 20 images.
    """
    if n < 20:
        raise LabelcurveError(f"{n} training images: pretraining needs at least 20")
    held = np.linspace(0, n - 1, min(HELD_OUT, n // 10)).astype(np.int32)
    learn = np.ones(n, bool)
    learn[held] = False
    return np.flatnonzero(learn).astype(np.int32), held


def lock_file(out: Path) -> Path:
    """The lock held while `out` is made."""
    return out.with_name(f".{out.name}.lock")


def key(images: Data, request: Request, n_images: int) -> dict[str, object]:
    """Everything an extractor depends on, under the names that users know.

    Args:
        n_images: images to learn from.
    """
    recipe = asdict(request.recipe)
    if request.recipe.extendable:  # each part may have a different length
        recipe["epochs"] = None
    return {
        "the hash of the images": images.pixels_hash,
        "images to learn from:": n_images,
        "--image-size": images.size,
        "--no-flip": not request.flip,
        "--seed": request.seed,
        "--precision": request.precision,
        "--start": request.start.version if request.start else None,
        "--objective": recipe.pop("objective"),
        "--epochs": recipe.pop("epochs"),
        **{f"the recipe's {name}": value for name, value in recipe.items()},
    }


def summary(card: Card) -> str:
    """An extractor in one phrase, for messages."""
    judged = "" if card.knn is None else f", k-NN {card.knn:.4f}"
    return (
        f"{card.objective} on {card.n_images:,} images of {card.dataset}, "
        f"{lasted(card.seconds)}{judged}"
    )


def _judges(
    images: Data, n_bytes: int, learn: NDArray[np.int32], held: NDArray[np.int32]
) -> tuple[NDArray[Any], ...] | None:
    """Pixels and labels of a part of the training rows, and of the held-out rows."""
    n = len(learn)
    held = held[images.train.labels[held] != UNLABELLED]
    learn = learn[images.train.labels[learn] != UNLABELLED]
    if not len(held) or not len(learn):
        return None
    bank = fractions.spread(learn, max(HELD_OUT, PROBED_BYTES * n // n_bytes))
    return tuple(
        part
        for rows in (bank, held)
        for part in (images.train.images[rows], images.train.labels[rows])
    )


def _share_time(
    probe: Probe | None, network: Network, seconds: float, say: Callable[[str], None]
) -> tuple[Probe | None, float]:
    """Reserves the time of the final evaluation.

    Returns:
        The probe, None where it would take more than half of the time; and the seconds to train.
    """
    closing = 0.0
    if probe is not None:
        cost, closing = probe.seconds(network)
        probe = replace(probe, cost=cost)
    if closing > seconds / 2:
        say(
            f"not evaluated: k-NN and linear probe would take some {closing:.0f} of "
            f"{seconds:.0f} s (--max-minutes)"
        )
        probe, closing = None, 0.0
    return probe, distributed.agree(max(0.0, seconds - closing))


def _card(
    images: Data,
    request: Request,
    n_images: int,
    judged: dict[str, Any],
    record: extractor.Pretraining,
) -> Card:
    return Card(
        dataset=images.name,
        pixels_hash=images.pixels_hash,
        n_images=n_images,
        image_size=images.size,
        backbone=request.recipe.backbone,
        objective=request.recipe.objective,
        flip=request.flip,
        runs=(*(request.start.card.runs if request.start else ()), record),
        **judged,
    )


def _record(
    request: Request, result: Result, device: Device, commit: str | None
) -> extractor.Pretraining:
    return extractor.Pretraining(
        command=command_line(),
        started=result.started,
        epochs=round(result.epochs, 3),
        views_seen=result.views_seen,
        seconds=round(result.seconds, 1),
        hardware=hardware(device),
        precision=device.precision.value,
        seed=request.seed,
        recipe=asdict(request.recipe),
        packages={"python": platform.python_version(), **versions(PACKAGES)},
        git_commit=commit,
        loss=result.loss,
    )
