"""Recall of `labelcurve audit` on planted errors: flipped labels and near-duplicates.

`python -m benchmarks.quality.audit --cifar10 FOLDER --photos FOLDER --weights FILE` flips 5 % of
the labels of 5,000 images of CIFAR-10 and of TrashNet, at random and by class, and compares
`audit` with confident learning as cleanlab ranks it, with the lowest self-confidence, and with
chance, at the same number of images.
Then it plants changed copies of images. Settings were chosen on other draws: seeds from 1,000, and
the first half of CIFAR-10's training images, while those used here are from the second half.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from labelcurve.benchmarks.harness.provenance import conditions, parsed, write
from labelcurve.bundle import command
from labelcurve.bundle.command import Within
from labelcurve.training.audit import duplicates, labels
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.extractors import choice, embedded
from labelcurve.training.extractors.choice import Wanted
from labelcurve.training.forecast import head
from labelcurve.training.models import export
from labelcurve.training.recipes import PHOTO_BACKBONE
from labelcurve.training.runtime.device import FP32_CPU, hardware

RATE = 0.05
FIRST = 100
"""Number of top rows of the table whose precision is shown."""
DRAWN = 5_000
"""Images of CIFAR-10."""
COPIED = 200
"""Images that are copied with each change, or all of a smaller data set."""


@dataclass
class AuditBench:
    """Planted label errors and near-duplicates, and how many `audit` finds."""

    cifar10: Path
    """Folder of CIFAR-10."""
    photos: Path | None = None
    """Folder of photos in class folders, such as TrashNet."""
    weights: Path | None = None
    """File with the weights of the default backbone for photos."""
    seeds: Annotated[int, Within(2)] = 10
    """Draws of flips."""
    cache: Path | None = None
    """As for `labelcurve train`."""
    out: Path | None = None
    """File for the JSON document, such as benchmarks/results/audit.json."""


@dataclass(frozen=True)
class Embedded:
    """Images with their features and a function that embeds others."""

    images: Data
    features: head.Rows
    """[N, D] Of the training and then of the test images."""
    embed: Callable[[NDArray[np.uint8]], head.Rows]


Flip = Callable[[NDArray[np.int64], int, np.random.Generator], NDArray[np.int64]]


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.quality.audit`."""
    options = parsed(AuditBench, arguments)
    cifar10 = _embedded(str(options.cifar10), "auto", options.cache)
    half = len(cifar10.images.train) // 2
    flips = _flips(cifar10, np.arange(half, 2 * half), options.seeds, "CIFAR-10")
    copies = _copies(cifar10, np.arange(half, 2 * half), "CIFAR-10")
    if options.photos is not None:
        name = PHOTO_BACKBONE + ("" if options.weights is None else f"={options.weights}")
        photos = _embedded(str(options.photos), name, options.cache)
        n = len(photos.features)
        flips += _flips(photos, np.arange(n), options.seeds, photos.images.name)
        copies += _copies(photos, np.arange(len(photos.images.train)), photos.images.name)
    document = {
        "hardware": hardware(FP32_CPU),
        **conditions("cleanlab", "numpy", "scikit-learn", "onnxruntime", "torch"),
        "rate": RATE,
        "first": FIRST,
        "seeds": options.seeds,
        "flips": flips,
        "copies": copies,
    }
    write(options.out, document)


def _embedded(data: str, extractor: str, cache: Path | None) -> Embedded:
    size = None if extractor == "auto" else 224
    images = dataset.load(data, size=size, cache=cache)
    wanted = Wanted(backbone="convnet", flip=True, cache=cache or dataset.default_cache())
    found = choice.obtain(extractor, images, wanted, FP32_CPU)
    network = embedded.network_for(images, found, extractor)
    features = np.concatenate(embedded.embedding(images, found, extractor, FP32_CPU, cache))
    classes = tuple(str(i) for i in range(network.classifier.out_features))
    graph = export.to_onnx(export.Served(network, 1.0), images.size, classes)
    runtime = export.session(graph, 1)

    def embed(pixels: NDArray[np.uint8]) -> head.Rows:
        parts = [pixels[i : i + 8] for i in range(0, len(pixels), 8)]
        return np.concatenate([runtime.run(["embedding"], {"images": part})[0] for part in parts])

    return Embedded(images, features, embed)


def at_random(given: NDArray[np.int64], n_classes: int, random: np.random.Generator) -> Any:
    """Another class for each label, each equally likely."""
    return (given + random.integers(1, n_classes, len(given))) % n_classes


def by_class(given: NDArray[np.int64], n_classes: int, random: np.random.Generator) -> Any:
    """Another class for each label, one for all labels of a class."""
    to = np.arange(n_classes)
    while (to == np.arange(n_classes)).any():
        to = random.permutation(n_classes)
    return to[given]


