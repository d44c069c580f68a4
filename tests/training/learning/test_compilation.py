from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from labelcurve.bundle.manifest import Choice
from labelcurve.training.data.dataset import Data
from labelcurve.training.learning import compilation
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.pretrain import pretrain
from labelcurve.training.models.backbones import build
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.pretrained import PLAN, images, judge, parts

ON = Choice(value="on", reason="a test")


def test_on_a_cpu_it_is_left_out_and_says_why() -> None:
    choice = compilation.choose(FP32_CPU, 1e6)
    assert choice.value == "off"
    assert "CPU" in choice.reason


def test_what_is_short_or_switched_off_or_cannot_compile_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A device that torch does not see here: nothing of it is used before the trial.
    gpu = replace(FP32_CPU, device=torch.device("cuda", 999))
    assert "4,9" not in compilation.choose(gpu, 4_999).reason
    assert "under 5,000 steps" in compilation.choose(gpu, 4_999).reason
    assert "no working compiler here" in compilation.choose(gpu, 5_000).reason
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert compilation.choose(gpu, 5_000).reason == "TORCH_COMPILE_DISABLE=1"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Batch sizes that compiled code has seen; torch's tracer takes the place of its compiler."""
    seen: list[int] = []
    real: Any = torch.compile

    def compile_(function: Any, **_: object) -> Any:
        traced = real(function, backend="eager", dynamic=False)

        def run(images: torch.Tensor) -> Any:
            seen.append(len(images))
            return traced(images)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    return seen


def test_it_is_applied_in_training_alone_and_taken_away_again(calls: list[int]) -> None:
    torch.manual_seed(0)
    network = build(
        "convnet", np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8), 2
    )
    images = torch.rand(4, 3, 8, 8)
    names = set(network.state_dict())
    expected = network.train().embed(images)
    with compilation.applied(network, ON):
        torch.testing.assert_close(network.embed(images), expected)
        assert network(images).shape == (4, 2)
        assert calls == [4, 4]
        assert set(network.state_dict()) == names
        network.eval()
        assert not network.embed(images).isnan().any()
        assert calls == [4, 4]
    network.train().embed(images)
    with compilation.applied(network, compilation.choose(FP32_CPU, 1)):
        network.embed(images)
    assert calls == [4, 4]


def test_every_step_of_a_pretraining_is_compiled_also_after_an_evaluation(
    calls: list[int], digits: Data
) -> None:
    net, objective = parts()
    said: list[str] = []
    with compilation.applied(net, ON):
        pretrain(
            net,
            objective,
            images(digits),
            PLAN,
            FP32_CPU,
            0,
            probe=judge(digits),
            control=Control(say=said.append),
        )
    assert len([row for row in said if "/4" in row]) == 10, "evaluated ten times"
    assert calls == [PLAN.n_views * PLAN.batch_size] * 20


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_on_a_gpu_it_learns_the_same() -> None:
    from labelcurve.training.runtime import device

    gpu = device.choose("cuda")
    choice = compilation.choose(gpu, compilation.WORTH)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    network = build("convnet", pixels, 2).to(gpu.device).train()
    images = torch.rand(8, 3, 16, 16, device=gpu.device)
    expected = network.embed(images)
    with compilation.applied(network, choice):
        for _ in range(4):
            found = network.embed(images)
            found.sum().backward()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
