"""The training loop: one step after another, with a time limit, checkpoints and resumption.

Fine-tuning and pretraining share it; what a step computes is a `Task`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from labelcurve.bundle.manifest import Epoch
from labelcurve.training.learning.optimizers import Optimizers
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.checkpoint import Checkpoint, mix
from labelcurve.training.runtime.device import Device
from labelcurve.training.runtime.memory import EnoughMemory


def _ignore(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Control:
    """Time limit, checkpoint and observers of a run; only its leading process has them."""

    seconds: float | None = None
    """Time limit of the run, over all its parts; None takes that of the checkpoint, if any."""
    checkpoint: Checkpoint | None = None
    """The run resumes from it, to the same weights as without an interruption."""
    say: Callable[[str], None] = _ignore
    """Receives the lines to print."""
    on_step: Callable[[float, float], None] = _ignore
    """Receives the progress from 0 to 1, and an estimate of the seconds left."""
    on_epoch: Callable[[Epoch], None] = _ignore
    """Receives each new row of the history of a fine-tuning."""


SILENT = Control()


class Task(Protocol):
    """The computation of one kind of training."""

    header: str
    optimizers: Optimizers
    steps: int
    """Steps of an epoch."""

    def pause(self, loop: Loop, progress: float) -> bool:
        """Evaluates where that is due; returns whether the run is over. Called before each step."""

    def gradients(
        self, step: int, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Computes the gradients of batch number `step`; returns figures for `record`."""

    def out_of_memory(self) -> None:
        """Called where the device ran out of memory in `gradients`, which is then repeated.

        Raises:
            DeviceError: nothing can be made smaller.
        """

    def record(self, *figures: Tensor) -> None:
        """Called after the parameters were updated, with what `gradients` returned."""

    def check(self) -> object:
        """Raises DivergedError where the loss is NaN or infinite."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs, as `torch.load` reads it with `weights_only`."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state from a checkpoint of the same run."""


class Clock:
    """Seconds of training, over all parts of an interrupted run."""

    def __init__(self, before: float = 0.0) -> None:
        self._start = time.monotonic() - before

    def __call__(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start

    def leave_out(self, seconds: float) -> None:
        """Excludes so many of the seconds that just passed."""
        self._start += seconds


class Loop:
    """Runs the steps of a task.

    Args:
        task: computes them.
        total: steps of the run, where no time limit ends it before.
        device: of the random numbers.
        streams: seeds of the task's generator and of torch's global one. The number of the step is
            added to each: randomness depends on nothing else, so that a continued run is the same
            run.
        control: time limit, checkpoint and observers.
    """

    def __init__(
        self,
        task: Task,
        total: int,
        device: Device,
        streams: tuple[Sequence[int], Sequence[int]],
        control: Control,
    ) -> None:
        self._task, self._total, self._control = task, total, control
        self._streams = streams
        self._generator = torch.Generator(device.device)
        self._limit: float | None = None
        self._last_step = 0.0
        self.step = 0
        """Steps done."""
        self.clock = Clock()

    @property
    def limited(self) -> bool:
        """Whether a time limit ends the run."""
        return self._limit is not None

    def progress(self) -> float:
        """Share of the run that is done, from 0 to 1 and above; the same in every process."""
        done = self.step / self._total
        if self._limit is None or not self.step:
            return done
        # A step that would end after the limit is not begun.
        usable = max(1e-9, self._limit - self._last_step)
        return max(done, distributed.agree(self.clock() / usable))

    def left(self, progress: float) -> float:
        """Estimated seconds to the end of the run."""
        return self.clock() * (1 / progress - 1) if 0 < progress < 1 else 0.0

    def run(self) -> None:
        """Continues from the checkpoint, if there is one, and trains to the end.

        Raises:
            LabelcurveError: the loss is NaN or infinite, the memory of the device is too small, or
                the checkpoint belongs to another run.
            Stopped: a signal ended the run; the checkpoint is written.
        """
        self._resume()
        self._control.say(self._task.header)
        while True:
            progress = self.progress()
            if self._task.pause(self, progress):
                break
            self._control.on_step(min(1.0, progress), self.left(progress))
            began = time.monotonic()
            self._take_step(progress)
            self._last_step = time.monotonic() - began
            self.step += 1
            distributed.check_signals()
            if self._control.checkpoint is not None:
                self._control.checkpoint.save(self._state, check=self._task.check)

    def save(self) -> None:
        """Writes a checkpoint of the finished run, for work that follows it."""
        if self._control.checkpoint is not None:
            self._control.checkpoint.write(self._state())

    def _take_step(self, progress: float) -> None:
        task = self._task
        own, whole = (mix(*seed, self.step, *distributed.salt()) for seed in self._streams)
        while True:
            self._generator.manual_seed(own)
            torch.manual_seed(whole)
            task.optimizers.begin(min(progress, 1 - 1e-6))
            with EnoughMemory() as enough:
                figures = task.gradients(self.step, progress, self._generator)
            if enough:
                break
            task.out_of_memory()
        task.optimizers.step()
        task.record(*figures)

    def _state(self) -> dict[str, Any]:
        return {
            **self._task.state_dict(),
            "optimizers": self._task.optimizers.state_dict(),
            "step": self.step,
            "seconds": self.clock(),
            "limit": self._limit,
        }

    def _resume(self) -> None:
        checkpoint = self._control.checkpoint
        found = None if checkpoint is None else checkpoint.read()
        state, self._limit = distributed.share((found, self._control.seconds))
        if state is None:
            self.clock = Clock()
            return
        self._task.load_state_dict(state)
        self._task.optimizers.load_state_dict(state["optimizers"])
        self.step = state["step"]
        if self._limit is None:
            self._limit = state["limit"]
        self.clock = Clock(state["seconds"])
        done = self.step / self._task.steps
        self._control.say(f"resuming at epoch {done:.1f} from {checkpoint and checkpoint.path}")
