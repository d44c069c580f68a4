"""Learning a feature extractor from images without labels, with checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from bundle.errors import DeviceError, DivergedError
from training import distributed
from training.backbones import Network
from training.checkpoint import Checkpoint, mix
from training.device import Device
from training.memory import EnoughMemory
from training.objectives import Objective
from training.optimizers import Optimizers
from training.probe import Probe
from training.recipes import Pretraining
from training.stored import Images
from training.stream import Batches

HEADER = "   epoch      loss    k-NN        lr   views/s  seconds     left"

JUDGING = 0.1
"""Share of a limited time that judging may take on the way."""


@dataclass(frozen=True)
class Result:
    """A pretrained network and how it came about."""

    started: str
    """Of the first part of an interrupted run; ISO 8601, UTC."""
    epochs: float
    views_seen: int
    seconds: float
    """Of training, over all parts of an interrupted run."""
    loss: float
    """Mean over the last tenth of the run."""
    knn: float | None
    """Accuracy of the last row; None without a probe."""


def pretrain(
    network: Network,
    objective: Objective,
    images: Images,
    recipe: Pretraining,
    device: Device,
    seed: int,
    *,
    probe: Probe | None = None,
    checkpoint: Checkpoint | None = None,
    seconds: float | None = None,
    say: Callable[[str], None] = print,
    on_step: Callable[[float, float], None] = lambda *_: None,
) -> Result:
    """Trains `network`'s backbone in place; its classifier stays as it is.

    Args:
        images: to learn from.
        probe: judges the backbone at each tenth of the run; with `seconds` less often, where it
            would take more than a tenth of them.
        checkpoint: the run goes on from it.
        seconds: the run ends then at the latest, with the learning rate at its end. The last row
            and its judging follow.
        on_step: receives the progress of the run from 0 to 1, and the seconds that are left.

    Raises:
        LabelcurveError: the loss is not finite, or the checkpoint belongs to another run.
    """
    assert isinstance(objective, nn.Module)
    objective.to(device.device)
    generator = torch.Generator(device.device)
    batches = Batches(
        images,
        recipe.batch_size,
        0,
        [seed],
        device,
        say,
        rank=distributed.rank(),
        world=distributed.size(),
    )
    batch, steps = batches.batch, batches.steps
    distributed.check(batch)
    total = max(1, round(recipe.epochs * steps))
    modules = nn.ModuleDict({"backbone": network.backbone, "objective": objective})
    distributed.join(modules)
    optimizers = Optimizers([(modules, 1.0)], recipe, device.dtype)
    step, before, losses, shown = 0, 0.0, torch.zeros((), device=device.device), 0
    loss_step, started = 0, datetime.now(UTC).isoformat(timespec="seconds")
    if (state := distributed.share(checkpoint and checkpoint.read())) is not None:
        modules.load_state_dict(state["modules"])
        optimizers.load_state_dict(state["optimizers"])
        step, before, shown = state["step"], state["seconds"], state["shown"]
        loss_step, started = state["loss_step"], state["started"]
        losses = state["losses"].to(device.device)
        say(f"going on at epoch {step / steps:.1f} from {checkpoint and checkpoint.path}")

    def mean_loss() -> float:
        """Since the last row; raises where it is no number."""
        found = float(losses) / max(1, step - loss_step)
        if not math.isfinite(found):
            raise DivergedError(
                f"the pretraining loss is {found} at epoch {step / steps:.1f}: nothing was "
                "written. Another --seed may do better; the same run would fail again"
            )
        return found

    def state_now() -> dict[str, Any]:
        return {
            "modules": modules.state_dict(),
            "optimizers": optimizers.state_dict(),
            "step": step,
            "shown": shown,
            "loss_step": loss_step,
            "started": started,
            "losses": losses,
            "seconds": before + time.monotonic() - start,
        }

    start = time.monotonic()
    cost = probe.cost if probe else 0.0
    modules.train()
    network.train()
    since_row, row_step = start, step
    of = "" if seconds is not None else f"/{recipe.epochs:g}"
    say(HEADER)
    loss_shown, knn = math.nan, None
    judging = last_step = 0.0
    while True:
        elapsed = before + time.monotonic() - start
        progress = step / total
        if seconds is not None and step:
            # A step that would end after the limit is not begun.
            progress = max(progress, distributed.agree(elapsed / max(1e-9, seconds - last_step)))
        tenth = min(10, int(progress * 10 + 1e-9))
        if tenth > shown or progress >= 1:
            loss_shown = mean_loss()
            now = time.monotonic()
            views = (step - row_step) * batch * recipe.n_views
            # None yet where a run goes on from a checkpoint in front of a row.
            rate = f"{views / max(1e-9, now - since_row):.0f}" if views else "-"
            knn = None
            fits = seconds is None or progress >= 1 or judging + cost <= JUDGING * elapsed
            if probe and fits:
                knn = probe.knn(network)
                cost = time.monotonic() - now
                judging += cost
            judged = "-" if knn is None else f"{knn:.4f}"
            left = elapsed / max(progress, 1e-9) * (1 - min(1, progress))
            say(
                f"{step / steps:6.1f}{of:<5}{loss_shown:7.4f}{judged:>8} "
                f"{optimizers.lr:9.5f} {rate:>9} {elapsed:8.0f} {left:6.0f} s"
            )
            shown, losses = tenth, torch.zeros_like(losses)
            row_step = loss_step = step
            modules.train()
            since_row = time.monotonic()
            if seconds is None:  # the time of judging is not the time of training
                start += since_row - now
            if progress >= 1:
                break
        on_step(min(1.0, progress), elapsed * (1 / progress - 1) if 0 < progress < 1 else 0.0)
        # The randomness of a step depends on nothing but its number: a run that goes on after an
        # interruption is the same run.
        step_began = time.monotonic()
        generator.manual_seed(mix(seed, step, *distributed.salt()))
        torch.manual_seed(mix(seed, step, *distributed.salt()))
        optimizers.begin(progress)
        with EnoughMemory() as enough:
            _, pixels, index = batches.draw(step)
            loss = objective(network, pixels[index], generator, batch) * (len(index) / batch)
            loss.backward()
            distributed.total_gradients(modules, loss.detach())
        if not enough:
            raise DeviceError(
                f"the memory of {device.choice.value} is too small for a step on {len(index)} of "
                f"the {batch} images of a batch, which its objective needs at once: a smaller "
                "--batch-size or --image-size needs less, more processes share it (torchrun "
                "--nproc-per-node), and --device cpu takes the machine's memory"
            )
        optimizers.step()
        losses += loss.detach()
        step += 1
        last_step = time.monotonic() - step_began
        distributed.heed()
        if checkpoint is not None:
            checkpoint.save(state_now, check=mean_loss)
    distributed.part_with(modules)
    network.eval()
    return Result(
        started=started,
        epochs=step / steps,
        views_seen=step * batch * recipe.n_views,
        seconds=before + time.monotonic() - start,
        loss=loss_shown,
        knn=knn,
    )
