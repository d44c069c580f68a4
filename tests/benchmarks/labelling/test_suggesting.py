from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelcurve.benchmarks.backtest.populations import Population
from labelcurve.benchmarks.harness import provenance
from labelcurve.benchmarks.labelling import suggesting


def test_the_summary_has_n_mean_and_spread_of_each_figure() -> None:
    rows = [
        {"data": "a", "seed": 0, "suggested": [0.7, 0.9], "random": [0.6, 0.9]},
        {"data": "a", "seed": 1, "suggested": [0.8], "random": [0.6]},
    ]
    first, second = suggesting.summary(rows)
    assert (first["labels_a_class"], first["n"]) == (10, 2)
    assert (first["suggested"], first["random"], first["gain"]) == (0.75, 0.6, 0.15)
    assert first["suggested_std"] == first["gain_std"] == 0.0707
    assert first["random_std"] == 0
    assert (second["n"], second["gain"], second["gain_std"]) == (1, 0, None)


def test_a_draw_is_the_same_again_and_both_ways_buy_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(suggesting, "LABELS", (5, 10, 200))
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    features = (np.eye(3)[labels] + random.normal(0, 0.7, (300, 3))).astype(np.float32)
    population = Population("blobs", features, labels)
    found = suggesting.compare(population, 0)
    assert found == suggesting.compare(population, 0)
    assert len(found["suggested"]) == len(found["random"]) == 2  # No pool has 600 images
    assert min(found["suggested"] + found["random"]) > 0.5


def test_the_commit_is_that_before_the_result_was_written(tmp_path: Path) -> None:
    begun = provenance.here().model_copy(update={"git_commit": "before"})
    suggesting.write(tmp_path / "result.json", begun, [])
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["provenance"]["git_commit"] == "before"
    assert found["provenance"]["command"] == begun.command
