"""`serve`: checks what can be checked, says what will be served, and serves it."""

from __future__ import annotations

import sys
import time
from functools import partial

import tyro

from bundle import store
from bundle.errors import LabelcurveError
from serving import logs
from serving.device import choose_device
from serving.selection import pick
from serving.settings import Settings
from serving.supervisor import address, supervise


def main() -> None:
    """The entry point of `serve`."""
    settings = tyro.cli(Settings, prog="serve")
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
    bundles = store.read_all(settings.models)
    device = choose_device(settings.device)
    if settings.self_test:
        from serving import selftest  # ONNX Runtime is loaded by the workers alone otherwise

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
            f"{manifest.n_labels_train} labels, {manifest.preprocessing.size} px"
            f"{' (default)' if index == default else ''}",
            model=bundle.name,
            version=bundle.version,
            classes=len(manifest.class_names),
            labels=manifest.n_labels_train,
            size=manifest.preprocessing.size,
            default=index == default,
        )
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
