"""`serve`: checks what can be checked, says what will be served, and serves it."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import replace
from functools import partial
from math import inf

import tyro

from bundle import files, store
from bundle.errors import LabelcurveError
from bundle.machine import show_version
from serving import logs
from serving.device import choose_device
from serving.precision import choose
from serving.selection import pick
from serving.settings import Settings
from serving.supervisor import address, supervise

LEAST = {
    "queue": 1,
    "max_wait": 0.01,
    "timeout": 0.1,
    "body_timeout": 0.1,
    "head_timeout": 0.1,
    "keep_alive": 1,
    "connections": 1,
    "watch": 0,
    "keep": 0,
    "lame_duck": 0,
    "drain": 0,
}
"""The smallest value of each setting that is a number."""


def main() -> None:
    """The entry point of `serve`."""
    show_version()
    settings = tyro.cli(Settings, prog="serve", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        serve(settings)
    except LabelcurveError as error:
        if settings.log_format == "text":
            sys.exit(f"error: {error}")
        logs.event("json", "error", "", level="error", message=str(error))
        sys.exit(1)
    except KeyboardInterrupt:  # before the supervisor took the signals
        sys.exit(130)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        LabelcurveError: it cannot; nothing is left running.
    """
    start = time.perf_counter()
    logs.configure(settings.log_format)
    say = partial(logs.event, settings.log_format)
    if settings.workers < 1 or (settings.threads is not None and settings.threads < 1):
        raise LabelcurveError("--workers and --threads: at least 1")
    if not 0 < settings.port < 2**16:
        raise LabelcurveError(f"--port {settings.port}: between 1 and 65535")
    for name, least in LEAST.items():
        if not least <= (value := getattr(settings, name)) < inf:
            flag = name.replace("_", "-")
            raise LabelcurveError(f"--{flag} {value:g}: a number of at least {least:g}")
    for origin in settings.cors:
        if origin != "*" and not re.fullmatch(r"https?://[^/?#\s]+", origin):
            raise LabelcurveError(
                f"--cors {origin}: https://HOST or https://HOST:PORT without a path, or * for all"
            )
    if settings.otlp_endpoint and not re.match(r"https?://[^/?#\s]+", settings.otlp_endpoint):
        raise LabelcurveError(
            f"--otlp-endpoint {settings.otlp_endpoint}: a URL, as http://localhost:4318"
        )
    if settings.metrics_port is not None:
        if not 0 < settings.metrics_port < 2**16 or settings.metrics_port == settings.port:
            raise LabelcurveError(
                f"--metrics-port {settings.metrics_port}: between 1 and 65535, and not --port"
            )
        address(settings, "metrics-port")
    if settings.api_keys:
        from serving.access import read_keys  # which brings Starlette along

        read_keys(settings.api_keys)
    files.check_temporary()
    bundles = store.read_all(settings.models)
    device = choose_device(settings.device)
    chosen = [choose(bundle, device, settings.precision) for bundle in bundles]
    if settings.self_test:
        from serving import selftest  # ONNX Runtime is loaded by the workers alone otherwise

        bundles = [replace(b, graph=graph) for b, (_, graph) in zip(bundles, chosen, strict=True)]
        selftest.run(bundles, device, settings.threads_of_worker())
        return
    host, _ = address(settings)
    kind, reason = device.kind, device.reason
    threads = settings.threads_of_worker()
    say("device", f"device   {kind} ({reason})", kind=kind, reason=reason)
    say(
        "workers",
        f"workers  {settings.workers}, {threads} threads each",
        workers=settings.workers,
        threads=threads,
    )
    default = pick(bundles, None)
    for index, bundle in enumerate(bundles):
        manifest = bundle.manifest
        say(
            "model",
            f"model    {bundle.name}@{bundle.version}: {len(manifest.class_names)} classes, "
            f"{manifest.n_labels_train} labels, {manifest.preprocessing.size} px, "
            f"{chosen[index][0]}"
            f"{' (default)' if index == default else ''}",
            model=bundle.name,
            version=bundle.version,
            classes=len(manifest.class_names),
            labels=manifest.n_labels_train,
            size=manifest.preprocessing.size,
            precision=chosen[index][0],
            default=index == default,
        )
    for name, found in store.scan(settings.models).items():
        if found.current is None:
            text = f"skipped  {name}: it has versions and no link `{store.CURRENT}`"
            say("skipped", text, model=name)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    say("listen", f"listen   {url}", url=url)

    def ready() -> None:
        seconds = time.perf_counter() - start
        text = f"ready    after {seconds:.1f} s; POST an image to {url}/classify"
        say("ready", text, seconds=round(seconds, 3), url=url)

    supervise(settings, on_ready=ready)
    say("stopped", "stopped")


if __name__ == "__main__":
    main()
