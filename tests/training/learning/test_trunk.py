from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from labelcurve.training.data.dataset import Data
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.pretrain import pretrain
from labelcurve.training.recipes import Pretraining
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.pretrained import (
    EXTENDABLE,
    PLAN,
    Counting,
    at_every_step,
    images,
    interrupted,
    parts,
    resumed,
    run,
    same_weights,
)


def extended(digits: Data, path: Path, recipe: Pretraining = EXTENDABLE) -> dict[str, Any]:
    """The file after a first part."""
    net, objective = parts(recipe)
    result = pretrain(net, Counting(objective), images(digits), recipe, FP32_CPU, 0)
    assert result.trunk is not None
    at_every_step(path).write(result.trunk)
    return result.trunk


def same_trunk(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            same_trunk(a[name], b[name]) for name in a.keys() - {"seconds_before", "started"}
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_trunk, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def test_only_an_extendable_run_has_a_trunk(digits: Data) -> None:
    assert run(digits)[1].trunk is None


def test_the_trunk_is_the_run_before_its_learning_rate_fell(digits: Data, tmp_path: Path) -> None:
    trunk = extended(digits, tmp_path / "trunk")
    interrupted(digits, EXTENDABLE, 15, tmp_path / "checkpoint")
    there = at_every_step(tmp_path / "checkpoint").read()
    assert there is not None
    assert there["trunk"] is None
    assert same_trunk(there["modules"], trunk["modules"])
    assert same_trunk(there["optimizers"], trunk["optimizers"])
    assert (trunk["before"], trunk["step"]) == (15, 0)


def test_a_run_resumes_from_the_trunk_with_the_next_images_at_the_full_rate(
    digits: Data, tmp_path: Path
) -> None:
    extended(digits, tmp_path / "trunk")
    net, objective = parts(EXTENDABLE, seed=9)
    said: list[str] = []
    counting = Counting(objective)
    control = Control(checkpoint=at_every_step(tmp_path / "trunk"), say=said.append)
    recipe = replace(EXTENDABLE, epochs=2)
    result = pretrain(net, counting, images(digits), recipe, FP32_CPU, 0, control=control)
    assert (result.epochs, result.views_seen) == (5.0, 2 * 64 * 25)
    whole = Counting(parts()[1])
    pretrain(parts()[0], whole, images(digits), replace(PLAN, epochs=5), FP32_CPU, 0)
    assert all(map(torch.equal, counting.batches, whole.batches[15:]))
    assert len(counting.batches) == 10
    rows = [line.split() for line in said if line.startswith("   ")][1:]
    assert [rows[0][0], rows[0][3], rows[0][4]] == ["3.2/5", "0.02000", "1,024"]
    assert rows[-1][4] == "1,600"
    assert result.trunk is not None
    assert result.trunk["before"] == 15 + 8


@pytest.mark.parametrize("after", [1, 14, 15, 16, 19])
def test_an_interrupted_part_ends_as_an_undisturbed_one(
    digits: Data, tmp_path: Path, after: int
) -> None:
    for name in ("whole", "cut"):
        extended(digits, tmp_path / name)
    net, whole, _ = resumed(digits, EXTENDABLE, tmp_path / "whole")
    interrupted(digits, EXTENDABLE, after, tmp_path / "cut")
    again, cut, _ = resumed(digits, EXTENDABLE, tmp_path / "cut")
    assert same_weights(net, again)
    assert (cut.epochs, cut.views_seen) == (whole.epochs, whole.views_seen)
    assert same_trunk(cut.trunk, whole.trunk)
