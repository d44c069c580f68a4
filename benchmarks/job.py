"""A run of `bench`: accuracy, robustness, session latency, load, learning curve, report."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from labelcurve.benchmarks.harness import null_model, provenance, server, statistics
from labelcurve.benchmarks.harness.server import Server
from labelcurve.benchmarks.load import latency, load, saturation
from labelcurve.benchmarks.options import Bench
from labelcurve.benchmarks.quality import accuracy, gallery, learning_curve, robustness
from labelcurve.benchmarks.quality.accuracy import Predictions
from labelcurve.benchmarks.record import (
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
from labelcurve.benchmarks.report import page
from labelcurve.bundle import files, store
from labelcurve.bundle.errors import BundleError, LabelcurveError
from labelcurve.bundle.manifest import SHARED
from labelcurve.bundle.store import Bundle
from labelcurve.bundle.text import counted
from labelcurve.training.data import dataset as datasets
from labelcurve.training.data.dataset import Data, default_cache
from labelcurve.training.data.sources import Selection


def run(
    bench: Bench, say: Callable[[str], None], command: Sequence[str] | None = None
) -> tuple[Report, dict[str, Path]]:
    """Measure and write the report, which names `command`, by default that of this process.

    Returns:
        The report, and its files by kind.

    Raises:
        LabelcurveError: models, data or service cannot be used.
    """
    bench.check()
    files.check_out(bench.out)
    bench.out.mkdir(parents=True, exist_ok=True)
    bundles = _chosen(bench, say)
    service = server.running(bench.url) if bench.url and bench.load else None
    if bench.url and not bench.load:
        say("--url is not used: without the load test no service is asked")
    if service:
        server.check(service.url, bundles)
    data = datasets.load(
        Selection(bench.data, bench.layout, bench.label_column),
        size=bundles[-1].manifest.preprocessing.size,
        cache=bench.cache,
        skip_unreadable=bench.skip_unreadable,
        say=say,
    )
    accuracy.check(bundles, data)
    truth = data.test.labels

    null, images = null_model.NAME, counted(len(truth), "test image")
    say(f"Accuracy of {counted(len(bundles), 'model')} on {images}")
    predictions = accuracy.predict(bundles, data, bench.cache or default_cache(), say)
    scores = {b.name: accuracy.score(b, predictions[b.name], data) for b in bundles}
    right = {name: said.right(truth) for name, said in predictions.items()}
    warnings = accuracy.doubts(
        scores, {b.name for b in bundles if b.manifest.preprocessing.size != data.size}
    )
    first, others = one_seed(bundles), besides(bundles)

    corrupted = _robustness(first, data, min(bench.robustness_images, len(truth)), say)
    times, loads, saturations, doubts = _timings(bench, bundles, service, data, predictions, say)
    warnings += doubts
    warnings += [text for name, found in loads.items() for text in load.doubts(name, found)]
    warnings += load.unstable(loads)
    warnings += [text for found in saturations.values() for text in saturation.doubts(found)]

    models = tuple(
        describe(
            b,
            scores[b.name],
            times[b.name],
            loads.get(b.name),
            corrupted.get(b.name),
            others[b.name],
            shared=b.name in bench.shared,
        )
        for b in bundles
    )
    facts = {"name": data.name, "hash": data.hash, "class_names": data.class_names}
    result = Report(
        dataset=Dataset(**facts, n_test=len(truth)),
        models=models,
        warnings=tuple(warnings),
        notes=bench.note,
        curves=learning_curve.curves(models, right, bench.target, bench.price_per_label),
        comparisons=statistics.comparisons(models, right),
        saturation=saturations.get(leading(first).name),
        null=Null(latency=times[null], load=loads.get(null), saturation=saturations.get(null))
        if null in times
        else None,
        price_per_hour=bench.price_per_hour,
        price_per_label=bench.price_per_label,
        provenance=provenance.here(command),
    )
    shown = gallery.galleries(bundles, data, predictions) if bench.examples else ()
    return result, page.write(bench.out, result, shown)


def _robustness(
    bundles: Sequence[Bundle], data: Data, n: int, say: Callable[[str], None]
) -> dict[str, Robustness]:
    if not n:
        return {}
    images = counted(n, "test image")
    say(f"Robustness of {counted(len(bundles), 'model')} on {images}, under 15 corruptions")
    return robustness.measure(bundles, data, n, say)


def _timings(
    bench: Bench,
    bundles: Sequence[Bundle],
    service: Server | None,
    data: Data,
    predictions: dict[str, Predictions],
    say: Callable[[str], None],
) -> tuple[dict[str, Latency], dict[str, Load], dict[str, Saturation], list[str]]:
    """Measure latency, load and saturation by model name, the null model among them; and doubts
    about the load, where a model was swapped meanwhile."""
    first = one_seed(bundles)
    loads: dict[str, Load] = {}
    saturations: dict[str, Saturation] = {}
    doubts: list[str] = []
    with TemporaryDirectory(prefix="labelcurve-null-") as folder, ExitStack() as stack:
        nothing = null_model.publish(Path(folder), bundles[-1]) if bench.null else None
        say("Session latency by batch size")
        timed = [*bundles, nothing] if nothing else bundles
        times = latency.measure(
            timed, bench.latency_seconds, threads=bench.threads, device=bench.device, say=say
        )
        if bench.load:
            servers = _servers(bench, first, service, nothing, stack, say)
            chosen = {b.name: predictions[b.name] for b in first}
            loads, saturations = _loads(bench, servers, data, chosen, leading(first).name, say)
            if swapped := server.differing(servers[first[0].name].url, first):
                doubts.append(
                    f"the service swapped {', '.join(swapped)} during the load test: the figures "
                    "of its load are in part those of another version"
                )
    return times, loads, saturations, doubts


def describe(
    bundle: Bundle,
    accuracy: Accuracy,
    latency: Latency,
    load: Load | None = None,
    robustness: Robustness | None = None,
    besides: str = "",
    shared: bool = False,
) -> Model:
    """Collect what is known of a bundle and what was measured."""
    manifest, ran = bundle.manifest, store.read_run(bundle.path)
    same = (
        *("fraction", "n_labels_train", "n_labels_val", "n_unlabelled", "seed", "preset"),
        *("backbone", "n_parameters", "epochs", "best_epoch", "device"),
    )
    return Model(
        **{name: getattr(manifest, name) for name in same},
        name=bundle.name,
        version=bundle.version,
        dataset=manifest.dataset.name,
        besides=besides,
        size=manifest.preprocessing.size,
        graph_bytes=len(bundle.graph),
        extractor=manifest.extractor.objective if manifest.extractor else None,
        pretraining_seconds=ran.pretraining_seconds,
        train_seconds=ran.seconds.get("train", 0.0),
        shared=shared or (ran.waited or 0.0) > SHARED,
        trained_on=ran.hardware,
        history=ran.history,
        accuracy=accuracy,
        latency=latency,
        load=load,
        robustness=robustness,
    )


def one_seed(bundles: Sequence[Bundle]) -> list[Bundle]:
    """Keep the lowest seed of bundles that differ only in the seed, in the same order.

    Seeds cost the same to serve: their graphs differ only in the weights.
    """
    lowest: dict[object, Bundle] = {}
    names = besides(bundles)
    for bundle in sorted(bundles, key=lambda b: b.manifest.seed):
        key = (_preset(bundle), bundle.manifest.n_labels_train, names[bundle.name])
        lowest.setdefault(key, bundle)
    kept = {bundle.name for bundle in lowest.values()}
    return [bundle for bundle in bundles if bundle.name in kept]


def leading(bundles: Sequence[Bundle]) -> Bundle:
    """Choose the bundle with the most labels, preferring the default preset and an extractor."""

    def place(bundle: Bundle) -> tuple[bool, int, bool]:
        manifest = bundle.manifest
        return manifest.preset == "default", manifest.n_labels, manifest.extractor is not None

    return max(bundles, key=place)


def besides(bundles: Sequence[Bundle]) -> dict[str, str]:
    """Tell models of one preset apart: by network, mirroring and image size where there are
    several, and by name where a seed occurs twice."""
    aspects: tuple[Callable[[Bundle], str], ...] = (
        lambda b: b.manifest.backbone,
        lambda b: "mirrored" if b.manifest.recipe.get("mirrored") else "",
        lambda b: f"{b.manifest.preprocessing.size} px",
    )
    found: dict[str, str] = {}
    for bundle in bundles:
        alike = [b for b in bundles if _preset(b) == _preset(bundle)]
        words = []
        for aspect in aspects:
            if len({aspect(b) for b in alike}) > 1:
                words.append(aspect(bundle))
                alike = [b for b in alike if aspect(b) == aspect(bundle)]
        if len({(b.manifest.n_labels_train, b.manifest.seed) for b in alike}) < len(alike):
            words.append(re.sub(r"(-[0-9.]+(e-[0-9]+)?)?(-s[0-9]+)?$", "", bundle.name))
        found[bundle.name] = " ".join(filter(None, words))
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
    """Find or start the service of each model; the stack stops it."""
    if service is None:
        log, models = bench.out / "serve.log", bench.models
        if bench.only:  # another one may be damaged
            models = Path(stack.enter_context(TemporaryDirectory(prefix="labelcurve-only-")))
            for name in dict.fromkeys(bench.only):
                (models / name).symlink_to((bench.models / name).resolve())
        service = stack.enter_context(server.started(models, log, say))
        server.check(service.url, bundles)
    servers = {bundle.name: service for bundle in bundles}
    # With a remote service, the null model would measure this machine, not the one under test.
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
    """Load every model, and `most` up to saturation."""
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
            names = [name for name in (most, null_model.NAME) if name in servers]
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


def _chosen(bench: Bench, say: Callable[[str], None]) -> list[Bundle]:
    """The bundles to measure: a final model was trained on the test images, and is left out."""
    names = store.names(bench.models)
    for option, given in (("only", bench.only), ("shared", bench.shared)):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise LabelcurveError(
                f"--{option} {', '.join(unknown)}: no such model; there are {', '.join(names)}"
            )
    try:
        found = store.read_all(bench.models, [n for n in names if n in bench.only] or None)
    except BundleError as error:
        raise BundleError(f"{error}; --only NAME measures the others without it") from error
    for bundle in found:
        if before := bundle.manifest.measured:
            say(
                f"{bundle.name}: left out, since it was also trained on the test images; its "
                f"figures are those of {before.name}"
            )
    kept = [bundle for bundle in found if bundle.manifest.measured is None]
    if not kept:
        raise LabelcurveError(
            f"--models {bench.models}: no model is left to measure. Name those that were measured: "
            + ", ".join(f"--only {b.manifest.measured.name}" for b in found if b.manifest.measured)
        )
    return kept
