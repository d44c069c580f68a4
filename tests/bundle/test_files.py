from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from labelcurve.bundle import files
from labelcurve.bundle.errors import LabelcurveError


def test_the_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for content in (b"old", memoryview(b"new")):
        files.replace(path, content)
        assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["a"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_link_to_a_regular_file_is_read_and_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to("a")
    assert files.read(tmp_path / "link") == b"content"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="a pipe, a socket or a device, not a regular file"):
        files.read(tmp_path / "fifo")


def test_a_write_that_is_interrupted_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: Path, target: Path) -> Path:
        assert files.unfinished(tmp_path / "a") == [self]
        raise KeyboardInterrupt

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        files.replace(tmp_path / "a", b"new")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"a": b"old"}


def test_no_folder_for_temporary_files_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a read-only image without a tmpfs.
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(LabelcurveError, match=r"temporary files .* --tmpfs /tmp"):
        files.check_temporary()


def test_where_results_go_is_a_folder_that_can_be_written_or_made(tmp_path: Path) -> None:
    files.check_out(tmp_path / "a" / "b")
    files.check_out(tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing is made yet"
    (tmp_path / "a").touch()
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(
            LabelcurveError, match=rf"{tmp_path}/a is not a writable .*{path}: .*--out"
        ):
            files.check_out(path)


def test_a_link_to_a_volume_that_is_not_there_is_not_where_results_go(tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to("volume/models")
    for path in (tmp_path / "models", tmp_path / "models" / "a"):
        with pytest.raises(
            LabelcurveError, match=r"models is .*a link to volume/models, not there"
        ):
            files.check_out(path)


def test_hidden_files_and_others_names_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / ".a.safetensors-1.part").touch()
    (tmp_path / ".checkpoint-1.part").touch()
    assert files.unfinished(tmp_path / ".checkpoint") == [tmp_path / ".checkpoint-1.part"]
    (tmp_path / ".a[1]-1.part").touch()
    assert files.unfinished(tmp_path / "a[1]") == [tmp_path / ".a[1]-1.part"]


def test_the_file_of_out_gets_its_folder_and_a_failure_names_the_flag(tmp_path: Path) -> None:
    files.write_out(tmp_path / "new" / "page.html", "é")
    assert (tmp_path / "new" / "page.html").read_bytes() == "é".encode()
    (tmp_path / "file").write_text("")
    with pytest.raises(LabelcurveError, match=r"^--out .*page.html cannot be written: File exists"):
        files.write_out(tmp_path / "file" / "page.html", "")


def test_the_new_content_is_on_the_disk_before_it_takes_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').read_bytes()!r}")
        fsync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        events.append(f"replace, mode {path.stat().st_mode & 0o777:o}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    files.replace(tmp_path / "a", b"new")
    assert events == ["sync b'new'", "replace, mode 644"]
