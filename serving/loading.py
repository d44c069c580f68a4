"""A worker's settings and models. The models are loaded in a thread, which a worker starts before
it imports BentoML: ONNX Runtime computes while Python reads modules.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from threading import Thread

from serving.catalogue import Catalogue
from serving.decoder import Decoder
from serving.device import choose_device
from serving.rundir import RunDir
from serving.settings import Settings

settings = Settings.from_environment()
run_dir = RunDir.from_environment()
if run_dir:
    run_dir.follow_supervisor()
device = choose_device(settings.device)
catalogue = Catalogue(run_dir.serves) if run_dir else Catalogue()
_loaded: Future[None] | None = None


def begin() -> None:
    """Starts to load the models, once."""
    global _loaded
    if _loaded is None:
        _loaded = Future()
        Thread(target=_load, args=(_loaded,), name="loading", daemon=True).start()


async def ended() -> None:
    """Waits until the models are loaded and warm.

    Raises:
        Exception: they cannot be.
    """
    begin()
    assert _loaded is not None
    await asyncio.wrap_future(_loaded)


def _load(loaded: Future[None]) -> None:
    try:
        Decoder.warm()
        catalogue.load(settings, device, run_dir.served() if run_dir else None)
    except Exception as error:
        loaded.set_exception(error)
    else:
        loaded.set_result(None)
