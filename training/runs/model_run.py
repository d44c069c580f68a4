"""One model of a command: trained, published, and continued after an interruption."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from labelcurve.bundle import store
from labelcurve.bundle.errors import DivergedError
from labelcurve.bundle.machine import scheduled, waited_share
from labelcurve.bundle.manifest import SHARED, Choice, Epoch, Teacher
from labelcurve.bundle.store import Bundle
from labelcurve.bundle.text import counted
from labelcurve.training.extractors import choice
from labelcurve.training.learning import finetune
from labelcurve.training.learning.batches import reading
from labelcurve.training.learning.finetune import Examples, Labelled
from labelcurve.training.learning.loop import Control
from labelcurve.training.models.backbones import Mirrored, Network, build
from labelcurve.training.options import RUNS
from labelcurve.training.recipes import LIBRARIES
from labelcurve.training.runs import frozen, publication
from labelcurve.training.runs.budget import Budget
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runs.publication import Circumstances, Command
from labelcurve.training.runtime import distributed, interruption
from labelcurve.training.runtime.checkpoint import Checkpoint, Finished, check_room
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import circumstances, continued
from labelcurve.training.runtime.experiment import EventWriter, Tracking

ANSWERS = "answers-"
"""Beginning of the folder of a teacher's answers, its version after it."""


