"""The whole run, top to bottom: data, fractions, fine-tuning, temperature, export, test, bundle."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bundle import preprocess, store
from bundle.errors import BundleError
from bundle.machine import git_commit, versions
from bundle.manifest import Dataset, Manifest, Metrics, Preprocessing, Pretrained, Run
from training import card, data, evaluate, export, finetune, fractions, pretrain_job
from training.backbones import build, n_parameters
from training.budget import Budget
from training.data import Data
from training.device import FP32_CPU, Device, choose, hardware
from training.extractor import Extractor
from training.fractions import Subset
from training.history import EventWriter
from training.options import Options
from training.recipes import TORCHVISION, Recipe, recipe, work

PACKAGES = ("labelcurve", "numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "torch")

ENDLESS = 10_000
"""Epochs where time sets the end."""

TEST_FIGURES = {"accuracy", "f1", "precision", "recall"}

say = partial(print, flush=True)


def run(
    options: Options, start: float | None = None, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Trains and publishes one bundle for each fraction.

    Args:
        options: of the command.
        start: of the process, by `time.monotonic`; None means now.
        changes: fields of the recipe that shall have other values; for studies of the recipe.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the data, the device, the training or the export is not as it must be.
    """
    start = time.monotonic() if start is None else start
    if options.clear_cache:
        data.clear(options.cache)
    images = data.load(
        options.data,
        size=options.image_size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        say=say,
    )
    say(
        f"data: {images.name}, {len(images.train):,} train and {len(images.test):,} test images, "
        f"{len(images.class_names)} classes, {images.size} px, hash {images.hash[:12]}"
    )
    # All of them before the first is trained: an impossible one should not cost an hour.
    subsets = [
        fractions.subset(images.train, images.class_names, fraction, options.seed)
        for fraction in options.fractions
    ]
    if options.dry_run:
        return _dry_run(images, subsets)
    _check_writable(options.out)
    _check_replaced(options, images, subsets)
    device = choose(options.device)
    say(f"device: {device.choice.value} ({device.choice.reason})")
    say(f"precision: {device.precision.value} ({device.precision.reason})")
    commit = git_commit(
        Path(__file__)
    )  # of the code that was loaded, not of what lies there at the end
    plans = [replace(_recipe(options, images, subset), **(changes or {})) for subset in subsets]
    works = [work(len(subset.train)) for subset in subsets]
    budget = Budget(start, options.max_minutes, works, len(images.test))
    pretrained = pretrain_job.obtain(
        options.extractor,
        images,
        plans[0],
        device,
        flip=_flip(options),
        cache=options.cache,
        seconds=budget.pretraining(),
    )
    bundles = [
        _train_one(options, images, subset, plan, pretrained, device, commit, budget, start)
        for subset, plan in zip(subsets, plans, strict=True)
    ]
    say(f"\ndone in {time.monotonic() - start:.0f} s")
    return {"bundles": bundles}


@dataclass(frozen=True)
class _Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float]

    def stage(self, name: str, since: float) -> None:
        self.seconds[name] = round(time.monotonic() - since, 3)


