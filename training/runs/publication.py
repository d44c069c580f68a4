"""Turns a trained network into a bundle: temperature, export, parity gate, test, card."""

from __future__ import annotations

import hashlib
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle import acceptance, preprocess, store
from labelcurve.bundle.machine import command_line, versions
from labelcurve.bundle.manifest import (
    Dataset,
    HeldOut,
    Latency,
    Manifest,
    Measured,
    Metrics,
    Parity,
    Predicted,
    Preprocessing,
    Pretrained,
    Run,
    Teacher,
)
from labelcurve.bundle.store import Bundle
from labelcurve.bundle.text import counted
from labelcurve.training.data import checks, dataset, fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.source import Index
from labelcurve.training.learning import metrics as evaluate
from labelcurve.training.learning.finetune import Result
from labelcurve.training.models import export
from labelcurve.training.models.backbones import n_parameters, predict_logits
from labelcurve.training.models.export import p50_ms
from labelcurve.training.models.extractor import Extractor
from labelcurve.training.options import Options
from labelcurve.training.runs import card
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runtime.console import say
from labelcurve.training.runtime.device import FP32_CPU, Device, hardware

PACKAGES = ("labelcurve", "numpy", "onnx", "onnxruntime", "onnxscript", "pillow", "torch")

FEW_TESTED = 100
"""An accuracy on fewer images is published with a warning: it may be off by ten points."""

TEST_FIGURES = {"accuracy", "balanced_accuracy", "f1", "precision", "recall"}


@dataclass(frozen=True)
class Command:
    """Inputs and settings shared by all models of a command."""

    options: Options
    images: Data
    extractor: Extractor | None
    device: Device
    commit: str | None
    test: bool
    """Whether the test images may be used."""
    finetune: bool
    """Whether fine-tuning follows the linear head on a pretrained backbone, however few labels."""


@dataclass(frozen=True)
class Circumstances:
    """Circumstances of a training, recorded with its result."""

    device: Device
    """That of the command, in the precision of this run."""
    n_unlabelled: int
    started: str
    """ISO 8601, UTC."""
    interruptions: int
    waited: float | None
    """Share of the time spent waiting for cores, as in `Run`."""
    command_began: float
    """By `time.monotonic`, moved back by the time of the parts before an interruption."""
    warnings: tuple[str, ...]
    teacher: Teacher | None = None
    teacher_p50_ms: float | None = None


@dataclass(frozen=True)
class _Figures:
    """Evaluation of a model's answers to held-out images."""

    val: Metrics
    test: Metrics | None
    held_out: HeldOut | None
    predicted: Predicted | None
    """On test, as `report` and `confusion`, or on validation if test was left unread."""
    report: dict[str, Any]
    confusion: tuple[tuple[int, ...], ...]
    measured: Measured | None = None
    """The model that was evaluated, where that is another one."""


def publish(
    command: Command,
    cell: Cell,
    result: Result,
    about: Circumstances,
    measured: Bundle | None = None,
) -> dict[str, Any]:
    """Exports, measures and publishes a trained network, unless the parity gate refuses it.

    Args:
        measured: the model whose temperature and figures a final model takes over, since no label
            is left to measure it with.

    Returns:
        The bundle's entry in the command's document.

    Raises:
        ExportError: the exported graph is not the same function.
        DataError: an image file changed since training read it.
        BundleError: it cannot be written.
    """
    began, images, extractor = time.monotonic(), command.images, command.extractor
    if measured is None:
        val = images.train.take(cell.subset.val)
        logits = predict_logits(result.network, val.images, FP32_CPU)
        temperature = evaluate.temperature(logits, val.labels)
    else:
        temperature = measured.manifest.temperature
    graph, parity = _exported(command, cell, result, temperature)
    exported = time.monotonic()
    figures = _taken_over(measured) if measured else _measure(command, cell, graph)
    now = time.monotonic()
    seconds = {
        "train": result.seconds,
        "export": exported - began,
        "evaluate": now - exported,
        "total": result.seconds + now - began,
        "command": now - about.command_began,
    }
    seconds = {name: round(value, 3) for name, value in seconds.items()}
    manifest = _manifest(command, cell, result, about, temperature, parity, figures)
    latency = None
    if command.options.max_latency is not None:
        own = p50_ms(graph, images.train.images)
        teacher = about.teacher_p50_ms
        latency = Latency(limit_ms=command.options.max_latency, p50_ms=own, teacher_p50_ms=teacher)
    shown, where = (figures.test, "test") if figures.test else (figures.val, "validation")
    doubt = few_tested(where, shown.n)
    warnings = (*about.warnings, doubt) if doubt else about.warnings
    record = Run(
        command=command_line(),
        started=about.started,
        host=platform.node(),
        hardware=hardware(about.device),
        git_commit=command.commit,
        seconds=seconds,
        waited=about.waited,
        interruptions=about.interruptions,
        warnings=warnings,
        pretraining_seconds=(extractor.card.seconds or None) if extractor else None,
        latency=latency,
        history=result.history,
        report=figures.report,
        confusion=figures.confusion,
    )
    path = store.publish(command.options.out, manifest, graph, card.write(manifest, record), record)
    of = f" of {figures.measured.name}" if figures.measured else ""
    say(
        f"{where}{of}: accuracy {shown.accuracy:.4f}, balanced {shown.balanced_accuracy:.4f}, "
        f"F1 {shown.f1:.4f}, loss {shown.loss:.4f} on {counted(shown.n, 'image')}\n"
        f"published {path}"
    )
    for warning in warnings:
        say(f"WARNING: {cell.name}: {warning}")
    return _entry(path, cell, result, manifest, record)


