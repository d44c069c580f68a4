from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from bundle.manifest import Epoch
from training.history import EventWriter


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


def test_an_epoch_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
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
