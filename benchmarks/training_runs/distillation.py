"""What a smaller network gains from the answers of a larger one on photos, and what both cost.

`python -m benchmarks.training_runs.distillation --data FOLDER` splits a folder of class folders
several times into four fifths and one, stratified, as `benchmarks.training_runs.photos` does. At
all labels and at a tenth it makes the model of `train` (the teacher), the same network on images of
a smaller side distilled from it as `train --max-latency` does, with and without the images whose
labels are left out, and that network on the labels alone. The fifth is for test, not for model
selection. The last line on stdout is one JSON document.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.provenance import conditions, write
from labelcurve.benchmarks.training_runs import photos
from labelcurve.bundle import command
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.learning.finetune import Examples, Labelled, Result, finetune
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.metrics import scores, temperature
from labelcurve.training.models import export, timm_weights
from labelcurve.training.models.backbones import Network, build, predict_logits
from labelcurve.training.models.export import p50_ms
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.models.features import features
from labelcurve.training.models.linear_head import fit_linear
from labelcurve.training.recipes import TUNED_FROM, distillation, recipe
from labelcurve.training.runs import frozen
from labelcurve.training.runtime.device import FP32_CPU, hardware

TEACHER, DISTILLED, LABELLED, ALONE = (
    "teacher",
    "taught on all images",
    "taught on the labelled images",
    "labels alone",
)
"""The kinds of models. At all labels `DISTILLED` and `LABELLED` are the same: the second is left
out."""


@dataclass
class Distillation(photos.Photos):
    """Accuracy and time of a network and of a smaller one that learns its answers."""

    factor: int = 2
    """Divides the image side of the smaller network."""
    splits: int = 3
    """Number of the five splits to use at a tenth of the labels."""
    all_splits: int = 3
    """The same at all labels, which takes longer."""
    work: Path | None = None
    """Folder that keeps finished results, so that the same command resumes after an
    interruption."""


@dataclass(frozen=True)
class Figure:
    """One kind of model at one number of labels, over the splits."""

    labels: str
    """`all` or `10%`."""
    kind: str
    n_labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    balanced_accuracy: tuple[float, ...]
    mean: float
    std: float
    """Sample standard deviation over the splits, of the accuracy."""
    p50_ms: float


Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows of one split at one number of labels."""

    number: int
    labels: str
    train: Rows
    """With their labels."""
    others: Rows
    """Without."""
    val: Rows
    """Fits temperatures, and decides between a linear head and fine-tuning."""
    test: Rows


