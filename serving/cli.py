"""`serve`: checks what can be checked, says what will be served, and serves it."""

from __future__ import annotations

import sys
import time

import tyro

from bundle import store
from bundle.errors import LabelcurveError
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
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # before the supervisor took the signals
        sys.exit(130)


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Raises:
        LabelcurveError: it cannot; nothing is left running.
    """
    start = time.perf_counter()
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
    print(f"device   {device.kind} ({device.reason})")
    print(f"workers  {settings.workers}, {settings.threads_of_worker()} threads each")
    default = pick(bundles, None)
    for index, bundle in enumerate(bundles):
        manifest = bundle.manifest
        print(
            f"model    {bundle.name}@{bundle.version}: {len(manifest.class_names)} classes, "
            f"{manifest.n_labels_train} labels, {manifest.preprocessing.size} px"
            f"{' (default)' if index == default else ''}"
        )
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    print(f"listen   {url}", flush=True)
    supervise(
        settings,
        on_ready=lambda: print(
            f"ready    after {time.perf_counter() - start:.1f} s; POST an image to {url}/classify",
            flush=True,
        ),
    )
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
