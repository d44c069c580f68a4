"""`train` on small, realistic data sets, up to the published bundle."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle import store
from labelcurve.training.jobs import train
from labelcurve.training.options import Options
from tests.training.sets import digit_rows, write_folder

pytestmark = pytest.mark.usefixtures("narrow")

TWO = ("nought", "one")


def rows(n: int, start: int = 0) -> list[tuple[int, bytes]]:
    """The first images of two classes."""
    found = digit_rows(40)
    return [(c, found[40 * c + i][1]) for c in range(2) for i in range(start, start + n)]


def run(data: Path, cache: Path, **more: Any) -> tuple[dict[str, Any], str]:
    """The only entry of a short run into `models` next to the classes, as is the default there."""
    options = Options(
        data=str(data), out=data / "models", cache=cache, extractor="none", image_size=8, epochs=1
    )
    document = train.run(replace(options, **more))
    (entry,) = document["bundles"]
    return entry, document["bundles"][0]["name"]


def test_two_images_of_a_class_make_a_model_that_nothing_is_tested_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "pair", rows(2), TWO)
    entry, name = run(data, tmp_path / "cache")
    said = capsys.readouterr().out
    assert name == "pair-scratch-100"
    assert (entry["n_labels_train"], entry["n_labels_val"], entry["test"]) == (2, 2, None)
    for percent in ("10", "50"):
        assert f"no model of {percent} % of the labels, which leaves 'nought' (2 images)" in said
    manifest = store.read(data / "models", name).manifest
    assert (manifest.test, manifest.dataset.n_test) == (None, 0)


def test_a_folder_whose_name_is_not_utf_8_makes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / os.fsdecode(b"caf\xe9"), rows(3), TWO)
    monkeypatch.setattr(sys, "argv", ["labelcurve", "train", "--data", str(data)])
    _, name = run(data, tmp_path / "cache", fraction=(1.0,), no_final=True)
    assert name == "caf-scratch-100"
    said = capsys.readouterr().out
    assert said.count("the TensorBoard events in ") == said.count("continues without them") == 1
    record = store.read_run(store.read(data / "models", name).path)
    assert record.command == f"labelcurve train --data '{tmp_path}/caf\\xe9'"


def test_labels_of_copies_of_held_out_images_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "set", [row for row in rows(10) for _ in range(2)], TWO)
    entry, _ = run(data, tmp_path / "cache", fraction=(1.0,))
    assert (entry["n_labels_train"], entry["n_labels_val"]) == (24, 4)
    assert (
        "24 labels to train and 4 to validate; 4 labels not used, since held-out images have the "
        "same pixels\n"
    ) in capsys.readouterr().out


def test_images_without_labels_are_counted_and_models_below_are_no_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "set", rows(10), TWO)
    (data / "unlabelled").mkdir()
    for number, (_, file) in enumerate(rows(6, start=20)):
        (data / "unlabelled" / f"{number}.png").write_bytes(file)
    (data / "notes.txt").write_text("where they are from")
    entry, name = run(data, tmp_path / "cache", fraction=(1.0,))
    manifest = store.read(data / "models", name).manifest
    assert (manifest.n_unlabelled, manifest.dataset.n_train, manifest.dataset.n_test) == (0, 28, 4)
    assert manifest.dataset.left_out == {".txt": 1}
    said = capsys.readouterr().out
    assert "16 to train and 4 to test, 12 without a label" in said
    assert "extractor: none, so 12 images without a label are not used\n" in said
    again, _ = run(data, tmp_path / "cache", fraction=(1.0,))
    assert again["version"] == entry["version"], "the models of the first run change nothing"
    assert "models: holds results of this program" in capsys.readouterr().out
