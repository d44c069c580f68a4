from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from PIL import Image

from labelcurve.benchmarks.study import documents
from labelcurve.benchmarks.training_runs import decoding
from labelcurve.training.data.decoded.stored import Images, Stored
from labelcurve.training.learning.batches import Batches
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.sets import digit_rows, write_folder


def test_each_size_is_decoded_and_trained_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = write_folder(tmp_path / "images", digit_rows(4)[:34])
    decoding.main(
        [
            *("--data", str(images), "--sizes", "8", "--backbones", "convnet", "--seconds", "0.05"),
            *("--rounds", "1", "--device", "cpu", "--out", str(tmp_path / "decoding.json")),
        ]
    )
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "decoding.json").read_text()) == document
    assert document["photos"] == 34
    (figure,) = document["figures"]
    assert 0 < figure["decoding"]["low"] == figure["decoding"]["high"]
    (training,) = figure["training"]
    assert min(training["images_per_s"], training["from_cache"], training["anew"]) > 0
    assert 0 <= training["waits_for_cache"] < 1
    assert 0 <= training["waits_for_decoding"] < 1
    assert "8 px, convnet" in documents.render("decoding", **document)


def test_each_rate_stands_under_the_images_that_it_was_measured_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_folder(tmp_path / "images", digit_rows(4)[:34])
    trained = []

    def train(backbone: str, images: Images, *_: object) -> tuple[float, float]:
        trained.append((backbone, images))
        return 100.0 * len(trained), len(trained) / 8

    monkeypatch.setattr(decoding, "_train", train)
    decoding.main(
        [
            *("--data", str(images), "--sizes", "8", "--backbones", "convnet", "--seconds", "0.05"),
            *("--rounds", "2", "--device", "cpu"),
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    (figure,) = json.loads(lines[-1])["figures"]
    assert figure["training"] == [
        {
            "backbone": "convnet",
            "images_per_s": 100,
            "from_cache": 200,
            "waits_for_cache": 0.25,
            "anew": 300,
            "waits_for_decoding": 0.375,
        }
    ]
    assert (
        "from the cache    200.0, waits  25.0%; decoded again    300.0, waits  37.5%" in lines[-2]
    )
    resident, cache, anew = (images for _, images in trained)
    assert not isinstance(resident, Stored)
    assert isinstance(cache, Stored)
    assert isinstance(anew, Stored)
    decoded = figure["decoding"]
    assert decoded["n"] == 2
    assert decoded["low"] <= decoded["mean"] <= decoded["high"]


def test_the_first_step_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = cast(Batches, SimpleNamespace(batch=16, waited=0.0))
    clock, numbers = [100.0], []

    def step(number: int) -> None:
        numbers.append(number)
        clock[0] += 0.5 if number else 60
        batches.waited += 0.125 if number else 30

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    # 2 seconds of steps that take half a second each, a quarter of it waiting.
    assert decoding._timed(step, batches, FP32_CPU, 1.75) == (32.0, 0.25)
    assert numbers == [0, 1, 2, 3, 4]


def test_the_photos_are_what_cameras_make(tmp_path: Path) -> None:
    decoding.generate(tmp_path, 2)
    paths = sorted(tmp_path.rglob("*.jpg"))
    assert len({path.parent for path in paths}) == 2
    for path in paths:
        with Image.open(path) as photo:
            assert photo.format == "JPEG"
            assert 0.9e6 < photo.width * photo.height < 12.1e6
