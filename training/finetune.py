"""Fine-tuning a network on the labelled rows, and the choice of the epoch on validation."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from bundle.errors import DeviceError, DivergedError
from bundle.manifest import Epoch
from training import augment, distributed
from training.backbones import Network
from training.checkpoint import Checkpoint, mix
from training.device import Device, to_device
from training.evaluate import scores
from training.losses import Batch, accumulate
from training.memory import EnoughMemory, more_parts
from training.optimizers import Optimizers
from training.recipes import Recipe
from training.source import Index
from training.stored import Images, take
from training.stream import Batches

HEADER = (
    "epoch      loss  accuracy  val loss  val accuracy  val F1       lr  images/s  seconds     left"
)


@dataclass(frozen=True)
class Labelled:
    """Labelled images on the host."""

    images: Images
    """uint8 [N, H, W, 3]"""
    labels: Index
    """[N]"""


@dataclass(frozen=True)
class Result:
    """A trained network and how it came about."""

    network: Network
    """fp32, on the CPU, in evaluation mode, with the weights of `best_epoch`."""
    history: tuple[Epoch, ...]
    best_epoch: int
    epochs: float
    """Less than one where the time was too short."""
    seconds: float
    """Of training, over all parts of an interrupted run."""
    micro_batches: int
    """Parts that a batch had at the end, for want of memory."""


def finetune(
    network: Network,
    train: Labelled,
    val: Labelled,
    recipe: Recipe,
    device: Device,
    seed: int,
    *,
    unlabelled: Images | None = None,
    seconds: float | None = None,
    checkpoint: Checkpoint | None = None,
    say: Callable[[str], None] = print,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_step: Callable[[float, float], None] = lambda *_: None,
) -> Result:
    """Trains `network` in place.

    The weights are those of the last epoch, where the learning rate has come to its end, unless an
    earlier one was better on validation by more than its standard error. Where the memory of the
    GPU does not hold a batch, its gradients are summed over parts of it.

    Args:
        unlabelled: [M, H, W, 3], images that teach by `recipe.consistency`.
        seconds: the run ends then at the latest, with the learning rate at its end.
        checkpoint: the run goes on from it, to the same weights as without an interruption.
        on_epoch: receives each row of the history, those of before an interruption not again.
        on_step: receives the progress of the run from 0 to 1, and the seconds that are left.

    Raises:
        LabelcurveError: the loss is not finite, the memory is too small for two images, or the
            checkpoint belongs to another run.
    """
    generator = torch.Generator(device.device)
    network = network.to(device.device).to(memory_format=torch.channels_last)
    distributed.join(network)
    size = train.images.shape[1]
    labelled = _Stream(train.images, recipe.batch_size, recipe.crop, seed, device, say)
    distributed.check(labelled.batch)
    own_val = val.images
    if distributed.size() > 1:
        own_val = take(val.images, np.arange(len(val.images))[distributed.part(len(val.images))])
    labels = torch.from_numpy(train.labels).to(device.device)
    others = None
    if unlabelled is not None and len(unlabelled) and recipe.consistency > 0:
        several = recipe.unlabelled_ratio * labelled.batch
        others = _Stream(unlabelled, several, recipe.crop, mix(seed, 1), device, say)
    steps = labelled.steps
    optimizers = Optimizers(
        [(network.backbone, recipe.backbone_lr), (network.classifier, 1.0)], recipe, device.dtype
    )
    averaged = _averaged(network, recipe, steps)
    judged = cast(Network, averaged.module) if averaged is not None else network
    cut = round(recipe.cutout * size / 32)
    at = _Position(loss=torch.zeros((), device=device.device), limit=seconds)
    at.correct = torch.zeros_like(at.loss)
    history: list[Epoch] = []
    best_state: dict[str, Any] = {}

    def state() -> dict[str, Any]:
        at.seconds = clock()
        return {
            "network": network.state_dict(),
            "averaged": averaged.state_dict() if averaged is not None else None,
            "optimizers": optimizers.state_dict(),
            "best": best_state,
            "history": [row.model_dump() for row in history],
            "position": asdict(at),
        }

    if (found := distributed.share(checkpoint and checkpoint.read())) is not None:
        network.load_state_dict(found["network"])
        if averaged is not None:
            averaged.load_state_dict(found["averaged"])
        optimizers.load_state_dict(found["optimizers"])
        best_state = found["best"]
        history = [Epoch.model_validate(row) for row in found["history"]]
        at = _Position(**found["position"])
        at.loss, at.correct = at.loss.to(device.device), at.correct.to(device.device)
        at.micro_batches = -(-at.micro_batches // distributed.size())
        say(f"going on at epoch {at.step / steps:.1f} from {checkpoint and checkpoint.path}")
    before, start = at.seconds, time.monotonic()

    def clock() -> float:
        """Seconds of training, over all parts of an interrupted run."""
        return before + time.monotonic() - start

    total = steps * recipe.epochs

    def train_loss() -> float:
        """Mean over the epoch so far; raises where it is no number."""
        found = float(at.loss) / (at.in_epoch * labelled.batch)
        _check_finite("training", found, len(history) + 1, optimizers.lr)
        return found

    def progress() -> float:
        """Of the run, from 0 to 1 and above."""
        done = at.step / total
        return done if at.limit is None else max(done, distributed.agree(clock()) / at.limit)

    def left() -> float:
        """Seconds, estimated."""
        done = progress()
        return clock() * (1 / done - 1) if 0 < done < 1 else 0.0

    of = f"/{recipe.epochs}" if at.limit is None else ""
    say(HEADER)
    while not at.ended:
        if at.in_epoch == 0:
            at.epoch_began = clock()
        network.train()
        while at.in_epoch < steps:
            done = progress()
            if at.limit is not None and done >= 1 and at.step:
                break
            on_step(min(1.0, done), left())
            teach = others is not None and done >= recipe.unlabelled_from
            while True:
                # The randomness of a step depends on nothing but its number: a run that goes on
                # after an interruption is the same run.
                generator.manual_seed(mix(seed, 2, at.step, *distributed.salt()))
                torch.manual_seed(mix(seed, 3, at.step, *distributed.salt()))
                optimizers.begin(min(done, 1 - 1e-6))
                with EnoughMemory() as enough:
                    rows, pixels = labelled.draw(at.step, recipe.flip, generator)
                    images = augment.cutout(network.normalise(pixels), cut, generator)
                    batch = Batch(images, labels[rows].long(), labelled.batch)
                    if others is not None and teach:
                        batch.n_others = others.batch
                        _, batch.others = others.draw(at.taught, recipe.flip, generator)
                        batch.views = augment.cutout(
                            network.normalise(batch.others), cut, generator
                        )
                    loss, correct = accumulate(
                        network, judged, batch, at.micro_batches, recipe, device
                    )
                    distributed.total_gradients(network, loss, correct)
                if enough:
                    break
                at.micro_batches = more_parts(at.micro_batches, labelled.batch, device, say)
            optimizers.step()
            if averaged is not None:
                averaged.update_parameters(network)
            at.loss += loss * labelled.batch
            at.correct += correct
            at.step += 1
            at.in_epoch += 1
            at.taught += teach
            distributed.heed()
            if checkpoint is not None:
                checkpoint.save(state, check=train_loss)
        if at.in_epoch == 0:  # the time ran out between two epochs
            break
        trained = clock() - at.epoch_began
        seen = at.in_epoch * labelled.batch
        number = len(history) + 1
        loss_seen = train_loss()
        val_logits = distributed.gathered(predict_logits(judged, own_val, device))
        val_scores = scores(val_logits, val.labels)
        _check_finite("validation", val_scores.loss, number, optimizers.lr)
        row = Epoch(
            epoch=number,
            train_loss=loss_seen,
            train_accuracy=float(at.correct) / seen,
            val_loss=val_scores.loss,
            val_accuracy=val_scores.accuracy,
            val_f1=val_scores.f1,
            val_precision=val_scores.precision,
            val_recall=val_scores.recall,
            lr=optimizers.lr,
            images_per_s=seen / trained,
            seconds=clock() - at.epoch_began,
        )
        history.append(row)
        on_epoch(row)
        say(_row(row, of, left()))
        at.next_epoch()
        key = (val_scores.accuracy, -val_scores.loss)
        if recipe.schedule == "plateau":
            key = (-val_scores.loss, 0.0)
        at.stale += 1
        if not at.best or key > at.best:
            at.best, at.best_epoch, at.best_accuracy, at.stale = (
                key,
                number,
                val_scores.accuracy,
                0,
            )
            best_state = copy.deepcopy(judged.state_dict())
        elif recipe.schedule == "plateau" and at.stale % recipe.plateau_patience == 0:
            optimizers.halve()
        if recipe.schedule == "plateau" and at.stale >= recipe.patience:
            say(f"no better validation result in {recipe.patience} epochs: stopped")
            at.ended = True
        at.ended = at.ended or progress() >= 1
        if checkpoint is not None and at.ended:  # what comes next can be interrupted, too
            checkpoint.write(state())
    error = math.sqrt(at.best_accuracy * (1 - at.best_accuracy) / len(val.labels))
    if recipe.schedule == "linear" and at.best_accuracy - history[-1].val_accuracy <= error:
        at.best_epoch, best_state = len(history), judged.state_dict()
    network.load_state_dict(best_state)
    distributed.part_with(network)
    return Result(
        network=network.cpu().float().eval(),
        history=tuple(history),
        best_epoch=at.best_epoch,
        epochs=at.step / steps,
        seconds=clock(),
        micro_batches=at.micro_batches,
    )


@dataclass(kw_only=True)
class _Position:
    """Where a run stands, beside its weights."""

    loss: Tensor
    """Sum over the images of the epoch, a scalar."""
    correct: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Images of the epoch, a scalar."""
    limit: float | None = None
    """Seconds of the whole run."""
    step: int = 0
    in_epoch: int = 0
    """Steps."""
    taught: int = 0
    """Batches of images without labels."""
    micro_batches: int = 1
    seconds: float = 0.0
    epoch_began: float = 0.0
    """In seconds of training."""
    best: tuple[float, ...] = ()
    best_epoch: int = 0
    best_accuracy: float = 0.0
    stale: int = 0
    """Epochs since the best one."""
    ended: bool = False

    def next_epoch(self) -> None:
        self.in_epoch = 0
        self.loss, self.correct = torch.zeros_like(self.loss), torch.zeros_like(self.correct)


