"""A run of `bench`, top to bottom: accuracy, robustness, session latency, load, curve, report."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import (
    accuracy,
    gallery,
    latency,
    load,
    null,
    power_law,
    provenance,
    robustness,
    saturation,
    server,
    statistics,
)
from benchmarks.accuracy import Predictions
from benchmarks.options import Bench, check_asked
from benchmarks.record import (
    Accuracy,
    Dataset,
    Latency,
    Load,
    Model,
    Null,
    Report,
    Robustness,
    Saturation,
)
from benchmarks.report import page
from benchmarks.server import Server
from benchmarks.tables import counted
from bundle import store
from bundle.errors import BundleError, LabelcurveError
from bundle.manifest import SHARED
from bundle.store import Bundle
from training import data as datasets
from training.data import Data, default_cache


def run(
    bench: Bench, say: Callable[[str], None], command: Sequence[str] | None = None
) -> tuple[Report, dict[str, Path]]:
    """Measures and writes the report.

    Args:
        bench: the options.
        say: receives progress, line by line.
        command: what to name as the command; None takes the arguments of this process.

    Returns:
        The report, and its files by kind.

    Raises:
        LabelcurveError: models, data or service cannot be used.
    """
    check(bench)
    bundles = _chosen(bench)
    service = server.running(bench.url) if bench.url and bench.load else None
    if service:
        server.check(service.url, bundles)
    data = datasets.load(
        bench.data,
        size=bundles[-1].manifest.preprocessing.size,
        cache=bench.cache,
        skip_unreadable=bench.skip_unreadable,
        say=say,
    )
    accuracy.check(bundles, data)
    truth = data.test.labels

    images = counted(len(truth), "test image")
    say(f"Accuracy of {counted(len(bundles), 'model')} on {images}")
    predictions = accuracy.predict(bundles, data, bench.cache or default_cache(), say)
    scores = {b.name: accuracy.score(b, predictions[b.name], data) for b in bundles}
    right = {name: said.right(truth) for name, said in predictions.items()}
    warnings = accuracy.doubts(scores)
    first, others = one_seed(bundles), besides(bundles)

    spoilt: dict[str, Robustness] = {}
    if bench.robustness_images:
        n = min(bench.robustness_images, len(truth))
        images = counted(n, "test image")
        say(f"Robustness of {counted(len(first), 'model')} on {images}, spoilt in 15 ways")
        spoilt = robustness.measure(first, data, bench.robustness_images, say)

    with TemporaryDirectory(prefix="labelcurve-null-") as folder:
        nothing = null.publish(Path(folder), bundles[-1]) if bench.null else None
        say(f"Session latency by batch size, about {bench.latency_seconds:.0f} s")
        timed = [*bundles, nothing] if nothing else bundles
        times = latency.measure(timed, bench.latency_seconds, threads=bench.threads, say=say)
        loads: dict[str, Load] = {}
        saturations: dict[str, Saturation] = {}
        if bench.load:
            with ExitStack() as stack:
                servers = _servers(bench, first, service, nothing, stack, say)
                chosen = {b.name: predictions[b.name] for b in first}
                loads, saturations = _loads(bench, servers, data, chosen, leading(first).name, say)
    warnings += [text for name, found in loads.items() for text in load.doubts(name, found)]
    warnings += load.unstable(loads)
    warnings += [text for found in saturations.values() for text in saturation.doubts(found)]

    models = tuple(
        describe(
            b,
            scores[b.name],
            times[b.name],
            loads.get(b.name),
            spoilt.get(b.name),
            others[b.name],
            shared=b.name in bench.shared,
        )
        for b in bundles
    )
    result = Report(
        dataset=Dataset(
            name=data.name, hash=data.hash, n_test=len(truth), class_names=data.class_names
        ),
        models=models,
        warnings=tuple(warnings),
        notes=bench.note,
        curves=power_law.curves(models, right, bench.target, bench.price_per_label),
        comparisons=statistics.comparisons(models, right),
        saturation=saturations.get(leading(first).name),
        null=Null(
            latency=times[null.NAME],
            load=loads.get(null.NAME),
            saturation=saturations.get(null.NAME),
        )
        if nothing
        else None,
        price_per_hour=bench.price_per_hour,
        price_per_label=bench.price_per_label,
        provenance=provenance.here(command),
    )
    shown = gallery.galleries(bundles, data, predictions) if bench.examples else ()
    return result, page.write(bench.out, result, shown)


def describe(
    bundle: Bundle,
    accuracy: Accuracy,
    latency: Latency,
    load: Load | None = None,
    robustness: Robustness | None = None,
    besides: str = "",
    shared: bool = False,
) -> Model:
    """What is known and was measured of one bundle."""
    manifest, ran = bundle.manifest, store.read_run(bundle.path)
    return Model(
        name=bundle.name,
        version=bundle.version,
        dataset=manifest.dataset.name,
        fraction=manifest.fraction,
        n_labels_train=manifest.n_labels_train,
        n_labels_val=manifest.n_labels_val,
        seed=manifest.seed,
        besides=besides,
        preset=manifest.preset,
        backbone=manifest.backbone,
        n_parameters=manifest.n_parameters,
        size=manifest.preprocessing.size,
        graph_bytes=len(bundle.graph),
        epochs=manifest.epochs,
        best_epoch=manifest.best_epoch,
        extractor=manifest.extractor.objective if manifest.extractor else None,
        n_unlabelled=manifest.n_unlabelled,
        pretraining_seconds=ran.pretraining_seconds,
        train_seconds=ran.seconds.get("train", 0.0),
        shared=shared or (ran.waited or 0.0) > SHARED,
        trained_on=ran.hardware,
        device=manifest.device,
        history=ran.history,
        accuracy=accuracy,
        latency=latency,
        load=load,
        robustness=robustness,
    )


def one_seed(bundles: Sequence[Bundle]) -> list[Bundle]:
    """Of bundles that differ in nothing but the seed the one with the lowest, in the same order.

    What they cost to serve is the same: the graphs differ in their weights alone.
    """
    lowest: dict[object, Bundle] = {}
    names = besides(bundles)
    for bundle in sorted(bundles, key=lambda b: b.manifest.seed):
        manifest = bundle.manifest
        key = (
            manifest.preset,
            manifest.extractor is None,
            manifest.n_labels_train,
            names[bundle.name],
        )
        lowest.setdefault(key, bundle)
    kept = {bundle.name for bundle in lowest.values()}
    return [bundle for bundle in bundles if bundle.name in kept]


def leading(bundles: Sequence[Bundle]) -> Bundle:
    """The one with the most labels; those of the default preset, and with an extractor, first."""

    def place(bundle: Bundle) -> tuple[bool, int, bool]:
        manifest = bundle.manifest
        labels = manifest.n_labels_train + manifest.n_labels_val
        return manifest.preset == "default", labels, manifest.extractor is not None

    return max(bundles, key=place)


def besides(bundles: Sequence[Bundle]) -> dict[str, str]:
    """What tells models of one preset apart, by name: their network and the size of its images
    where there are several, and the name that they were trained under where even a seed is there
    twice."""
    found: dict[str, str] = {}
    for bundle in bundles:
        alike = [b for b in bundles if _preset(b) == _preset(bundle)]
        words = []
        if len({b.manifest.backbone for b in alike}) > 1:
            words.append(bundle.manifest.backbone)
            alike = [b for b in alike if b.manifest.backbone == bundle.manifest.backbone]
        if len({b.manifest.preprocessing.size for b in alike}) > 1:
            size = bundle.manifest.preprocessing.size
            words.append(f"{size} px")
            alike = [b for b in alike if b.manifest.preprocessing.size == size]
        if len({(b.manifest.n_labels_train, b.manifest.seed) for b in alike}) < len(alike):
            words.append(re.sub(r"(-[0-9.]+(e-[0-9]+)?)?(-s[0-9]+)?$", "", bundle.name))
        found[bundle.name] = " ".join(words)
    return found


def _preset(bundle: Bundle) -> tuple[str, bool]:
    return bundle.manifest.preset, bundle.manifest.extractor is None


def _servers(
    bench: Bench,
    bundles: Sequence[Bundle],
    service: Server | None,
    nothing: Bundle | None,
    stack: ExitStack,
    say: Callable[[str], None],
) -> dict[str, Server]:
    """The service of each model; what is started ends with the stack."""
    if service is None:
        log, models = bench.out / "serve.log", bench.models
        if bench.only:  # another one may be damaged
            models = Path(stack.enter_context(TemporaryDirectory(prefix="labelcurve-only-")))
            for name in dict.fromkeys(bench.only):
                (models / name).symlink_to((bench.models / name).resolve())
        service = stack.enter_context(server.started(models, log, say))
        server.check(service.url, bundles)
    servers = {bundle.name: service for bundle in bundles}
    # Elsewhere the null model would measure this machine and not the one under test.
    if nothing and service.local:
        root = nothing.path.parent.parent
        log = bench.out / "serve-null.log"
        servers[nothing.name] = stack.enter_context(server.started(root, log, say))
    return servers


def _loads(
    bench: Bench,
    servers: dict[str, Server],
    data: Data,
    predictions: dict[str, Predictions],
    most: str,
    say: Callable[[str], None],
) -> tuple[dict[str, Load], dict[str, Saturation]]:
    """Load of every model, and the way to saturation of `most`."""
    n = len(servers)
    with load.images_for(data, predictions) as (folder, checked):
        say(
            f"Load: {counted(bench.users, 'client')}, {counted(n, 'model')}, "
            f"{counted(bench.rounds, 'round')}, "
            f"about {n * (bench.load_seconds + 3 * bench.rounds):.0f} s"
        )
        loads = load.measure(
            servers,
            folder,
            checked,
            users=bench.users,
            seconds=bench.load_seconds,
            rounds=bench.rounds,
            say=say,
        )
        saturations: dict[str, Saturation] = {}
        if bench.step_seconds:
            each = bench.step_seconds + saturation.SECONDS_A_STEP
            names = [name for name in (most, null.NAME) if name in servers]
            say(f"To saturation: about {len(names) * len(bench.clients) * each + 20:.0f} s")
            for name in names:
                saturations[name] = saturation.measure(
                    servers[name],
                    folder,
                    name,
                    users=bench.clients,
                    shares=saturation.SHARES if name == most else (),
                    seconds=bench.step_seconds,
                    say=say,
                )
    return loads, saturations


def check(bench: Bench) -> None:
    """Refuses options that cannot be meant, and a folder that cannot be written.

    Raises:
        LabelcurveError: names the option.
    """
    for name in ("users", "load_seconds", "rounds", "threads"):
        value = getattr(bench, name)
        if value < 1:
            raise LabelcurveError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
    for name in ("latency_seconds", "step_seconds", "robustness_images"):
        value = getattr(bench, name)
        if not 0 <= value < inf:
            raise LabelcurveError(f"--{name.replace('_', '-')} {value:g}: at least 0 is needed")
    if 0 < bench.step_seconds < 1:
        raise LabelcurveError(
            f"--step-seconds {bench.step_seconds:g}: at least 1, or 0 to leave the steps out"
        )
    if not bench.clients or min(bench.clients) < 1:
        raise LabelcurveError("--clients: at least one number, of at least 1 each, is needed")
    if list(bench.clients) != sorted(set(bench.clients)):
        given = " ".join(map(str, bench.clients))
        raise LabelcurveError(f"--clients {given}: rising numbers are needed, as 1 2 4 8")
    check_asked(bench.target, bench.price_per_hour, bench.price_per_label)
    # Now, not after minutes of measuring.
    try:
        bench.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelcurveError(
            f"--out {bench.out} cannot be made ({error.strerror}): choose another folder"
        ) from error
    if not os.access(bench.out, os.W_OK | os.X_OK):
        raise LabelcurveError(f"--out {bench.out} cannot be written: choose another folder")


def _chosen(bench: Bench) -> list[Bundle]:
    names = store.names(bench.models)
    for option, given in (("only", bench.only), ("shared", bench.shared)):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise LabelcurveError(
                f"--{option} {', '.join(unknown)}: no such model; there are {', '.join(names)}"
            )
    try:
        return store.read_all(bench.models, [n for n in names if n in bench.only] or None)
    except BundleError as error:
        raise BundleError(f"{error}; --only NAME measures the others without it") from error
