from __future__ import annotations

import fcntl
import tempfile
from pathlib import Path

import pytest

from labelcurve.serving.workers.rundir import RunDir


def test_the_supervisor_receives_the_messages_of_workers(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert (run_dir.n_ready(), run_dir.failure()) == (0, None)
    run_dir.ready()
    run_dir.fail("no GPU")
    assert (run_dir.n_ready(), run_dir.failure()) == (1, "no GPU")


def test_what_a_killed_server_left_is_removed_and_what_another_uses_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stale, begun = tmp_path / "labelcurve-stale", tmp_path / "labelcurve-begun"
    for folder in (stale, begun):
        (folder / "metrics").mkdir(parents=True)
    (stale / "lock").touch()
    (begun / ".lock").touch()  # its process holds no lock yet
    with RunDir.temporary() as used:
        with RunDir.temporary() as second:
            assert second.metrics.is_dir()
            assert sorted(tmp_path.iterdir()) == sorted([begun, used.path, second.path])
        assert sorted(tmp_path.iterdir()) == sorted([begun, used.path])
        with (used.path / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert list(tmp_path.iterdir()) == [begun]
