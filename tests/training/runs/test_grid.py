"""The models of a command, without training any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle import store
from labelcurve.training.data.dataset import Data
from labelcurve.training.options import Options
from labelcurve.training.recipes import PHOTO_BACKBONE, recipe
from labelcurve.training.runs import grid


def silent(_: str) -> None:
    return


def test_models_are_made_seed_by_seed_and_fewest_labels_first(digits: Data) -> None:
    given = Options(data="digits", fraction=(0.5, 0.2), seed=3, seeds=2, extractor="none")
    cells = grid.cells(given, digits, silent)
    assert [(cell.seed, cell.subset.fraction) for cell in cells] == [
        *((3, 0.2), (3, 0.5), (4, 0.2)),
        (4, 0.5),
    ]
    assert len({cell.subset.hash for cell in cells}) == 4, "each seed draws rows of its own"


@pytest.mark.parametrize(
    ("given", "fraction", "compact", "name"),
    [
        ({"extractor": "timm:resnet18=a/b.safetensors"}, 0.1, False, "pets-resnet18-10"),
        ({"extractor": PHOTO_BACKBONE}, 0.1, False, "pets-10"),
        ({}, None, False, "pets-final"),
        ({"seed": 2}, None, True, "pets-compact-final-s2"),
        ({"extractor": "none", "mirror": True}, 0.5, True, "pets-scratch-compact-mirror-50"),
    ],
)
def test_names_of_networks_compact_and_final_models(
    given: dict[str, Any], fraction: float | None, compact: bool, name: str
) -> None:
    options = Options(**given)
    assert grid.bundle_name(options, "pets", fraction, options.seed, compact=compact) == name


def test_a_limit_of_minutes_ends_what_begins_from_scratch_and_epochs_end_either() -> None:
    small = recipe("default", 100, flip=False, unlabelled=False)
    large = replace(small, backbone="timm:resnet18", epochs=4)
    minutes = Options(max_minutes=1.0)
    assert grid.limited(small, minutes).epochs == grid.ENDLESS == 10_000
    assert grid.limited(large, minutes) == large
    for plan in (small, large):
        assert grid.limited(plan, Options()) == plan
        assert grid.limited(plan, Options(epochs=3)).epochs == 3


def test_a_dry_run_counts_the_labels_of_each_class(digits: Data) -> None:
    given = Options(data="digits", fraction=(0.2, 0.5), seeds=2, extractor="none")
    cells, said = grid.cells(given, digits, silent), list[str]()
    first, second = grid.dry_run(digits, cells, said.append)["dry_run"]
    assert (first["fraction"], second["fraction"]) == (0.2, 0.5)
    last = {cell.subset.fraction: cell.subset for cell in cells}[0.5]
    for name, found in second["classes"].items():
        label = digits.class_names.index(name)
        assert found["train"] == (digits.train.labels[last.train] == label).sum()
        assert found["val"] == (digits.train.labels[last.val] == label).sum()
    assert (second["n_labels_train"], second["n_labels_val"]) == (len(last.train), len(last.val))
    assert " ".join(said[0].split()) == "class 20 %: train + val 50 %: train + val"
    counts = [
        f"{plan['classes']['0'][part]}" for plan in (first, second) for part in ("train", "val")
    ]
    assert said[1].split() == ["0", counts[0], "+", counts[1], counts[2], "+", counts[3]]
    assert said[-1].split()[-3:] == [f"{len(last.train):,}", "+", f"{len(last.val)}"]


def test_of_seeds_without_a_test_the_validation_is_summarised() -> None:
    def entry(fraction: float, accuracy: float, test: bool) -> dict[str, Any]:
        figures = {"accuracy": accuracy, "balanced_accuracy": accuracy / 2, "f1": accuracy / 4}
        return {"fraction": fraction, "val": figures, "test": figures if test else None}

    said: list[str] = []
    bundles = [entry(0.5, 0.8, True), entry(0.1, 0.4, False), entry(0.1, 0.6, True)]
    few, many = grid.summary([*bundles, entry(0.5, 0.8, True)], said.append)
    assert (few["fraction"], few["split"], few["seeds"]) == (0.1, "val", 2)
    assert (many["fraction"], many["split"]) == (0.5, "test")
    halves = {"mean": 0.25, "std": pytest.approx(0.0707, abs=1e-4), "min": 0.2, "max": 0.3}
    assert few["balanced_accuracy"] == pytest.approx(halves)
    assert few["f1"]["mean"] == pytest.approx(0.125)
    assert said[1].split() == [
        "10",
        "%",
        "2",
        "0.5000",
        "0.1414",
        "0.4000",
        "0.6000",
        "0.2500",
        "0.0707",
    ]


def test_a_bundle_that_is_damaged_or_of_other_images_is_replaced_aloud(
    tmp_path: Path, digits_models: Path, digits: Data
) -> None:
    bundle, said = store.read(digits_models, "digits-10"), list[str]()
    path = store.publish(tmp_path, bundle.manifest, bundle.graph, "", store.read_run(bundle.path))
    (cell,) = grid.cells(Options(data="digits", fraction=(0.1,)), digits, silent)
    same = replace(digits, hash=bundle.manifest.dataset.hash)
    grid.check_replaced(tmp_path, "digits", same, [cell], said.append)
    assert said == []
    grid.check_replaced(tmp_path, "digits", digits, [cell], said.append)
    where = tmp_path / "digits-10"
    assert said.pop() == f"{where} was trained on other images; the new version replaces it"
    (path / store.GRAPH).write_bytes(b"half")
    grid.check_replaced(tmp_path, "digits", digits, [cell], said.append)
    assert said.pop().endswith("; a new one takes its place")


def test_of_many_class_names_five_are_said() -> None:
    assert grid._few(tuple("abcde")) == "a, b, c, d, e"
    assert grid._few(tuple("abcdef")) == "a, b, c, d, e, ..."
