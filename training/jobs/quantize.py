"""A run of `quantize`, top to bottom: bundles get a graph in another number format.

The graph becomes part of the bundle, which is published as a new version of the same name: clients
that request the model by name keep working, the fp32 graph with which the variant was compared is
still in the bundle, and the previous version allows a rollback.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labelcurve.bundle import acceptance, store
from labelcurve.bundle.errors import BundleError, DataError, ExportError, LabelcurveError
from labelcurve.bundle.machine import cpu_flags, cpu_name
from labelcurve.bundle.manifest import Gain, Manifest, Measured, Run, Variant
from labelcurve.bundle.store import Bundle
from labelcurve.bundle.text import counted
from labelcurve.training.data import dataset, fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.fractions import Subset
from labelcurve.training.data.sources import Selection
from labelcurve.training.learning.metrics import paired_error
from labelcurve.training.models import export, quantize
from labelcurve.training.options import QuantizeOptions
from labelcurve.training.runs import card, final
from labelcurve.training.runs.publication import measure
from labelcurve.training.runtime.console import say


def run(options: QuantizeOptions) -> dict[str, Any]:
    """Adds the variant to every bundle that was asked for, and publishes each as a new version.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: models or data cannot be used, or a gate refused a variant; the bundles
            that passed are published all the same.
    """
    names = _chosen(options.models, options.only)
    without: dict[str, str] = {}
    bundles = _read(options.models, names, without)
    if not bundles:
        raise _incomplete(options, names, without)
    bundles.sort(key=lambda bundle: bundle.manifest.measured is not None)  # final last
    images = dataset.load(
        Selection(
            options.data,
            options.layout,
            options.label_column,
            drop=options.drop,
            relabel=options.relabel,
        ),
        size=bundles[0].manifest.preprocessing.size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        say=say,
    )
    learned = {}
    for bundle in bundles:  # all of them before the first is made
        try:
            learned[bundle.name] = _learned(bundle, images, options.data)
        except DataError as error:
            _skip(bundle.name, error, without)
    done = []
    for bundle in bundles:
        if bundle.name not in learned:
            continue
        data, subset = learned[bundle.name]
        try:
            done.append(_add(options.models, bundle, subset, data, options.precision))
        except ExportError as error:
            say(f"{bundle.name}: refused: {error}; the bundle stays as it is")
            without[bundle.name] = str(error)
    if without:
        raise _incomplete(options, names, without)
    return {"bundles": done}


def _read(models: Path, names: Sequence[str], without: dict[str, str]) -> list[Bundle]:
    """The bundles that can be read; reports the others and adds them to `without`."""
    found = []
    for name in names:
        try:
            if not os.access(models / name, os.W_OK | os.X_OK, effective_ids=True):
                raise BundleError(
                    f"{models / name} cannot be written, and the graph is added there: change its "
                    f"mode, or quantize a copy of {models}"
                )
            bundle = store.read(models, name)
            store.read_run(bundle.path)  # the new version has it, too
            found.append(bundle)
        except BundleError as error:
            _skip(name, error, without)
    return found


def _skip(name: str, error: LabelcurveError, without: dict[str, str]) -> None:
    say(f"{name}: skipped: {error}")
    without[name] = str(error)


def _incomplete(
    options: QuantizeOptions, names: Sequence[str], without: Mapping[str, str]
) -> ExportError:
    each = "; ".join(f"{name} ({why})" for name, why in without.items())
    n = f"{len(without)} of {counted(len(names), 'bundle')}"
    return ExportError(f"{n} got no {options.precision} graph: {each}")


def _add(
    models: Path, bundle: Bundle, subset: Subset, images: Data, precision: quantize.Precision
) -> dict[str, Any]:
    """Makes the variant, compares it with the fp32 graph and publishes both as a new version."""
    manifest = bundle.manifest
    say(f"\n{bundle.name}@{bundle.version}: {precision}")
    pool = images.train.take(fractions.spread(subset.val_pool, export.PARITY_IMAGES))
    gain: Gain | None = None
    n_calibration = 0
    if precision == "int8":
        calibration = images.train.take(fractions.spread(subset.train, quantize.CALIBRATION_IMAGES))
        n_calibration = len(calibration)
        graph = quantize.int8(bundle.graph, np.asarray(calibration.images))
        gain = quantize.gain(graph, bundle.graph, np.asarray(pool.images), hardware())
        say(
            f"  {gain.images_per_s:,.0f} images/s, {gain.ratio:.2f} times fp32's "
            f"(one thread, batch {gain.batch}, {gain.hardware})"
        )
        quantize.check_gain(gain)
    else:
        graph = quantize.fp16(bundle.graph)
        say("  speed: not measured; a CPU gains nothing from fp16, it is for GPUs")
    on_gpu = export.gpu_session(graph) if precision == "fp16" else None
    runtime, reference = on_gpu or export.session(graph), export.session(bundle.graph)
    if precision == "fp16":
        arithmetic = (
            "in fp16 arithmetic on the GPU"
            if on_gpu
            else "on the CPU, which rounds weights and maps to fp16 and computes in fp32; with a "
            "GPU its fp16 arithmetic is judged"
        )
        say(f"  judged {arithmetic}")
    same = measure(runtime, pool)[1].argmax(1) == measure(reference, pool)[1].argmax(1)
    agreement = float(same.mean())
    before = None if manifest.measured is None else _before(models, manifest.measured, precision)
    val = pool if before else images.train.take(subset.val)
    (found, answers, _), (fp32, answers32, _) = measure(runtime, val), measure(reference, val)
    error = paired_error(*(each.argmax(axis=1) == val.labels for each in (answers, answers32)))
    if before is None:
        say(
            f"  validation: {found.accuracy:.2%} where fp32 has {fp32.accuracy:.2%} "
            f"({found.n:,} images, standard error of the difference {error:.2%})"
        )
    kind = "training" if before else "held-out"
    say(f"  the same class on {agreement:.2%} of {len(pool):,} {kind} images")
    quantize.check(precision, found, fp32, error, agreement)
    test = None if before or manifest.test is None else measure(runtime, images.test)[0]
    variant = Variant(
        precision=precision,
        graph_hash=hashlib.sha256(graph).hexdigest(),
        n_calibration=n_calibration,
        val=before.val if before else found,
        test=before.test if before else test,
        n_compared=len(pool),
        agreement=agreement,
        held_out=before.held_out if before else acceptance.held_out(answers, val.labels),
        provider=runtime.get_providers()[0],
    )
    _check_current(models, bundle)
    path = _publish(models, bundle, variant, graph, gain)
    if test is not None and manifest.test is not None:
        say(f"  test: {test.accuracy:.2%} where fp32 has {manifest.test.accuracy:.2%}")
    say(f"  {len(graph) / 1e6:.1f} MB in place of {len(bundle.graph) / 1e6:.1f}\npublished {path}")
    return {
        "name": bundle.name,
        "version": path.name,
        "path": str(path),
        "variant": variant.model_dump(exclude={"held_out"}),
        "gain": gain.model_dump() if gain else None,
    }


def _check_current(models: Path, bundle: Bundle) -> None:
    """Refuses to take the place of a version that was published since the bundle was read.

    Raises:
        ExportError: names it.
    """
    now = store.scan(models).get(bundle.name)
    if now is None:
        raise ExportError(f"{bundle.version} was removed meanwhile")
    if now.current not in (bundle.version, None):  # None: a copy without links
        raise ExportError(
            f"{now.current} took the place of {bundle.version} meanwhile: run the same command "
            "again"
        )


def _before(models: Path, measured: Measured, precision: quantize.Precision) -> Variant:
    """The variant of the model whose figures a final model has: they are the final variant's, too.

    Raises:
        ExportError: there is none.
    """
    wanted = f"its figures are those of {measured.name} in {precision}"
    try:
        found = store.read(models, measured.name)
    except BundleError as error:
        raise ExportError(f"{wanted}, which is not there: {error}") from error
    if hashlib.sha256(found.graph).hexdigest() != measured.graph_hash:
        raise ExportError(
            f"{wanted}, which has been trained again since: train the final model again, too"
        )
    variants = [v for v in found.manifest.variants if v.precision == precision]
    if not variants:
        raise ExportError(f"{wanted}, which has no such graph: quantize that first")
    return variants[0]


def _publish(root: Path, bundle: Bundle, variant: Variant, graph: bytes, gain: Gain | None) -> Path:
    others = tuple(v for v in bundle.manifest.variants if v.precision != variant.precision)
    variants = tuple(sorted((*others, variant), key=lambda v: v.precision))
    manifest: Manifest = bundle.manifest.model_copy(update={"variants": variants})
    record: Run = store.read_run(bundle.path)
    more = {
        "gains": {**record.gains, variant.precision: gain},
        "git_commit": record.git_commit or bundle.manifest.git_commit,
    }
    record = record.model_copy(update=more)
    graphs = {**bundle.variants, variant.precision: graph}
    return store.publish(root, manifest, bundle.graph, card.write(manifest, record), record, graphs)


def _chosen(models: Path, only: Sequence[str]) -> list[str]:
    names = store.names(models)
    unknown = [name for name in only if name not in names]
    if unknown:
        raise DataError(f"--only {', '.join(unknown)}: no such model; there are {', '.join(names)}")
    return [name for name in names if not only or name in only]


def _learned(bundle: Bundle, images: Data, source: str) -> tuple[Data, Subset]:
    """The rows that the model was trained and validated with, proved by their hash."""
    manifest = bundle.manifest
    if manifest.preprocessing.size != images.size:
        raise DataError(
            f"{bundle.name} takes images of {manifest.preprocessing.size} px, another model of "
            f"{images.size} px: name those of one size with --only"
        )
    if manifest.dataset.hash != images.hash:
        trained, here = manifest.dataset, (images.dropped, images.relabelled)
        if (trained.dropped, trained.relabelled) != here:
            raise DataError(
                f"{bundle.name} was trained with {trained.dropped:,} images dropped and "
                f"{trained.relabelled:,} relabelled, here it is {here[0]:,} and {here[1]:,}: give "
                "--drop and --relabel with the tables of its training, or leave it out with --only"
            )
        raise DataError(
            f"{bundle.name} was trained on other images ({manifest.dataset.name}, hash "
            f"{manifest.dataset.hash[:12]}) than --data {source} (hash {images.hash[:12]}): "
            "name the data that it was trained on, or leave it out with --only"
        )
    if manifest.measured is not None:
        images = final.whole(images)
        subset = final.subset(images)
    else:
        subset = fractions.subset(
            images.train, images.class_names, manifest.fraction, manifest.seed
        )
    if subset.hash != manifest.indices_hash:
        raise DataError(
            f"{bundle.name}: its labelled rows are not those that this release draws at "
            f"{manifest.fraction:g} with seed {manifest.seed}: train it again"
        )
    return images, subset


def hardware() -> str:
    """The processor, and whether it has 8-bit dot products."""
    name = cpu_name()
    if platform.machine().lower() in ("x86_64", "amd64"):
        vnni = cpu_flags() & {"avx512_vnni", "avx_vnni"}
        name += ", VNNI" if vnni else ", no VNNI"
    return name
