"""Fine-tuning a network on the labelled rows, and the choice of the epoch on validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from bundle.errors import LabelcurveError
from bundle.manifest import Epoch
from training import augment
from training.backbones import Network
from training.device import Device, to_device
from training.evaluate import scores
from training.optimizers import Optimizers
from training.recipes import Recipe

HEADER = (
    "epoch      loss  accuracy  val loss  val accuracy  val F1       lr  images/s  seconds     left"
)


@dataclass(frozen=True)
class Labelled:
    """Labelled images on the host."""

    images: NDArray[np.uint8]
    """[N, H, W, 3]"""
    labels: NDArray[np.int64]
    """[N]"""


@dataclass(frozen=True)
class Result:
    """A trained network and how it came about."""

    network: Network
    """fp32, on the CPU, in evaluation mode, with the weights of `best_epoch`."""
    history: tuple[Epoch, ...]
    best_epoch: int


def finetune(
    network: Network,
    train: Labelled,
    val: Labelled,
    recipe: Recipe,
    device: Device,
    seed: int,
    *,
    unlabelled: NDArray[np.uint8] | None = None,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Result:
    """Trains `network` in place.

    The weights are those of the last epoch, where the learning rate has come to its end, unless an
    earlier one was better on validation by more than its standard error.

    Args:
        unlabelled: [M, H, W, 3], images that teach by `recipe.consistency`.
        seconds: the run ends then at the latest, with the learning rate at its end.

    Raises:
        LabelcurveError: the loss is not finite.
    """
    torch.manual_seed(seed)
    generator = torch.Generator(device.device).manual_seed(seed)
    network = network.to(device.device).to(memory_format=torch.channels_last)
    size = train.images.shape[1]
    labelled = _Stream(train.images, recipe.batch_size, recipe.crop, generator, device)
    labels = torch.from_numpy(train.labels).to(device.device)
    others = None
    if unlabelled is not None and len(unlabelled) and recipe.consistency > 0:
        ratio = recipe.unlabelled_ratio
        others = _Stream(unlabelled, ratio * labelled.batch, recipe.crop, generator, device)
    val_images = to_device(val.images, device)
    steps = labelled.steps
    optimizers = Optimizers(
        [(network.backbone, recipe.backbone_lr), (network.classifier, 1.0)], recipe, device.dtype
    )
    averaged = _averaged(network, recipe, steps)
    judged = cast(Network, averaged.module) if averaged is not None else network
    cut = round(recipe.cutout * size / 32)
    best: tuple[float, float] | None = None
    best_epoch, best_state, best_accuracy, stale = 0, {}, 0.0, 0
    history: list[Epoch] = []
    total = steps * recipe.epochs
    step, began = 0, time.monotonic()
    of = "" if seconds is not None else f"/{recipe.epochs}"
    say(HEADER)
    while True:
        start = time.monotonic()
        network.train()
        loss_sum = torch.zeros((), device=device.device)
        correct = torch.zeros((), device=device.device)
        in_epoch, progress = 0, step / total
        while in_epoch < steps:
            if seconds is not None:
                progress = max(step / total, (time.monotonic() - began) / seconds)
                if progress >= 1 and step:
                    break
            else:
                progress = step / total
            rows, pixels = labelled.next(recipe.flip)
            images = augment.cutout(network.normalise(pixels), cut, generator)
            targets = labels[rows]
            optimizers.begin(min(progress, 1 - 1e-6))
            if others is not None and progress >= recipe.unlabelled_from:
                loss, logits = _semi_supervised(
                    network, judged, images, targets, others, recipe, cut, device, generator
                )
            else:
                with device.autocast():
                    logits = network(images)
                    loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimizers.step()
            if averaged is not None:
                averaged.update_parameters(network)
            loss_sum += loss.detach() * len(rows)
            correct += (logits.detach().argmax(1) == targets).sum()
            step += 1
            in_epoch += 1
        if in_epoch == 0:  # the time ran out between two epochs
            break
        trained = time.monotonic() - start
        seen = in_epoch * labelled.batch
        number = len(history) + 1
        train_loss = float(loss_sum) / seen
        _check_finite("training", train_loss, number, optimizers.lr)
        val_scores = scores(predict_logits(judged, val_images, device), val.labels)
        _check_finite("validation", val_scores.loss, number, optimizers.lr)
        row = Epoch(
            epoch=number,
            train_loss=train_loss,
            train_accuracy=float(correct) / seen,
            val_loss=val_scores.loss,
            val_accuracy=val_scores.accuracy,
            val_f1=val_scores.f1,
            val_precision=val_scores.precision,
            val_recall=val_scores.recall,
            lr=optimizers.lr,
            images_per_s=seen / trained,
            seconds=time.monotonic() - start,
        )
        history.append(row)
        on_epoch(row)
        elapsed = time.monotonic() - began
        progress = step / total if seconds is None else max(step / total, elapsed / seconds)
        say(_row(row, of, elapsed * (1 / progress - 1) if progress < 1 else 0.0))
        key = (val_scores.accuracy, -val_scores.loss)
        if recipe.schedule == "plateau":
            key = (-val_scores.loss, 0.0)
        stale += 1
        if best is None or key > best:
            best, best_epoch, best_accuracy, stale = key, number, val_scores.accuracy, 0
            best_state = copy.deepcopy(judged.state_dict())
        elif recipe.schedule == "plateau" and stale % recipe.plateau_patience == 0:
            optimizers.halve()
        if recipe.schedule == "plateau" and stale >= recipe.patience:
            say(f"no better validation result in {recipe.patience} epochs: stopped")
            break
        if progress >= 1:
            break
    error = math.sqrt(best_accuracy * (1 - best_accuracy) / len(val.labels))
    if recipe.schedule == "linear" and best_accuracy - history[-1].val_accuracy <= error:
        best_epoch, best_state = len(history), judged.state_dict()
    network.load_state_dict(best_state)
    return Result(network.cpu().float().eval(), tuple(history), best_epoch)


def _semi_supervised(
    network: Network,
    teacher: Network,
    images: Tensor,
    targets: Tensor,
    others: _Stream,
    recipe: Recipe,
    cut: int,
    device: Device,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the labels, and on what the averaged weights say of other images.

    The teacher sees the image as it is, the student a changed view; images of which the teacher is
    not sure do not count. Sources: A. Tarvainen and H. Valpola, Mean teachers, 2017; K. Sohn et
    al., FixMatch, 2020.

    Returns:
        The loss, and the logits of the labelled images.
    """
    _, pixels = others.next(recipe.flip)
    views = augment.cutout(network.normalise(pixels), cut, generator)
    teacher.eval()
    with torch.no_grad(), device.autocast():
        guess = torch.softmax(teacher(network.normalise(pixels)).float() / recipe.sharpening, dim=1)
    network.train()  # without averaged weights it is the teacher, too
    sure = (guess.amax(1) >= recipe.confidence).float()
    with device.autocast():
        logits = network(torch.cat([images, views]))
    own, theirs = logits.float().split([len(images), len(views)])
    supervised = F.cross_entropy(own, targets, label_smoothing=recipe.label_smoothing)
    taught = (F.cross_entropy(theirs, guess, reduction="none") * sure).mean()
    return supervised + recipe.consistency * taught, own


