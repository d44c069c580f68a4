"""Fine-tuning a network on the labelled rows, and the choice of the epoch on validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

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
from training.device import Device
from training.evaluate import scores
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
    say: Callable[[str], None] = print,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Result:
    """Trains `network` and keeps the epoch with the best validation accuracy, then loss.

    Raises:
        LabelcurveError: the loss is not finite.
    """
    torch.manual_seed(seed)
    generator = torch.Generator(device.device).manual_seed(seed)
    network = network.to(device.device).to(memory_format=torch.channels_last)
    size = train.images.shape[1]
    padding = round(recipe.crop * size / 32)
    padded = augment.pad(_to_device(train.images, device), padding)
    labels = torch.from_numpy(train.labels).to(device.device)
    val_images = _to_device(val.images, device)
    n = len(labels)
    batch = min(recipe.batch_size, n)
    steps = n // batch
    optimizer, schedule = _optimizer(network, recipe, steps)
    averaged = _averaged(network, recipe, steps)
    best: tuple[float, float] | None = None
    best_epoch, best_state = 0, copy.deepcopy(network.state_dict())
    history: list[Epoch] = []
    say(HEADER)
    for number in range(1, recipe.epochs + 1):
        start = time.monotonic()
        network.train()
        loss_sum = torch.zeros((), device=device.device)
        correct = torch.zeros((), device=device.device)
        for rows in _batches(n, batch, generator, device.device):
            pixels = augment.crop_flip(padded, rows, size, recipe.flip, generator)
            images = augment.cutout(
                network.normalise(pixels), round(recipe.cutout * size / 32), generator
            )
            with device.autocast():
                logits = network(images)
                loss = F.cross_entropy(logits, labels[rows], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recipe.schedule == "triangle":
                schedule.step()
            if averaged is not None:
                averaged.update_parameters(network)
            loss_sum += loss.detach() * len(rows)
            correct += (logits.detach().argmax(1) == labels[rows]).sum()
        trained = time.monotonic() - start
        train_loss = float(loss_sum) / (steps * batch)
        _check_finite("training", train_loss, number, optimizer)
        judged = cast(Network, averaged.module) if averaged is not None else network
        val_logits = predict_logits(judged, val_images, device)
        val_scores = scores(val_logits, val.labels)
        _check_finite("validation", val_scores.loss, number, optimizer)
        lr = float(optimizer.param_groups[0]["lr"])
        if recipe.schedule == "plateau":
            schedule.step(cast(Any, val_scores.loss))
        row = Epoch(
            epoch=number,
            train_loss=train_loss,
            train_accuracy=float(correct) / (steps * batch),
            val_loss=val_scores.loss,
            val_accuracy=val_scores.accuracy,
            val_f1=val_scores.f1,
            val_precision=val_scores.precision,
            val_recall=val_scores.recall,
            lr=lr,
            images_per_s=steps * batch / trained,
            seconds=time.monotonic() - start,
        )
        history.append(row)
        on_epoch(row)
        say(_row(row, recipe.epochs, sum(epoch.seconds for epoch in history)))
        key = (val_scores.accuracy, -val_scores.loss)
        if recipe.schedule == "plateau":
            key = (-val_scores.loss, 0.0)
        if best is None or key > best:
            best, best_epoch = key, number
            best_state = copy.deepcopy(judged.state_dict())
        elif number - best_epoch >= recipe.patience:
            say(f"no better validation result in {recipe.patience} epochs: stopped")
            break
    network.load_state_dict(best_state)
    return Result(network.cpu().float().eval(), tuple(history), best_epoch)


def predict_logits(
    network: Network, images: Tensor, device: Device, batch: int = 500
) -> NDArray[np.float64]:
    """Logits of uint8 [N, 3, H, W] in the device's precision, float64 [N, K]."""
    network.eval()
    with torch.inference_mode(), device.autocast():
        parts = [network(network.normalise(part)) for part in images.split(batch)]
    return torch.cat(parts).double().cpu().numpy()


def _check_finite(which: str, loss: float, epoch: int, optimizer: torch.optim.Optimizer) -> None:
    if not math.isfinite(loss):
        raise LabelcurveError(
            f"the {which} loss is {loss} in epoch {epoch} at learning rate "
            f"{optimizer.param_groups[0]['lr']:.4g}: nothing was published"
        )


def _to_device(images: NDArray[np.uint8], device: Device) -> Tensor:
    """[N, H, W, 3] on the host to [N, 3, H, W] on the device, laid out as channels_last."""
    tensor = torch.from_numpy(np.array(images)).to(device.device)
    return tensor.permute(0, 3, 1, 2)


def _batches(
    n: int, batch: int, generator: torch.Generator, device: torch.device
) -> Iterator[Tensor]:
    order = torch.randperm(n, generator=generator, device=device)
    for first in range(0, n - batch + 1, batch):
        yield order[first : first + batch]


def _optimizer(
    network: Network, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    if recipe.optimizer == "adam":
        adam = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        return adam, torch.optim.lr_scheduler.ReduceLROnPlateau(
            adam, factor=0.5, patience=recipe.plateau_patience - 1
        )
    # No weight decay on biases and batch norm (He et al., Bag of Tricks, 2019).
    decayed = [p for p in network.parameters() if p.ndim > 1]
    kept = [p for p in network.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": kept},
    ]
    sgd = torch.optim.SGD(
        groups,
        lr=recipe.lr,
        momentum=0.9,
        nesterov=True,
    )
    total = steps * recipe.epochs
    rise = max(1, round(0.2 * total))

    def triangle(step: int) -> float:
        return min((step + 1) / rise, (total - step) / max(1, total - rise))

    return sgd, torch.optim.lr_scheduler.LambdaLR(sgd, triangle)


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


def _row(row: Epoch, epochs: int, elapsed: float) -> str:
    left = elapsed / row.epoch * (epochs - row.epoch)
    return (
        f"{row.epoch:3d}/{epochs:<3d} {row.train_loss:8.4f} {row.train_accuracy:9.4f} "
        f"{row.val_loss:9.4f} {row.val_accuracy:13.4f} {row.val_f1:7.4f} {row.lr:8.5f} "
        f"{row.images_per_s:9.0f} {row.seconds:8.1f} {left:6.0f} s"
    )
