"""A worker's settings and models. The models are loaded in a thread, which a worker starts before
it imports BentoML: ONNX Runtime computes while Python reads modules.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from concurrent.futures import Future
from functools import cache
from threading import Thread, Timer

from labelcurve.serving.errors import DeviceLost
from labelcurve.serving.models.catalogue import Catalogue
from labelcurve.serving.models.decoder import Decoder
from labelcurve.serving.models.device import choose_device
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry import logs
from labelcurve.serving.workers.rundir import RunDir

logger = logging.getLogger("labelcurve")


class Loading:
    """The models of a worker, and the thread that loads them."""

    def __init__(self) -> None:
        """Chooses the device and starts the thread.

        Raises:
            DeviceError: as `choose_device`.
        """
        self.settings = Settings.from_environment()
        # Before the models: a worker that replaces a dead one may refuse some of them.
        logs.configure(self.settings.log_format)
        self.run_dir = RunDir.from_environment()
        self.device = choose_device(self.settings.device)
        self.lost = False
        """Whether the GPU failed, which ends this process."""
        remember = self.run_dir.serves if self.run_dir else lambda name, version: None
        self.catalogue = Catalogue(remember, self._end)
        self._loaded: Future[None] = Future()
        Thread(target=self._load, name="loading", daemon=True).start()

    async def ended(self) -> None:
        """Waits until the models are loaded and warm.

        Raises:
            Exception: loading failed.
        """
        await asyncio.wrap_future(self._loaded)

    def _end(self, error: DeviceLost) -> None:
        """Ends this worker, whose GPU failed: the supervisor replaces it.

        SIGUSR1 makes it unready, and SIGTERM lets requests in progress finish; CUDA may hang
        then, hence the time limit.
        """
        if self.lost:
            return
        self.lost = True
        if self.run_dir:
            self.run_dir.fail(error.detail)
        else:
            logger.error("%s", error)
        clock = Timer(self.settings.drain + 1, os._exit, (1,))
        clock.daemon = True
        clock.start()
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _load(self) -> None:
        try:
            Decoder.warm()
            known_good = self.run_dir.served() if self.run_dir else None
            self.catalogue.load(self.settings, self.device, known_good)
        except Exception as error:
            self._loaded.set_exception(error)
        else:
            self._loaded.set_result(None)


@cache
def begin() -> Loading:
    """The models of this process; the first call starts loading them."""
    return Loading()
