"""Few labels on photos: a linear head on frozen features, at all labels, a tenth, and ten a class,
and the last stages fine-tuned from there at all labels, as `train` does.

`python -m benchmarks.training_runs.photos --data FOLDER` splits a folder of class folders five
times into four fifths and one, stratified; chooses the penalty by cross-validation on the labels it
is given; and measures accuracy on the fifth, which is not used for model selection. The floor is
the same head on the last layer's features alone. Of the labels for fine-tuning, a tenth decides
between it and the head. It exports the network, and measures what it costs to serve in fp32 and
INT8. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.provenance import conditions, parsed, write
from labelcurve.bundle import command
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.learning.finetune import Examples, Labelled, Result, finetune
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.metrics import scores
from labelcurve.training.models import export, quantize, timm_weights
from labelcurve.training.models.backbones import Network, build, predict_logits
from labelcurve.training.models.export import p50_ms
from labelcurve.training.models.features import features
from labelcurve.training.models.linear_head import fit_linear
from labelcurve.training.recipes import PHOTO_BACKBONE, TIMM, recipe
from labelcurve.training.runs import frozen
from labelcurve.training.runtime.device import FP32_CPU, hardware

SPLITS = 5
LABELS = ("all", "10%", "10 a class")
SPEAKING = Control(say=lambda line: print(line, flush=True))
TIMED = 100
"""Number of single images that are timed."""


@dataclass
class Photos:
    """Accuracy of a linear head on frozen features of photos."""

    data: Path
    """Folder of class folders."""
    extractor: str = PHOTO_BACKBONE
    """As for `labelcurve train`: `timm:NAME` or `timm:NAME=FILE`."""
    image_size: int = 224
    """Side of the images in pixels."""
    cache: Path | None = None
    """As for `labelcurve train`."""
    out: Path | None = None
    """File for the JSON document, such as benchmarks/results/photos.json."""

    def __post_init__(self) -> None:
        """Refuses what is not a network of timm."""
        if not self.extractor.startswith(TIMM):
            raise LabelcurveError(f"--extractor {self.extractor}: allowed are {TIMM}NAME[=FILE]")

    def about(self, classes: NDArray[np.int32]) -> dict[str, Any]:
        """The document's description of the conditions, the photos and the network."""
        return {
            "hardware": hardware(FP32_CPU),
            **conditions("torch", "timm", "scikit-learn", "scipy", "onnxruntime", "numpy"),
            "data": self.data.name,
            "images": len(classes),
            "classes": int(classes.max()) + 1,
            "extractor": self.extractor.partition("=")[0],
            "image_size": self.image_size,
        }