class Study:
    """The networks and the photos.

    Args:
        options: of the command.
    """

    def __init__(self, options: Distillation) -> None:
        self.options = options
        self.images: Data = dataset.load(
            str(options.data), size=options.image_size, cache=options.cache
        )
        parts = (self.images.train, self.images.test)
        self.pixels = np.concatenate([np.asarray(part.images) for part in parts])
        self.classes = np.concatenate([part.labels for part in parts]).astype(np.int32)
        self.weights: Extractor = timm_weights.read(options.extractor, options.image_size)

    def network(self, factor: int = 1) -> Network:
        """The pretrained network on images of a divided side."""
        name = self.options.extractor.partition("=")[0] + (f"/{factor}" if factor > 1 else "")
        torch.manual_seed(0)
        found = build(name, self.images.train.images[:1], len(self.images.class_names))
        self.weights.load_into(found)
        return found.eval()

    def p50_ms(self, factor: int = 1) -> float:
        """Time of one image in ms."""
        served = export.Served(self.network(factor), 1.0)
        graph = export.to_onnx(served, self.options.image_size, self.images.class_names)
        return p50_ms(graph, self.images.train.images)

    def split(self, number: int, labels: str) -> Split:
        """The rows of a split."""
        from sklearn.model_selection import train_test_split

        learn, test = list(photos.splits_of(self.classes))[number]
        rows, val = train_test_split(
            learn, test_size=0.1, stratify=self.classes[learn], random_state=number
        )
        train, judged = (photos.chosen_of(self.classes, r, labels, number) for r in (rows, val))
        return Split(number, labels, train, np.setdiff1d(rows, train), judged, test)

    def head(self, split: Split, factor: int = 1) -> Result:
        """A linear head on the frozen features of the labelled photos."""
        network = self.network(factor)
        version = self.weights.version + (f"-1of{factor}" if factor > 1 else "")
        found = np.concatenate(
            [
                features(network, part, version, FP32_CPU, cache=self.options.cache)
                for part in (self.images.train, self.images.test)
            ]
        )
        rows = split.train
        head = fit_linear(found[rows], self.classes[rows], len(self.images.class_names))
        return frozen.result(network, head, 0.0)

    def labelled(self, split: Split, factor: int = 1) -> Result:
        """The model that `train` makes from the labels."""
        linear = self.head(split, factor)
        if len(split.train) < TUNED_FROM:
            return linear
        plan = recipe(
            "default",
            len(split.train),
            flip=True,
            unlabelled=False,
            extractor=self.options.extractor,
        )
        train, val = self._of(split.train), self._of(split.val)
        network = frozen.tunable(linear, plan, train.images)
        tuned = finetune(network, Examples(train, val), plan, FP32_CPU, split.number, SPEAKING)
        return frozen.better(linear, tuned, val, len(split.train))

    def distilled(self, split: Split, answers: NDArray[np.float32], rows: Rows) -> Result:
        """The smaller network, which learns the teacher's answers to `rows`.

        Args:
            split: its labelled photos give the initial linear head.
            answers: probabilities [N, K] of all photos.
            rows: of them.
        """
        factor = self.options.factor
        name = f"{self.options.extractor.partition('=')[0]}/{factor}"
        plan = distillation(name, len(rows), flip=True, unlabelled=len(rows) > len(split.train))
        network = frozen.learning(self.head(split, factor), plan, self.pixels[:2])
        examples = Examples(self._of(rows), self._of(split.val), answers=answers[rows])
        return finetune(network, examples, plan, FP32_CPU, split.number, SPEAKING)

    def answers(self, split: Split) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """The teacher's logits of all photos, [N, K], and its answers, mirror images included."""
        served = export.Served(self.labelled(split).network, 1.0)
        graph = export.to_onnx(served, self.options.image_size, self.images.class_names)
        runtime = export.session(graph, torch.get_num_threads())
        plain, mirrored = (
            np.log(export.probabilities(runtime, view).astype(np.float64).clip(1e-12))
            for view in (self.pixels, self.pixels[:, :, ::-1])
        )
        fitted = temperature(plain[split.val], self.classes[split.val])
        both = [np.exp(logits / fitted) for logits in (plain, mirrored)]
        mean = np.mean([each / each.sum(1, keepdims=True) for each in both], axis=0)
        return plain, mean.astype(np.float32)

    def models(self, split: Split) -> dict[str, tuple[float, float]]:
        """Accuracy and balanced accuracy of each kind of model on a split."""
        plain, answers = self.answers(split)
        everything = np.sort(np.concatenate([split.train, split.others]))
        made = {DISTILLED: self.distilled(split, answers, everything)}
        if len(split.others):
            made[LABELLED] = self.distilled(split, answers, split.train)
        made[ALONE] = self.labelled(split, self.options.factor)
        test = self.pixels[split.test]
        logits = {TEACHER: plain[split.test]}
        logits |= {k: predict_logits(m.network, test, FP32_CPU) for k, m in made.items()}
        judged = {k: scores(found, self.classes[split.test]) for k, found in logits.items()}
        found = {k: (m.accuracy, m.balanced_accuracy or 0.0) for k, m in judged.items()}
        print(f"split {split.number}, {split.labels}: {found}", flush=True)
        return found

    def _of(self, rows: Rows) -> Labelled:
        return Labelled(self.pixels[rows], self.classes[rows])


SPEAKING = Control(say=lambda line: print(line, flush=True))


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.distillation`."""
    prog = "python -m benchmarks.training_runs.distillation"
    options = tyro.cli(Distillation, args=arguments, prog=prog)
    options.check()
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    times = {TEACHER: study.p50_ms(), "student": study.p50_ms(options.factor)}
    figures = []
    for labels, n in (("10%", options.splits), ("all", options.all_splits)):
        splits = [study.split(number, labels) for number in range(n)]
        figures += _over_splits(splits, [_kept(study, split) for split in splits], times)
    document = {
        "hardware": hardware(FP32_CPU),
        **conditions(__file__, ("torch", "timm", "scikit-learn", "onnxruntime", "numpy")),
        **options.about(study.classes),
        "factor": options.factor,
        "figures": [asdict(figure) for figure in figures],
    }
    write(options.out, document)


def _kept(study: Study, split: Split) -> dict[str, tuple[float, float]]:
    """`Study.models`, or what an earlier command has measured."""
    work = study.options.work
    if work is None:
        return study.models(split)
    path = work / f"models-{split.number}-{split.labels}.json"
    if not path.exists():
        path.write_text(json.dumps(study.models(split)))
    found: dict[str, tuple[float, float]] = json.loads(path.read_text())
    return found


def _over_splits(
    splits: Sequence[Split],
    measured: Sequence[dict[str, tuple[float, float]]],
    times: dict[str, float],
) -> list[Figure]:
    figures = []
    for kind in measured[0]:
        accuracy, balanced = zip(*(each[kind] for each in measured), strict=True)
        figure = Figure(
            labels=splits[0].labels,
            kind=kind,
            n_labels=tuple(len(split.train) + len(split.val) for split in splits),
            accuracy=accuracy,
            balanced_accuracy=balanced,
            mean=statistics.fmean(accuracy),
            std=statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0,
            p50_ms=times.get(kind, times["student"]),
        )
        print(f"{kind}, {figure.labels}: {figure.mean:.4f} ± {figure.std:.4f}", flush=True)
        figures.append(figure)
    return figures


if __name__ == "__main__":
    command.enter(main, extra="photos")