class ModelRun:
    """Trains and publishes one model.

    Args:
        began: of the command, by `time.monotonic`; the parts before an interruption included.
    """

    def __init__(self, command: Command, cell: Cell, began: float) -> None:
        self.command, self.cell, self.began = command, cell, began
        self.device = command.device
        self.folder = folder(command.options.out, cell)
        self.others = cell.others(len(command.images.train))
        self.n_unlabelled = len(self.others)
        """Images without labels that it was trained on."""
        key = _key(command, cell, len(self.others))
        self.finished = Finished(self.folder, key)
        self.checkpoint = Checkpoint(
            self.folder / "checkpoint.pt",
            key,
            seconds=command.options.checkpoint_seconds,
            about=self.progress,
            say=say,
        )
        self.keep_precision(self.device.precision)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.interruptions = 0
        self.epochs = 0
        self.mlflow_run: str | None = None
        self.entry: dict[str, Any] | None = None
        """In the command's document, once it is published."""
        self.measured: ModelRun | None = None
        """The run of `cell.measured`."""
        self.taught_by: Teacher | None = None
        self.teacher_p50_ms: float | None = None

    def published(self) -> dict[str, Any] | None:
        """The bundle's entry in the command's document, where an interrupted command made it."""
        entry = self.finished.read(self.command.options.out)
        if entry is not None:
            say(f"{self.cell.name}: {entry['version']} was published before the interruption")
            self.checkpoint.remove()  # the process may have been killed before that
        self.entry = entry
        return entry

    def bundle(self) -> Bundle:
        """What it has published: that version, though another may be the current one by now.

        Raises:
            BundleError: it is damaged, or not there any more.
        """
        assert self.entry is not None, "it is published first"
        return store.read(self.command.options.out, self.cell.name, self.entry["version"])

    def restore(self) -> float:
        """Looks for a checkpoint; the seconds that the command had taken when it was written.

        Raises:
            LabelcurveError: it belongs to a run with other arguments.
        """
        about = self.checkpoint.about()
        if about is None:
            return 0.0
        self.started, self.interruptions = about["started"], about["interruptions"] + 1
        self.epochs = about["epochs"]
        self.mlflow_run = about.get("mlflow")
        self.keep_precision(continued(self.device, about, say).precision)
        return float(about["command"])

    def keep_precision(self, precision: Choice) -> None:
        """Trains in the given precision, that of earlier models of the same command."""
        self.device = self.device.with_precision(precision)
        images = self.command.images.train.images
        read = reading(images, len(self.cell.subset.train), len(self.others))
        self.checkpoint.where = circumstances(self.device, self.command.commit, read)

    def train(self, budget: Budget) -> dict[str, Any]:
        """Trains and publishes the model; returns its entry in the command's document.

        Raises:
            LabelcurveError: the training, the export or the publication failed.
        """
        command, cell = self.command, self.cell
        params = {
            "data": command.images.name,
            "data_hash": command.images.hash,
            "fraction": cell.subset.fraction,
            "seed": cell.seed,
            "extractor": command.extractor.version if command.extractor else None,
            "n_labels_train": len(cell.subset.train),
            "n_unlabelled": len(self.others),
            **asdict(cell.recipe),
        }
        with Tracking(command.options.mlflow, cell.name, params, self.mlflow_run, say) as run:
            self.mlflow_run = run.run_id
            began, cores = time.monotonic(), scheduled()
            result = self.learn(budget, run)
            if cell.recipe.mirrored:
                result.network.backbone = Mirrored(result.network.backbone)
            waited = waited_share(cores, scheduled())
            shared = ""
            if waited is not None and waited > SHARED:
                shared = (
                    f", other processes had the cores in {waited:.0%} of it: alone it takes less"
                )
            kept = f"epoch {result.best_epoch}" if result.head is None else "the linear head"
            say(f"kept {kept}, {result.seconds:.0f} s{shared}")
            before = self.measured.bundle() if self.measured else None
            about = self._about(budget, result, waited)
            entry = publication.publish(command, cell, result, about, before)
            run.published(entry)
        budget.done(time.monotonic() - began - result.seconds, entry["seconds"]["export"])
        self.entry = entry
        self.finished.write(entry)
        self.checkpoint.remove()
        return entry

    def learn(self, budget: Budget, run: Tracking) -> finetune.Result:
        """Fine-tuning; on a pretrained backbone a linear head first, and the better of the two."""
        command, subset = self.command, self.cell.subset
        n = len(self.others)
        more = f", and {counted(n, 'other image')} used without labels" if n else ""
        if subset.copied:
            more += (
                f"; {counted(subset.copied, 'label')} not used, since held-out images have the "
                "same pixels"
            )
        say(
            f"\n{self.cell.name}: {len(subset.train):,} labels to train and {len(subset.val):,} to "
            f"validate{more}"
        )
        network = self.network()
        linear = self.linear(network)
        if linear is None:
            return self.tune(network, budget, run)
        self.n_unlabelled = linear.head.n_unlabelled if linear.head else 0
        if not command.finetune and frozen.few(len(subset.train)):
            return linear
        network = frozen.tunable(linear, self.cell.recipe, command.images.train.images)
        tuned = self.tune(network, budget, run)
        val = command.images.train.take(subset.val)
        return frozen.better(linear, tuned, Labelled(val.images, val.labels), len(subset.train))

    def linear(
        self, network: Network, *, kind: str = "", chosen: Mapping[str, Any] | None = None
    ) -> finetune.Result | None:
        """The network with a linear head on its frozen features; None without weights of a library.

        Args:
            kind: of the features, where they are not those of the weights at the full image size.
            chosen: as for `frozen.fit`.
        """
        command, cell = self.command, self.cell
        if command.extractor is None or not cell.recipe.backbone.startswith(LIBRARIES):
            return None
        version, cache = command.extractor.version + kind, command.options.cache
        images, device = command.images, command.device
        return frozen.fit(network, images, cell, version, device, cache=cache, chosen=chosen)

    def examples(self) -> Examples:
        """The training and the validation images."""
        images, subset = self.command.images, self.cell.subset
        train, val = images.train.take(subset.train), images.train.take(subset.val)
        return Examples(Labelled(train.images, train.labels), Labelled(val.images, val.labels))

    def tune(self, network: Network, budget: Budget, run: Tracking) -> finetune.Result:
        """Fine-tuning, with progress, events, checkpoints and the model's share of the time."""
        cell, examples = self.cell, self.examples()
        events = self.folder / re.sub("[:-]|[+].*", "", self.started)
        with (
            EventWriter(events, self.epochs, say) as writer,
            Bar(cell.name) as bar,
            interruption.deferred(),
        ):
            control = Control(
                # A run with a checkpoint keeps the limit that it began with.
                seconds=None if self.interruptions else budget.finetuning(),
                checkpoint=self.checkpoint,
                say=say,
                on_step=bar.update,
                on_epoch=partial(self._on_epoch, writer, run),
            )
            try:
                result: finetune.Result = distributed.together(
                    finetune.finetune,
                    network,
                    examples,
                    cell.recipe,
                    self.device,
                    cell.seed,
                    mine={"control": control},
                )
            except DivergedError:
                self.checkpoint.remove()
                raise
        if cell.recipe.backbone.startswith(LIBRARIES):
            result.network.requires_grad_(True)  # the stages that were fixed, too
        return result

    def network(self) -> Network:
        """The network before the first step: random weights of the seed, or the extractor's."""
        images = self.command.images
        torch.manual_seed(self.cell.seed)
        network = build(self.cell.recipe.backbone, images.train.images, len(images.class_names))
        if self.command.extractor is not None:
            self.command.extractor.load_into(network)
        if not self.interruptions:
            check_room(self.folder, network)
        return network

    def _about(
        self, budget: Budget, result: finetune.Result, waited: float | None
    ) -> Circumstances:
        command, most = self.command, self.cell.recipe.epochs
        warnings = choice.doubts(command.extractor, command.images)
        if result.head is None:
            warnings = (*budget.warnings(result.seconds, result.epochs, most), *warnings)
        return Circumstances(
            device=self.device,
            n_unlabelled=self.n_unlabelled,
            started=self.started,
            waited=waited,
            interruptions=self.interruptions,
            command_began=self.began,
            teacher=self.taught_by,
            teacher_p50_ms=self.teacher_p50_ms,
            warnings=warnings,
        )

    def progress(self) -> dict[str, Any]:
        """What a checkpoint says about the run, besides weights and history."""
        return {
            "started": self.started,
            "interruptions": self.interruptions,
            "epochs": self.epochs,
            "command": time.monotonic() - self.began,
            "mlflow": self.mlflow_run,
            "precision": self.device.precision.model_dump(),
        }

    def _on_epoch(self, writer: EventWriter, run: Tracking, row: Epoch) -> None:
        writer.write(row)
        run.epoch(row)
        self.epochs = row.epoch


