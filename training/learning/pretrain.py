"""Trains a feature extractor on images without labels."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from labelcurve.bundle.errors import DeviceError, DivergedError
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.learning.batches import Batches
from labelcurve.training.learning.loop import SILENT, Control, Loop
from labelcurve.training.learning.objectives import Objective
from labelcurve.training.learning.optimizers import Optimizers
from labelcurve.training.learning.probe import Probe
from labelcurve.training.models.backbones import Network
from labelcurve.training.recipes import Pretraining
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.checkpoint import mix
from labelcurve.training.runtime.device import Device

HEADER = "   epoch      loss    k-NN        lr      images   views/s  seconds     left"

JUDGING = 0.1
"""Share of a limited time that evaluation during the run may take."""


@dataclass(frozen=True)
class Result:
    """Summary of a pretraining."""

    started: str
    """Start of the first part of an interrupted run; ISO 8601, UTC."""
    epochs: float
    views_seen: int
    seconds: float
    """Training time, over all parts of an interrupted run and those that it continues."""
    loss: float
    """Mean over the last tenth of the run."""
    knn: float | None
    """Accuracy of the last row; None without a probe."""
    trunk: dict[str, Any] | None = None
    """With an extendable recipe, the checkpoint from which a later run continues as if the learning
    rate had not decayed."""


def pretrain(
    network: Network,
    objective: Objective,
    images: Images,
    recipe: Pretraining,
    device: Device,
    seed: int,
    probe: Probe | None = None,
    control: Control = SILENT,
) -> Result:
    """Trains `network`'s backbone in place; its classifier stays as it is.

    Args:
        images: to learn from, uint8 [N, H, W, 3].
        probe: evaluates the backbone at each tenth of the run; with a time limit less often, where
            it would take more than a tenth of the time. The last evaluation follows the limit.

    Raises:
        LabelcurveError: the loss is NaN or infinite, the memory is too small for a batch, or the
            checkpoint belongs to another run.
    """
    assert isinstance(objective, nn.Module)
    objective.to(device.device)
    with distributed.joined(nn.ModuleList([network.backbone, objective])):
        task = _Pretraining(network, objective, images, recipe, device, seed, probe, control)
        total = max(1, round(recipe.epochs * task.steps))
        loop = Loop(task, total, device, ((seed,), (seed,)), control)
        loop.run()
    network.eval()
    return Result(
        started=task.started,
        epochs=(task.before + loop.step) / task.steps,
        views_seen=(task.before + loop.step) * task.batch * recipe.n_views,
        seconds=task.seconds_before + loop.clock(),
        loss=task.loss_shown,
        knn=task.knn,
        trunk=task.trunk,
    )


class _Pretraining:
    """The `Task` of `training.learning.loop`."""

    header = HEADER

    def __init__(
        self,
        network: Network,
        objective: nn.Module,
        images: Images,
        recipe: Pretraining,
        device: Device,
        seed: int,
        probe: Probe | None,
        control: Control,
    ) -> None:
        self._network, self._objective, self._recipe = network, objective, recipe
        self._seed = seed
        self._device, self._probe, self._control = device, probe, control
        self._batches = Batches(
            images,
            recipe.batch_size,
            0,
            [seed],
            device,
            control.say,
            rank=distributed.rank(),
            world=distributed.size(),
        )
        self.batch, self.steps = self._batches.batch, self._batches.steps
        distributed.check(self.batch)
        self._modules = nn.ModuleDict({"backbone": network.backbone, "objective": objective})
        self.optimizers = Optimizers([(self._modules, 1.0)], recipe, device.dtype)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._step = self._loss_step = self._shown = 0
        """Steps done, those done at the last row, and tenths of the run that have a row."""
        self._losses = torch.zeros((), device=device.device)
        """Sum since the last row, a scalar."""
        self._cost = probe.cost if probe else 0.0
        """Seconds that an evaluation takes."""
        self._judging = 0.0
        """Seconds that evaluations took so far."""
        self._part = 0
        """Images of the batch in this process."""
        self._row_step: int | None = None
        self._since_row = 0.0
        self.before = 0
        """Steps of the earlier runs that this one continues."""
        self.seconds_before = 0.0
        """Training time of those."""
        self.trunk: dict[str, Any] | None = None
        self.loss_shown = math.nan
        self.knn: float | None = None

    def pause(self, loop: Loop, progress: float) -> bool:
        if self._row_step is None:  # the speed of the first row is that since here
            self._row_step, self._since_row = loop.step, time.monotonic()
        if self._recipe.extendable and self.trunk is None and progress >= 1 - self._recipe.decay:
            self.trunk = self._trunk(loop)
        tenth = min(10, int(progress * 10 + 1e-9))
        if tenth > self._shown or progress >= 1:
            self._show(loop, progress)
            self._shown = tenth
        return progress >= 1

    def gradients(
        self, step: int, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        # All of it: what is compiled is used where the network itself is in training mode.
        self._network.train()
        self._objective.train()
        if self.before:  # other random numbers than in the run before
            generator.manual_seed(mix(self._seed, self.before, step, *distributed.salt()))
        _, pixels, index = self._batches.draw(self.before + step)
        self._part = len(index)
        share = self._part / self.batch
        loss: Tensor = self._objective(self._network, pixels[index], generator, self.batch) * share
        loss.backward()
        figure = loss.detach()
        distributed.total_gradients(self._modules, figure)
        return (figure,)

    def out_of_memory(self) -> None:
        raise DeviceError(
            f"the memory of {self._device.choice.value} is too small for a step on {self._part} of "
            f"the {self.batch} images of a batch, which its objective needs at once: a smaller "
            "--batch-size or --image-size needs less, more processes share it (torchrun "
            "--nproc-per-node), and --device cpu takes the machine's memory"
        )

    def record(self, *figures: Tensor) -> None:
        self._losses += figures[0]
        self._step += 1

    def check(self) -> float:
        """The mean loss since the last row."""
        loss = float(self._losses) / max(1, self._step - self._loss_step)
        if not math.isfinite(loss):
            raise DivergedError(
                f"the pretraining loss is {loss} at epoch {self._step / self.steps:.1f}: nothing "
                "was written. Another --seed may do better; the same run would fail again"
            )
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {
            "modules": self._modules.state_dict(),
            "shown": self._shown,
            "loss_step": self._loss_step,
            "started": self.started,
            "losses": self._losses,
            "before": self.before,
            "seconds_before": self.seconds_before,
            "trunk": self.trunk,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._modules.load_state_dict(state["modules"])
        self._step, self._shown, self.started = state["step"], state["shown"], state["started"]
        self._loss_step = state["loss_step"]
        self._losses = state["losses"].to(self._device.device)
        self.before, self.seconds_before = state["before"], state["seconds_before"]
        self.optimizers.warm = self.before > 0
        self.trunk = state["trunk"]

    def _trunk(self, loop: Loop) -> dict[str, Any]:
        """A checkpoint from which a later run continues what was done so far."""
        now = copy.deepcopy(self.state_dict() | {"optimizers": self.optimizers.state_dict()})
        return now | {
            "before": self.before + loop.step,
            "seconds_before": self.seconds_before + loop.clock(),
            "losses": torch.zeros(()),
            "limit": None,
            **dict.fromkeys(("shown", "loss_step", "step"), 0),
            "seconds": 0.0,
        }

    def _show(self, loop: Loop, progress: float) -> None:
        """Prints a row, with the k-NN accuracy where there is time for it."""
        self.loss_shown = self.check()
        now, elapsed = time.monotonic(), loop.clock()
        views = (self._step - (self._row_step or 0)) * self.batch * self._recipe.n_views
        # None yet where a run is continued from a checkpoint just before a row.
        rate = f"{views / max(1e-9, now - self._since_row):.0f}" if views else "-"
        self.knn = None
        fits = not loop.limited or self._judging + self._cost <= JUDGING * elapsed
        if self._probe and (fits or progress >= 1):
            self.knn = self._probe.knn(self._network)
            self._cost = time.monotonic() - now
            self._judging += self._cost
        judged = "-" if self.knn is None else f"{self.knn:.4f}"
        step = self.before + self._step
        of = "" if loop.limited else f"/{self.before / self.steps + self._recipe.epochs:.4g}"
        left = elapsed / max(progress, 1e-9) * (1 - min(1, progress))
        self._control.say(
            f"{step / self.steps:6.1f}{of:<5}{self.loss_shown:7.4f}{judged:>8} "
            f"{self.optimizers.lr:9.5f} {step * self.batch:>11,} {rate:>9} {elapsed:8.0f} "
            f"{left:6.0f} s"
        )
        self._losses = torch.zeros_like(self._losses)
        self._row_step = self._loss_step = self._step
        self._since_row = time.monotonic()
        if not loop.limited:  # the time of evaluation is not the time of training
            loop.clock.leave_out(self._since_row - now)
