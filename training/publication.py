"""From a trained network to a bundle: temperature, export, parity gate, test, manifest, card."""

from __future__ import annotations

import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import preprocess, store
from bundle.errors import DataError, ImageError
from bundle.machine import versions
from bundle.manifest import Dataset, Manifest, Metrics, Preprocessing, Pretrained, Run
from training import card, data, evaluate, export, fractions
from training.backbones import n_parameters
from training.data import Data
from training.device import FP32_CPU, Device, hardware
from training.digests import of_image
from training.extractor import Extractor
from training.finetune import Result, predict_logits
from training.grid import Cell
from training.options import Options
from training.source import Index

PACKAGES = ("labelcurve", "numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "torch")

TEST_FIGURES = {"accuracy", "balanced_accuracy", "f1", "precision", "recall"}


@dataclass(frozen=True)
class Circumstances:
    """Of a run: what is the same for all its models, and of this one when it began."""

    device: Device
    extractor: Extractor | None
    commit: str | None
    n_unlabelled: int
    started: str
    """ISO 8601, UTC."""
    interruptions: int
    waited: float | None
    """For cores, as in `Run`."""
    command_began: float
    """By `time.monotonic`, earlier by what the parts before an interruption took."""
    warnings: tuple[str, ...]


def publish(
    options: Options,
    images: Data,
    cell: Cell,
    result: Result,
    about: Circumstances,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Publishes a trained network, unless the gate refuses it.

    Returns:
        The bundle's entry in the command's document.

    Raises:
        ExportError: the exported graph is not the same function.
        DataError: an image file is not the one any more that training saw.
        BundleError: it cannot be written.
    """
    began = time.monotonic()
    seconds = {"train": round(result.seconds, 3)}
    subset, device = cell.subset, about.device
    val = images.train.take(subset.val)

    # Calibrate and export, behind the parity gate
    logits = predict_logits(result.network, val.images, FP32_CPU)
    temperature = evaluate.temperature(logits, val.labels)
    served = export.Served(result.network, temperature)
    graph = export.to_onnx(served, images.size, images.class_names)
    # The gate may look at held-out images beyond the fraction: it uses no label.
    checked = images.train.take(fractions.spread(subset.val_pool, export.PARITY_IMAGES))
    files = _unchanged(options.data, checked)
    parity = export.check_parity(graph, served, checked.images, files, images.class_names)
    seconds["export"] = round(time.monotonic() - began, 3)
    say(
        f"export: {len(graph) / 1e6:.1f} MB, at most {parity.max_abs_diff:.1e} from torch on "
        f"{parity.n_images} images, same top-1; temperature {temperature:.2f}"
    )

    # Measure what will be served: the graph, in ONNX Runtime
    since = time.monotonic()
    runtime = export.session(graph)
    val_metrics, judged, judged_labels = measure(runtime, val)
    test_metrics: Metrics | None = None
    if not options.no_test:
        test_metrics, judged, judged_labels = measure(runtime, images.test)
    now = time.monotonic()
    seconds["evaluate"] = round(now - since, 3)
    seconds["total"] = round(result.seconds + now - began, 3)
    seconds["command"] = round(now - about.command_began, 3)

    manifest = Manifest(
        name=cell.name,
        class_names=images.class_names,
        preprocessing=Preprocessing(version=preprocess.VERSION, size=images.size),
        dataset=Dataset(
            name=images.name,
            hash=images.hash,
            n_train=len(images.train),
            n_test=len(images.test),
        ),
        fraction=subset.fraction,
        n_labels_train=len(subset.train),
        n_labels_val=len(val),
        indices_hash=subset.hash,
        n_unlabelled=about.n_unlabelled,
        extractor=_pretrained(about.extractor),
        seed=cell.seed,
        preset=options.preset,
        backbone=cell.recipe.backbone,
        n_parameters=n_parameters(result.network),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        temperature=temperature,
        recipe=asdict(cell.recipe),
        micro_batches=result.micro_batches,
        device=device.choice,
        precision=device.precision,
        val=val_metrics,
        test=test_metrics,
        parity=parity,
        packages=versions(PACKAGES),
    )
    record = Run(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=about.started,
        host=platform.node(),
        hardware=hardware(device),
        git_commit=about.commit,
        seconds=seconds,
        waited=about.waited,
        interruptions=about.interruptions,
        warnings=about.warnings,
        pretraining_seconds=(about.extractor.card.seconds or None) if about.extractor else None,
        history=result.history,
        report=evaluate.report(judged, judged_labels, images.class_names),
        confusion=evaluate.confusion(judged, judged_labels, len(images.class_names)),
    )
    path = store.publish(options.out, manifest, graph, card.write(manifest, record), record)
    shown, where = (val_metrics, "validation") if test_metrics is None else (test_metrics, "test")
    say(
        f"{where}: accuracy {shown.accuracy:.4f}, balanced {shown.balanced_accuracy:.4f}, "
        f"F1 {shown.f1:.4f}, loss {shown.loss:.4f} on {shown.n:,} images\npublished {path}"
    )
    for warning in about.warnings:
        say(f"WARNING: {cell.name}: {warning}")
    return {
        "name": cell.name,
        "version": path.name,
        "path": str(path),
        "fraction": subset.fraction,
        "seed": cell.seed,
        "n_labels_train": len(subset.train),
        "n_labels_val": len(val),
        "val": val_metrics.model_dump(),
        "test": test_metrics.model_dump(include=TEST_FIGURES) if test_metrics else None,
        "parity": parity.model_dump(include={"max_abs_diff", "top1_agreement"}),
        "seconds": seconds,
        "epochs": len(result.history),
    }


def _unchanged(given: str, checked: data.Split) -> list[bytes]:
    """The files of the images, which must be those that were trained on."""
    files = []
    for i in range(len(checked)):
        where, expected = checked.where(i), checked.images[i]
        try:
            file = checked.read(i)
            image = preprocess.decode(file, size=len(expected))
            same = np.array_equal(preprocess.resize(image, len(expected)), expected)
            (digest,) = checked.digests[np.array([i])]
            same_file = of_image(np.asarray(image)) == digest.tobytes()
            why = "has other pixels than when the run began"
        except ImageError as error:
            same, same_file, why = False, False, str(error)
        if same_file and not same:
            raise DataError(
                f"the cached pixels in {checked.digests.file.parent} are damaged: those of {where} "
                "are not what the file has. Nothing was published. Give the same command again "
                "with --clear-cache, which decodes anew, and --fresh: what was learned from them "
                "is of no use"
            )
        if not same:
            raise DataError(
                f"--data {given} changed while the run went on: {where}: {why}. Nothing was "
                "published. Put it back and give the same command again, which goes on from the "
                "checkpoint; or give it with --fresh to train on the images as they are now"
            )
        files.append(file)
    return files


def _pretrained(found: Extractor | None) -> Pretrained | None:
    if found is None:
        return None
    return Pretrained(
        version=found.version,
        objective=found.card.objective,
        dataset=found.card.dataset,
        pixels_hash=found.card.pixels_hash,
    )


def measure(runtime: Any, split: data.Split) -> tuple[Metrics, NDArray[np.int64], Index]:
    """Metrics of a graph in ONNX Runtime, its top-1 and the true classes, [N] each."""
    found = export.probabilities(runtime, split.images).astype(np.float64)
    metrics = evaluate.scores(np.log(found.clip(1e-12)), split.labels)
    return metrics, found.argmax(1), split.labels
