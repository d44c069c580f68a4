from __future__ import annotations

import errno
import os
import shutil
import struct
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from labelcurve.serving.telemetry import metric_files
from labelcurve.serving.telemetry.metric_files import CAPACITY, Values

KEY = '["a_total", "a_total", {"path": "%s"}, "help"]'


def values(path: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in Values.read_all_values_from_file(str(path))}


@pytest.fixture
def kept(tmp_path: Path) -> Values:
    """Values whose file is written under a name other than that of this process."""
    return Values(str(tmp_path / "counter_1.db"))


def put(kept: Values, key: str, value: float) -> None:
    kept.write_value(key, value, 0.0)


def others(kept: Values) -> dict[str, float]:
    """The values as another process reads them."""
    copy = kept._path.with_name("counter_2.db")
    copy.write_bytes(kept._path.read_bytes())
    return values(copy)


def test_what_is_written_is_what_others_read(kept: Values) -> None:
    put(kept, KEY % "a", 2.5)
    put(kept, KEY % "ä", -1.0)
    assert not kept._path.exists()
    kept.flush()
    assert others(kept) == {KEY % "a": 2.5, KEY % "ä": -1.0}
    put(kept, KEY % "a", 3.5)
    assert others(kept)[KEY % "a"] == 2.5
    kept.flush()
    assert others(kept)[KEY % "a"] == 3.5


def test_it_grows(kept: Values) -> None:
    written = {KEY % f"{n:0200}": float(n) for n in range(1000)}
    for key, value in written.items():
        put(kept, key, value)
    kept.flush()
    assert kept._path.stat().st_size > 2 * CAPACITY
    assert others(kept) == written


def test_what_has_not_changed_is_not_written_again(kept: Values) -> None:
    put(kept, KEY % "a", 1.0)
    kept.flush()
    kept._path.write_bytes(b"")
    kept.flush()
    assert kept._path.read_bytes() == b""
    put(kept, KEY % "a", 2.0)
    kept.flush()
    assert others(kept) == {KEY % "a": 2.0}


def test_a_folder_that_a_cleaner_removed_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric_files.install()
    monkeypatch.setattr(metric_files, "_own", {})
    folder = tmp_path / "labelcurve-x" / "metrics"
    kept = Values(str(folder / "counter_3.db"))
    put(kept, KEY % "a", 1.0)
    kept.flush()
    shutil.rmtree(folder.parent)
    assert b'a_total{path="a"} 1.0\n' in generate_latest(metric_files.registry(str(folder)))
    kept.flush()
    assert others(kept) == {KEY % "a": 1.0}
    assert [path.stat().st_mode & 0o777 for path in (folder.parent, folder)] == [0o700] * 2


def test_a_full_disk_is_an_error_and_loses_nothing(kept: Values) -> None:
    kept._path.symlink_to("/dev/full")
    put(kept, KEY % "a", 1.0)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        kept.flush()
    assert values(kept._path) == {KEY % "a": 1.0}  # of this process, which has them in memory
    kept._path.unlink()
    kept.flush()
    assert others(kept) == {KEY % "a": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("i", 64) + bytes(12) + b"not JSON" * 6,
        struct.pack("i", 2**30) + b"\xff" * 60,
    ],
)
def test_a_damaged_file_is_left_out_and_named_once(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"counter_{len(content)}{content[:1].hex()}.db"
    path.write_bytes(content)
    assert values(path) == values(path) == {}
    assert caplog.text.count(str(path)) == 1


def test_readers_see_the_length_after_the_values_that_it_covers(
    kept: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets: list[int] = []
    pwrite = os.pwrite

    def write(descriptor: int, data: bytes, offset: int) -> int:
        offsets.append(offset)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    put(kept, KEY % "a", 1.0)
    kept.flush()
    assert offsets == [8, 0]
    (used,) = struct.unpack("i", kept._path.read_bytes()[:4])
    assert used == kept._path.stat().st_size
