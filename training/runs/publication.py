"""Turns a trained network into a bundle: temperature, export, parity gate, test, card."""

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

from labelcurve.bundle import acceptance, preprocess, store
from labelcurve.bundle.errors import DataError, ImageError
from labelcurve.bundle.machine import versions
from labelcurve.bundle.manifest import (
    Dataset,
    HeldOut,
    Latency,
    Manifest,
    Metrics,
    Parity,
    Preprocessing,
    Pretrained,
    Run,
    Teacher,
)
from labelcurve.training.data import dataset, fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.digests import of_image
from labelcurve.training.data.source import Index
from labelcurve.training.learning import metrics as evaluate
from labelcurve.training.learning.finetune import Result
from labelcurve.training.models import export
from labelcurve.training.models.backbones import n_parameters, predict_logits
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.models.latency import p50_ms
from labelcurve.training.recipes import Preset
from labelcurve.training.runs import card
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runtime.device import FP32_CPU, Device, hardware

PACKAGES = ("labelcurve", "numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "torch")

TEST_FIGURES = {"accuracy", "balanced_accuracy", "f1", "precision", "recall"}


@dataclass(frozen=True)
class Circumstances:
    """Circumstances of a training, recorded with its result."""

    source: str
    """`--data`, as it was given."""
    preset: Preset
    test: bool
    """Whether to measure on the test images."""
    device: Device
    extractor: Extractor | None
    commit: str | None
    n_unlabelled: int
    started: str
    """ISO 8601, UTC."""
    interruptions: int
    waited: float | None
    """Share of the time spent waiting for cores, as in `Run`."""
    command_began: float
    """By `time.monotonic`, earlier by the time of the parts before an interruption."""
    warnings: tuple[str, ...]
    max_latency: float | None = None
    """Limit in ms that the time of an image is recorded with."""
    teacher: Teacher | None = None
    teacher_p50_ms: float | None = None


@dataclass(frozen=True)
class _Measured:
    """The exported graph and its metrics."""

    graph: bytes
    temperature: float
    parity: Parity
    val: Metrics
    test: Metrics | None
    held_out: HeldOut
    probabilities: NDArray[np.float64]
    """[N, K] of the test images, or of the validation images if test was left unread."""
    labels: Index
    """True classes of the same images."""
    seconds: dict[str, float]


def publish(
    out: Path,
    images: Data,
    cell: Cell,
    result: Result,
    about: Circumstances,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Exports, measures and publishes a trained network, unless the parity gate refuses it.

    Args:
        out: folder of the bundles.

    Returns:
        The bundle's entry in the command's document.

    Raises:
        ExportError: the exported graph is not the same function.
        DataError: an image file changed since training read it.
        BundleError: it cannot be written.
    """
    found = _measure(images, cell, result, about, say)
    manifest = _manifest(images, cell, result, about, found)
    latency = _latency(images, found.graph, about)
    record = Run(
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        started=about.started,
        host=platform.node(),
        hardware=hardware(about.device),
        git_commit=about.commit,
        seconds=found.seconds,
        waited=about.waited,
        interruptions=about.interruptions,
        warnings=about.warnings,
        pretraining_seconds=(about.extractor.card.seconds or None) if about.extractor else None,
        latency=latency,
        history=result.history,
        report=evaluate.report(found.probabilities.argmax(1), found.labels, images.class_names),
        confusion=evaluate.confusion(
            found.probabilities.argmax(1), found.labels, len(images.class_names)
        ),
    )
    path = store.publish(out, manifest, found.graph, card.write(manifest, record), record)
    shown, where = (found.test, "test") if found.test else (found.val, "validation")
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
        "fraction": cell.subset.fraction,
        "seed": cell.seed,
        "n_labels_train": len(cell.subset.train),
        "n_labels_val": len(cell.subset.val),
        "val": found.val.model_dump(),
        "test": found.test.model_dump(include=TEST_FIGURES) if found.test else None,
        "parity": found.parity.model_dump(include={"max_abs_diff", "top1_agreement"}),
        "seconds": found.seconds,
        "epochs": len(result.history),
        **({} if latency is None else {"p50_ms": latency.p50_ms}),
        **({} if about.teacher is None else {"teacher": about.teacher.model_dump()}),
    }


def _latency(images: Data, graph: bytes, about: Circumstances) -> Latency | None:
    if about.max_latency is None:
        return None
    return Latency(
        limit_ms=about.max_latency,
        p50_ms=p50_ms(graph, images.train.images),
        teacher_p50_ms=about.teacher_p50_ms,
    )


def _measure(
    images: Data, cell: Cell, result: Result, about: Circumstances, say: Callable[[str], None]
) -> _Measured:
    """Calibrates and exports behind the parity gate, then measures the graph in ONNX Runtime."""
    began = time.monotonic()
    val = images.train.take(cell.subset.val)
    temperature = evaluate.temperature(
        predict_logits(result.network, val.images, FP32_CPU), val.labels
    )
    served = export.Served(result.network, temperature)
    graph = export.to_onnx(served, images.size, images.class_names)
    # The gate may look at held-out images beyond the fraction: it uses no label.
    checked = images.train.take(fractions.spread(cell.subset.val_pool, export.PARITY_IMAGES))
    files = _unchanged(about.source, checked)
    # With a GPU to train on, the service is likely to have one, too.
    gpu = about.device.device.type == "cuda"
    parity = export.check_parity(graph, served, checked.images, files, images.class_names, gpu)
    exported = time.monotonic()
    say(
        f"export: {len(graph) / 1e6:.1f} MB, at most {parity.max_abs_diff:.1e} from torch on "
        f"{parity.n_images} images, same top-1, on {' and '.join(parity.providers)}; "
        f"temperature {temperature:.2f}"
    )
    runtime = export.session(graph)
    val_metrics, probabilities, labels = measure(runtime, val)
    held_out = acceptance.held_out(probabilities, labels)
    test_metrics: Metrics | None = None
    if about.test:
        test_metrics, probabilities, labels = measure(runtime, images.test)
    now = time.monotonic()
    seconds = {
        "train": result.seconds,
        "export": exported - began,
        "evaluate": now - exported,
        "total": result.seconds + now - began,
        "command": now - about.command_began,
    }
    return _Measured(
        graph=graph,
        temperature=temperature,
        parity=parity,
        val=val_metrics,
        test=test_metrics,
        held_out=held_out,
        probabilities=probabilities,
        labels=labels,
        seconds={name: round(value, 3) for name, value in seconds.items()},
    )


def _manifest(
    images: Data, cell: Cell, result: Result, about: Circumstances, found: _Measured
) -> Manifest:
    subset = cell.subset
    return Manifest(
        name=cell.name,
        class_names=images.class_names,
        preprocessing=Preprocessing(version=preprocess.VERSION, size=images.size),
        dataset=Dataset(
            name=images.name,
            hash=images.hash,
            n_train=len(images.train),
            n_test=len(images.test),
            left_out=images.left_out,
            dropped=images.dropped,
            relabelled=images.relabelled,
        ),
        fraction=subset.fraction,
        n_labels_train=len(subset.train),
        n_labels_val=len(subset.val),
        indices_hash=subset.hash,
        n_unlabelled=about.n_unlabelled,
        extractor=_pretrained(about.extractor),
        teacher=about.teacher,
        seed=cell.seed,
        preset=about.preset,
        backbone=cell.recipe.backbone,
        n_parameters=n_parameters(result.network),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        temperature=found.temperature,
        recipe={**asdict(cell.recipe), **({} if result.head is None else result.head.choices())},
        micro_batches=result.micro_batches,
        device=about.device.choice,
        precision=about.device.precision,
        val=found.val,
        test=found.test,
        predicted=evaluate.distribution(
            found.probabilities, "test" if found.test else "validation"
        ),
        held_out=found.held_out,
        parity=found.parity,
        packages=versions(PACKAGES),
    )


def _unchanged(given: str, checked: dataset.Split) -> list[bytes]:
    """The files of the images, which must still be those that training read."""
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
                "with --clear-cache, which decodes them again, and --fresh: what was learned from "
                "them is of no use"
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
        license=found.card.license,
        source=found.card.source,
    )


def measure(runtime: Any, split: dataset.Split) -> tuple[Metrics, NDArray[np.float64], Index]:
    """Metrics of a graph in ONNX Runtime, its probabilities [N, K] and the true classes [N]."""
    found = export.probabilities(runtime, split.images).astype(np.float64)
    metrics = evaluate.scores(np.log(found.clip(1e-12)), split.labels)
    return metrics, found, split.labels
