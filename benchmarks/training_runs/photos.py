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

import statistics
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.provenance import check_out, conditions, write
from labelcurve.bundle import command
from labelcurve.bundle.manifest import Metrics
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.learning.finetune import Examples, Labelled, finetune
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.metrics import scores
from labelcurve.training.models import export, quantize, timm_weights
from labelcurve.training.models.backbones import Network, build, predict_logits
from labelcurve.training.models.export import p50_ms
from labelcurve.training.models.features import features
from labelcurve.training.models.linear_head import LinearHead, fit_linear
from labelcurve.training.recipes import PHOTO_BACKBONE, TIMM, recipe
from labelcurve.training.runs import frozen
from labelcurve.training.runtime.device import FP32_CPU, hardware

SPLITS = 5
PER_CLASS = 10
FRACTION = 0.1
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

    def check(self) -> None:
        """Refuses what would fail after minutes.

        Raises:
            SystemExit: it is not a network of timm.
            LabelcurveError: the file cannot be written.
        """
        check_out(self.out)
        if not self.extractor.startswith(TIMM):
            raise SystemExit(f"--extractor {self.extractor}: allowed are {TIMM}NAME[=FILE]")

    def about(self, classes: NDArray[np.int32]) -> dict[str, Any]:
        """The document's description of the photos and the network."""
        return {
            "data": self.data.name,
            "images": len(classes),
            "classes": int(classes.max()) + 1,
            "extractor": self.extractor.partition("=")[0],
            "image_size": self.image_size,
        }


@dataclass(frozen=True)
class Figure:
    """One number of labels, over the splits."""

    labels: str
    features: str
    """`last layer` (the floor), `last layer and maps`, which `train` takes, or `fine-tuned`."""
    n_labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    balanced_accuracy: tuple[float, ...]
    penalty: tuple[float, ...]
    balanced: tuple[bool, ...]
    """Whether classes had equal weight."""
    mean: float
    std: float
    """Sample standard deviation over the splits, of the accuracy."""
    cpu_seconds: float
    """Mean CPU time of choosing and fitting one head, or of fine-tuning, too."""
    tuned: tuple[bool, ...] = ()
    """Whether fine-tuning was better than the head on the tenth."""


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
    options = tyro.cli(Photos, args=arguments, prog="python -m benchmarks.training_runs.photos")
    options.check()
    found = embedded(options)
    figures = []
    for name, width in (("last layer", found.last), ("last layer and maps", found.network.dim)):
        for labels in ("all", f"{FRACTION:.0%}", f"{PER_CLASS} a class"):
            figure = _figure(found, labels, name, width)
            print(f"{name}, {labels}: {figure.mean:.4f} ± {figure.std:.4f}", flush=True)
            figures.append(figure)
    figures.append(_tuned(found, options.extractor))
    document = {
        "hardware": hardware(FP32_CPU),
        **conditions(__file__, ("torch", "timm", "scikit-learn", "onnxruntime", "numpy")),
        **options.about(found.labels),
        "splits": SPLITS,
        **_cost(found),
        "figures": [asdict(figure) for figure in figures],
    }
    write(options.out, document)


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


def _figure(photos: Embedded, labels: str, name: str, width: int) -> Figure:
    rows, classes = photos.features[:, :width], photos.labels
    n_classes = int(classes.max()) + 1
    heads, found, counts = [], [], []
    since = time.process_time()
    for seed, (learn, test) in enumerate(splits_of(classes)):
        chosen = chosen_of(classes, learn, labels, seed)
        head = fit_linear(rows[chosen], classes[chosen], n_classes)
        heads.append(head)
        counts.append(len(chosen))
        found.append(scores(head.logits(rows[test]).astype(np.float64), classes[test]))
    spent = time.process_time() - since
    return _over_splits(labels, name, heads, found, counts, spent)


def _tuned(photos: Embedded, extractor: str) -> Figure:
    """Fine-tuning at all labels, starting from the linear head, and the better of the two."""
    from sklearn.model_selection import train_test_split

    images, classes = photos.images, photos.labels
    pixels = np.concatenate([images.train.images, images.test.images])
    heads, found, counts, won = [], [], [], []
    since = time.process_time()
    for seed, (learn, test) in enumerate(splits_of(classes)):
        rows, held = train_test_split(
            learn, test_size=0.1, stratify=classes[learn], random_state=seed
        )
        head = fit_linear(photos.features[rows], classes[rows], len(images.class_names))
        linear = frozen.result(deepcopy(photos.network), head, 0.0)
        train, val = (Labelled(pixels[part], classes[part]) for part in (rows, held))
        plan = recipe("default", len(rows), flip=True, unlabelled=False, extractor=extractor)
        tuned = finetune(
            frozen.tunable(linear, plan, train.images),
            Examples(train, val),
            plan,
            FP32_CPU,
            seed,
            Control(say=lambda line: print(line, flush=True)),
        )
        best = frozen.better(linear, tuned, val, len(rows))
        logits = predict_logits(best.network, pixels[test], FP32_CPU)
        heads.append(head)
        found.append(scores(logits, classes[test]))
        counts.append(len(learn))
        won.append(best is tuned)
        print(f"fine-tuned, split {seed}: {found[-1].accuracy:.4f}", flush=True)
    spent = time.process_time() - since
    return _over_splits("all", "fine-tuned", heads, found, counts, spent, won)


def splits_of(classes: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to learn from and rows of the fifth, split by split."""
    from sklearn.model_selection import StratifiedShuffleSplit

    splits = StratifiedShuffleSplit(SPLITS, test_size=0.2, random_state=0)
    return iter(splits.split(np.zeros((len(classes), 1)), classes))


def _over_splits(
    labels: str,
    name: str,
    heads: Sequence[LinearHead],
    found: Sequence[Metrics],
    counts: Sequence[int],
    spent: float,
    tuned: Sequence[bool] = (),
) -> Figure:
    accuracy = tuple(each.accuracy for each in found)
    return Figure(
        labels=labels,
        features=name,
        n_labels=tuple(counts),
        accuracy=accuracy,
        balanced_accuracy=tuple(each.balanced_accuracy or 0.0 for each in found),
        penalty=tuple(head.penalty for head in heads),
        balanced=tuple(head.balanced for head in heads),
        mean=statistics.fmean(accuracy),
        std=statistics.stdev(accuracy),
        cpu_seconds=round(spent / SPLITS, 1),
        tuned=tuple(tuned),
    )


def chosen_of(
    classes: NDArray[np.int32], learn: NDArray[np.int64], labels: str, seed: int
) -> NDArray[np.int64]:
    """Choose the labelled rows: all, or equally many per class."""
    random = np.random.default_rng(seed)
    parts = []
    for label in range(int(classes.max()) + 1):
        own = random.permutation(learn[classes[learn] == label])
        n = {"all": len(own), f"{FRACTION:.0%}": int(FRACTION * len(own))}.get(labels, PER_CLASS)
        parts.append(own[:n])
    return np.concatenate(parts)


if __name__ == "__main__":
    command.enter(main, extra="photos")