def _train_one(
    options: Options,
    images: Data,
    subset: Subset,
    plan: Recipe,
    pretrained: Extractor | None,
    device: Device,
    commit: str | None,
    budget: Budget,
    start: float,
) -> dict[str, Any]:
    began, started = time.monotonic(), datetime.now(UTC)
    watch = _Stopwatch({})
    name = bundle_name(options, images.name, subset.fraction)
    train, val = images.train.take(subset.train), images.train.take(subset.val)
    # Images of the training split of which no label is used; those held out stay out.
    others = np.zeros(0, np.int64)
    if plan.consistency > 0:
        used = np.concatenate([subset.train, subset.val_pool])
        others = np.setdiff1d(np.arange(len(images.train)), used)
    more = f", and {len(others):,} other images without labels" if len(others) else ""
    say(f"\n{name}: {len(train):,} labels to train and {len(val):,} to validate{more}")

    # Fine-tune
    torch.manual_seed(options.seed)
    network = build(plan.backbone, images.train.images, len(images.class_names))
    if pretrained is not None:
        pretrained.load_into(network)
    with EventWriter(options.out / ".runs" / name / f"{started:%Y%m%d-%H%M%S}") as events:
        result = finetune.finetune(
            network,
            finetune.Labelled(train.images, train.labels),
            finetune.Labelled(val.images, val.labels),
            plan,
            device,
            options.seed,
            unlabelled=images.train.images[others],
            seconds=budget.finetuning(),
            say=say,
            on_epoch=events.write,
        )
    watch.stage("train", began)
    say(f"kept epoch {result.best_epoch}, {watch.seconds['train']:.0f} s")

    # Calibrate and export, behind the parity gate
    since = time.monotonic()
    logits = finetune.predict_logits(
        result.network, torch.from_numpy(val.images).permute(0, 3, 1, 2), FP32_CPU
    )
    temperature = evaluate.temperature(logits, val.labels)
    served = export.Served(result.network, temperature)
    graph = export.to_onnx(served, images.size, images.class_names)
    # The gate may look at held-out images beyond the fraction: it uses no label.
    checked = images.train.take(_spread(subset.val_pool, export.PARITY_IMAGES))
    files = [checked.read(i) for i in range(len(checked))]
    parity = export.check_parity(graph, served, checked.images, files, images.class_names)
    watch.stage("export", since)
    say(
        f"export: {len(graph) / 1e6:.1f} MB, at most {parity.max_abs_diff:.1e} from torch on "
        f"{parity.n_images} images, same top-1; temperature {temperature:.2f}"
    )

    # Measure what will be served: the graph, in ONNX Runtime
    since = time.monotonic()
    runtime = export.session(graph)
    val_metrics, judged, judged_labels = _measure(runtime, val)
    test_metrics: Metrics | None = None
    if not options.no_test:
        test_metrics, judged, judged_labels = _measure(runtime, images.test)
    watch.stage("evaluate", since)
    watch.stage("total", began)
    watch.stage("command", start)
    budget.done(watch.seconds["total"] - watch.seconds["train"])

    manifest = Manifest(
        name=name,
        class_names=images.class_names,
        preprocessing=Preprocessing(version=preprocess.VERSION, size=images.size),
        dataset=Dataset(
            name=images.name,
            hash=images.hash,
            n_train=len(images.train),
            n_test=len(images.test),
        ),
        fraction=subset.fraction,
        n_labels_train=len(train),
        n_labels_val=len(val),
        indices_hash=subset.hash,
        n_unlabelled=len(others),
        extractor=_pretrained(pretrained),
        seed=options.seed,
        preset=options.preset,
        backbone=plan.backbone,
        n_parameters=n_parameters(result.network),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        temperature=temperature,
        recipe=asdict(plan),
        device=device.choice,
        precision=device.precision,
        val=val_metrics,
        test=test_metrics,
        parity=parity,
        packages=versions(PACKAGES),
        git_commit=commit,
    )
    record = Run(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=started.isoformat(timespec="seconds"),
        host=platform.node(),
        hardware=hardware(device),
        seconds=watch.seconds,
        pretraining_seconds=(pretrained.card.seconds or None) if pretrained else None,
        history=result.history,
        report=evaluate.report(judged, judged_labels, images.class_names),
        confusion=evaluate.confusion(judged, judged_labels, len(images.class_names)),
    )
    path = store.publish(options.out, manifest, graph, card.write(manifest, record), record)
    shown, where = (val_metrics, "validation") if test_metrics is None else (test_metrics, "test")
    say(
        f"{where}: accuracy {shown.accuracy:.4f}, F1 {shown.f1:.4f}, loss {shown.loss:.4f} "
        f"on {shown.n:,} images\npublished {path}"
    )
    return {
        "name": name,
        "version": path.name,
        "path": str(path),
        "fraction": subset.fraction,
        "n_labels_train": len(train),
        "n_labels_val": len(val),
        "val": val_metrics.model_dump(),
        "test": test_metrics.model_dump(include=TEST_FIGURES) if test_metrics else None,
        "parity": parity.model_dump(include={"max_abs_diff", "top1_agreement"}),
        "seconds": watch.seconds,
        "epochs": len(result.history),
    }


