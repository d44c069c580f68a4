"""`serve`: validates settings and models, logs what will be served, and serves it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import tyro

from labelcurve.bundle import files, store
from labelcurve.bundle.errors import BundleError, LabelcurveError, near
from labelcurve.bundle.store import Bundle
from labelcurve.serving.models.device import Device, choose_device
from labelcurve.serving.models.precision import choose
from labelcurve.serving.models.selection import default
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry import logs, output
from labelcurve.serving.workers import limits
from labelcurve.serving.workers.supervisor import address, supervise

Say = Callable[..., None]
"""Logs an event: its kind, a line for people, and fields."""


def main(arguments: Sequence[str]) -> None:
    """The entry point of `serve`."""
    # Without the second, only B of `--model A --model B` would remain.
    off = (tyro.conf.FlagCreatePairsOff, tyro.conf.UseAppendAction)
    settings = tyro.cli(Settings, prog="labelcurve serve", args=arguments, config=off)
    try:
        serve(settings)
    except LabelcurveError as error:
        if settings.log_format == "text":
            raise
        logs.event("json", "error", "", level="error", message=str(error))
        sys.exit(1)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        LabelcurveError: it cannot be started; nothing is left running.
    """
    start = time.perf_counter()
    logs.configure(settings.log_format)
    say: Say = partial(logs.event, settings.log_format)
    settings.check()
    if settings.metrics_port is not None:
        address(settings, "metrics-port")
    if settings.api_keys:
        from labelcurve.serving.web.access import read_keys  # imports Starlette

        read_keys(settings.api_keys)
    files.check_temporary()
    connections = limits.connections(settings.connections)
    bundles = _bundles(settings)
    device = choose_device(settings.device)
    chosen = [choose(bundle, device, settings.precision) for bundle in bundles]
    if settings.self_test:
        from labelcurve.serving import (
            selftest,  # otherwise only the workers load ONNX Runtime
        )

        selftest.run(bundles, device, settings.threads_of_worker(), settings.precision)
        return
    if settings.keep_doubtful:
        from labelcurve.serving import doubtful  # imports Pillow

        doubtful.prepare(settings.keep_doubtful, settings.models)
    host, _ = address(settings)
    output.install()  # a full disk or a stalled reader of the log stops no service
    _say_process(settings, device, connections, say)
    _say_models(settings, bundles, [precision for precision, _ in chosen], say)
    if folder := settings.keep_doubtful:
        most = f"at most {settings.doubtful_images:,} images and {settings.doubtful_mb:,} MB"
        text = f"doubtful kept in {folder}: {most}, as they were sent"
        say("doubtful", text, folder=str(folder))
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    say("listen", f"listen   {url}", url=url)

    def ready() -> None:
        seconds = time.perf_counter() - start
        text = f"ready    after {seconds:.1f} s; POST an image to {url}/classify"
        say("ready", text, seconds=round(seconds, 3), url=url)

    supervise(settings, on_ready=ready)
    say("stopped", "stopped")


def _say_process(settings: Settings, device: Device, connections: int, say: Say) -> None:
    """Logs device, workers, and a limit of connections below the one that was set."""
    kind, reason = device.kind, device.reason
    say("device", f"device   {kind} ({reason})", kind=kind, reason=reason)
    threads = settings.threads_of_worker()
    text = f"workers  {settings.workers}, {threads} threads each"
    say("workers", text, workers=settings.workers, threads=threads)
    if connections < settings.connections:
        say(
            "connections",
            f"limit    {connections} connections for each worker, for --connections "
            f"{settings.connections}: the limit of open files (ulimit -Hn) allows no more",
            connections=connections,
            wanted=settings.connections,
        )


def _say_models(
    settings: Settings, bundles: Sequence[Bundle], precisions: Sequence[str], say: Say
) -> None:
    """Logs the models that are served and those that are skipped."""
    name, why = default(settings.models, bundles, settings.model)
    for bundle, precision in zip(bundles, precisions, strict=True):
        manifest = bundle.manifest
        say(
            "model",
            f"model    {bundle.name}@{bundle.version}: {len(manifest.class_names)} classes, "
            f"{manifest.n_labels} labels, {manifest.preprocessing.size} px, {precision}"
            f"{' (default)' if bundle.name == name else ''}",
            model=bundle.name,
            version=bundle.version,
            classes=len(manifest.class_names),
            labels=manifest.n_labels,
            size=manifest.preprocessing.size,
            precision=precision,
            default=bundle.name == name,
        )
        if settings.accept is not None:
            _accepting(bundle, precision, settings.accept, say)
    say("default", f"default  {name}: {why}", model=name, reason=why)
    for name, found in store.scan(settings.models).items():
        if found.current is None and (not settings.model or name in settings.model):
            why = found.error or f"it has versions and no link `{store.CURRENT}`"
            say("skipped", f"skipped  {name}: {why}", model=name, reason=why)


def _bundles(settings: Settings) -> list[Bundle]:
    """The current bundles of the folder, or of the models that `--model` lists.

    Raises:
        BundleError: there is none, one is damaged, or `--model` names one that is not there.
    """
    names = store.names(settings.models)
    for name in settings.model:
        if name not in names:
            what = "takes the name without a version" if "@" in name else "no such model"
            raise BundleError(
                f"--model {name}: {what}; {settings.models} has {', '.join(names)}"
                f"{near(name.partition('@')[0], names)}"
            )
    return store.read_all(settings.models, settings.model or names)


def _accepting(bundle: Bundle, precision: str, accept: float, say: Say) -> None:
    """Logs which share of its answers a model accepts, or why none."""
    from labelcurve.bundle.acceptance import NotEnough
    from labelcurve.serving.models.verdict import Wish, rule  # import numpy

    try:
        found = rule(bundle.manifest, precision, Wish(accept=accept)).accept
    except NotEnough as error:
        say("accept", f"accept   {bundle.name}: nothing; {error}", model=bundle.name, share=0.0)
    else:
        assert found is not None
        share = found.coverage
        text = f"accept   {bundle.name}: {share:.0%} of the answers, a person looks at the rest"
        say("accept", text, model=bundle.name, share=round(share, 4))
