"""Photos to pixels: how fast they are decoded, how fast they are trained on, and who waits.

`python -m benchmarks.decoding` generates JPEG photos of 1 to 12 megapixels (or takes `--data`),
and for each size decodes them as `train` does when it meets them first, trains on them, and trains
while they are read ahead: from the cache, and decoded anew. The share of the time in which a
training step had to wait for images is what decoding costs. The last line on stdout is one JSON
document.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import nn

from benchmarks.provenance import check_out
from bundle.machine import cores, git_commit, versions
from training import augment, data
from training.backbones import build
from training.data import Split
from training.device import Device, choose, hardware
from training.folder import unlabelled
from training.optimizers import Optimizers
from training.recipes import TORCHVISION, recipe
from training.stored import Images, Stored, encoded, in_file
from training.stream import WINDOW_SHARE, Batches

BATCH = 16
MEGAPIXELS = (1.0, 12.0)
SHAPES = (4 / 3, 3 / 2, 3 / 4, 2 / 3)
CLASSES = 4


@dataclass
class Decoding:
    """Images a second of decoding beside those of training, by image size."""

    data: Path | None = None
    """Folder of images, at any depth, instead of generated ones."""
    photos: int = 400
    """To generate."""
    sizes: tuple[int, ...] = (32, 64, 128, 224)
    """Sides of the images in pixels, `train --image-size`."""
    backbones: tuple[str, ...] = ("convnet", f"{TORCHVISION}resnet18")
    """Networks, with random weights: nothing is downloaded."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """As for `train`."""
    seconds: float = 10.0
    """Of each measurement of training."""
    rounds: int = 3
    """Of decoding."""
    out: Path | None = None
    """File for the JSON document, such as benchmarks/results/decoding.json."""


@dataclass(frozen=True)
class Rate:
    """Images a second."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Training:
    """Training at one size with one network; shares are of the time, from 0 to 1."""

    backbone: str
    images_per_s: float
    """With the images on the device."""
    from_cache: float
    """Images a second, read ahead from the cache of decoded pixels."""
    waits_for_cache: float
    anew: float
    """Images a second, decoded anew while the network trains."""
    waits_for_decoding: float


@dataclass(frozen=True)
class Figure:
    """One image size."""

    image_size: int
    decoding: Rate
    """The first start: reading, decoding, sorting, writing."""
    again: float
    """Seconds of a later start, which finds the pixels in the cache."""
    training: tuple[Training, ...]


def main(args: Sequence[str] | None = None) -> None:
    """The command `python -m benchmarks.decoding`."""
    options = tyro.cli(Decoding, args=args, prog="python -m benchmarks.decoding")
    check_out(options.out)
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
        "date": datetime.now(UTC).date().isoformat(),
        "git_commit": git_commit(Path(__file__)),
        "cores": cores(),
        "load_average": round(os.getloadavg()[0], 1),
        "photos": len(files),
        "file_bytes": file_bytes,
        "generated": options.data is None,
        "batch": BATCH,
        "seconds": options.seconds,
        "packages": versions(("torch", "torchvision", "pillow", "numpy")),
        "figures": [asdict(figure) for figure in figures],
    }
    if options.out is not None:
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(document))


def generate(folder: Path, n: int) -> None:
    """Writes JPEG files of 1 to 12 megapixels with shapes, shades and grain, in class folders."""
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


def _figure(folder: Path, size: int, scratch: Path, options: Decoding, device: Device) -> Figure:
    def load() -> tuple[Split, float]:
        since = time.perf_counter()
        found = data.load(str(folder), size=size, cache=scratch, labelled=False, say=_quiet)
        return found.train, time.perf_counter() - since

    rates = []
    for _ in range(options.rounds):
        shutil.rmtree(scratch / "pixels", ignore_errors=True)
        split, seconds = load()
        rates.append(len(split) / seconds)
    split, again = load()
    rate = Rate(statistics.mean(rates), min(rates), max(rates), len(rates))
    print(
        f"\n{size} px: decoded {rate.mean:,.1f} images/s ({rate.low:,.1f} to {rate.high:,.1f}, "
        f"n = {rate.n}), a later start takes {again:.1f} s",
        flush=True,
    )
    # Windows of two batches, so that images are read all the time.
    memory = int(2.5 * BATCH * 3 * size * size / WINDOW_SHARE)
    (file,) = (scratch / "pixels").glob("*/train-images.npy")
    order = np.load(file.with_name("train-rows.npy"))
    rows = unlabelled(folder, _quiet).splits["train"]
    kinds: dict[str, Images] = {
        "resident": split.images,
        "cache": in_file(file, memory),
        "anew": encoded(rows, order, size, memory),
    }
    training = []
    for backbone in options.backbones:
        found = {}
        for name, images in kinds.items():
            found[name] = _train(backbone, images, split, device, options.seconds)
        one = Training(
            backbone,
            images_per_s=found["resident"][0],
            from_cache=found["cache"][0],
            waits_for_cache=found["cache"][1],
            anew=found["anew"][0],
            waits_for_decoding=found["anew"][1],
        )
        print(
            f"  {backbone:22} {one.images_per_s:8,.1f} images/s; from the cache "
            f"{one.from_cache:8,.1f}, waits {one.waits_for_cache:6.1%}; decoded anew "
            f"{one.anew:8,.1f}, waits {one.waits_for_decoding:6.1%}",
            flush=True,
        )
        training.append(one)
    return Figure(size, rate, again, tuple(training))


def _train(
    backbone: str, images: Images, split: Split, device: Device, seconds: float
) -> tuple[float, float]:
    """Images a second, and the share of the time in which there were none to go on with."""
    plan = recipe("default", 4_500, flip=True, unlabelled=False, extractor=backbone)
    size = images.shape[1]
    network = build(backbone, split.images, CLASSES).to(device.device)
    network = network.to(memory_format=torch.channels_last)
    optimizers = Optimizers([(network, 1.0)], plan, device.dtype)
    generator = torch.Generator(device.device)
    labels = torch.arange(BATCH, device=device.device) % CLASSES
    batches = Batches(images, BATCH, round(plan.crop * size / 32), [0], device, _quiet)
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
    step(0)
    _finish(device)
    since, before, number = time.perf_counter(), batches.waited, 0
    while time.perf_counter() - since < seconds:
        number += 1
        step(number)
        _finish(device)
    took = time.perf_counter() - since
    return number * batches.batch / took, (batches.waited - before) / took


def _finish(device: Device) -> None:
    if device.device.type == "cuda":
        torch.cuda.synchronize()


def _quiet(_: str) -> None:
    return


if __name__ == "__main__":
    main()