class _Stream:
    """Batches of random crops without end, each image once an epoch."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        batch: int,
        crop: int,
        generator: torch.Generator,
        device: Device,
    ) -> None:
        self._size = images.shape[1]
        self._padded = augment.pad(to_device(images, device), round(crop * self._size / 32))
        self._generator = generator
        self.batch = min(batch, len(images))
        self.steps = len(images) // self.batch
        self._left: list[Tensor] = []

    def next(self, flip: bool) -> tuple[Tensor, Tensor]:
        """Rows, int64 [B], and their crops, uint8 [B, 3, H, W]."""
        if not self._left:
            n = len(self._padded)
            order = torch.randperm(n, generator=self._generator, device=self._padded.device)
            self._left = list(order[: self.steps * self.batch].split(self.batch))
        rows = self._left.pop()
        return rows, augment.crop_flip(self._padded, rows, self._size, flip, self._generator)


def predict_logits(
    network: Network, images: Tensor, device: Device, batch: int = 500
) -> NDArray[np.float64]:
    """Logits of uint8 [N, 3, H, W] in the device's precision, float64 [N, K]."""
    network.eval()
    with torch.inference_mode(), device.autocast():
        parts = [network(network.normalise(part)) for part in images.split(batch)]
    return torch.cat(parts).double().cpu().numpy()


def _check_finite(which: str, loss: float, epoch: int, lr: float) -> None:
    if not math.isfinite(loss):
        raise LabelcurveError(
            f"the {which} loss is {loss} in epoch {epoch} at learning rate {lr:.4g}: nothing was "
            "published"
        )


def _averaged(network: Network, recipe: Recipe, steps: int) -> AveragedModel | None:
    if recipe.ema == 0:
        return None
    decay = recipe.ema ** (1 / max(1, steps))

    def average(
        averaged: Sequence[Tensor], current: Sequence[Tensor], n_averaged: Tensor | int
    ) -> None:
        # A shorter memory at first, so that the initial weights are soon forgotten.
        n = int(n_averaged)
        weight = 1 - min(decay, (1 + n) / (10 + n))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, weight)
            else:
                mean.copy_(value)

    return AveragedModel(network, multi_avg_fn=average, use_buffers=True)


def _row(row: Epoch, of: str, left: float) -> str:
    return (
        f"{row.epoch:3d}{of:<4} {row.train_loss:8.4f} {row.train_accuracy:9.4f} "
        f"{row.val_loss:9.4f} {row.val_accuracy:13.4f} {row.val_f1:7.4f} {row.lr:8.5f} "
        f"{row.images_per_s:9.0f} {row.seconds:8.1f} {left:6.0f} s"
    )