def _flips(data: Embedded, pool: NDArray[np.int64], seeds: int, name: str) -> list[dict[str, Any]]:
    """Precision and recall on each kind of flips, by method."""
    given = np.concatenate([data.images.train.labels, data.images.test.labels]).astype(np.int64)
    n_classes = len(data.images.class_names)
    kinds: dict[str, Flip] = {"at random": at_random, "by class": by_class}
    found = []
    for kind, flip in kinds.items():
        draws = []
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            rows = random.choice(pool, min(DRAWN, len(pool)), replace=False)
            truth = given[rows]
            wrong = np.zeros(len(rows), bool)
            wrong[random.choice(len(rows), round(RATE * len(rows)), replace=False)] = True
            noisy = np.where(wrong, flip(truth, n_classes, random), truth)
            draws.append(judged(data.features[rows], noisy, wrong, n_classes, seed))
            print(f"{name}, {kind}, seed {seed}: {draws[-1]}", flush=True)
        n, flipped = len(rows), int(wrong.sum())
        for method in draws[0]:
            values = [draw[method] for draw in draws]
            figures = {key: _figure([value[key] for value in values]) for key in values[0]}
            about = {"data": name, "kind": kind, "method": method, "n": n, "flipped": flipped}
            found.append({**about, **figures})
    return found


def judged(
    features: head.Rows,
    noisy: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    n_classes: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Measures how many of the wrong labels each method finds.

    Every method flags as many images as `audit` does.

    Args:
        features: [N, D]
        noisy: [N] labels.
        wrong: [N] whether they were flipped.
        n_classes: C
        seed: of the folds and of the random baseline.
    """
    scores = labels.scores(head.standardise(features), noisy, n_classes, seed=seed)
    found = labels.judge(scores, noisy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy's types
        confident = find_label_issues(
            noisy, found.probabilities, return_indices_ranked_by="normalized_margin", n_jobs=1
        )
    random = np.random.default_rng(seed)
    own = found.probabilities[np.arange(len(noisy)), noisy]
    orders = {
        "audit": np.lexsort((found.quality, ~found.doubtful)),
        "confident learning": confident,
        "lowest self-confidence": np.argsort(own, kind="stable"),
        "chance": random.permutation(len(noisy)),
    }
    flagged = int(found.doubtful.sum())
    return {
        method: {
            "precision_first": float(wrong[order[:FIRST]].mean()),
            "recall": float(wrong[order[:flagged]].sum() / wrong.sum()),
            "flagged": float(flagged),
            "precision": float(wrong[order[:flagged]].mean()),
        }
        for method, order in orders.items()
    }


def _jpeg(image: Image.Image, random: np.random.Generator) -> Image.Image:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=int(random.integers(30, 70)))
    return Image.open(buffer)


def _crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    side = int(random.integers(int(0.85 * image.width), image.width))
    left, top = (int(v) for v in random.integers(0, image.width - side + 1, 2))
    part = image.crop((left, top, left + side, top + side))
    return part.resize(image.size, Image.Resampling.BILINEAR)


def _brightness(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(float(random.choice([0.6, 0.75, 1.3, 1.5])))


def _mirror(image: Image.Image, random: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES = {"crop": _crop, "JPEG": _jpeg, "brightness": _brightness, "mirror": _mirror}


def _copies(data: Embedded, pool: NDArray[np.int64], name: str) -> list[dict[str, Any]]:
    """Changed copies of images among 5,000 of a data set, and the pairs that are not copies."""
    random = np.random.default_rng(0)
    rows = np.sort(random.choice(pool, min(DRAWN, len(pool)), replace=False))
    originals = np.asarray(data.images.train.images[rows])
    features = data.features[rows]
    before = _pairs(features, originals)
    copied = min(COPIED, len(rows))
    found = []
    for change, changed in CHANGES.items():
        source = random.choice(len(rows), copied, replace=False)
        images = (changed(Image.fromarray(originals[i]), random) for i in source)
        copies = np.stack([np.asarray(image.convert("RGB")) for image in images])
        there = _pairs(
            np.concatenate([features, data.embed(copies)]), np.concatenate([originals, copies])
        )
        planted = {(int(i), len(rows) + n) for n, i in enumerate(source)}
        apart = (_hash(originals[source]) != _hash(copies)).sum(axis=1)
        found.append(
            {
                "data": name,
                "change": change,
                "n": copied,
                "images": len(rows),
                "found": len(planted & there) / copied,
                "others": len({p for p in there - planted if p[1] < len(rows)}),
                "hash": float((apart <= 10).mean()),  # of 64 bits, the usual threshold
                "before": len(before),
            }
        )
        print(found[-1], flush=True)
    return found


def _pairs(features: head.Rows, pixels: NDArray[np.uint8]) -> set[tuple[int, int]]:
    found = duplicates.near_duplicates(features, lambda rows: pixels[rows])
    return {(int(a), int(b)) for a, b in found.rows}


def _hash(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The perceptual hash (pHash): the lowest 8 x 8 cosines about their median; [N, 64]."""
    from scipy.fft import dctn

    low = dctn(duplicates.grey(pixels), axes=(1, 2))[:, :8, :8].reshape(len(pixels), 64)
    found: NDArray[np.bool_] = low > np.median(low, axis=1, keepdims=True)
    return found


def _figure(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values)}


if __name__ == "__main__":
    command.enter(main, extra="train")
