from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundle.errors import BundleError
from serving.catalogue import Catalogue
from serving.device import Device
from serving.errors import Overloaded, UnknownModel

CPU = Device("cpu", "a test")


@pytest.fixture
def catalogue(digits_models: Path) -> Iterator[Catalogue]:
    catalogue = Catalogue()
    catalogue.load(digits_models, CPU, threads=1, queue=10)
    yield catalogue
    catalogue.close()


def test_before_loading_it_is_overloaded_and_not_ready() -> None:
    catalogue = Catalogue()
    assert not catalogue.ready
    with pytest.raises(Overloaded, match="being loaded"):
        catalogue.find(None)


def test_every_model_is_there_and_described(catalogue: Catalogue) -> None:
    assert catalogue.ready
    described = catalogue.describe()
    assert [(d["name"], d["default"]) for d in described] == [
        ("digits-10", False),
        ("digits-50", False),
        ("digits-100", True),
    ]
    assert [d["n_labels_train"] for d in described] == [144, 718, 1437]
    assert {d["provider"] for d in described} == {"CPUExecutionProvider"}


def test_find(catalogue: Catalogue) -> None:
    assert catalogue.find(None).name == "digits-100"
    wanted = catalogue.find("digits-10")
    assert catalogue.find(f"digits-10@{wanted.version}") is wanted
    with pytest.raises(UnknownModel):
        catalogue.find("digits-11")


def test_one_damaged_model_is_an_error(digits_models: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(digits_models, models, symlinks=True)
    with (models / "digits-50/current/model.onnx").open("ab") as graph:
        graph.write(b"\0")
    catalogue = Catalogue()
    with pytest.raises(BundleError, match="damaged"):
        catalogue.load(models, CPU, threads=1, queue=10)
    assert not catalogue.ready
