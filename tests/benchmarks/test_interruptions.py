from __future__ import annotations

import pytest

from benchmarks import interruptions
from benchmarks.interruptions import Interruptions, Kill, document


@pytest.fixture(scope="module")
def kills() -> list[Kill]:
    """One at a random moment, one inside the write of a checkpoint."""
    return interruptions.main(Interruptions(kills=2, pretrain_kills=0, seed=1))


def test_a_killed_run_ends_with_the_bundles_of_an_undisturbed_one(kills: list[Kill]) -> None:
    assert [(kill.of, kill.inside_a_write) for kill in kills] == [
        ("train", False),
        ("train", True),
    ]
    assert all(kill.same for kill in kills)
    assert all(kill.whole for kill in kills)


def test_a_kill_inside_a_write_leaves_a_half_written_file_that_is_not_read(
    kills: list[Kill],
) -> None:
    assert kills[1].unfinished
    assert kills[1].unfinished[0].endswith(".part")


def test_the_document_counts_what_came_of_it(kills: list[Kill]) -> None:
    counts = document(kills, ["x"])["interruptions"]
    assert isinstance(counts, dict)
    assert set(counts) == {"train"}
    assert counts["train"]["kills"] == counts["train"]["same_version"] == 2
    assert counts["train"]["inside_a_write"] == 1