def few_tested(split: str, n: int) -> str | None:
    """The warning that an accuracy on `n` images says little; None where it says enough, or where
    there are none.

    Wilson's 95 % interval is widest where half of the answers are right.
    """
    if not 0 < n < FEW_TESTED:
        return None

    def half(n: int) -> str:
        return f"{98 / (n + 1.96**2) ** 0.5:.0f}"

    return (
        f"an accuracy of {counted(n, f'{split} image')} says little: its 95 % interval is up to "
        f"±{half(n)} points wide. {FEW_TESTED} images make that ±{half(FEW_TESTED)}, 400 "
        f"±{half(400)}"
    )


def _entry(
    path: Path, cell: Cell, result: Result, manifest: Manifest, record: Run
) -> dict[str, Any]:
    found = {"measured": manifest.measured, "teacher": manifest.teacher}
    more: dict[str, Any] = {key: value.model_dump() for key, value in found.items() if value}
    if record.latency is not None:
        more["p50_ms"] = record.latency.p50_ms
    return {
        "name": cell.name,
        "version": path.name,
        "path": str(path),
        "fraction": cell.subset.fraction,
        "seed": cell.seed,
        "n_labels_train": len(cell.subset.train),
        "n_labels_val": len(cell.subset.val),
        "val": manifest.val.model_dump(),
        "test": manifest.test.model_dump(include=TEST_FIGURES) if manifest.test else None,
        "parity": manifest.parity.model_dump(include={"max_abs_diff", "top1_agreement"}),
        "seconds": record.seconds,
        "epochs": len(result.history),
        **more,
    }


def _exported(
    command: Command, cell: Cell, result: Result, temperature: float
) -> tuple[bytes, Parity]:
    """The graph, and the proof of the parity gate that it is the same function."""
    images, served = command.images, export.Served(result.network, temperature)
    cache = command.options.cache or dataset.default_cache()
    graph = export.to_onnx(served, images.size, images.class_names, cache)
    # The gate may look at held-out images beyond the fraction: it uses no label.
    checked = images.train.take(fractions.spread(cell.subset.val_pool, export.PARITY_IMAGES))
    files = checks.unchanged(command.options.data, checked)
    # Where training has a GPU, the service is likely to have one, too.
    gpu = command.device.device.type == "cuda"
    parity = export.check_parity(graph, served, checked.images, files, images.class_names, gpu)
    say(
        f"export: {len(graph) / 1e6:.1f} MB, at most {parity.max_abs_diff:.1e} from torch on "
        f"{parity.n_images} images, same top-1, on {' and '.join(parity.providers)}; "
        f"temperature {temperature:.2f}"
    )
    return graph, parity


def _measure(command: Command, cell: Cell, graph: bytes) -> _Figures:
    """The figures of the graph in ONNX Runtime."""
    images, runtime = command.images, export.session(graph)
    val, probabilities, labels = measure(runtime, images.train.take(cell.subset.val))
    held_out = acceptance.held_out(probabilities, labels)
    test: Metrics | None = None
    if command.test:
        test, probabilities, labels = measure(runtime, images.test)
    answers = probabilities.argmax(1)
    return _Figures(
        val=val,
        test=test,
        held_out=held_out,
        predicted=evaluate.distribution(probabilities, "test" if test else "validation"),
        report=evaluate.report(answers, labels, images.class_names),
        confusion=evaluate.confusion(answers, labels, len(images.class_names)),
    )


def _taken_over(bundle: Bundle) -> _Figures:
    manifest, ran = bundle.manifest, store.read_run(bundle.path)
    return _Figures(
        val=manifest.val,
        test=manifest.test,
        held_out=manifest.held_out,
        predicted=manifest.predicted,
        report=ran.report,
        confusion=ran.confusion,
        measured=Measured(
            name=bundle.name,
            version=bundle.version,
            graph_hash=hashlib.sha256(bundle.graph).hexdigest(),
            n_labels_train=manifest.n_labels_train,
            n_labels_val=manifest.n_labels_val,
        ),
    )


def _manifest(
    command: Command,
    cell: Cell,
    result: Result,
    about: Circumstances,
    temperature: float,
    parity: Parity,
    figures: _Figures,
) -> Manifest:
    images, subset = command.images, cell.subset
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
        extractor=_pretrained(command.extractor),
        teacher=about.teacher,
        seed=cell.seed,
        preset=command.options.preset,
        backbone=cell.recipe.backbone,
        n_parameters=n_parameters(result.network),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        temperature=temperature,
        recipe={**asdict(cell.recipe), **({} if result.head is None else result.head.choices())},
        micro_batches=result.micro_batches,
        device=about.device.choice,
        precision=about.device.precision,
        measured=figures.measured,
        val=figures.val,
        test=figures.test,
        predicted=figures.predicted,
        held_out=figures.held_out,
        parity=parity,
        packages=versions(PACKAGES),
    )


def _pretrained(found: Extractor | None) -> Pretrained | None:
    if found is None:
        return None
    facts = {"objective", "dataset", "pixels_hash", "license", "source"}
    return Pretrained(version=found.version, **found.card.model_dump(include=facts))


def measure(runtime: Any, split: dataset.Split) -> tuple[Metrics, NDArray[np.float64], Index]:
    """Metrics of a graph in ONNX Runtime, its probabilities [N, K] and the true classes [N]."""
    found = export.probabilities(runtime, split.images).astype(np.float64)
    metrics = evaluate.scores(np.log(found.clip(1e-12)), split.labels)
    return metrics, found, split.labels
