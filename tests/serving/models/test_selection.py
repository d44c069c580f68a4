from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labelcurve.bundle import promotion, store
from labelcurve.bundle.errors import BundleError
from labelcurve.serving.errors import UnknownModel
from labelcurve.serving.models.selection import default, pick, read
from tests.models import publish_digits


def test_the_default_is_the_promoted_one_or_that_with_the_most_labels(
    digits_models: Path, tmp_path: Path
) -> None:
    bundles = store.read_all(digits_models)
    assert default(digits_models, bundles)[0] == "digits-100"
    assert default(digits_models, bundles[:2])[0] == "digits-50"
    only = ("digits-50", "digits-10")
    assert default(digits_models, bundles[:2], only)[0] == "digits-50"
    (tmp_path / promotion.FILE).write_text('{"default": "digits-10"}')
    assert default(tmp_path, bundles)[0] == "digits-10"


def test_by_name_and_by_version(digits_models: Path) -> None:
    bundles = store.read_all(digits_models)
    for index, bundle in enumerate(bundles):
        assert pick(bundles, bundle.name) == index
        assert pick(bundles, f"{bundle.name}@{bundle.version}") == index


@pytest.mark.parametrize("wanted", ["", "digits", "digits-10@0123456789ab", "../x"])
def test_others_are_unknown_and_those_that_exist_are_named(
    digits_models: Path, wanted: str
) -> None:
    bundles = store.read_all(digits_models)
    with pytest.raises(UnknownModel, match="there are digits-10@") as caught:
        pick(bundles, wanted)
    assert len(caught.value.members["models"]) == 3


def test_one_model_is_read_whatever_became_of_the_others(
    digits_models: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    old = store.read(models, "digits-10").version
    new = publish_digits(models, 0.1, seed=1).name
    for name in ("digits-50", "digits-100"):
        with (models / name / "current" / store.GRAPH).open("ab") as graph:
            graph.write(b"\0")
    assert read(models, "digits-10").version == read(models, f"digits-10@{new}").version == new
    assert read(models, f"digits-10@{old}").version == old
    with pytest.raises(BundleError, match=r"digits-100/.* is damaged"):
        read(models)
    promotion.promote(models, "digits-10")
    assert read(models).version == new
    (models / "digits-50/current" / store.MANIFEST).unlink()
    assert read(models).version == new
    for wanted in ("nope", "../models", "digits-50@..", "digits-10@current", f"nope@{new}"):
        with pytest.raises(UnknownModel, match="there are digits-"):
            read(models, wanted)
    with pytest.raises(UnknownModel) as caught:
        read(models, "digits-10@0123456789ab")
    assert caught.value.members["models"] == sorted([f"digits-10@{old}", f"digits-10@{new}"])
    (models / promotion.FILE).write_text('{"default": "nope"}')
    with pytest.raises(BundleError):
        read(models)