@dataclass(frozen=True)
class Embedded:
    """All images, training and test images in this order, and the network that embeds them."""

    images: Data
    network: Network
    features: NDArray[np.float32]
    """Frozen features, [N, D]."""
    labels: NDArray[np.int32]
    """Classes, [N]."""
    last: int
    """Number of features of the last layer, which come first."""


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.photos`."""
    options = parsed(Photos, arguments)
    found = embedded(options)
    kinds = (("last layer", found.last), ("last layer and maps", found.network.dim))
    figures = [_figure(found, labels, *kind) for kind in kinds for labels in LABELS]
    figures.append(_tuned(found, options.extractor))
    document = options.about(found.labels) | {"splits": SPLITS, **_cost(found)}
    write(options.out, document | {"figures": figures})


def embedded(options: Photos) -> Embedded:
    """Reads the photos and computes their frozen features."""
    images = dataset.load(str(options.data), size=options.image_size, cache=options.cache)
    weights = timm_weights.read(options.extractor, options.image_size)
    n_classes = len(images.class_names)
    network = build(options.extractor.partition("=")[0], images.train.images[:1], n_classes)
    weights.load_into(network)
    network.eval()
    found = [
        features(network, split, weights.version, FP32_CPU, cache=options.cache)
        for split in (images.train, images.test)
    ]
    assert isinstance(network.backbone, timm_weights.Backbone)
    stages: Any = network.backbone.model
    maps = sum(stages.feature_info[i]["num_chs"] for i in network.backbone.maps)
    classes = np.concatenate([images.train.labels, images.test.labels]).astype(np.int32)
    return Embedded(images, network, np.concatenate(found), classes, network.dim - maps)


def _cost(found: Embedded) -> dict[str, Any]:
    """Measure CPU time per image in ONNX Runtime on one thread, and the speed-up by INT8."""
    images = np.asarray(found.images.train.images[: quantize.CALIBRATION_IMAGES])
    served = export.Served(found.network, 1.0)
    graph = export.to_onnx(served, images.shape[1], found.images.class_names)
    small = quantize.int8(graph, images)
    gain = quantize.gain(small, graph, images, hardware(FP32_CPU))
    return {
        "cpu_ms": {"fp32": p50_ms(graph, images, TIMED), "int8": p50_ms(small, images, TIMED)},
        "int8_gain": round(gain.ratio, 3),
        "megabytes": {"fp32": round(len(graph) / 1e6, 1), "int8": round(len(small) / 1e6, 1)},
    }


def _figure(photos: Embedded, labels: str, name: str, width: int) -> dict[str, Any]:
    """The head on the first `width` features: `last layer` is the floor, and `train` takes all."""
    features, classes = photos.features[:, :width], photos.labels
    rows = []
    since = time.process_time()
    for seed, (learn, test) in enumerate(splits_of(classes)):
        chosen = chosen_of(classes, learn, labels, seed)
        head = fit_linear(features[chosen], classes[chosen], int(classes.max()) + 1)
        found = judged(head.logits(features[test]).astype(np.float64), classes[test])
        about = {"penalty": head.penalty, "balanced": head.balanced}
        rows.append({"n_labels": len(chosen), **found, **about})
    spent = round((time.process_time() - since) / SPLITS, 1)
    return {**over_splits(rows, labels=labels, features=name), "cpu_seconds": spent, "tuned": []}


def _tuned(photos: Embedded, extractor: str) -> dict[str, Any]:
    """Fine-tuning at all labels, starting from the linear head, and the better of the two."""
    from sklearn.model_selection import train_test_split

    images, classes = photos.images, photos.labels
    pixels = np.concatenate([images.train.images, images.test.images])
    figures = []
    since = time.process_time()
    for seed, (learn, test) in enumerate(splits_of(classes)):
        rows, held = train_test_split(
            learn, test_size=0.1, stratify=classes[learn], random_state=seed
        )
        head = fit_linear(photos.features[rows], classes[rows], len(images.class_names))
        linear = frozen.result(deepcopy(photos.network), head, 0.0)
        train, val = (Labelled(pixels[part], classes[part]) for part in (rows, held))
        best = tuned(linear, train, val, extractor, seed)
        found = judged(predict_logits(best.network, pixels[test], FP32_CPU), classes[test])
        about = {"penalty": head.penalty, "balanced": head.balanced, "tuned": best is not linear}
        figures.append({"n_labels": len(learn), **found, **about})
        print(f"fine-tuned, split {seed}: {found['accuracy']:.4f}", flush=True)
    spent = round((time.process_time() - since) / SPLITS, 1)
    return {**over_splits(figures, labels="all", features="fine-tuned"), "cpu_seconds": spent}


def tuned(linear: Result, train: Labelled, val: Labelled, extractor: str, seed: int) -> Result:
    """Fine-tune from a linear head, as `train` does: the better of the two on `val`."""
    n = len(train.labels)
    plan = recipe("default", n, flip=True, unlabelled=False, extractor=extractor)
    network = frozen.tunable(linear, plan, train.images)
    found = finetune(network, Examples(train, val), plan, FP32_CPU, seed, SPEAKING)
    return frozen.better(linear, found, val, n)


def splits_of(classes: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows of the fifth, split by split."""
    from sklearn.model_selection import StratifiedShuffleSplit

    splits = StratifiedShuffleSplit(SPLITS, test_size=0.2, random_state=0)
    return iter(splits.split(np.zeros((len(classes), 1)), classes))


def judged(logits: NDArray[np.float64], classes: NDArray[np.int32]) -> dict[str, float]:
    """Accuracy and balanced accuracy of logits [N, K], given the classes [N]."""
    found = scores(logits, classes)
    return {"accuracy": found.accuracy, "balanced_accuracy": found.balanced_accuracy or 0.0}


def over_splits(rows: Sequence[Mapping[str, Any]], **about: str) -> dict[str, Any]:
    """A figure: what was measured, split by split, and the accuracy's mean and deviation."""
    found = {name: [row[name] for row in rows] for name in rows[0]}
    mean = statistics.fmean(found["accuracy"])
    std = statistics.stdev(found["accuracy"]) if len(rows) > 1 else 0.0
    print(f"{', '.join(about.values())}: {mean:.4f} ± {std:.4f}", flush=True)
    return {**about, **found, "mean": mean, "std": std}


def chosen_of(
    classes: NDArray[np.int32], learn: NDArray[np.int64], labels: str, seed: int
) -> NDArray[np.int64]:
    """The labelled rows: `all`, a share of each class (`25%`), or so many of each (`4 a class`)."""
    random = np.random.default_rng(seed)
    parts = []
    for label in range(int(classes.max()) + 1):
        own = random.permutation(learn[classes[learn] == label])
        n = len(own)
        if labels != "all":
            number = int(re.split(r"\D", labels)[0])
            n = number * n // 100 if labels.endswith("%") else number
        parts.append(own[:n])
    return np.concatenate(parts)


if __name__ == "__main__":
    command.enter(main, extra="photos")
