from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labelcurve.bundle import store
from labelcurve.bundle.manifest import Run


@pytest.fixture
def root(tmp_path: Path, digits_models: Path) -> Path:
    """A models folder of digits-10, -50 and -100 that a test may change."""
    return Path(shutil.copytree(digits_models, tmp_path / "models", symlinks=True))


@pytest.fixture
def bundle(digits_models: Path) -> store.Bundle:
    return store.read(digits_models, "digits-10")


@pytest.fixture
def record(bundle: store.Bundle) -> Run:
    return store.read_run(bundle.path)