class _Stream:
    """Batches of random crops without end, each image once an epoch."""

    def __init__(
        self,
        images: Images,
        batch: int,
        crop: int,
        seed: int,
        device: Device,
        say: Callable[[str], None],
    ) -> None:
        self._size = images.shape[1]
        border = round(crop * self._size / 32)
        self._batches = Batches(
            images,
            batch,
            border,
            [seed],
            device,
            say,
            rank=distributed.rank(),
            world=distributed.size(),
        )
        self.batch, self.steps = self._batches.batch, self._batches.steps

    def draw(self, number: int, flip: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Batch `number` of the run, or this process' part of it.

        Returns:
            Its rows, int64 [B], and crops of them, uint8 [B, 3, H, W].
        """
        rows, padded, index = self._batches.draw(number)
        return rows, augment.crop_flip(padded, index, self._size, flip, generator)


def predict_logits(
    network: Network, images: Images, device: Device, batch: int | None = None
) -> NDArray[np.float64]:
    """Logits of uint8 [N, H, W, 3] in the device's precision, float64 [N, K].

    Args:
        batch: images at a time; by default as many as have the pixels of 500 at a size of 32.
    """
    batch = batch or min(500, max(8, 500 * 32**2 // images.shape[1] ** 2))
    network.eval()
    parts: list[Tensor] = []
    done = 0
    while done < len(images) or not parts:
        with EnoughMemory() as enough, torch.inference_mode(), device.autocast():
            pixels = to_device(images[done : done + batch], device)
            parts.append(network(network.normalise(pixels)).double().cpu())
            done += batch
        if not enough and batch == 1:
            raise DeviceError(
                f"the memory of {device.choice.value} is too small for one image of this size: "
                "a smaller --image-size needs less, and --device cpu takes the machine's memory"
            )
        batch = batch if enough else batch // 2
    return torch.cat(parts).numpy()


def _check_finite(which: str, loss: float, epoch: int, lr: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the {which} loss is {loss} in epoch {epoch} at learning rate {lr:.4g}: nothing was "
            "published. Another --seed or --preset may do better; the same run would fail again"
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
