from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import REGISTRY

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


def test_each_reason_is_logged_and_counted_once_and_forgotten_when_it_is_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refused = refusals.Refusals(tmp_path)
    for error in (BundleError("damaged"), BundleError("damaged"), RuntimeError("odd")):
        refused.note("counted", "12", None, error)
    refused.note("counted", "34", None, BundleError("damaged"))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("ERROR", "counted@12 is refused: damaged"),
        ("ERROR", "counted@12 is refused: odd"),
        ("ERROR", "counted@34 is refused: damaged"),
    ]
    # With a traceback where the error is none of ours.
    assert [bool(record.exc_info) for record in caplog.records] == [False, True, False]
    counted = REGISTRY.get_sample_value("labelcurve_model_refusals_total", {"model": "counted"})
    assert counted == 3
    refused.keep({"counted@34", "other@12"})
    assert refused.get("counted@12") is None
    assert refused.get("counted@34") == "damaged"
    refused.drop("counted@34")
    refused.drop("counted@34")
    assert refused.get("counted@34") is None
