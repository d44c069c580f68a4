"""One model of a command, without training it."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from labelcurve.bundle.manifest import Choice
from labelcurve.training.data.dataset import Data
from labelcurve.training.options import Options
from labelcurve.training.runs import grid, model_run
from labelcurve.training.runs.model_run import ModelRun
from labelcurve.training.runs.publication import Command
from labelcurve.training.runtime.device import FP32_CPU


def made(digits: Data, out: Path, began: float = 0.0, **more: Any) -> ModelRun:
    given = Options(**{"data": "digits", "fraction": (0.2,), "extractor": "none", **more}, out=out)
    (cell,) = grid.cells(given, digits, lambda _: None)
    command = Command(given, digits, None, FP32_CPU, "abc", test=True, finetune=True)
    return ModelRun(command, cell, began)


def test_a_checkpoint_is_of_all_that_a_model_depends_on(digits: Data, tmp_path: Path) -> None:
    run = made(digits, tmp_path, seed=3, max_minutes=2.0, precision="fp32")
    plan = asdict(run.cell.recipe)
    assert model_run._key(replace(run.command, test=False), run.cell, 5) == {
        "the hash of --data": digits.hash,
        "--fraction": 0.2,
        "the hash of the labelled rows": run.cell.subset.hash,
        "images without labels:": 5,
        "the hash of the training images": digits.pixels_hash,
        "--image-size": 8,
        "--seed": 3,
        "--preset": "default",
        "--precision": "fp32",
        "--extractor": None,
        "--max-minutes": 2.0,
        "--no-test": True,
        "--epochs": grid.ENDLESS,
        **{f"the recipe's {name}": value for name, value in plan.items() if name != "epochs"},
    }


def test_the_first_weights_are_those_of_the_seed(digits: Data, tmp_path: Path) -> None:
    runs = [made(digits, tmp_path, seed=seed) for seed in (0, 0, 1)]
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
    weights = [run.network().classifier.weight.detach() for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_a_checkpoint_says_is_taken_up_again(
    digits: Data, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("labelcurve.training.runs.model_run.time.monotonic", lambda: 1_000.0)
    first = made(digits, tmp_path, began=900.0)
    assert first.restore() == 0.0
    first.started, first.epochs, first.mlflow_run = "2001-02-03T04:05:06+00:00", 4, "its run"
    first.keep_precision(Choice(value="bf16", reason="of then"))
    first.checkpoint.write({})
    again = made(digits, tmp_path, began=990.0)
    assert again.restore() == 100.0, "seconds that the command had taken"
    assert (again.started, again.epochs, again.mlflow_run) == (first.started, 4, "its run")
    assert again.interruptions == 1
    assert again.device.precision == Choice(value="bf16", reason="of then")
    again.checkpoint.write({})
    third = made(digits, tmp_path)
    third.restore()
    assert third.interruptions == 2


def test_starting_over_forgets_all_but_the_events(digits: Data, tmp_path: Path) -> None:
    run = made(digits, tmp_path)
    for name in (
        "checkpoint.pt",
        ".checkpoint.pt-a.part",
        "finished.json",
        "events/a",
        "answers-b/c",
    ):
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).write_text("")
    model_run.forget(tmp_path, run.cell)
    assert [path.name for path in run.folder.iterdir()] == ["events"]