def folder(out: Path, cell: Cell) -> Path:
    """The folder of a model's checkpoint, events and lock."""
    return out / RUNS / cell.name


def forget(out: Path, cell: Cell) -> None:
    """Removes what an interrupted run has left, for `--fresh`."""
    for path in folder(out, cell).glob("*checkpoint*"):
        path.unlink(missing_ok=True)
    for answers in folder(out, cell).glob(f"{ANSWERS}*"):
        shutil.rmtree(answers, ignore_errors=True)
    Finished(folder(out, cell)).remove()


def _key(command: Command, cell: Cell, n_others: int) -> dict[str, object]:
    """Everything a model depends on, under the names that users know."""
    recipe = asdict(cell.recipe)
    return {
        "the hash of --data": command.images.hash,
        "--fraction": cell.subset.fraction,
        "the hash of the labelled rows": cell.subset.hash,
        "images without labels:": n_others,
        "the hash of the training images": command.images.pixels_hash,
        "--image-size": command.images.size,
        "--seed": cell.seed,
        "--preset": command.options.preset,
        "--precision": command.options.precision,
        "--extractor": command.extractor.version if command.extractor else None,
        "--max-minutes": command.options.max_minutes,
        "--no-test": not command.test,
        "--epochs": recipe.pop("epochs"),
        **{f"the recipe's {name}": value for name, value in recipe.items()},
    }
