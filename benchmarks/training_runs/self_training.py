"""What images without labels are worth on photos: a linear head, and the network that learned its
answers to all of them.

`python -m benchmarks.training_runs.self_training --data FOLDER` splits a folder of class folders
five times into four fifths and one, stratified, as `benchmarks.training_runs.photos` does. At a
tenth of the labels and at ten a class it fits the linear head, and trains the network on the head's
answers to the four fifths, as `train` does with few labels and many images. The fifth is test,
which chooses nothing. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.special import softmax

from labelcurve.benchmarks.harness.provenance import check_out, conditions, write
from labelcurve.benchmarks.training_runs import photos
from labelcurve.bundle import command
from labelcurve.bundle.manifest import Metrics
from labelcurve.training.data import dataset
from labelcurve.training.learning.finetune import Examples, Labelled, finetune
from labelcurve.training.learning.linear_head import fit_linear
from labelcurve.training.learning.metrics import scores
from labelcurve.training.models import timm_weights
from labelcurve.training.models.backbones import Network, build, predict_logits
from labelcurve.training.models.features import features
from labelcurve.training.recipes import PHOTO_BACKBONE, TIMM, distillation
from labelcurve.training.runs import frozen
from labelcurve.training.runtime.device import FP32_CPU, hardware

KINDS = ("linear head", "self-trained")
LABELS = (f"{photos.FRACTION:.0%}", f"{photos.PER_CLASS} a class")


@dataclass
class SelfTraining:
    """Accuracy of a linear head on photos and of the network that learned its answers."""

    data: Path
    """Folder of class folders."""
    extractor: str = PHOTO_BACKBONE
    """As for `labelcurve train`: `timm:NAME` or `timm:NAME=FILE`."""
    image_size: int = 224
    """Side of the images in pixels."""
    labels: tuple[str, ...] = LABELS
    """Numbers of labels."""
    splits: int = photos.SPLITS
    """Number of splits, at most five."""
    cache: Path | None = None
    """As for `labelcurve train`."""
    out: Path | None = None
    """File for the JSON document, such as benchmarks/results/self_training.json."""


@dataclass(frozen=True)
class Figure:
    """One kind of model at one number of labels, over the splits."""

    labels: str
    kind: str
    """One of `KINDS`."""
    n_labels: tuple[int, ...]
    n_images: tuple[int, ...]
    """Images that were answered, labelled or not; 0 of the linear head."""
    accuracy: tuple[float, ...]
    balanced_accuracy: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    """CPU time of the training, without the features."""


class Study:
    """Photos, their frozen features, and the network that they are of."""

    def __init__(self, options: SelfTraining) -> None:
        images = dataset.load(str(options.data), size=options.image_size, cache=options.cache)
        self.backbone = options.extractor.partition("=")[0]
        self.n_classes = len(images.class_names)
        weights = timm_weights.read(options.extractor, options.image_size)
        self.network: Network = build(self.backbone, images.train.images[:1], self.n_classes)
        weights.load_into(self.network)
        self.network.eval()
        parts = images.train, images.test
        self.features: NDArray[np.float32] = np.concatenate(
            [
                features(self.network, part, weights.version, FP32_CPU, cache=options.cache)
                for part in parts
            ]
        )
        self.pixels = np.concatenate([part.images for part in parts])
        self.classes = np.concatenate([part.labels for part in parts]).astype(np.int32)

    def models(
        self,
        learn: NDArray[np.int64],
        labelled: NDArray[np.int64],
        test: NDArray[np.int64],
        seed: int,
    ) -> list[tuple[Metrics, float]]:
        """Figures on test and CPU seconds of the linear head and of the network that it taught.

        Args:
            learn: rows that the network may read without their labels.
            labelled: those of them whose labels the head learns from.
            test: rows that judge both.
            seed: of the order and the crops.
        """
        began = time.process_time()
        head = fit_linear(self.features[labelled], self.classes[labelled], self.n_classes)
        fitted = time.process_time()
        linear = frozen.result(deepcopy(self.network), head, 0.0)
        answers = softmax(head.logits(self.features[learn]), axis=1).astype(np.float32)
        plan = distillation(self.backbone, len(learn), flip=True, unlabelled=True)
        torch.manual_seed(seed)
        taught = finetune(
            frozen.learning(linear, plan, self.pixels[learn]),
            Examples(self._rows(learn), self._rows(learn[:0]), answers=answers),
            plan,
            FP32_CPU,
            seed,
        )
        trained = time.process_time()
        logits = head.logits(self.features[test]).astype(np.float64)
        own = predict_logits(taught.network, self.pixels[test], FP32_CPU)
        return [
            (scores(logits, self.classes[test]), fitted - began),
            (scores(own, self.classes[test]), trained - fitted),
        ]

    def _rows(self, rows: NDArray[np.int64]) -> Labelled:
        return Labelled(self.pixels[rows], self.classes[rows])


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.self_training`."""
    name = "python -m benchmarks.training_runs.self_training"
    options = tyro.cli(SelfTraining, args=arguments, prog=name)
    check_out(options.out)
    if not options.extractor.startswith(TIMM):
        raise SystemExit(f"--extractor {options.extractor}: allowed are {TIMM}NAME[=FILE]")
    if unknown := set(options.labels) - set(LABELS):
        raise SystemExit(f"--labels {', '.join(sorted(unknown))}: allowed are {', '.join(LABELS)}")
    study = Study(options)
    document = {
        "hardware": hardware(FP32_CPU),
        **conditions(__file__, ("torch", "timm", "scikit-learn", "onnxruntime", "numpy")),
        "data": options.data.name,
        "images": len(study.classes),
        "classes": study.n_classes,
        "extractor": study.backbone,
        "image_size": options.image_size,
        "figures": [
            asdict(figure)
            for labels in options.labels
            for figure in figures(study, labels, options.splits)
        ],
    }
    write(options.out, document)


def figures(study: Study, labels: str, splits: int) -> list[Figure]:
    """The figures of both kinds at a number of labels, over the first splits."""
    found, n_labels, n_images = [], [], []
    for seed, (learn, test) in zip(range(splits), photos.splits_of(study.classes), strict=False):
        labelled = photos.chosen_of(study.classes, learn, labels, seed)
        found.append(study.models(learn, labelled, test, seed))
        n_labels.append(len(labelled))
        n_images.append(len(learn))
        shown = ", ".join(f"{metrics.accuracy:.4f}" for metrics, _ in found[-1])
        print(f"{labels}, split {seed}: {' and '.join(KINDS)} {shown}", flush=True)
    return [
        Figure(
            labels=labels,
            kind=kind,
            n_labels=tuple(n_labels),
            n_images=tuple(n_images) if kind == KINDS[1] else (0,) * len(n_images),
            accuracy=tuple(metrics.accuracy for metrics, _ in own),
            balanced_accuracy=tuple(metrics.balanced_accuracy or 0.0 for metrics, _ in own),
            cpu_seconds=tuple(round(seconds, 1) for _, seconds in own),
        )
        for kind, own in zip(KINDS, zip(*found, strict=True), strict=True)
    ]


if __name__ == "__main__":
    command.enter(main, extra="photos")
