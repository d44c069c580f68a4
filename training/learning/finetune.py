"""Fine-tunes a network on labelled images, or on the answers of a teacher."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelcurve.bundle.errors import DivergedError
from labelcurve.bundle.manifest import Epoch, Metrics
from labelcurve.training.data.decoded.stored import Images, take
from labelcurve.training.data.source import Index
from labelcurve.training.learning import augment
from labelcurve.training.learning.batches import Crops
from labelcurve.training.learning.loop import SILENT, Control, Loop
from labelcurve.training.learning.losses import Batch, accumulate
from labelcurve.training.learning.metrics import scores
from labelcurve.training.learning.optimizers import Optimizers, averaged
from labelcurve.training.models.backbones import Network, predict_logits
from labelcurve.training.models.linear_head import LinearHead
from labelcurve.training.recipes import Recipe
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.console import EPOCHS, epoch
from labelcurve.training.runtime.device import Device
from labelcurve.training.runtime.memory import more_parts


@dataclass(frozen=True)
class Labelled:
    """Labelled images on the host."""

    images: Images
    """uint8 [N, H, W, 3]"""
    labels: Index
    """[N]"""


@dataclass(frozen=True)
class Examples:
    """The images of a run."""

    train: Labelled
    val: Labelled
    """Judges each epoch; with the schedule `plateau` it chooses one. Else it may be empty."""
    answers: NDArray[np.float32] | None = None
    """A teacher's probabilities of the images of `train`, [N, K], used as targets in place of their
    labels."""


@dataclass(frozen=True)
class Result:
    """A trained network and how it was trained."""

    network: Network
    """fp32, on the CPU, in evaluation mode, with the weights of `best_epoch`."""
    history: tuple[Epoch, ...]
    best_epoch: int
    epochs: float
    """Less than one where the time was too short."""
    seconds: float
    """Training time, over all parts of an interrupted run."""
    micro_batches: int
    """Micro-batches into which a batch was split at the end for lack of memory."""
    head: LinearHead | None = None
    """Linear classifier on frozen features, trained in place of fine-tuning."""


def finetune(
    network: Network,
    examples: Examples,
    recipe: Recipe,
    device: Device,
    seed: int,
    control: Control = SILENT,
) -> Result:
    """Trains `network` in place.

    The weights are those of the last epoch, where the learning rate has decayed fully; with the
    schedule `plateau` those of the epoch with the lowest validation loss. Where the memory of the
    GPU does not hold a batch, its gradients are summed over parts of it.

    Raises:
        LabelcurveError: the loss is NaN or infinite, the memory is too small for two images, or
            the checkpoint belongs to another run.
    """
    network = network.to(device.device).to(memory_format=torch.channels_last)
    with distributed.joined(network):
        task = _Finetuning(network, examples, recipe, device, seed, control)
        streams = ((seed, 2), (seed, 3))
        loop = Loop(task, recipe.epochs * task.steps, device, streams, control)
        loop.run()
        loop.save()  # export and evaluation can be interrupted, too
        best_epoch = task.settle()
    return Result(
        network=network.cpu().float().eval(),
        history=tuple(task.history),
        best_epoch=best_epoch,
        epochs=loop.step / task.steps,
        seconds=loop.clock(),
        micro_batches=task.at.micro_batches,
    )


@dataclass(kw_only=True)
class _Position:
    """Progress of a run, apart from its weights."""

    loss: Tensor
    """Sum over the images of the epoch, a scalar."""
    correct: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Number of correctly classified images of the epoch, a scalar."""
    in_epoch: int = 0
    """Steps."""
    micro_batches: int = 1
    epoch_began: float = 0.0
    """Start of the epoch in seconds of training."""
    best: float = math.inf
    """Lowest validation loss."""
    best_epoch: int = 0
    stale: int = 0
    """Epochs since the best one."""
    ended: bool = False

    def next_epoch(self) -> None:
        self.in_epoch = 0
        self.loss, self.correct = torch.zeros_like(self.loss), torch.zeros_like(self.correct)


