from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from torch import Tensor, nn

from labelcurve.benchmarks.training_runs import speed
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.runtime.device import FP32_CPU, Device


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--seconds", "0", "values above 0"),
        ("--seconds", "nan", "values above 0"),
        ("--image-size", "3", "8 to 1024 pixels"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line(
    option: str, value: str, allowed: str
) -> None:
    with pytest.raises(LabelcurveError, match=f"^{option} {value}: allowed are {allowed}$"):
        speed.main([option, value])


def test_the_convolutions_get_inputs_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[nn.Conv2d, tuple[int, ...]]] = []

    def note(module: nn.Conv2d, shape: tuple[int, ...], _: Device) -> Callable[[], None]:
        seen.append((module, shape))
        return lambda: None

    monkeypatch.setattr(speed, "_alone", note)
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, padding=1)
    network = nn.Sequential(first, nn.MaxPool2d(2), nn.ReLU(), second, nn.Flatten())
    assert len(speed._convolutions(network, (7, 3, 16, 16), FP32_CPU)) == 2
    assert seen == [(first, (7, 3, 16, 16)), (second, (7, 4, 8, 8))]
    assert not first._forward_pre_hooks


def test_a_convolution_alone_goes_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    plain = nn.functional.conv2d

    def conv2d(inputs: Tensor, weight: Tensor, padding: int) -> Tensor:
        made.extend((plain(inputs, weight, padding=padding), inputs, weight))
        return made[-3]

    monkeypatch.setattr(nn.functional, "conv2d", conv2d)
    for channels in (3, 4):  # the first of a network has fixed weights
        speed._alone(nn.Conv2d(channels, 8, 3, padding=1), (5, channels, 6, 6), FP32_CPU)()
        out, inputs, weight = made[-3:]
        assert out.shape == (5, 8, 6, 6)
        assert [part.grad is not None for part in (inputs, weight)] == [channels != 3] * 2


def test_the_time_of_a_call_leaves_out_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    calls: list[float] = []

    def work() -> None:
        calls.append(clock[0])
        clock[0] += 0.5 if len(calls) > 1 else 100

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert speed._time(work, 1.75, FP32_CPU) == 0.5
    assert len(calls) == 5


def test_the_last_line_holds_the_rate_and_the_share_of_the_ceiling() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "labelcurve.benchmarks.training_runs.speed"),
            *("--seconds", "0.05", "--image-size", "16", "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert set(document["speed"]) == {"pretraining", "fine-tuning"}
    for figure in document["speed"].values():
        assert 0 < figure["spread"][0] <= figure["images_per_s"] <= figure["spread"][1]
        assert figure["ratio"] == figure["images_per_s"] / figure["ceiling"]
