"""A worker of `serve` whose inference only sleeps.

It shows what clients and connections cost the service while the model uses no core. Run
as a module it is that worker: it imports and patches the service in a separate process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labelcurve.benchmarks.harness import null_model
from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.settings import VARIABLE, Settings


@contextmanager
def started(
    models: Path, folder: Path, seconds: float, batch: int, module: str = __name__
) -> Iterator[tuple[int, int]]:
    """Start a worker, yield its port and process id, and end it.

    Args:
        models: folder of bundles; the null model that is served resembles the last of them.
        folder: an empty folder for its files; its output goes to `log` there.
        seconds: duration of each inference.
        batch: largest batch size.
        module: what runs as the worker.

    Raises:
        LabelcurveError: raised where this is used; the end of the worker's output is added.
    """
    root = folder / "models"
    root.mkdir()
    null_model.publish(root, store.read_all(models)[-1])
    (folder / "metrics").mkdir()
    environment = {
        VARIABLE: Settings(models=root).dumps(),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "BENTOML_HOME": str(folder),
    }
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        os.set_inheritable(listener.fileno(), True)
        arguments = [sys.executable, "-P", "-m", module, str(seconds), str(batch)]
        arguments += map(str, (listener.fileno(), 1, 2048, 75, 7))
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
            except LabelcurveError as error:
                said = (folder / "log").read_text(errors="replace")[-2000:]
                raise LabelcurveError(f"{error}; the worker's output: {said}") from error
            finally:
                process.terminate()
                process.wait(30)


def _work(seconds: float, batch: int) -> None:
    """Run as a worker of the service, whose arguments are left in `sys.argv`."""
    from labelcurve.serving.models import engine
    from labelcurve.serving.workers import worker

    patched: Any = engine
    compute = engine.Engine.run

    def run(self: engine.Engine, images: Any) -> Any:
        time.sleep(seconds)
        return compute(self, images)

    patched.BATCH_SIZES = {"cpu": tuple(range(1, batch + 1))}
    patched.Engine.run = run
    worker.main()


if __name__ == "__main__":
    _work(float(sys.argv.pop(1)), int(sys.argv.pop(1)))
