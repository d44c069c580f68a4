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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from labelcurve.benchmarks.harness.provenance import parsed, save, write
from labelcurve.benchmarks.training_runs import photos
from labelcurve.benchmarks.training_runs.photos import SPEAKING
from labelcurve.bundle import command
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.learning.finetune import Examples, Labelled, Result, finetune
from labelcurve.training.learning.metrics import temperature
from labelcurve.training.models import export, timm_weights
from labelcurve.training.models.backbones import Network, build, predict_logits
from labelcurve.training.models.export import p50_ms
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.models.features import features
from labelcurve.training.models.linear_head import fit_linear
from labelcurve.training.recipes import TUNED_FROM, distillation
from labelcurve.training.runs import frozen
from labelcurve.training.runtime.device import FP32_CPU

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
    """The networks and the photos."""

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
        train, val = self._of(split.train), self._of(split.val)
        return photos.tuned(linear, train, val, self.options.extractor, split.number)

    def distilled(self, split: Split, answers: NDArray[np.float32], rows: Rows) -> Result:
        """The smaller network, which learns the teacher's answers to `rows`.

        The labelled photos of the split give the initial linear head; the answers are probabilities
        [N, K] of all photos.
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

    def models(self, split: Split) -> dict[str, dict[str, float]]:
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
        found = {k: photos.judged(each, self.classes[split.test]) for k, each in logits.items()}
        print(f"split {split.number}, {split.labels}: {found}", flush=True)
        return found

    def _of(self, rows: Rows) -> Labelled:
        return Labelled(self.pixels[rows], self.classes[rows])


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.training_runs.distillation`."""
    options = parsed(Distillation, arguments)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    study = Study(options)
    times = {TEACHER: study.p50_ms(), "student": study.p50_ms(options.factor)}
    figures = []
    for labels, n in (("10%", options.splits), ("all", options.all_splits)):
        splits = [study.split(number, labels) for number in range(n)]
        figures += over_splits(splits, [_kept(study, split) for split in splits], times)
    document = {"factor": options.factor, "figures": figures}
    write(options.out, options.about(study.classes) | document)


def _kept(study: Study, split: Split) -> dict[str, dict[str, float]]:
    """`Study.models`, or what an earlier command has measured."""
    work = study.options.work
    if work is None:
        return study.models(split)
    path = work / f"models-{split.number}-{split.labels}.json"
    if not path.exists():
        save(path, study.models(split))
    found: dict[str, dict[str, float]] = json.loads(path.read_text())
    return found


def over_splits(
    splits: Sequence[Split],
    measured: Sequence[dict[str, dict[str, float]]],
    times: dict[str, float],
) -> list[dict[str, Any]]:
    """A figure for each kind of model, of splits at one number of labels.

    What was measured is that of `Study.models`. `times` are ms of one image by kind; those that are
    not named take as long as the `student`.
    """
    counts = [len(split.train) + len(split.val) for split in splits]
    found = []
    for kind in measured[0]:
        rows = [{"n_labels": n, **each[kind]} for n, each in zip(counts, measured, strict=True)]
        figure = photos.over_splits(rows, labels=splits[0].labels, kind=kind)
        found.append({**figure, "p50_ms": times.get(kind, times["student"])})
    return found


if __name__ == "__main__":
    command.enter(main, extra="photos")
