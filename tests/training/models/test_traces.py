"""Traced graphs between processes: the same bytes, and nothing read that is damaged or old."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.training.models import export, traces
from tests.training.models.test_export import NAMES, trained


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which a network of the architecture was exported; this process forgot it."""
    monkeypatch.setattr(export, "_traced", {})
    export.to_onnx(trained(seed=3), 8, NAMES, tmp_path)
    monkeypatch.setattr(export, "_traced", {})
    return tmp_path


def test_another_process_fills_what_one_has_traced(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = trained(seed=2)
    with monkeypatch.context() as patch:
        patch.setattr(export, "_trace", None)
        filled = export.to_onnx(other, 8, NAMES, kept)
    monkeypatch.setattr(export, "_traced", {})
    assert export.to_onnx(other, 8, NAMES) == filled
    (path,) = (kept / "graphs").iterdir()
    assert path.stat().st_size < len(filled) / 4, "without weights"


def test_a_damaged_file_is_traced_again(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = (kept / "graphs").iterdir()
    content = path.read_bytes()
    undamaged = export.to_onnx(trained(seed=2), 8, NAMES, kept)
    for damaged in (content[:-1], content[:40] + b"x" + content[41:]):
        path.write_bytes(damaged)
        monkeypatch.setattr(export, "_traced", {})
        assert export.to_onnx(trained(seed=2), 8, NAMES, kept) == undamaged
        assert path.read_bytes() == content


def test_other_code_or_packages_are_another_graph(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "_code", lambda: "other")
    export.to_onnx(trained(seed=2), 8, NAMES, kept)
    assert len(list((kept / "graphs").iterdir())) == 2


def test_a_cache_that_cannot_be_written_costs_time_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_traced", {})
    (tmp_path / "graphs").write_text("a file where the folder should be")
    graph = export.to_onnx(trained(seed=2), 8, NAMES, tmp_path)
    assert export.to_onnx(trained(seed=2), 8, NAMES) == graph
