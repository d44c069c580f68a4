from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import publish_digits


@pytest.fixture(scope="session")
def digits_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with digits-10, digits-50 and digits-100; read it, do not change it."""
    root = tmp_path_factory.mktemp("models")
    for fraction in (0.1, 0.5, 1.0):
        publish_digits(root, fraction)
    return root
