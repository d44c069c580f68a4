from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import Epoch
from labelcurve.training.jobs import train
from labelcurve.training.options import Options
from labelcurve.training.runtime import experiment as tracking
from labelcurve.training.runtime.checkpoint import Checkpoint
from labelcurve.training.runtime.experiment import EventWriter, Tracking
from labelcurve.training.runtime.interruption import Stopped
from tests.training.jobs.test_train import options

ROW = Epoch(
    epoch=1,
    train_loss=2.0,
    train_accuracy=0.3,
    val_loss=1.5,
    val_accuracy=0.5,
    val_f1=0.4,
    val_precision=0.4,
    val_recall=0.5,
    lr=0.02,
    images_per_s=100.0,
    seconds=3.0,
)
PLAIN = {"no_unlabelled": True}
ENTRY = {"version": "0123456789ab", "val": {"n": 10, "accuracy": 0.5}, "test": None}


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own store of files, which needs no server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for variable in tracking.DEFAULTS:
        monkeypatch.setenv(variable, os.environ.get(variable, tracking.DEFAULTS[variable]))


def kept(run_id: str | None) -> Any:
    assert run_id
    return MlflowClient().get_run(run_id)


def interrupted(plan: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first epoch of a run, and its checkpoint."""
    real = Checkpoint.save

    def save(self: Checkpoint, *arguments: Any, **keywords: Any) -> None:
        real(self, *arguments, **keywords)
        raise Stopped(143)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        with pytest.raises(Stopped):
            train.run(plan)


def test_parameters_epochs_figures_and_version_are_kept() -> None:
    with Tracking("labels", "digits-10", {"fraction": 0.1, "seed": 3}) as run:
        run.epoch(ROW)
        run.published(ENTRY)
    found = kept(run.run_id)
    assert found.info.run_name == "digits-10"
    assert found.info.status == "FINISHED"
    assert found.data.params == {"fraction": "0.1", "seed": "3"}
    assert found.data.metrics["val_accuracy"] == 0.5
    assert found.data.metrics["images_per_s"] == 100.0
    assert "val_n" not in found.data.metrics
    assert found.data.tags["version"] == "0123456789ab"


def test_runs_of_one_experiment_lie_together() -> None:
    for name in ("a", "b"):
        with Tracking("labels", name, {}):
            pass
    client = MlflowClient()
    experiment = client.get_experiment_by_name("labels")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_an_interrupted_run_continues_its_own() -> None:
    first = Tracking("labels", "a", {"seed": 0})
    first.epoch(ROW)
    with pytest.raises(Stopped), first:
        raise Stopped(143)
    assert kept(first.run_id).info.status == "KILLED"
    with Tracking("labels", "a", {"seed": 0}, first.run_id) as again:
        assert kept(first.run_id).info.status == "RUNNING"
        again.epoch(ROW.model_copy(update={"epoch": 2}))
    assert again.run_id == first.run_id
    history = MlflowClient().get_metric_history(str(first.run_id), "val_loss")
    assert [row.step for row in history] == [1, 2]
    assert kept(first.run_id).info.status == "FINISHED"


def test_an_error_ends_it_as_failed() -> None:
    run = Tracking("labels", "a", {})
    with pytest.raises(LabelcurveError), run:
        raise LabelcurveError("no")
    assert kept(run.run_id).info.status == "FAILED"


def test_without_an_experiment_nothing_is_kept(tmp_path: Path) -> None:
    with Tracking(None, "a", {}) as run:
        run.epoch(ROW)
        run.published(ENTRY)
    assert run.run_id is None
    assert not (tmp_path / "mlruns").exists()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not there."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.usefixtures("nowhere")
def test_a_server_that_is_not_there_is_an_error_before_the_training(
    tmp_path: Path, cache: Path
) -> None:
    plan = options(tmp_path / "models", cache, mlflow="labels", **PLAIN)
    with pytest.raises(LabelcurveError, match=r"--mlflow labels: .*MLFLOW_TRACKING_URI"):
        train.run(plan)
    assert not list(tmp_path.glob("models/digits*"))


@pytest.mark.usefixtures("nowhere")
def test_one_that_went_away_between_two_models_is_reported_and_training_continues() -> None:
    said: list[str] = []
    with Tracking("labels", "the-second", {"seed": 0}, say=said.append) as run:
        run.epoch(ROW)
        run.published(ENTRY)
    (message,) = said
    assert message.startswith("MLflow cannot be written (--mlflow labels: ")
    assert message.endswith("the run continues without it")


def test_a_store_that_fails_is_reported_once_and_training_continues(tmp_path: Path) -> None:
    said: list[str] = []
    with Tracking("labels", "a", {}, say=said.append) as run:
        (tmp_path / "mlruns").rename(tmp_path / "gone")
        run.epoch(ROW)
        run.epoch(ROW)
    (message,) = said
    assert message.startswith("MLflow cannot be written")
    assert message.endswith("the run continues without it")


def test_train_keeps_a_run_of_each_model_through_an_interruption(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # files that MLflow leaves in the working directory
    plan = options(
        tmp_path / "models", cache, epochs=2, checkpoint_seconds=0.0, mlflow="labels", **PLAIN
    )
    interrupted(plan, monkeypatch)
    document = train.run(plan)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("labels")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "digits-scratch-20"
    assert found.info.status == "FINISHED"
    assert found.data.tags["version"] == document["bundles"][0]["version"]
    assert found.data.metrics["test_accuracy"] == document["bundles"][0]["test"]["accuracy"]
    assert found.data.params["optimizer"] == "muon"
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert [row.step for row in history] == [1, 2]


def epoch(number: int) -> Epoch:
    return Epoch(
        epoch=number,
        train_loss=1 / number,
        train_accuracy=0.5,
        val_loss=2 / number,
        val_accuracy=0.25 * number,
        val_f1=0.4,
        val_precision=0.3,
        val_recall=0.2,
        lr=0.1,
        images_per_s=1000.0,
        seconds=1.5,
    )


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_reads_a_scalar_for_each_figure_and_epoch(tmp_path: Path) -> None:
    with EventWriter(tmp_path / "run") as writer:
        for number in (1, 2, 3):
            writer.write(epoch(number))
    found = events(tmp_path / "run")
    assert set(found.Tags()["scalars"]) == set(Epoch.model_fields) - {"epoch"}
    accuracy = found.Scalars("val_accuracy")
    assert [(event.step, event.value) for event in accuracy] == [(1, 0.25), (2, 0.5), (3, 0.75)]


def test_epochs_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        for number in (1, 2, 3):
            writer.write(epoch(number))
    with EventWriter(tmp_path, after=2) as writer:
        writer.write(epoch(3).model_copy(update={"val_accuracy": 0.0}))
    accuracy = events(tmp_path).Scalars("val_accuracy")
    assert [(event.step, event.value) for event in accuracy] == [(1, 0.25), (2, 0.5), (3, 0.0)]


def test_an_epoch_can_be_read_during_the_run(tmp_path: Path) -> None:
    with EventWriter(tmp_path) as writer:
        writer.write(epoch(1))
        assert len(events(tmp_path).Scalars("train_loss")) == 1


def fail_midway(folder: Path) -> None:
    with EventWriter(folder) as writer:
        writer.write(epoch(1))
        raise RuntimeError("midway")


def test_the_file_is_closed_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="midway"):
        fail_midway(tmp_path)
    assert events(tmp_path).Scalars("lr")[0].value == pytest.approx(0.1)
