"""The whole run, top to bottom: data, fractions, extractor, fine-tuning, bundle."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bundle import files
from bundle.errors import BundleError, DivergedError
from bundle.machine import Scheduled, git_commit, scheduled
from bundle.manifest import SHARED, Epoch
from training import data, distributed, finetune, grid, interruption, lock, pretrain_job
from training.backbones import build
from training.budget import IMAGES_PER_S, Budget
from training.checkpoint import Checkpoint
from training.data import Data
from training.device import FP32_CPU, Device, choose, circumstances
from training.device import check as check_device
from training.extractor import Extractor
from training.finished import Finished
from training.grid import Cell
from training.history import EventWriter
from training.options import Options
from training.output import say
from training.progress import Bar
from training.publication import Circumstances, publish
from training.recipes import work
from training.source import Index
from training.stored import take
from training.stream import reading
from training.tracking import Tracking, connect

RUNS = ".runs"
"""Below `--out`: checkpoints, events and locks, a folder for each bundle's name."""


def run(
    options: Options,
    start: float | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    part: bool = False,
) -> dict[str, Any]:
    """Trains and publishes one bundle for each fraction and seed.

    Args:
        options: of the command.
        start: of the process, by `time.monotonic`; None means now.
        changes: fields of the recipe that shall have other values; for studies of the recipe.
        part: of a sweep: what was published stays marked until all of it is done, and where another
            process trains the same model (taken for dead, and not dead yet), waits for its end.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the data, the device, the training or the export is not as it must be.
    """
    start = time.monotonic() if start is None else start
    if not options.dry_run:
        files.check_out(options.out)
    pretrain_job.check(options.extractor)
    check_device(options.device)
    if options.clear_cache:
        data.clear(options.cache, say)
    images = data.load(
        options.data,
        size=options.image_size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        memory=options.memory,
        say=say,
    )
    say(
        f"data: {images.name}, {len(images.train):,} train and {len(images.test):,} test images, "
        f"{len(images.class_names)} classes, {images.size} px, hash {images.hash[:12]}"
    )
    # All of them before the first is trained: an impossible one should not cost an hour.
    cells = [
        replace(cell, recipe=replace(cell.recipe, **(changes or {})))
        for cell in grid.cells(options, images)
    ]
    if options.dry_run:
        return grid.dry_run(images, cells, say)
    if options.mlflow is not None:
        connect(options.mlflow)
    for cell in cells:
        files.check_out(options.out / cell.name)
    with ExitStack() as locks:
        for cell in cells:
            busy = (
                f"{{holder}} is training {cell.name} in {options.out} right now: wait for it, or "
                "name another folder with --out"
            )
            locks.enter_context(
                lock.hold(_folder(options, cell) / "lock", busy, wait=part, say=say)
            )
        bundles = _train(options, images, cells, start)
        if not part:
            for cell in cells:
                Finished(_folder(options, cell)).remove()
    document: dict[str, Any] = {"bundles": bundles}
    if len(options.all_seeds) > 1:
        document["summary"] = grid.summary(bundles, say)
    say(f"\ndone in {time.monotonic() - start:.0f} s")
    return document


