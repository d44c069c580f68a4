"""A run of `quantize`, top to bottom: bundles get a graph in another number format.

The graph becomes part of the bundle, which is published as a new version of the same name: whoever
asks for the model by name goes on to, the fp32 graph that the variant was held against lies beside
it, and the way back is the version before.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path
from typing import Any

import numpy as np

from bundle import store
from bundle.errors import DataError, ExportError
from bundle.machine import cpu_flags, cpu_name
from bundle.manifest import Gain, Manifest, Run, Variant
from bundle.store import Bundle
from training import card, data, export, fractions, quantize
from training.data import Data
from training.fractions import Subset
from training.options import QuantizeOptions
from training.output import say
from training.publication import measure


def run(options: QuantizeOptions) -> dict[str, Any]:
    """Adds the variant to every bundle that was asked for, and publishes each as a new version.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: models or data cannot be used, or a gate refused a variant; the bundles
            that passed are published all the same.
    """
    names = _chosen(options)
    bundles = [store.read(options.models, name) for name in names]
    images = data.load(
        options.data,
        size=bundles[0].manifest.preprocessing.size,
        cache=options.cache,
        skip_unreadable=options.skip_unreadable,
        say=say,
    )
    # All of them before the first is made.
    subsets = [_subset(bundle, images, options) for bundle in bundles]
    done, refused = [], []
    for bundle, subset in zip(bundles, subsets, strict=True):
        try:
            done.append(_add(bundle, subset, images, options))
        except ExportError as error:
            say(f"{bundle.name}: refused: {error}; the bundle stays as it is")
            refused.append(f"{bundle.name} ({error})")
    if refused:
        raise ExportError(
            f"{len(refused)} of {len(bundles)} bundles got no {options.precision} graph: "
            f"{'; '.join(refused)}"
        )
    return {"bundles": done}


def _add(bundle: Bundle, subset: Subset, images: Data, options: QuantizeOptions) -> dict[str, Any]:
    manifest, precision = bundle.manifest, options.precision
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
    runtime, reference = export.session(graph), export.session(bundle.graph)
    val = images.train.take(subset.val)
    found, fp32 = measure(runtime, val)[0], measure(reference, val)[0]
    agreement = float((measure(runtime, pool)[1] == measure(reference, pool)[1]).mean())
    say(
        f"  validation: {found.accuracy:.2%} where fp32 has {fp32.accuracy:.2%} "
        f"({found.n:,} images); the same class on {agreement:.2%} of {len(pool):,} held-out images"
    )
    quantize.check(precision, found, fp32)
    test = None if manifest.test is None else measure(runtime, images.test)[0]
    variant = Variant(
        precision=precision,
        graph_hash=hashlib.sha256(graph).hexdigest(),
        n_calibration=n_calibration,
        val=found,
        test=test,
        n_compared=len(pool),
        agreement=agreement,
    )
    path = _publish(options.models, bundle, variant, graph, gain)
    if test is not None and manifest.test is not None:
        say(f"  test: {test.accuracy:.2%} where fp32 has {manifest.test.accuracy:.2%}")
    say(f"  {len(graph) / 1e6:.1f} MB in place of {len(bundle.graph) / 1e6:.1f}\npublished {path}")
    return {
        "name": bundle.name,
        "version": path.name,
        "path": str(path),
        "variant": variant.model_dump(),
        "gain": gain.model_dump() if gain else None,
    }


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


def _chosen(options: QuantizeOptions) -> list[str]:
    names = store.names(options.models)
    unknown = [name for name in options.only if name not in names]
    if unknown:
        raise DataError(f"--only {', '.join(unknown)}: no such model; there are {', '.join(names)}")
    return [name for name in names if not options.only or name in options.only]


def _subset(bundle: Bundle, images: Data, options: QuantizeOptions) -> Subset:
    """The rows that the model was trained and validated with, proved by their hash."""
    manifest = bundle.manifest
    if manifest.preprocessing.size != images.size:
        raise DataError(
            f"{bundle.name} takes images of {manifest.preprocessing.size} px, another model of "
            f"{images.size} px: name those of one size with --only"
        )
    if manifest.dataset.hash != images.hash:
        raise DataError(
            f"{bundle.name} was trained on other images ({manifest.dataset.name}, hash "
            f"{manifest.dataset.hash[:12]}) than --data {options.data} (hash {images.hash[:12]}): "
            "name the data that it was trained on, or leave it out with --only"
        )
    subset = fractions.subset(images.train, images.class_names, manifest.fraction, manifest.seed)
    if subset.hash != manifest.indices_hash:
        raise DataError(
            f"{bundle.name}: its labelled rows are not those that this release draws at "
            f"{manifest.fraction:g} with seed {manifest.seed}: train it again"
        )
    return subset


def hardware() -> str:
    """The processor, and whether it has 8-bit dot products."""
    name = cpu_name()
    if platform.machine().lower() in ("x86_64", "amd64"):
        vnni = cpu_flags() & {"avx512_vnni", "avx_vnni"}
        name += ", VNNI" if vnni else ", no VNNI"
    return name
