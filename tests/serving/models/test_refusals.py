from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.bundle.errors import BundleError
from labelcurve.serving.models import refusals


@pytest.mark.parametrize("root", ["models", "./models/", "some/models", ".", None])
def test_clients_are_not_told_where_the_models_lie(
    root: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path if root is None else Path(root)
    refused = refusals.Refusals(path)
    for folder in (path, path.resolve()):
        error = BundleError(f"the bundle {folder / 'a-models' / '12'} is damaged; {folder / 'b'}")
        refused.note("a-models", "12", None, error)
        assert refused.get("a-models@12") == "the bundle a-models/12 is damaged; b"


def test_a_refused_version_is_tried_again_when_its_files_change_or_long_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(refusals, "monotonic", lambda: now)
    refused = refusals.Refusals(tmp_path)
    before, after = (1, 2, 3), (1, 2, 4)
    assert refused.worth_trying("a@12", before)
    refused.note("a", "12", before, BundleError("damaged"))
    assert not refused.worth_trying("a@12", before)
    assert refused.worth_trying("a@12", after)
    assert refused.worth_trying("b@12", before)
    now += refusals.RETRY_SECONDS
    assert not refused.worth_trying("a@12", before)
    now += 1
    assert refused.worth_trying("a@12", before)
