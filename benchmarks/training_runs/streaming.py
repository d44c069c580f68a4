"""Peak memory of reading data sets that do not fit in memory.

`python -m benchmarks.training_runs.streaming` generates Parquet files of 50,000 and of 1,000,000
small images and reads each set with a small memory budget, in a process per stage: the first start,
which decodes the images into the cache; an epoch from the cache; an epoch that decodes them again
from the row groups. The peak of resident memory should hardly depend on the number of images. The
files are removed. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from labelcurve.benchmarks.harness.provenance import conditions, parsed, write
from labelcurve.benchmarks.training_runs.speed import quiet
from labelcurve.bundle import command
from labelcurve.training.data import dataset
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.data.decoded.stored import in_order as in_threads
from labelcurve.training.data.fractions import subset
from labelcurve.training.learning.batches import Batches
from labelcurve.training.runtime.device import FP32_CPU

Stage = Literal["decode", "cache", "anew"]

STAGES: tuple[Stage, ...] = ("decode", "cache", "anew")
PER_GROUP = 1_000
PER_FILE = 100_000
CLASSES = 10
BATCH = 256


@dataclass
class Streaming:
    """Measures the peak memory of reading 50,000 and 1,000,000 images."""

    images: tuple[int, ...] = (50_000, 1_000_000)
    """Sizes of the data sets."""
    image_size: int = 32
    """Side of the images in pixels."""
    memory_gb: float = 0.1
    """As for `train`."""
    out: Path | None = None
    """File for the JSON document, such as benchmarks/results/streaming.json."""
    stage: tuple[Stage, Path, Path] | None = None
    """Internal: the stage that this process runs, the data and the cache."""


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.streaming`."""
    options = parsed(Streaming, arguments)
    if options.stage is not None:
        print(json.dumps(_read(options, *options.stage)))
        return
    figures = []
    for n in options.images:
        with tempfile.TemporaryDirectory(prefix="labelcurve-") as scratch:
            folder = Path(scratch) / "images"
            print(f"generating {n:,} images", flush=True)
            generate(folder, n, options.image_size)
            for stage in STAGES:
                figure = _in_process(options, stage, folder, Path(scratch) / "cache")
                opened, peak = figure["opened_bytes"] / 1e6, figure["peak_bytes"] / 1e6
                print(
                    f"{n:>9,} {stage:7} peak {peak:7,.0f} MB, opened with {opened:7,.0f} MB; "
                    f"{figure['read']:,} images in {figure['seconds']:,.0f} s",
                    flush=True,
                )
                figures.append(figure)
    document = {
        **conditions("torch", "pyarrow", "pillow", "numpy"),
        "image_size": options.image_size,
        "memory_gb": options.memory_gb,
        "batch": BATCH,
        "per_group": PER_GROUP,
        "figures": figures,
    }
    write(options.out, document)


def generate(folder: Path, n: int, size: int) -> None:
    """Write `n` different small JPEG images in the Hub's layout, 2 % of them as test split."""
    folder.mkdir(parents=True)
    test = max(CLASSES, n // 50)
    for split, first, last in (("test", 0, test), ("train", test, n)):
        for begin in range(first, last, PER_FILE):
            rows = range(begin, min(last, begin + PER_FILE))
            images = [{"bytes": file} for file in in_threads(lambda row: _jpeg(row, size), rows)]
            table = pa.table({"image": images, "label": [row % CLASSES for row in rows]})
            path = folder / f"{split}-{begin:09d}.parquet"
            pq.write_table(table, path, row_group_size=PER_GROUP, compression="none")


def _jpeg(row: int, size: int) -> bytes:
    few = np.random.default_rng(row).integers(0, 256, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(few).resize((size, size)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _in_process(options: Streaming, stage: Stage, folder: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "labelcurve.benchmarks.training_runs.streaming"]
    command += ["--image-size", str(options.image_size), "--memory-gb", str(options.memory_gb)]
    command += ["--stage", stage, str(folder), str(cache)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _read(options: Streaming, stage: Stage, folder: Path, cache: Path) -> dict[str, Any]:
    """Open the data set, read an epoch of it and measure memory; runs in a separate process.

    Memory is resident: once the data set is open, before the first batch, and at its peak.
    """
    memory, size = int(options.memory_gb * 1e9), options.image_size
    if stage == "anew":  # as on a disk without space for the decoded images
        for file in cache.glob("pixels/*/*-images.npy"):
            file.unlink()
    since = time.perf_counter()
    found = dataset.load(str(folder), size=size, cache=cache, memory=memory, say=quiet)
    opened, seconds, read = _resident("VmRSS"), time.perf_counter() - since, len(found.train)
    if stage != "decode":
        # As in `train`: a tenth is held out for validation.
        learn = found.train.take(subset(found.train, found.class_names, 1.0, 0).train)
        since = time.perf_counter()
        read = sum(len(index) for index in _epoch(learn.images))
        seconds = time.perf_counter() - since
    return {
        "images": len(found.train) + len(found.test),
        "stage": stage,
        "decoded_bytes": found.train.images.nbytes,
        "file_bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "read": read,
        "seconds": seconds,
        "opened_bytes": opened,
        "peak_bytes": _resident("VmHWM"),
    }


def _epoch(images: Images) -> Iterator[Sequence[int]]:
    batches = Batches(images, BATCH, 4, [0], FP32_CPU, quiet)
    assert batches.resident is None
    for number in range(batches.steps):
        _, padded, index = batches.draw(number)
        assert padded.shape[0] == BATCH
        yield index.tolist()


def _resident(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Current or peak resident bytes of this process (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this benchmark needs Linux: /proc/self/status")


if __name__ == "__main__":
    command.enter(main, extra="train")
