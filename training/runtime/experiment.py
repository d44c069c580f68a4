"""Logs a training run: to TensorBoard always, to MLflow with `train --mlflow`."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import Epoch
from labelcurve.training.runtime.interruption import Stopped

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # An unreachable server costs a run seconds, not minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def connect(experiment: str) -> tuple[Any, str]:
    """MLflow's client, and the id of an experiment, which is created if need be.

    Raises:
        LabelcurveError: MLflow is not installed, or cannot be written to.
    """
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise LabelcurveError(
            f"--mlflow: {error}. It is the extra `mlflow`: pip install '.[train,mlflow]' in a "
            "clone, or leave --mlflow out"
        ) from error
    try:
        client = MlflowClient()
        found = client.get_experiment_by_name(experiment)
        return client, str(found.experiment_id if found else client.create_experiment(experiment))
    except Exception as error:  # whatever its stores and their libraries raise
        raise LabelcurveError(
            f"--mlflow {experiment}: nothing can be written there. Set MLFLOW_TRACKING_URI to a "
            "server, as http://localhost:5000 (`mlflow server` of the whole MLflow is one; its "
            f"client, which the extra brings, keeps no runs itself), or leave --mlflow out. {error}"
        ) from error


class Tracking:
    """A run of MLflow; a resumed training continues its own.

    MLflow's own variables, `MLFLOW_TRACKING_URI` above all, say where runs are kept and who may
    write. `train` checks with `connect` that it can, before it begins; a server that is unreachable
    later is reported, and the run continues without it.

    Args:
        experiment: its name; None keeps nothing anywhere.
        run_id: of the run that was interrupted.
        say: receives a message when nothing more can be written.
    """

    def __init__(
        self,
        experiment: str | None,
        name: str,
        params: Mapping[str, Any],
        run_id: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.run_id = run_id
        """Identifies the run, also after an interruption."""
        self._say = say
        self._client: Any = None
        self._on = experiment is not None
        self._try(lambda: self._begin(str(experiment), name, params))

    def _begin(self, experiment: str, name: str, params: Mapping[str, Any]) -> None:
        self._client, place = connect(experiment)
        if self.run_id is not None:
            self._client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = str(self._client.create_run(place, run_name=name).info.run_id)
        for key, value in params.items():
            self._client.log_param(self.run_id, key, value)

    def epoch(self, row: Epoch) -> None:
        """Adds an epoch's figures."""
        self._metrics(row.model_dump(exclude={"epoch"}), row.epoch)

    def published(self, entry: Mapping[str, Any]) -> None:
        """Adds the version of the bundle and its figures on each split, from the entry of
        `publish`."""
        if not self._on:
            return
        for split in ("val", "test"):
            figures = {k: v for k, v in (entry[split] or {}).items() if k != "n"}
            self._metrics({f"{split}_{key}": value for key, value in figures.items()}, 0)
        self._try(lambda: self._client.set_tag(self.run_id, "version", entry["version"]))

    def _metrics(self, figures: Mapping[str, float | None], step: int) -> None:
        def write() -> None:
            from mlflow.entities import Metric

            now = time.time_ns() // 1_000_000
            rows = [
                Metric(key, float(value), now, step)
                for key, value in figures.items()
                if value is not None
            ]
            self._client.log_batch(self.run_id, metrics=rows)

        self._try(write)

    def _try(self, write: Callable[[], object]) -> None:
        if not self._on:
            return
        try:
            write()
        except Exception as error:  # whatever its stores and their libraries raise
            self._on = False
            self._say(f"MLflow cannot be written ({error}): the run continues without it")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        killed = isinstance(error, (Stopped, KeyboardInterrupt))
        status = "KILLED" if killed else "FAILED" if error else "FINISHED"
        self._try(lambda: self._client.set_terminated(self.run_id, status))


class EventWriter:
    """Writes each epoch as TensorBoard events; readers of bundles ignore the dot folder.

    Args:
        after: epochs that were written before an interruption; events of later ones are discarded.
        say: receives a message when nothing more can be written; the run continues without.
    """

    def __init__(self, folder: Path, after: int = 0, say: Callable[[str], None] = print) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes half a second

        self._folder, self._say = folder, say
        self._writer: SummaryWriter | None = None
        try:
            self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)
        except (OSError, UnicodeEncodeError) as error:  # the latter: a folder that is not UTF-8
            self._give_up(error)

    def write(self, epoch: Epoch) -> None:
        """Adds one epoch's scalars."""
        if self._writer is None:
            return
        try:
            for name, value in epoch.model_dump(exclude={"epoch"}, exclude_none=True).items():
                self._writer.add_scalar(name, value, epoch.epoch)
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError | UnicodeEncodeError) -> None:
        self._writer = None
        self._say(
            f"the TensorBoard events in {self._folder} cannot be written "
            f"({getattr(error, 'strerror', None) or error}): the run continues without them"
        )

    def __enter__(self) -> Self:
        # TensorBoard writes from a thread: what goes wrong there is raised here at the next call,
        # and need not be printed as a traceback besides.
        before = self._hook = threading.excepthook

        def hook(failed: threading.ExceptHookArgs) -> None:
            if not isinstance(failed.exc_value, OSError):
                before(failed)

        threading.excepthook = hook
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            try:
                self._writer.close()
            except OSError as problem:
                self._give_up(problem)
        threading.excepthook = self._hook
