"""The run as MLflow keeps it, where `train --mlflow` asks for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self

from bundle.errors import LabelcurveError
from bundle.manifest import Epoch
from training.interruption import Stopped

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A server that is away costs a run seconds and not minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def connect(experiment: str) -> tuple[Any, str]:
    """MLflow's client, and the id of an experiment, which is made where there is none.

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
    """A run of MLflow; an interrupted run goes on in its own.

    Where runs are kept and who may write is said by MLflow's own variables, `MLFLOW_TRACKING_URI`
    before all. A server that goes away is reported once, and training goes on without it.

    Args:
        experiment: its name; None keeps nothing anywhere.
        name: of the run.
        params: of the run.
        run_id: of the run that was interrupted.
        say: is told when nothing more can be written.

    Raises:
        LabelcurveError: MLflow is not installed, or cannot be written to.
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
        """What an interrupted run needs to go on."""
        self._say = say
        self._client: Any = None
        if experiment is None:
            return
        self._client, place = connect(experiment)
        if self.run_id is not None:
            self._try(lambda: self._client.update_run(self.run_id, status="RUNNING"))
            return
        self.run_id = str(self._client.create_run(place, run_name=name).info.run_id)
        for key, value in params.items():
            self._try(partial(self._client.log_param, self.run_id, key, value))

    def epoch(self, row: Epoch) -> None:
        """Adds an epoch's figures."""
        self._metrics(row.model_dump(exclude={"epoch"}), row.epoch)

    def published(self, entry: Mapping[str, Any]) -> None:
        """Adds the version of the bundle and its figures on each split, from the entry of
        `publish`."""
        if self._client is None:
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
        if self._client is None:
            return
        try:
            write()
        except Exception as error:  # whatever its stores and their libraries raise
            self._client = None
            self._say(f"MLflow cannot be written ({error}): the run goes on without it")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        killed = isinstance(error, (Stopped, KeyboardInterrupt))
        status = "KILLED" if killed else "FAILED" if error else "FINISHED"
        self._try(lambda: self._client.set_terminated(self.run_id, status))
