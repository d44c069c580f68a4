"""A worker of `serve` whose model does nothing but sleep.

What clients and connections do to the service shows without the model competing for the cores.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import null
from bundle import store

_WORKER = """
import sys, time
import serving.engine
from serving.engine import Engine

SECONDS, BATCH = float(sys.argv.pop(1)), int(sys.argv.pop(1))
serving.engine.BATCH_SIZES = {"cpu": tuple(range(1, BATCH + 1))}
compute = Engine.run

def run(self, images):
    time.sleep(SECONDS)
    return compute(self, images)

Engine.run = run
from serving.worker import main
main()
"""


@contextmanager
def started(models: Path, folder: Path, seconds: float, batch: int) -> Iterator[tuple[int, int]]:
    """The port and the process of a worker; it is ended at the end.

    Args:
        models: folder of bundles; the null model resembles the last of them.
        folder: an empty one for its files; its output goes to `log` there.
        seconds: that each inference sleeps.
        batch: the largest one.
    """
    root = folder / "models"
    root.mkdir()
    null.publish(root, store.read_all(models)[-1])
    settings: dict[str, Any] = {"models": str(root), "api_keys": None, "cors": []}
    (folder / "metrics").mkdir()
    environment = {
        "LABELCURVE_SERVE": json.dumps(settings),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "BENTOML_HOME": str(folder),
    }
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        os.set_inheritable(listener.fileno(), True)
        arguments = [sys.executable, "-c", _WORKER, str(seconds), str(batch)]
        arguments += ["serving.service:Classifier", "--fd", str(listener.fileno())]
        arguments += ["--worker-id", "1"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                arguments,
                stdout=log,
                stderr=log,
                close_fds=False,
                start_new_session=True,
                env=os.environ | environment,
            )
            try:
                yield listener.getsockname()[1], process.pid
            finally:
                process.terminate()
                process.wait(30)
