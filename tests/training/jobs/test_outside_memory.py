"""Data sets that are larger than the memory for them: the same data, streamed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labelcurve.training.data import dataset, fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.stored import Stored
from labelcurve.training.runtime import lock
from tests.training.data.test_dataset import TEST, TRAIN, assert_same, cached, loaded, shuffled
from tests.training.sets import digit_rows, write_folder, write_parquet

LITTLE = 3 * 8 * 8 * 40
"""Bytes: of the hundred images of 8 pixels, forty."""


@pytest.fixture(params=["cache", "encoded"])
def streamed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Data, Data, list[str]]:
    """A data set in memory, the same that does not fit there, and what was said of that.

    Decoded images lie in the cache, or there is no room for them either.
    """
    file = tmp_path / "digits" / "train.parquet"
    write_parquet(file, shuffled(TRAIN, 1), rows_per_group=15)
    write_parquet(file.with_name("test.parquet"), TEST)
    inside, _ = loaded(tmp_path / "digits", tmp_path / "a")
    if request.param == "encoded":
        nothing = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: nothing)
    said: list[str] = []
    outside = dataset.load(
        str(tmp_path / "digits"), size=8, cache=tmp_path / "b", memory=LITTLE, say=said.append
    )
    files = {path.name for path in (tmp_path / "b").rglob("*-images.npy")}
    assert (not files) == (request.param == "encoded")
    return inside, outside, said


def test_what_does_not_fit_into_memory_is_the_same_data(
    streamed: tuple[Data, Data, list[str]],
) -> None:
    inside, outside, said = streamed
    assert isinstance(outside.train.images, Stored)
    assert said[-1] == (
        "digits: decoded images take 0.0 GB, more than the 0.0 GB of memory for them "
        "(--memory-gb): streamed from the disk"
    )
    assert (outside.hash, outside.pixels_hash) == (inside.hash, inside.pixels_hash)
    assert_same(outside.train, inside.train)
    assert_same(outside.test, inside.test)
    for fraction in (0.3, 1.0):
        a, b = (fractions.subset(s.train, s.class_names, fraction, 5) for s in (inside, outside))
        assert a.hash == b.hash
        assert_same(outside.train.take(b.train), inside.train.take(a.train))


def test_no_room_for_decoded_images_is_said_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "set", TRAIN)
    nothing = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nothing)

    def load(memory: int) -> tuple[Data, list[str]]:
        said: list[str] = []
        found = dataset.load(
            str(tmp_path / "set"), size=8, cache=tmp_path / "c", memory=memory, say=said.append
        )
        return found, said

    first, said = load(LITTLE)
    assert said[0].startswith("set: 0.0 GB of decoded images do not fit into ")
    assert "they are decoded again in each epoch. Another folder (--cache) would" in said[0]
    second, said = load(10**9)
    assert not any("do not fit" in line for line in said)
    assert_same(first.train, second.train)
    assert not isinstance(second.train.images, Stored), "decoded into memory, where they fit"


def test_a_killed_decoding_leaves_nothing_for_ever(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", TRAIN)
    found, _ = loaded(tmp_path / "set", tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "pixels").iterdir()
    left = folder.with_name(f".{folder.name}-killed")
    folder.rename(left)
    again, _ = loaded(tmp_path / "set", tmp_path / "cache")
    assert again.hash == found.hash
    assert list((tmp_path / "cache" / "pixels").iterdir()) == [folder]


def test_two_processes_decode_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", digit_rows(30))
    code = (
        "import sys; from pathlib import Path; "
        "from labelcurve.training.data import dataset as data; "
        "data.load(sys.argv[1], size=8, cache=Path(sys.argv[2]), say=print)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set"), str(tmp_path / "cache")]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert len(list((tmp_path / "cache" / "pixels").iterdir())) == 1


IN_USE = """
import sys, pathlib
from labelcurve.training.data import dataset as data
data.load(sys.argv[1], size=8, cache=pathlib.Path(sys.argv[2]), memory=1, say=lambda _: None)
print("loaded", flush=True)
sys.stdin.readline()
"""


def test_what_another_process_uses_or_decodes_is_not_cleared(tmp_path: Path) -> None:
    cache, said = tmp_path / "cache", list[str]()
    for name, rows in (("used", TRAIN), ("unused", TRAIN[:40])):
        write_folder(tmp_path / name, rows)
    loaded(tmp_path / "unused", cache)
    (unused,) = (cache / "pixels").iterdir()
    arguments = (sys.executable, "-c", IN_USE, str(tmp_path / "used"), str(cache))
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"loaded\n"
        (used,) = set((cache / "pixels").iterdir()) - {unused}
        dataset.clear(cache, said.append)
        other.communicate(b"\n")
    assert list((cache / "pixels").iterdir()) == [used]
    reads = "another process reads from it"
    assert said == [f"--clear-cache leaves {used} (used) where it is: {reads}"]
    with lock.hold(used.with_name(f".{used.name}.lock"), ""):
        dataset.clear(cache, said.append)
    assert re.fullmatch(r"--clear-cache leaves .* process \d+ on .* is decoding it", said[1])
    dataset.clear(cache, said.append, used.stat().st_mtime)
    assert used.exists(), "cached later"
    dataset.clear(cache, said.append)
    assert (cached(cache), len(said)) == ({}, 2)
