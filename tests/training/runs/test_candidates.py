from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data
from labelcurve.training.runs import candidates


@pytest.fixture(scope="module")
def sixteen(cache: Path) -> Data:
    return dataset.load("digits", size=16, cache=cache)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As measured: the time is proportional to the pixels."""
    found: list[str] = []

    def took(images: Data, backbone: str) -> float:
        found.append(backbone)
        name, _, factor = backbone.partition("/")
        return (1.0 if name == "convnet" else 8.0) / int(factor or 1)

    monkeypatch.setattr(candidates, "_took", took)
    return found


def choose(
    limit: float, images: Data, backbone: str, file: Path = Path("/dev/null/times.json")
) -> str | None:
    return candidates.choose(limit, images, backbone, candidates.Times(images, file))


def test_a_model_that_is_cheap_enough_needs_no_other(sixteen: Data, measured: list[str]) -> None:
    assert choose(1.0, sixteen, "convnet") is None
    assert measured == ["convnet"]


def test_the_compact_network_is_offered_on_smaller_images(
    sixteen: Data, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(0.7, sixteen, "convnet") == "convnet/2"
    said = " ".join(capsys.readouterr().out.split())
    assert "convnet 1.00 ms on one thread, and convnet/2 (on images of 1/2 the side) 0.50" in said
    assert choose(0.5, sixteen, "convnet") == "convnet/2", "the limit itself is allowed"


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (8, ["convnet"]),
        (64, ["convnet", "convnet/2", "convnet/4", "convnet/8"]),
        (65, []),
        (66, ["convnet/2"]),
        (512, ["convnet/8"]),
    ],
)
def test_the_compact_network_is_tried_at_sides_of_8_to_64_pixels(
    sixteen: Data, size: int, names: list[str]
) -> None:
    images = replace(sixteen, size=size)
    assert list(candidates._candidates("reference", images)) == names
    assert list(candidates._candidates("convnet", images)) == names[names[:1] == ["convnet"] :]


def test_pretrained_weights_on_smaller_images_come_before_the_compact_network(
    sixteen: Data, measured: list[str]
) -> None:
    assert choose(3.0, sixteen, "torchvision:resnet18") == "torchvision:resnet18/4"
    assert measured == [
        "torchvision:resnet18",
        "torchvision:resnet18/2",
        "torchvision:resnet18/4",
    ], "what comes after the first that is cheap enough is not measured"
    assert choose(0.6, sixteen, "torchvision:resnet18") == "convnet/2"


def test_weights_for_each_position_of_an_image_fit_no_smaller_one(
    cache: Path, measured: list[str]
) -> None:
    images = dataset.load("digits", size=32, cache=cache)
    assert choose(7.0, images, "timm:vit_tiny_patch16_224") == "convnet"
    assert measured == ["timm:vit_tiny_patch16_224", "convnet"]


def test_a_limit_that_no_network_meets_is_refused_with_the_cheapest(
    sixteen: Data, measured: list[str]
) -> None:
    with pytest.raises(LabelcurveError) as refused:
        choose(0.1, sixteen, "convnet")
    said = str(refused.value)
    assert said.startswith("--max-latency 0.1: the cheapest network for 16 px is convnet/2 with ")
    assert "0.50 ms an image" in said


def test_an_untrained_graph_is_measured(sixteen: Data) -> None:
    # No time limit holds on every machine: this one is far from any.
    with pytest.raises(
        LabelcurveError, match=r"is convnet(/2)? with \d+\.\d\d ms an image on one "
    ):
        choose(1e-6, sixteen, "convnet")


def test_a_resumed_command_decides_as_before(
    sixteen: Data, measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model" / candidates.TIMES
    assert choose(0.7, sixteen, "convnet", file) == "convnet/2"
    monkeypatch.setattr(candidates, "_took", lambda *_: 0.6)
    assert choose(0.7, sixteen, "convnet", file) == "convnet/2"
    assert json.loads(file.read_text()) == {"convnet at 16 px": 1.0, "convnet/2 at 16 px": 0.5}
    again = candidates.Times(sixteen, file, fresh=True)
    assert candidates.choose(0.7, sixteen, "convnet", again) is None
    file.write_text("half of")
    assert candidates.choose(0.7, sixteen, "convnet", candidates.Times(sixteen, file)) is None
