"""Decoding of photos while training on them: the rates, and how long training waits.

`python -m benchmarks.training_runs.decoding` generates JPEG photos of 1 to 12 megapixels (or takes
`--data`). At each size it decodes them as `train` does at its first start, trains on them from
memory, and trains while they are read ahead: from the cache, and decoded again. The cost of
decoding is the share of the time in which a training step waits for images. The last line on stdout
is one JSON document.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from labelcurve.benchmarks.harness.provenance import conditions, parsed, write
from labelcurve.benchmarks.training_runs.speed import finish, quiet
from labelcurve.bundle import command
from labelcurve.bundle.machine import cores
from labelcurve.training.data import dataset as data
from labelcurve.training.data.dataset import Split
from labelcurve.training.data.decoded.stored import Images, Stored, encoded, in_file
from labelcurve.training.data.formats.folder import unlabelled
from labelcurve.training.data.sources import Selection
from labelcurve.training.learning import augment
from labelcurve.training.learning.batches import WINDOW_SHARE, Batches
from labelcurve.training.learning.optimizers import Optimizers
from labelcurve.training.models.backbones import build
from labelcurve.training.recipes import TORCHVISION, recipe
from labelcurve.training.runtime.device import Device, choose, hardware

BATCH = 16
MEGAPIXELS = (1.0, 12.0)
SHAPES = (4 / 3, 3 / 2, 3 / 4, 2 / 3)
CLASSES = 4


@dataclass
class Decoding:
    """Measures images/s of decoding and of training, by image size."""

    data: Path | None = None
    """Folder of images, at any depth, instead of generated ones."""
    photos: int = 400
    """Number of photos to generate."""
    sizes: tuple[int, ...] = (32, 64, 128, 224)
    """Image sizes in pixels, as `labelcurve train --image-size`."""
    backbones: tuple[str, ...] = ("convnet", f"{TORCHVISION}resnet18")
    """Networks, with random weights."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for `train`."""
    seconds: float = 10.0
    """Duration of each training measurement."""
    rounds: int = 3
    """Repetitions of decoding."""
    out: Path | None = None
    """File for the JSON document, such as benchmarks/results/decoding.json."""


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.decoding`."""
    options = parsed(Decoding, arguments)
    device = choose(options.device)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="labelcurve-")))
        folder = options.data
        if folder is None:
            folder = scratch / "photos"
            print(f"generating {options.photos} photos", flush=True)
            generate(folder, options.photos)
        files = [path for path in folder.rglob("*") if path.is_file()]
        file_bytes = sum(path.stat().st_size for path in files)
        figures = [_figure(folder, size, scratch, options, device) for size in options.sizes]
    document = {
        "hardware": hardware(device),
        "precision": device.precision.value,
        **conditions("torch", "torchvision", "pillow", "numpy"),
        "photos": len(files),
        "file_bytes": file_bytes,
        "generated": options.data is None,
        "batch": BATCH,
        "seconds": options.seconds,
        "figures": figures,
    }
    write(options.out, document)


def generate(folder: Path, n: int) -> None:
    """Write JPEG photos of 1 to 12 megapixels with gradients and grain, in class folders."""
    side = round((MEGAPIXELS[1] * 1e6 * max(SHAPES)) ** 0.5) + 1
    grain = Image.effect_noise((side, side), 25).convert("RGB")

    def one(number: int) -> None:
        random = np.random.default_rng(number)
        pixels, shape = random.uniform(*MEGAPIXELS) * 1e6, random.choice(SHAPES)
        width = round((pixels * shape) ** 0.5)
        height = round(width / shape)
        few = random.integers(0, 256, (height // 64 + 4, width // 64 + 4, 3), np.uint8)
        shades = Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)
        photo = Image.blend(shades, grain.crop((0, 0, width, height)), 0.25)
        place = folder / f"class-{number % CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        photo.save(place / f"{number:05d}.jpg", quality=85)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(one, range(n)))


def _figure(
    folder: Path, size: int, scratch: Path, options: Decoding, device: Device
) -> dict[str, Any]:
    """Rates at one image size, in images a second.

    `decoding` is the first start: reading, decoding, sorting, writing; `again` are the seconds of a
    later one, from the cache. In `training` the images are in memory, read ahead from the cache, or
    decoded again while the network trains; waiting is a share of the time, 0 to 1.
    """

    def load() -> tuple[Split, float]:
        since = time.perf_counter()
        found = data.load(
            Selection(str(folder), labelled=False), size=size, cache=scratch, say=quiet
        )
        return found.train, time.perf_counter() - since

    rates = []
    for _ in range(options.rounds):
        shutil.rmtree(scratch / "pixels", ignore_errors=True)
        split, seconds = load()
        rates.append(len(split) / seconds)
    split, again = load()
    mean, low, high = statistics.mean(rates), min(rates), max(rates)
    print(
        f"\n{size} px: decoded {mean:,.1f} images/s ({low:,.1f} to {high:,.1f}, "
        f"n = {len(rates)}), a later start takes {again:.1f} s",
        flush=True,
    )
    # Windows of two batches, so that reading never stops.
    memory = int(2.5 * BATCH * 3 * size * size / WINDOW_SHARE)
    (file,) = (scratch / "pixels").glob("*/train-images.npy")
    order = np.load(file.with_name("train-rows.npy"))
    rows = unlabelled(folder, quiet).splits["train"]
    kinds: tuple[Images, ...] = (
        split.images,
        in_file(file, memory),
        encoded(rows, order, size, memory),
    )
    training = []
    for backbone in options.backbones:
        (resident, _), (cache, for_cache), (anew, for_decoding) = (
            _train(backbone, images, split, device, options.seconds) for images in kinds
        )
        print(
            f"  {backbone:22} {resident:8,.1f} images/s; from the cache {cache:8,.1f}, waits "
            f"{for_cache:6.1%}; decoded again {anew:8,.1f}, waits {for_decoding:6.1%}",
            flush=True,
        )
        training.append(
            {
                "backbone": backbone,
                "images_per_s": resident,
                "from_cache": cache,
                "waits_for_cache": for_cache,
                "anew": anew,
                "waits_for_decoding": for_decoding,
            }
        )
    decoding = {"mean": mean, "low": low, "high": high, "n": len(rates)}
    return {"image_size": size, "decoding": decoding, "again": again, "training": training}


def _train(
    backbone: str, images: Images, split: Split, device: Device, seconds: float
) -> tuple[float, float]:
    """Return images per second and the share of the time spent waiting for images."""
    plan = recipe("default", 4_500, flip=True, unlabelled=False, extractor=backbone)
    size = images.shape[1]
    network = build(backbone, split.images, CLASSES).to(device.device)
    network = network.to(memory_format=torch.channels_last)
    optimizers = Optimizers([(network, 1.0)], plan, device.dtype)
    generator = torch.Generator(device.device)
    labels = torch.arange(BATCH, device=device.device) % CLASSES
    batches = Batches(images, BATCH, round(plan.crop * size / 32), [0], device, quiet)
    assert (batches.resident is None) == isinstance(images, Stored)
    network.train()

    def step(number: int) -> None:
        _, padded, index = batches.draw(number)
        crops = augment.crop_flip(padded, index, size, True, generator)
        optimizers.begin(0.5)
        with device.autocast():
            loss = nn.functional.cross_entropy(network(network.normalise(crops)), labels)
        loss.backward()
        optimizers.step()

    return _timed(step, batches, device, seconds)


def _timed(
    step: Callable[[int], None], batches: Batches, device: Device, seconds: float
) -> tuple[float, float]:
    """Images per second and the share of waiting, after a first step."""
    step(0)
    finish(device)
    since, before, number = time.perf_counter(), batches.waited, 0
    while time.perf_counter() - since < seconds:
        number += 1
        step(number)
        finish(device)
    took = time.perf_counter() - since
    return number * BATCH / took, (batches.waited - before) / took


if __name__ == "__main__":
    command.enter(main, extra="train")
