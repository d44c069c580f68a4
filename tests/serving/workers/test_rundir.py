from __future__ import annotations

import fcntl
import os
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
    run_dir.fail("damaged: mod\udce9les")  # a name that is not UTF-8
    assert run_dir.failure() == r"damaged: mod\udce9les"


def test_a_failure_is_that_of_the_worker_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = RunDir(tmp_path)
    for pid, message in ((17, "no GPU"), (170, "no memory")):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        run_dir.fail(message)
        assert run_dir.n_ready() == (0 if pid == 17 else 1)
        run_dir.ready()
    assert [run_dir.failure(pid) for pid in (17, 170, 1, 7)] == ["no GPU", "no memory", None, None]
    assert run_dir.failure() in ("no GPU", "no memory")
    assert run_dir.n_ready() == 2
    assert run_dir.socket("control") == f"ipc://{tmp_path}/control"


def test_the_version_that_a_name_answered_with_last_counts(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert run_dir.served() == {}
    for name, version in (("digits-10", "a"), ("digits-serves-1", "b"), ("digits-10", "c")):
        run_dir.serves(name, version)
    assert run_dir.served() == {"digits-10": "c", "digits-serves-1": "b"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_message_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "serves-digits").mkdir()
    RunDir(tmp_path).serves("digits", "a")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"cannot write {tmp_path}/serves-digits: " in record.getMessage()


def test_a_worker_is_ready_where_the_folder_was_removed_or_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = RunDir(tmp_path / "removed")
    run_dir.ready()
    run_dir.serves("digits", "a")
    assert (run_dir.n_ready(), run_dir.served()) == (1, {"digits": "a"})
    assert run_dir.path.stat().st_mode & 0o777 == 0o700
    assert not caplog.records

    (tmp_path / "file").touch()
    RunDir(tmp_path / "file").ready()
    assert "The service continues" in caplog.text


def test_what_another_user_left_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "labelcurve-other").mkdir()
    (tmp_path / "labelcurve-other/lock").touch()
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with RunDir.temporary():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["labelcurve-other"]


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
