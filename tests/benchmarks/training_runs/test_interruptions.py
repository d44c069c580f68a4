from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from labelcurve.benchmarks.training_runs import interruptions
from labelcurve.benchmarks.training_runs.interruptions import TRAIN, Kill, document


@pytest.fixture(scope="module")
def kills() -> list[Kill]:
    """One, inside the write of a checkpoint."""
    base = (*TRAIN, "--no-test")
    with tempfile.TemporaryDirectory() as folder:
        expected, _ = interruptions.finish(base, Path(folder))
    return [interruptions.one(base, 0.0, True, expected)]


def test_a_killed_run_is_resumed_and_ends_with_the_bundle_of_an_undisturbed_one(
    kills: list[Kill],
) -> None:
    (kill,) = kills
    assert kill.inside_a_write
    assert kill.same
    assert kill.whole
    assert kill.unfinished[0].endswith(".part"), "a file was half written, and never read"


def test_the_document_counts_what_came_of_it(kills: list[Kill]) -> None:
    counts = document(kills)["interruptions"]
    assert isinstance(counts, dict)
    assert set(counts) == {"train"}
    assert counts["train"]["kills"] == counts["train"]["same_version"] == 1
