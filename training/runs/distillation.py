"""A compact model distilled from a published one, its teacher.

The teacher's graph answers each training image and its mirror image once; the compact network
is trained on their mean, on random crops and also on images without labels.
Sources: G. Hinton, O. Vinyals and J. Dean, Distilling the knowledge in a neural network, 2015;
L. Beyer et al., Knowledge distillation: a good teacher is patient and consistent, 2022.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from labelcurve.bundle.manifest import Teacher
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.learning import finetune
from labelcurve.training.learning.finetune import Examples, Labelled
from labelcurve.training.models import export, extractor
from labelcurve.training.models.export import p50_ms
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.models.features import Computed, kept
from labelcurve.training.options import Options
from labelcurve.training.recipes import Backbone, distillation, divided
from labelcurve.training.runs import frozen, grid
from labelcurve.training.runs.budget import Budget
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runs.model_run import ANSWERS, ModelRun
from labelcurve.training.runs.publication import Command
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.experiment import Tracking

BATCH = 32
"""Images that the teacher answers at a time."""

COMPACT_SIZE = 32
"""Side of the images that the shipped extractor of the compact network was trained on."""


def with_students(
    options: Options, images: Data, cells: Sequence[Cell], backbone: Backbone
) -> list[Cell]:
    """Each model, followed by its compact student."""
    found = []
    for cell in cells:
        others = len(images.train) - len(cell.subset.train) - len(cell.subset.val)
        unlabelled = not options.no_unlabelled and others > 0
        plan = distillation(
            backbone,
            len(cell.subset.train) + unlabelled * others,
            flip=grid.flip(options),
            unlabelled=unlabelled,
        )
        student = replace(
            cell,
            name=_name(options, images, cell, final=cell.measured is not None),
            recipe=grid.limited(plan, options),
            teacher=cell.name,
            measured=cell.measured and _name(options, images, cell, final=False),
        )
        found += [cell, student]
    return found


def _name(options: Options, images: Data, cell: Cell, *, final: bool) -> str:
    fraction = None if final else cell.subset.fraction
    return grid.bundle_name(options, images.name, fraction, cell.seed, compact=True)


class StudentRun(ModelRun):
    """Trains and publishes one compact model, after its teacher."""

    def __init__(self, command: Command, cell: Cell, began: float, teacher: ModelRun) -> None:
        own = _extractor(command, cell, teacher.cell)
        options = replace(command.options, preset="default")
        super().__init__(replace(command, extractor=own, options=options), cell, began)
        self._teacher = teacher

    def published(self) -> dict[str, Any] | None:
        """As `ModelRun.published`, where it is this teacher's."""
        entry = super().published()
        teacher = self._teacher.entry
        return entry if entry and teacher and _named(entry["teacher"]) == _named(teacher) else None

    def train(self, budget: Budget) -> dict[str, Any]:
        """As `ModelRun.train`, once the teacher is published."""
        teacher = self._teacher.entry
        assert teacher is not None, "the teacher is trained first"
        self.taught_by = Teacher(
            **_named(teacher), n_images=len(self.cell.subset.train) + len(self.others)
        )
        images = self.command.images
        if "p50_ms" not in teacher:  # a command without --max-latency made it
            teacher["p50_ms"] = p50_ms(self._teacher.bundle().graph, images.train.images)
        self.teacher_p50_ms = teacher["p50_ms"]
        about = self.checkpoint.about()
        if about is not None and about["teacher"] != teacher["version"]:
            say(f"{self.cell.name}: the checkpoint is of another teacher, so it starts over")
            self.checkpoint.remove()
            self.interruptions = 0
        entry = super().train(budget)
        shutil.rmtree(self._answers_folder(), ignore_errors=True)
        return entry

    def learn(self, budget: Budget, run: Tracking) -> finetune.Result:
        """Fits a head on the labels, then learns the teacher's answers."""
        cell, n = self.cell, len(self.others)
        more = f" and {n:,} others" if n else ""
        say(
            f"\n{cell.name}: {cell.recipe.backbone} learns what {cell.teacher} answers to its "
            f"{len(cell.subset.train):,} labelled images{more}"
        )
        network = self.network()
        linear = self.linear(network, kind=f"-1of{divided(cell.recipe.backbone)[1]}")
        if linear is not None:
            network = frozen.learning(linear, cell.recipe, self.command.images.train.images)
        return self.tune(network, budget, run)

    def examples(self) -> Examples:
        """All images that the teacher answers, with its answers."""
        train, subset = self.command.images.train, self.cell.subset
        rows = np.sort(np.concatenate([subset.train, self.others]))
        split, val = train.take(rows), train.take(subset.val)
        graph, runtime = self._teacher.bundle().graph, None
        if self.device.device.type == "cuda":
            runtime = export.gpu_session(graph)
        runtime = runtime or export.session(graph, torch.get_num_threads())
        with Bar("answers") as bar:
            found = kept(
                self._answers_folder(),
                len(self.command.images.class_names),
                split,
                lambda missing: answers(runtime, split.images, missing, self.cell.recipe.flip),
                bar.update,
            )
        return Examples(
            Labelled(split.images, split.labels), Labelled(val.images, val.labels), answers=found
        )

    def _answers_folder(self) -> Path:
        assert self.taught_by is not None
        return self.folder / f"{ANSWERS}{self.taught_by.version}"

    def progress(self) -> dict[str, Any]:
        """As `ModelRun.progress`, with the teacher's version."""
        assert self.taught_by is not None
        return {**super().progress(), "teacher": self.taught_by.version}


def answers(
    runtime: ort.InferenceSession, images: Images, rows: NDArray[np.int64], flip: bool
) -> Iterator[Computed]:
    """Batches of rows with the teacher's probabilities, float32 [B, K].

    Args:
        images: uint8 [N, H, W, 3].
        rows: int64 [M].
    """
    for first in range(0, len(rows), BATCH):
        part = rows[first : first + BATCH]
        pixels = np.ascontiguousarray(images[part])
        views = [pixels, pixels[:, :, ::-1]] if flip else [pixels]
        found = [export.probabilities(runtime, view) for view in views]
        yield part, np.mean(found, axis=0, dtype=np.float32)


def said(entries: Sequence[dict[str, Any]], limit: float) -> list[str]:
    """A line for each compact model: its accuracy and time, and its teacher's."""
    by_name = {entry["name"]: entry for entry in entries}
    return [
        f"{_judged(by_name[entry['teacher']['name']])}; {_judged(entry)} (--max-latency {limit:g})"
        for entry in entries
        if "teacher" in entry
    ]


def _judged(entry: dict[str, Any]) -> str:
    if "measured" in entry:  # its figures are another model's
        return f"{entry['name']}: {entry['p50_ms']:.2f} ms an image"
    figures, split = (entry["test"], "test") if entry["test"] else (entry["val"], "validation")
    return (
        f"{entry['name']}: accuracy {figures['accuracy']:.4f} on {split}, "
        f"{entry['p50_ms']:.2f} ms an image"
    )


def _named(entry: dict[str, Any]) -> dict[str, str]:
    return {"name": entry["name"], "version": entry["version"]}


def _extractor(command: Command, cell: Cell, teacher: Cell) -> Extractor | None:
    """The weights that the compact network begins with: the teacher's, or the shipped ones."""
    own, whole = (divided(each.recipe.backbone)[0] for each in (cell, teacher))
    if own == whole:
        return command.extractor
    return extractor.shipped(own, COMPACT_SIZE, cell.recipe.flip)
