"""Speed of pretraining and fine-tuning, relative to the network's convolutions alone.

`python -m benchmarks.training_runs.speed` times whole training steps (augmentation, forward,
backward, update) and each convolution of the same network alone, forward and backward, on inputs of
the same shape. The ratio shows what everything else costs. The pixels are random. The last line on
stdout is one JSON document.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelcurve.benchmarks.harness.provenance import conditions, parsed, write
from labelcurve.bundle import command
from labelcurve.bundle.command import Within
from labelcurve.training.learning import augment
from labelcurve.training.learning.augment import Views
from labelcurve.training.learning.objectives import Contrastive
from labelcurve.training.learning.optimizers import Optimizers
from labelcurve.training.models.backbones import build
from labelcurve.training.recipes import pretraining, recipe
from labelcurve.training.runtime.device import Device, choose, hardware, to_device


@dataclass
class Speed:
    """Measures images/s of training, and of the convolutions alone."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for `train`."""
    seconds: Annotated[float, Within(0, above=True)] = 5.0
    """Duration of each measurement; there are three of each kind, in turn."""
    image_size: Annotated[int, Within(8, 1024, note="pixels")] = 32
    """Side of the images in pixels."""
    out: Path | None = None
    """File for the JSON document, such as benchmarks/results/speed.json."""


ROUNDS = 3


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.speed`.

    Rates are images a second through the backbone, forward and backward: the mean of the rounds
    with the slowest and the fastest, and the `ceiling` of the convolutions alone.
    """
    options = parsed(Speed, arguments)
    device = choose(options.device)
    size = options.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2048, size, size, 3), dtype=np.uint8)
    kinds = {
        "pretraining": _pretraining(pixels, device),
        "fine-tuning": _finetuning(pixels, device),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    ceilings: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, (step, images, convolutions) in kinds.items():
            rates[name].append(images / _time(step, options.seconds, device))
            share = options.seconds / len(convolutions)
            alone = sum(_time(one, share, device) for one in convolutions)
            ceilings[name].append(images / alone)
    print(f"{hardware(device)}, {device.precision.value}, {size} px")
    figures = {}
    for name in kinds:
        rate, ceiling = statistics.mean(rates[name]), statistics.mean(ceilings[name])
        spread = (min(rates[name]), max(rates[name]))
        figures[name] = {
            "images_per_s": rate,
            "spread": spread,
            "ceiling": ceiling,
            "ratio": rate / ceiling,
        }
        print(
            f"{name:12} {rate:8,.0f} images/s ({spread[0]:,.0f} to {spread[1]:,.0f}, "
            f"n = {ROUNDS}), convolutions alone {ceiling:8,.0f}: {rate / ceiling:.2f} of it"
        )
    document = {
        "hardware": hardware(device),
        "precision": device.precision.value,
        "precision_reason": device.precision.reason,
        **conditions("torch"),
        "image_size": size,
        "rounds": ROUNDS,
        "seconds": options.seconds,
        "speed": figures,
    }
    write(options.out, document)


Kind = tuple[Callable[[], None], int, list[Callable[[], None]]]
"""A training step, its number of images through the backbone, and its convolutions."""


def _pretraining(pixels: NDArray[np.uint8], device: Device) -> Kind:
    plan = pretraining("contrastive", 50_000, pixels.shape[1])
    network = build(plan.backbone, pixels, 2).to(device.device)
    network = network.to(memory_format=torch.channels_last)
    side = round(plan.view_share * pixels.shape[1])
    objective = Contrastive(network.dim, Views(side), plan.n_views, plan.temperature, device)
    objective.to(device.device)
    modules = nn.ModuleList([network.backbone, objective])
    optimizers = Optimizers([(modules, 1.0)], plan, device.dtype)
    images = to_device(pixels[: plan.batch_size], device)
    generator = torch.Generator(device.device)
    network.train()

    def step() -> None:
        optimizers.begin(0.5)
        objective(network, images, generator).backward()
        optimizers.step()

    n = plan.batch_size * plan.n_views
    return step, n, _convolutions(network, (n, 3, side, side), device)


def _finetuning(pixels: NDArray[np.uint8], device: Device) -> Kind:
    plan = recipe("default", 45_000, flip=True, unlabelled=False)
    network = build(plan.backbone, pixels, 10).to(device.device)
    network = network.to(memory_format=torch.channels_last)
    optimizers = Optimizers([(network, 1.0)], plan, device.dtype)
    generator = torch.Generator(device.device)
    padded = augment.pad(to_device(pixels, device), plan.crop)
    labels = torch.arange(plan.batch_size, device=device.device) % 10
    rows = torch.arange(plan.batch_size, device=device.device)
    size = pixels.shape[1]
    network.train()

    def step() -> None:
        images = network.normalise(augment.crop_flip(padded, rows, size, True, generator))
        optimizers.begin(0.5)
        with device.autocast():
            loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizers.step()

    n = plan.batch_size
    return step, n, _convolutions(network, (n, 3, size, size), device)


def _convolutions(
    network: nn.Module, shape: tuple[int, int, int, int], device: Device
) -> list[Callable[[], None]]:
    """Isolate each convolution of `network`, forward and backward, on inputs as in training."""
    shapes: list[tuple[nn.Conv2d, torch.Size]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Conv2d)
        shapes.append((module, inputs[0].shape))

    found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(note) for module in found]
    with torch.no_grad(), device.autocast():
        network.train()(torch.zeros(2, *shape[1:], device=device.device))
    for hook in hooks:
        hook.remove()
    return [_alone(module, (shape[0], *seen[1:]), device) for module, seen in shapes]


def _alone(module: nn.Conv2d, shape: tuple[int, ...], device: Device) -> Callable[[], None]:
    first = module.in_channels == 3  # its input needs no gradient, and its weights are fixed
    layout = torch.channels_last
    inputs = torch.randn(shape, device=device.device, dtype=device.dtype).to(memory_format=layout)
    inputs.requires_grad_(not first)
    weight = module.weight.detach().to(device.dtype).to(memory_format=layout)
    weight.requires_grad_(not first)

    def once() -> None:
        out = nn.functional.conv2d(inputs, weight, padding=module.padding)
        if not first:
            out.backward(out.detach())

    return once


def _time(work: Callable[[], None], seconds: float, device: Device) -> float:
    """Seconds per call, after a warm-up call."""
    work()
    finish(device)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work()
        finish(device)
        calls += 1
    return (time.perf_counter() - start) / calls


def finish(device: Device) -> None:
    """Wait until the device has done its work."""
    if device.device.type == "cuda":
        torch.cuda.synchronize()


def quiet(_: str) -> None:
    """Receives progress and shows none."""


if __name__ == "__main__":
    command.enter(main, extra="train")
