"""The command `train`: data, fractions, extractor, and a model for each fraction and seed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import git_commit
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.sources import Selection
from labelcurve.training.extractors import choice, photos
from labelcurve.training.models.backbones import build, predict_logits
from labelcurve.training.options import Options
from labelcurve.training.recipes import LIBRARIES, Backbone, work
from labelcurve.training.runs import candidates, distillation, final, grid, publication
from labelcurve.training.runs.budget import IMAGES_PER_S, Budget
from labelcurve.training.runs.distillation import StudentRun
from labelcurve.training.runs.final import FinalRun
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runs.model_run import ModelRun, folder, forget
from labelcurve.training.runs.publication import Command
from labelcurve.training.runtime import lock
from labelcurve.training.runtime.checkpoint import CheckpointPolicy, Finished
from labelcurve.training.runtime.console import say
from labelcurve.training.runtime.device import FP32_CPU, choose
from labelcurve.training.runtime.device import check as check_device
from labelcurve.training.runtime.experiment import connect


def run(
    options: Options,
    start: float | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    part: bool = False,
) -> dict[str, Any]:
    """Trains and publishes one bundle for each fraction and seed, and the final model.

    Args:
        start: of the process, by `time.monotonic`; None means now.
        changes: fields of the recipe to override; for studies of the recipe.
        part: of a sweep: published bundles stay marked as finished until all of the sweep is done,
            and a model that another process is training (presumed dead but still running) is
            waited for.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the options, the data or the device cannot be used, or training or export
            failed.
    """
    start = time.monotonic() if start is None else start
    if not options.dry_run:
        files.check_out(options.out)
    choice.check(options.extractor)
    check_device(options.device)
    options, images = _load(options)
    # All of them before the first is trained: an impossible one should not cost an hour.
    cells = grid.cells(options, images, say)
    last = None if part else final.planned(options, images, cells)
    if options.dry_run:
        counts = grid.dry_run(images, cells, say)
        if last is not None:
            say(f"and then {last.cell.name}, on all {len(last.cell.subset.train):,} labels")
        if not options.no_test and (doubt := publication.few_tested("test", len(images.test))):
            say(f"WARNING: {doubt}")
        _compact(options, images, cells)  # reports its choice, or that none will do
        return counts
    backbone = _compact(options, images, cells)
    if backbone is not None:
        cells = distillation.with_students(options, images, cells, backbone)
    if last is not None:
        finals = [last.cell]
        if backbone is not None:
            finals = distillation.with_students(options, last.images, finals, backbone)
        cells += finals
    cells = [replace(cell, recipe=replace(cell.recipe, **(changes or {}))) for cell in cells]
    if options.mlflow is not None:
        connect(options.mlflow)
    for cell in cells:
        files.check_out(options.out / cell.name)
    with _locked(options.out, cells, wait=part):
        entries = _train(options, images, cells, last.images if last else images, start)
        if not part:
            for cell in cells:
                Finished(folder(options.out, cell)).remove()
                (folder(options.out, cell) / candidates.TIMES).unlink(missing_ok=True)
    bundles = [entry for entry in entries if "measured" not in entry]
    document: dict[str, Any] = {"bundles": bundles}
    if last is not None:
        document["final"] = entries[len(bundles) :]
    if len(options.all_seeds) > 1:
        document["summary"] = grid.summary(bundles, say)
    for line in distillation.said(entries, options.max_latency or 0.0):
        say(line)
    say(f"\ndone in {time.monotonic() - start:.0f} s")
    return document


def _load(options: Options) -> tuple[Options, Data]:
    """The images, and the options with the extractor that suits them."""
    if options.clear_cache:
        dataset.clear(options.cache, say)
    settled = photos.Settled(options.extractor if options.preset == "default" else "none", say)
    images = dataset.load(
        Selection(
            options.data,
            options.layout,
            options.label_column,
            options.unlabelled,
            out=options.out,
            drop=options.drop,
            relabel=options.relabel,
        ),
        size=options.image_size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        memory=options.memory,
        say=say,
        choose_size=settled.choose_size,
    )
    n_unlabelled = len(images.train) - images.train.n_labelled
    more = f", {n_unlabelled:,} without a label" if n_unlabelled else ""
    say(
        f"data: {images.name}, {images.n_labels:,} labels, {images.train.n_labelled:,} to train "
        f"and {len(images.test):,} to test{more}, {len(images.class_names)} classes, "
        f"{images.size} px, hash {images.hash[:12]}"
    )
    if options.preset != "default":
        return options, images
    settled.given_size(images.size)
    return replace(options, extractor=settled.extractor), images


def _compact(options: Options, images: Data, cells: list[Cell]) -> Backbone | None:
    """The network that learns from the models, where they are too slow for `--max-latency`."""
    if options.max_latency is None:
        return None
    path = folder(options.out, cells[0]) / candidates.TIMES
    keep = not options.dry_run
    times = candidates.Times(images, path, fresh=options.fresh, keep=keep)
    try:
        return candidates.choose(options.max_latency, images, cells[0].recipe.backbone, times)
    except LabelcurveError:
        if keep:
            path.unlink(missing_ok=True)
        raise


@contextmanager
def _locked(out: Path, cells: Sequence[Cell], wait: bool) -> Iterator[None]:
    with ExitStack() as locks:
        for cell in cells:
            busy = (
                f"{{holder}} is training {cell.name} in {out} right now: wait for it, or "
                "name another folder with --out"
            )
            locks.enter_context(lock.hold(folder(out, cell) / "lock", busy, wait=wait, say=say))
        yield


def _train(
    options: Options, images: Data, cells: Sequence[Cell], whole: Data, start: float
) -> list[dict[str, Any]]:
    """Trains the cells one after another; returns their entries in the same order.

    Args:
        whole: images of the final models.
    """
    grid.check_replaced(options.out, options.data, images, cells, say)
    device = choose(
        options.device, options.precision, depthwise=options.extractor.startswith(LIBRARIES)
    )
    say(f"device: {device.choice.value} ({device.choice.reason})")
    say(f"precision: {device.precision.value} ({device.precision.reason})")
    commit = git_commit(Path(__file__))  # of the code that was loaded, not of a later state
    startup = time.monotonic() - start
    n_test = 0 if options.no_test else len(images.test)
    images_per_s = IMAGES_PER_S
    if options.max_minutes is not None and n_test:
        images_per_s = _test_speed(images, cells[0])

    def budget(cells: Sequence[Cell]) -> Budget:
        loads = [work(cell.n_images(len(images.train))) for cell in cells]
        return Budget(start, options.max_minutes, loads, n_test, startup, images_per_s)

    wanted = choice.Wanted(
        cells[0].recipe.backbone,
        grid.flip(options),
        options.cache or dataset.default_cache(),
        budget(cells).pretraining(),
        options.precision,
    )
    policy = CheckpointPolicy(options.fresh, options.checkpoint_seconds)
    command = Command(
        options=options,
        images=images,
        extractor=choice.obtain(options.extractor, images, wanted, device, policy),
        device=device,
        commit=commit,
        test=n_test > 0,
        # With few labels it often gains nothing, and on a CPU takes minutes.
        finetune=device.device.type != "cpu"
        or options.epochs is not None
        or options.max_minutes is not None,
    )
    if options.fresh:  # only now: nothing is lost by a command that cannot run
        for cell in cells:
            forget(options.out, cell)
    runs: dict[str, ModelRun] = {}
    for cell in cells:  # a teacher comes before its student
        own = command if cell.measured is None else replace(command, images=whole)
        if cell.teacher is not None:
            runs[cell.name] = StudentRun(own, cell, start, runs[cell.teacher])
        else:
            runs[cell.name] = (ModelRun if cell.measured is None else FinalRun)(own, cell, start)
        if cell.measured is not None:
            runs[cell.name].measured = runs[cell.measured]
    entries = {name: model.published() for name, model in runs.items()}
    waiting = [model for name, model in runs.items() if entries[name] is None]
    # The time that an interrupted command had taken counts.
    start -= max(
        [model.restore() for model in waiting]
        + [entry["seconds"]["command"] for entry in entries.values() if entry],
        default=0.0,
    )
    resumed = [model for model in waiting if model.interruptions]
    for model in waiting if resumed else ():
        model.keep_precision(resumed[0].device.precision)
    left = budget([model.cell for model in waiting])
    for model in waiting:
        model.began = start
    for model in waiting:
        entries[model.cell.name] = model.train(left)
    return [entry for entry in entries.values() if entry]


def _test_speed(images: Data, cell: Cell) -> float:
    """Images/s of the network as it will be tested, on the CPU in fp32; takes about a second."""
    network = build(cell.recipe.backbone, images.train.images, len(images.class_names))
    predict_logits(network, images.train.images[:4], FP32_CPU)  # the first call takes longer
    n = 4
    while True:
        since = time.monotonic()
        predict_logits(network, images.train.images[:n], FP32_CPU)
        took = time.monotonic() - since
        if took > 0.2 or n >= len(images.train):
            return min(n, len(images.train)) / took
        n *= 4