class _Finetuning:
    """The `Task` of `training.learning.loop`."""

    header = EPOCHS

    def __init__(
        self,
        network: Network,
        examples: Examples,
        recipe: Recipe,
        device: Device,
        seed: int,
        control: Control,
    ) -> None:
        train, val = examples.train, examples.val
        self._network, self._recipe, self._device = network, recipe, device
        self._control = control
        self._labelled = Crops(
            train.images, recipe.batch_size, recipe.crop, seed, device, control.say
        )
        distributed.check(self._labelled.batch)
        labels = torch.from_numpy(train.labels).long()
        answers = None if examples.answers is None else torch.from_numpy(examples.answers)
        self._targets = (labels if answers is None else answers).to(device.device)
        self._val_labels, self._own_val = val.labels, val.images
        if distributed.size() > 1:
            rows = np.arange(len(val.images))[distributed.part(len(val.images))]
            self._own_val = take(val.images, rows)
        self.steps = self._labelled.steps
        self.optimizers = Optimizers(
            [(network.backbone, recipe.backbone_lr), (network.classifier, 1.0)],
            recipe,
            device.dtype,
        )
        self._averaged = averaged(network, recipe, self.steps)
        self._judged = network
        if self._averaged is not None:
            self._judged = cast(Network, self._averaged.module)
        self._views: augment.Views | None = None
        if recipe.area < 1:
            side = round(recipe.view_share * train.images.shape[1])
            self._views = augment.Views(side, (recipe.area, 1.0), flip=False)
        zero = torch.zeros((), device=device.device)
        self.at = _Position(loss=zero, correct=zero.clone())
        self.history: list[Epoch] = []
        self._best_state: dict[str, Any] = {}

    def pause(self, loop: Loop, progress: float) -> bool:
        at = self.at
        over = progress >= 1 and loop.step > 0
        if at.in_epoch == self.steps or (over and at.in_epoch):
            self._end_epoch(loop)
            at.ended = at.ended or loop.progress() >= 1
        if at.in_epoch == 0:
            at.epoch_began = loop.clock()
            return at.ended or over  # the time may run out between two epochs, too
        return at.ended

    def gradients(
        self, step: int, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        network, recipe, labelled = self._network, self._recipe, self._labelled
        network.train()
        rows, pixels = labelled.draw(step, recipe.flip, generator)
        if self._views is None:
            images = network.normalise(pixels)
        else:
            images = network.standardise(self._views.crop(pixels.float() / 255, generator))
        batch = Batch(images, self._targets[rows], labelled.batch)
        figures = accumulate(
            network, batch, self.at.micro_batches, recipe.label_smoothing, self._device
        )
        distributed.total_gradients(network, *figures)
        return figures

    def out_of_memory(self) -> None:
        self.at.micro_batches = more_parts(
            self.at.micro_batches, self._labelled.batch, self._device, self._control.say
        )

    def record(self, *figures: Tensor) -> None:
        loss, correct = figures
        if self._averaged is not None:
            self._averaged.update(self._network)
        self.at.loss += loss * self._labelled.batch
        self.at.correct += correct
        self.at.in_epoch += 1

    def check(self) -> float:
        """The mean training loss of the epoch so far."""
        loss = float(self.at.loss) / (self.at.in_epoch * self._labelled.batch)
        _check_finite("training", loss, len(self.history) + 1, self.optimizers.lr)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self._network.state_dict(),
            "averaged": None if self._averaged is None else self._averaged.state_dict(),
            "best": self._best_state,
            "history": [row.model_dump() for row in self.history],
            "position": asdict(self.at),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._network.load_state_dict(state["network"])
        if self._averaged is not None:
            self._averaged.load_state_dict(state["averaged"])
        self._best_state = state["best"]
        self.history = [Epoch.model_validate(row) for row in state["history"]]
        on = self._device.device
        self.at = at = _Position(**state["position"])
        at.loss, at.correct = at.loss.to(on), at.correct.to(on)
        at.micro_batches = -(-at.micro_batches // distributed.size())

    def settle(self) -> int:
        """Gives the network the weights that are to be published; returns their epoch."""
        plateau = self._recipe.schedule == "plateau"
        self._network.load_state_dict(self._best_state if plateau else self._judged.state_dict())
        return self.at.best_epoch if plateau else len(self.history)

    def _end_epoch(self, loop: Loop) -> None:
        """Evaluates on the validation images and adds a row to the history."""
        at = self.at
        trained = loop.clock() - at.epoch_began
        seen = at.in_epoch * self._labelled.batch
        number = len(self.history) + 1
        train_loss = self.check()
        found = self._validated(number)
        row = Epoch(
            epoch=number,
            train_loss=train_loss,
            train_accuracy=float(at.correct) / seen,
            val_loss=found and found.loss,
            val_accuracy=found and found.accuracy,
            val_f1=found and found.f1,
            val_precision=found and found.precision,
            val_recall=found and found.recall,
            lr=self.optimizers.lr,
            images_per_s=seen / trained,
            seconds=loop.clock() - at.epoch_began,
        )
        self.history.append(row)
        self._control.on_epoch(row)
        of = "" if loop.limited else f"/{self._recipe.epochs}"
        self._control.say(epoch(row, of, loop.left(loop.progress())))
        at.next_epoch()
        if self._recipe.schedule == "plateau":
            assert found is not None
            self._follow(number, found.loss)

    def _validated(self, epoch: int) -> Metrics | None:
        """The figures on the validation images; None without any."""
        if not len(self._val_labels):
            return None
        logits = distributed.gathered(predict_logits(self._judged, self._own_val, self._device))
        found = scores(logits, self._val_labels)
        _check_finite("validation", found.loss, epoch, self.optimizers.lr)
        return found

    def _follow(self, number: int, loss: float) -> None:
        """Keeps the weights with the lowest validation loss; halves the learning rate, or ends."""
        at, recipe = self.at, self._recipe
        at.stale += 1
        if loss < at.best:
            at.best, at.best_epoch, at.stale = loss, number, 0
            self._best_state = copy.deepcopy(self._judged.state_dict())
        elif at.stale % recipe.plateau_patience == 0:
            self.optimizers.halve()
        if at.stale >= recipe.patience:
            self._control.say(f"no better validation result in {recipe.patience} epochs: stopped")
            at.ended = True


def _check_finite(which: str, loss: float, epoch: int, lr: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"the {which} loss is {loss} in epoch {epoch} at learning rate {lr:.4g}: nothing was "
            "published. Another --seed or --preset may do better; the same run would fail again"
        )