def bundle_name(options: Options, dataset: str, fraction: float) -> str:
    """`cifar10-10`, `cifar10-2.5`, `cifar10-reference-100`, `cifar10-scratch-10-s1`,
    `cifar10-resnet18-10`.

    What differs from the default is named, so that it can lie and be compared in one folder.
    """
    middle = "" if options.preset == "default" else f"{options.preset}-"
    if options.extractor == "none":
        middle += "scratch-"
    elif options.extractor.startswith(TORCHVISION):
        middle += options.extractor.removeprefix(TORCHVISION).partition("=")[0] + "-"
    seed = f"-s{options.seed}" if options.seed else ""
    return f"{options.name or dataset}-{middle}{fraction * 100:.6g}{seed}"


def _recipe(options: Options, images: Data, subset: Subset) -> Recipe:
    plan = recipe(
        options.preset,
        len(subset.train),
        flip=_flip(options),
        unlabelled=not options.no_unlabelled and subset.fraction < 1,
        extractor=options.extractor,
    )
    if options.max_minutes is not None:
        plan = replace(plan, epochs=ENDLESS)
    return plan if options.epochs is None else replace(plan, epochs=options.epochs)


def _flip(options: Options) -> bool:
    return not options.no_flip and options.data != "digits"


def _pretrained(found: Extractor | None) -> Pretrained | None:
    if found is None:
        return None
    return Pretrained(
        version=found.version,
        objective=found.card.objective,
        dataset=found.card.dataset,
        pixels_hash=found.card.pixels_hash,
    )


def _spread(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def _measure(
    runtime: Any, split: data.Split
) -> tuple[Metrics, NDArray[np.int64], NDArray[np.int64]]:
    found = export.probabilities(runtime, split.images).astype(np.float64)
    metrics = evaluate.scores(np.log(found.clip(1e-12)), split.labels)
    return metrics, found.argmax(1), split.labels


def _dry_run(images: Data, subsets: list[Subset]) -> dict[str, Any]:
    width = max(len(name) for name in (*images.class_names, "class"))
    heads = [f"{subset.fraction * 100:.6g} %: train + val" for subset in subsets]
    say(f"\n{'class':{width}}  " + "  ".join(f"{head:>22}" for head in heads))
    rows = []
    for label, name in enumerate(images.class_names):
        pairs = [
            tuple(int((images.train.labels[rows] == label).sum()) for rows in (s.train, s.val))
            for s in subsets
        ]
        rows.append(pairs)
        say(f"{name:{width}}  " + "  ".join(f"{a:>14,} + {b:>5,}" for a, b in pairs))
    totals = [(len(s.train), len(s.val)) for s in subsets]
    say(f"{'total':{width}}  " + "  ".join(f"{a:>14,} + {b:>5,}" for a, b in totals))
    return {
        "dry_run": [
            {
                "fraction": subset.fraction,
                "n_labels_train": len(subset.train),
                "n_labels_val": len(subset.val),
                "classes": {
                    name: {"train": rows[label][i][0], "val": rows[label][i][1]}
                    for label, name in enumerate(images.class_names)
                },
            }
            for i, subset in enumerate(subsets)
        ]
    }


def _check_replaced(options: Options, images: Data, subsets: list[Subset]) -> None:
    """A service over `--out` must not change its classes because two folders have one name."""
    for subset in subsets:
        name = bundle_name(options, images.name, subset.fraction)
        if not (options.out / name / store.CURRENT).exists():
            continue
        try:
            before = store.read(options.out, name).manifest
        except BundleError as error:
            say(f"{error}; a new one takes its place")
            continue
        if before.class_names != images.class_names:
            raise BundleError(
                f"{options.out / name} has other classes ({_few(before.class_names)}) than "
                f"{options.data} ({_few(images.class_names)}): give this data set a name of its "
                "own with --name, or another folder with --out"
            )
        if before.dataset.hash != images.hash:
            say(f"{options.out / name} was trained on other images; the new version replaces it")


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(
            f"--out {out} cannot be made: {error.strerror}. Name another folder with --out"
        ) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise BundleError(
            f"--out {out} cannot be written by this user: change its owner, or name another folder"
        )
