from __future__ import annotations

from pathlib import Path

import pytest

from bundle.errors import BundleError
from serving.refusals import Refusals


@pytest.mark.parametrize("root", ["models", "./models/", "some/models", ".", None])
def test_clients_are_not_told_where_the_models_lie(
    root: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path if root is None else Path(root)
    refusals = Refusals(path)
    for folder in (path, path.resolve()):
        error = BundleError(f"the bundle {folder / 'a-models' / '12'} is damaged; {folder / 'b'}")
        refusals.note("a-models", "12", None, error)
        assert refusals.get("a-models@12") == "the bundle a-models/12 is damaged; b"
