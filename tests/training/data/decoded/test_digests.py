from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import checks, fractions
from labelcurve.training.data.decoded import digests
from labelcurve.training.data.decoded.digests import Digests, in_file, sort
from tests.training.data.test_dataset import TEST, TRAIN, loaded
from tests.training.sets import write_folder

N = 300
KNOWN: NDArray[np.void] = np.frombuffer(np.random.default_rng(0).bytes(32 * N), "V32")


@pytest.fixture
def found(tmp_path: Path) -> Digests:
    np.save(tmp_path / "digests.npy", KNOWN)
    return in_file(tmp_path / "digests.npy", N)


@pytest.mark.parametrize(
    "wanted", [slice(None), slice(10, 95), np.array([299, 0, 41, 41])], ids=str
)
def test_digests_are_those_of_an_array(found: Digests, wanted: Any) -> None:
    assert np.array_equal(found[wanted], KNOWN[wanted])
    assert np.array_equal(found, KNOWN)


def test_digests_taken_of_digests_taken(found: Digests) -> None:
    rows = np.random.default_rng(2).permutation(N)[:100]
    again = found.take(rows).take(np.arange(0, 100, 3))
    assert len(again) == 34
    assert np.array_equal(again, KNOWN[rows][::3])


@pytest.mark.parametrize("at_once", [1, 99, 100, 1000])
def test_parts_are_the_whole(found: Digests, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "AT_ONCE", at_once)
    parts = list(found.parts())
    assert max(len(part) for _, part in parts) <= at_once
    assert [first for first, _ in parts] == list(range(0, N, at_once))
    assert b"".join(part.tobytes() for _, part in parts) == KNOWN.tobytes()


def test_no_digest_at_all(tmp_path: Path) -> None:
    np.save(tmp_path / "digests.npy", KNOWN[:0])
    found = in_file(tmp_path / "digests.npy", 0)
    assert len(found) == len(found[:]) == len(list(found.parts())) == 0


@pytest.mark.parametrize("damage", ["cut", "kind", "fewer"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "digests.npy"
    np.save(path, {"cut": KNOWN, "kind": KNOWN.view("V16"), "fewer": KNOWN[1:]}[damage])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"digests\.npy|mmap"):
        in_file(path, N)


def test_a_file_that_goes_meanwhile_is_an_error(found: Digests) -> None:
    found.file.unlink()
    with pytest.raises(DataError, match=r"digests\.npy cannot be read any more"):
        found[:3]


def test_the_order_of_digests_is_that_of_their_bytes_and_then_of_the_labels() -> None:
    random = np.random.default_rng(0)
    raw = random.integers(0, 3, (300, 32), np.uint8)  # many begin alike
    raw[:100] = raw[100:200]
    labels = random.integers(0, 3, 300)
    found = sort(raw.view("V32").ravel(), labels)
    expected = sorted(range(300), key=lambda i: (raw[i].tobytes(), labels[i]))
    assert found.tolist() == expected


@pytest.mark.parametrize("at_once", [1, 7])
def test_digests_that_are_looked_at_in_parts_tell_the_same(
    tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [((label + 1) % 10, file) for label, file in TRAIN[:5]]
    write_folder(tmp_path / "set" / "train", [*TRAIN, *twice])
    write_folder(tmp_path / "set" / "test", [*TEST, *TRAIN[:2]])
    whole, said = loaded(tmp_path / "set", tmp_path / "cache")
    conflicts = "set: 10 train images with the same pixels as others under another class:\n"
    assert said[0].startswith(conflicts)
    assert said[0].count("\n  /") == 10
    assert said[1] == "set: 4 train images also in test (same pixels)"
    assert said[2].startswith("set: 2 of them have another class there:\n")
    for module in (checks, digests):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
    parts, again = loaded(tmp_path / "set", tmp_path / "cache")
    assert again == said
    assert (parts.hash, parts.pixels_hash) == (whole.hash, whole.pixels_hash)
    subsets = [fractions.subset(s.train, s.class_names, 0.5, 0) for s in (whole, parts)]
    assert subsets[0].hash == subsets[1].hash
