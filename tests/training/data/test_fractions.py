from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from labelcurve.bundle.errors import DataError
from labelcurve.training.data import fractions
from labelcurve.training.data.dataset import Data, Split
from labelcurve.training.data.decoded.digests import in_file
from labelcurve.training.data.source import Index
from tests.training.data.test_dataset import TRAIN, loaded
from tests.training.sets import write_folder

FRACTIONS = (0.1, 0.25, 0.5, 0.77, 1.0)


def split_of(folder: Path, sizes: list[int], seed: int = 0) -> Split:
    """Rows without content, of classes of the given sizes, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    file = folder / "digests.npy"
    np.save(file, np.frombuffer(rng.bytes(32 * len(labels)), "V32"))
    return Split(
        images=np.zeros((len(labels), 1, 1, 3), np.uint8),
        labels=labels,
        digests=in_file(file, len(labels)),
        read=lambda _: b"",
        where=str,
    )


def names_of(sizes: list[int]) -> tuple[str, ...]:
    return tuple(f"class {i}" for i in range(len(sizes)))


def as_set(rows: Index) -> set[int]:
    assert len(set(rows.tolist())) == len(rows)
    return set(rows.tolist())


@pytest.mark.parametrize(
    ("n", "fraction", "expected"),
    [
        (5000, 1.0, (4500, 500)),
        (5000, 0.5, (2250, 250)),
        (5000, 0.1, (450, 50)),
        (100, 0.1, (9, 1)),
        (100, 0.29, (26, 3)),
        (2, 1.0, (1, 1)),
        (10, 0.2, (1, 1)),
        (10, 0.1, (0, 1)),
        (10, 0.05, (0, 0)),
    ],
)
def test_a_tenth_of_the_labels_is_for_validation(
    n: int, fraction: float, expected: tuple[int, int]
) -> None:
    assert fractions.counts(n, fraction) == expected


@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 19, 99, 100, 101, 1437, 5000])
def test_no_fraction_takes_more_labels_than_its_share(n: int) -> None:
    before = (0, 0)
    for percent in range(1, 101):
        train, val = fractions.counts(n, percent / 100)
        # in whole numbers, so that no rounding of the check hides one of the code
        assert (train + val) * 100 <= percent * n
        assert (train + val + 1) * 100 > percent * n, "and no label of its share is left out"
        assert train >= before[0], "a larger fraction trains on no fewer"
        assert val >= before[1]
        before = train, val


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [[20, 20], [21, 57, 300], [400, 23, 99, 20, 20]])
def test_fractions_nest_are_stratified_and_disjoint(
    tmp_path: Path, sizes: list[int], seed: int
) -> None:
    split, names = split_of(tmp_path, sizes, seed), names_of(sizes)
    train: set[int] = set()
    val: set[int] = set()
    for fraction in FRACTIONS:
        found = fractions.subset(split, names, fraction, seed)
        assert train <= as_set(found.train)
        assert val <= as_set(found.val)
        train, val = as_set(found.train), as_set(found.val)
        assert not train & val
        assert not train & as_set(found.val_pool), "nothing that validates elsewhere is trained on"
        assert val <= as_set(found.val_pool)
        for label, size in enumerate(sizes):
            of_class = (
                int((split.labels[found.train] == label).sum()),
                int((split.labels[found.val] == label).sum()),
            )
            assert of_class == fractions.counts(size, fraction)
            assert sum(of_class) <= fraction * size + 1e-9
    assert train | val == set(range(sum(sizes))), "all labels are used at 100 %"


def test_seeds_draw_different_rows_and_one_seed_the_same(digits: Data) -> None:
    drawn = [fractions.subset(digits.train, digits.class_names, 0.2, seed) for seed in (0, 0, 1, 2)]
    assert np.array_equal(drawn[0].train, drawn[1].train)
    assert drawn[0].hash == drawn[1].hash
    assert len({subset.hash for subset in drawn}) == 3
    shared = as_set(drawn[0].train) & as_set(drawn[2].train)
    assert len(shared) < len(drawn[0].train) / 2


def test_the_hash_tells_training_rows_from_validation_rows(digits: Data) -> None:
    hashes = {
        fractions.subset(digits.train, digits.class_names, fraction, 0).hash
        for fraction in FRACTIONS
    }
    assert len(hashes) == len(FRACTIONS)
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes)


@pytest.mark.parametrize("fewest", [2, 3, 7, 10, 11, 99, 144, 5000])
def test_the_smallest_possible_fraction_is_named_and_works(tmp_path: Path, fewest: int) -> None:
    sizes = [max(20, 2 * fewest), fewest]
    split, names = split_of(tmp_path, sizes), names_of(sizes)
    with pytest.raises(DataError, match=rf"leaves 'class 1' \({fewest} images\)") as error:
        fractions.subset(split, names, 1.5 / fewest, 0)
    smallest = float(str(error.value).split()[-1])
    assert smallest <= 1
    found = fractions.subset(split, names, smallest, 0)
    assert set(split.labels[found.train]) == set(split.labels[found.val]) == {0, 1}
    with pytest.raises(DataError):
        fractions.subset(split, names, smallest - 2e-6, 0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(digits: Data, fraction: float) -> None:
    with pytest.raises(DataError, match="allowed are values above 0 and up to 1"):
        fractions.subset(digits.train, digits.class_names, fraction, 0)


def test_rows_are_spread_from_the_first_to_the_last() -> None:
    rows = np.arange(0, 100, 10)
    assert fractions.spread(rows, 3).tolist() == [0, 40, 90]
    assert fractions.spread(rows, 10) is rows


def with_copies(folder: Path, labels: list[int], groups: list[int]) -> Split:
    """Rows in the order of their digests, those of a group with the same one."""
    file = folder / "digests.npy"
    np.save(file, np.frombuffer(b"".join(b"%032d" % g for g in groups), "V32"))
    empty = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return Split(empty, np.array(labels), in_file(file, len(labels)), lambda _: b"", str)


def test_copies_of_held_out_images_do_not_train(tmp_path: Path) -> None:
    # Each image twice, of two classes in turn.
    split = with_copies(tmp_path, [0, 0, 1, 1] * 20, [i // 2 for i in range(80)])
    found = fractions.subset(split, ("a", "b"), 1.0, 0)
    assert len(found.val) == 8
    held_out = {row // 2 for row in found.val}
    assert held_out.isdisjoint({row // 2 for row in found.train})
    assert len(found.train) == 80 - 2 * len(held_out)
    assert found.copied == 80 - len(found.train) - len(found.val) > 0
    tenth = fractions.subset(split, ("a", "b"), 0.5, 0)
    assert as_set(tenth.train) <= as_set(found.train)


def test_a_class_of_copies_alone_keeps_them(tmp_path: Path) -> None:
    split = with_copies(tmp_path, [0] * 20 + [1] * 4, [*range(20), 30, 30, 30, 30])
    found = fractions.subset(split, ("a", "b"), 1.0, 0)
    assert (split.labels[found.train] == 1).sum() == 3
    assert found.copied == 0


def test_copies_are_held_out_together(tmp_path: Path) -> None:
    write_folder(tmp_path / "set", [each for each in TRAIN for _ in range(3)])
    found, said = loaded(tmp_path / "set", tmp_path / "cache")
    assert np.bincount(found.test.labels).tolist() == [6] * 10
    assert np.bincount(found.train.labels).tolist() == [24] * 10
    assert not any("also in test" in line for line in said)
