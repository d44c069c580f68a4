"""Operations of a training step on a GPU, counted on a CPU: few, and none that synchronises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from labelcurve.bundle.manifest import Choice
from labelcurve.training import recipes
from labelcurve.training.learning import optimizers
from labelcurve.training.learning.augment import Views
from labelcurve.training.learning.finetune import Examples, Labelled, finetune
from labelcurve.training.learning.loop import Loop
from labelcurve.training.learning.objectives import Contrastive
from labelcurve.training.learning.pretrain import pretrain
from labelcurve.training.models.backbones import build
from labelcurve.training.runtime.device import FP32_CPU

BF16 = FP32_CPU.with_precision(Choice(value="bf16", reason="as on a GPU"))

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "linalg_inv_ex", "equal"}
"""A GPU's answer is needed before the next operation can begin."""

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach"}

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}
"""Computed in fp32: a processor without bf16 arithmetic takes minutes for them."""

PRETRAINING, FINETUNING = 857, 713
"""Operations of a step before they were counted: both waited, 20 and 12 times."""


class Counted(TorchDispatchMode):
    """Counts operations that compute: neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        schema = func._schema
        name = schema.name.removeprefix("aten::")
        is_view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if not is_view and name not in FREE and not name.startswith("profiler::"):
            self.found[name] += _launches(name, args)
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITS or by_mask:
            self.waits.append(f"{name} by a mask" if by_mask else name)
        if name not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        wide = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs or {}))
        found = func(*wide[0], **wide[1])
        narrow = any(t.dtype is torch.bfloat16 for t in tree_leaves(args) if _is_tensor(t))
        return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, found) if narrow else found


def _is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor)


def _launches(name: str, args: Sequence[Any]) -> int:
    """One for all tensors of a list, where all of their layouts are alike, else one for each."""
    lists = [each for each in args if isinstance(each, list | tuple)]
    if not name.startswith("_foreach"):
        return 1
    alike = all(len({t.stride() for t in pair}) == 1 for pair in zip(*lists, strict=False))
    return 1 if alike else len(lists[0])


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    """Records the operations of each step. The first ones create state and constants."""
    found: list[Counted] = []
    real = Loop._take_step

    def take(loop: Loop, progress: float) -> None:
        with Counted() as counted:
            real(loop, progress)
        found.append(counted)

    monkeypatch.setattr(Loop, "_take_step", take)
    # As on a GPU.
    together, adam = optimizers.all_orthogonal, torch.optim.AdamW
    monkeypatch.setattr(optimizers, "all_orthogonal", lambda m, d: together(m, d, pad=True))
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda p, lr, **_: adam(p, lr, fused=True, foreach=False)
    )
    return found


IMAGES = np.random.default_rng(0).integers(0, 256, (128, 16, 16, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 10, 128)


def pretraining() -> None:
    network = build("convnet", IMAGES, 10)
    plan = recipes.pretraining("contrastive", 50_000, 32)
    plan = replace(plan, batch_size=32, epochs=1)
    objective = Contrastive(network.dim, Views(12), plan.n_views, plan.temperature, BF16)
    pretrain(network, objective, IMAGES, plan, BF16, 0)


def finetuning() -> None:
    network = build("convnet", IMAGES, 10)
    plan = recipes.recipe("default", 45_000, flip=True, unlabelled=False)
    plan = replace(plan, batch_size=32, epochs=2)
    some = Labelled(IMAGES, LABELS)
    finetune(network, Examples(some, some), plan, BF16, 0)


@pytest.mark.parametrize(
    ("train", "before"), [(pretraining, PRETRAINING), (finetuning, FINETUNING)]
)
def test_a_step_is_half_as_many_operations_as_it_was_and_waits_for_none(
    train: Callable[[], None], before: int, steps: list[Counted]
) -> None:
    torch.manual_seed(0)
    train()
    last = steps[-1]
    assert not last.waits, last.waits
    n = sum(last.found.values())
    assert 200 < n <= before // 2, last.found.most_common(20)


def test_what_waits_is_noticed() -> None:
    values = torch.arange(4.0)
    with Counted() as counted:
        float(values.sum())
        values[values > 1]
        values[values > 1] = torch.zeros(2)
    assert "_local_scalar_dense" in counted.waits
    assert "index by a mask" in counted.waits
    assert any(each.startswith("index_put") for each in counted.waits)