def _train(
    options: Options, images: Data, cells: Sequence[Cell], start: float
) -> list[dict[str, Any]]:
    grid.check_replaced(options, images, cells, say)
    device = choose(options.device)
    say(f"device: {device.choice.value} ({device.choice.reason})")
    say(f"precision: {device.precision.value} ({device.precision.reason})")
    # Of the code that was loaded, not of what lies there at the end.
    commit = git_commit(Path(__file__))
    startup = time.monotonic() - start
    n_test = 0 if options.no_test else len(images.test)
    images_per_s = IMAGES_PER_S
    if options.max_minutes is not None and n_test:
        images_per_s = _test_speed(images, cells[0])
    budget = Budget(
        start,
        options.max_minutes,
        [work(len(c.subset.train)) for c in cells],
        n_test,
        startup,
        images_per_s,
    )
    extractor = pretrain_job.obtain(
        options.extractor,
        images,
        cells[0].recipe,
        device,
        flip=grid.flip(options),
        cache=options.cache,
        seconds=budget.pretraining(),
        fresh=options.fresh,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    if options.fresh:  # only now: nothing is lost by a command that cannot run
        for cell in cells:
            _forget(_folder(options, cell))

    # What an interrupted run of the same command has left
    waiting, entries = [], {}
    for cell in cells:
        model = _Model(options, images, cell, extractor, device, commit, start)
        entry = model.finished.read(options.out)
        if entry is not None:
            say(f"{cell.name}: {entry['version']} was published before the interruption")
            entries[cell.name] = entry
        else:
            waiting.append(model)
    before = max(
        [model.restore() for model in waiting]
        + [entry["seconds"]["command"] for entry in entries.values()],
        default=0.0,
    )
    start -= before
    budget = Budget(
        start,
        options.max_minutes,
        [work(len(model.cell.subset.train)) for model in waiting],
        n_test,
        startup,
        images_per_s,
    )
    for model in waiting:
        model.command_began = start
    for model in waiting:
        entries[model.cell.name] = model.train(budget)
    return [entries[cell.name] for cell in cells]


def _test_speed(images: Data, cell: Cell) -> float:
    """Images/s of the network as it will be tested, on the CPU in fp32; a second at most or so."""
    network = build(cell.recipe.backbone, images.train.images, len(images.class_names))
    finetune.predict_logits(network, images.train.images[:4], FP32_CPU)  # the first takes longer
    n = 4
    while True:
        since = time.monotonic()
        finetune.predict_logits(network, images.train.images[:n], FP32_CPU)
        took = time.monotonic() - since
        if took > 0.2 or n >= len(images.train):
            return min(n, len(images.train)) / took
        n *= 4


class _Model:
    """One model of a command."""

    def __init__(
        self,
        options: Options,
        images: Data,
        cell: Cell,
        extractor: Extractor | None,
        device: Device,
        commit: str | None,
        command_began: float,
    ) -> None:
        self.options, self.images, self.cell = options, images, cell
        self.extractor, self.device, self.commit = extractor, device, commit
        self.command_began = command_began
        self.folder = _folder(options, cell)
        self.others = _others(images, cell)
        key = _key(options, images, cell, self.others, extractor)
        self.finished = Finished(self.folder, key)
        read = reading(images.train.images, len(cell.subset.train), len(self.others))
        self.checkpoint = Checkpoint(
            self.folder / "checkpoint.pt",
            key,
            seconds=options.checkpoint_seconds,
            about=self._about,
            where=circumstances(device, commit, read),
            say=say,
        )
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.interruptions = 0
        self.epochs = 0
        self.mlflow_run: str | None = None

    def _about(self) -> dict[str, Any]:
        return {
            "started": self.started,
            "interruptions": self.interruptions,
            "epochs": self.epochs,
            "command": time.monotonic() - self.command_began,
            "mlflow": self.mlflow_run,
        }

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
        return float(about["command"])

    def train(self, budget: Budget) -> dict[str, Any]:
        """Trains and publishes it."""
        params = {
            "data": self.images.name,
            "data_hash": self.images.hash,
            "fraction": self.cell.subset.fraction,
            "seed": self.cell.seed,
            "extractor": self.extractor.version if self.extractor else None,
            "n_labels_train": len(self.cell.subset.train),
            "n_unlabelled": len(self.others),
            **asdict(self.cell.recipe),
        }
        with Tracking(self.options.mlflow, self.cell.name, params, self.mlflow_run, say) as run:
            self.mlflow_run = run.run_id
            entry = self._train(budget, run)
            run.published(entry)
        return entry

    def _train(self, budget: Budget, run: Tracking) -> dict[str, Any]:
        images, cell, options = self.images, self.cell, self.options
        began = time.monotonic()
        subset = cell.subset
        train, val = images.train.take(subset.train), images.train.take(subset.val)
        n_others = len(self.others)
        more = f", and {n_others:,} other images without labels" if n_others else ""
        say(f"\n{cell.name}: {len(train):,} labels to train and {len(val):,} to validate{more}")
        torch.manual_seed(cell.seed)
        network = build(cell.recipe.backbone, images.train.images, len(images.class_names))
        if self.extractor is not None:
            self.extractor.load_into(network)
        if not self.interruptions:
            _check_room(self.folder, network)
        events = self.folder / re.sub("[:-]|[+].*", "", self.started)
        # A run with a checkpoint keeps the limit that it began with.
        seconds = None if self.interruptions else budget.finetuning()
        cores = scheduled()
        with (
            EventWriter(events, self.epochs, say) as writer,
            Bar(cell.name) as bar,
            interruption.deferred(),
        ):
            try:
                result: finetune.Result = distributed.together(
                    finetune.finetune,
                    network,
                    finetune.Labelled(train.images, train.labels),
                    finetune.Labelled(val.images, val.labels),
                    cell.recipe,
                    self.device,
                    cell.seed,
                    unlabelled=take(images.train.images, self.others),
                    seconds=seconds,
                    mine={
                        "checkpoint": self.checkpoint,
                        "say": say,
                        "on_epoch": partial(self._on_epoch, writer, run),
                        "on_step": bar.update,
                    },
                )
            except DivergedError:
                self.checkpoint.remove()
                raise
        waited = _waited(cores, scheduled())
        shared = ""
        if waited is not None and waited > SHARED:
            shared = f", other work had the cores in {waited:.0%} of it: alone it takes less"
        say(f"kept epoch {result.best_epoch}, {result.seconds:.0f} s{shared}")
        entry = publish(
            options,
            images,
            cell,
            result,
            Circumstances(
                device=self.device,
                extractor=self.extractor,
                commit=self.commit,
                n_unlabelled=n_others,
                started=self.started,
                waited=waited,
                interruptions=self.interruptions,
                command_began=self.command_began,
                warnings=(
                    *budget.warnings(result.seconds, result.epochs),
                    *pretrain_job.doubts(self.extractor, images),
                ),
            ),
            say,
        )
        budget.done(time.monotonic() - began - result.seconds, entry["seconds"]["export"])
        self.finished.write(entry)
        self.checkpoint.remove()
        return entry

    def _on_epoch(self, writer: EventWriter, run: Tracking, row: Epoch) -> None:
        writer.write(row)
        run.epoch(row)
        self.epochs = row.epoch


def _folder(options: Options, cell: Cell) -> Path:
    return options.out / RUNS / cell.name


def _others(images: Data, cell: Cell) -> Index:
    """Rows of the training split of which no label is used; those held out stay out."""
    if cell.recipe.consistency == 0:
        return np.zeros(0, np.int32)
    left = np.ones(len(images.train), bool)
    left[cell.subset.train] = left[cell.subset.val_pool] = False
    return np.flatnonzero(left).astype(np.int32)


def _key(
    options: Options,
    images: Data,
    cell: Cell,
    others: Index,
    extractor: Extractor | None,
) -> dict[str, object]:
    """What a model depends on, by the names that the user knows."""
    recipe = asdict(cell.recipe)
    return {
        "the hash of --data": images.hash,
        "--fraction": cell.subset.fraction,
        "the hash of the labelled rows": cell.subset.hash,
        "images without labels:": len(others),
        "--image-size": images.size,
        "--seed": cell.seed,
        "--preset": options.preset,
        "--extractor": extractor.version if extractor else None,
        "--max-minutes": options.max_minutes,
        "--no-test": options.no_test,
        "--epochs": recipe.pop("epochs"),
        **{f"the recipe's {name}": value for name, value in recipe.items()},
    }


def _forget(folder: Path) -> None:
    for path in folder.glob("*checkpoint*"):
        path.unlink(missing_ok=True)
    Finished(folder).remove()


def _waited(before: Scheduled | None, after: Scheduled | None) -> float | None:
    """Share of the time in which threads could have run that other work had their cores."""
    if before is None or after is None:
        return None
    # Threads that ended meanwhile took their seconds with them.
    ran = max(0.0, after.ran - before.ran)
    waited = max(0.0, after.waited - before.waited)
    # For longer than others ran, they waited for one another.
    others = max(0.0, after.others - before.others)
    return round(min(waited, others) / (ran + waited), 4) if ran else None


def _check_room(folder: Path, network: torch.nn.Module) -> None:
    """Before hours of work: a disk without room for the bundle and two checkpoints.

    Raises:
        BundleError: there is less.
    """
    bytes_each = sum(tensor.nbytes for tensor in network.state_dict().values())
    # A bundle, and twice the weights, their average, the best ones and two moments each.
    needed = (1 + 2 * 5) * bytes_each
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            f"{folder} is on a disk with {free / 1e6:,.0f} MB free, and a bundle with its "
            f"checkpoints takes up to {needed / 1e6:,.0f} MB: make room, or name another folder "
            "with --out"
        )
