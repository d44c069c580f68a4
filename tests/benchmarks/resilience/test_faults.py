from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from labelcurve.benchmarks.resilience import client, faults, soak
from labelcurve.benchmarks.resilience.client import Answer
from tests.models import digit_png


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(faults.N_IMAGES):
        (folder / f"{index}.png").write_bytes(digit_png(index))
    return folder


def test_swaps_and_restarts_under_load_lose_nothing(
    digits_models: Path, images: Path, tmp_path: Path
) -> None:
    faults.main(
        ["--models", str(digits_models), "--images", str(images), "--out", str(tmp_path),
         "--only", "swaps", "restarts", "--swaps", "4", "--restarts", "2"]
    )  # fmt: skip
    swaps = json.loads((tmp_path / "swaps.json").read_text())
    assert swaps["swaps"] == 4
    assert swaps["versions_that_answered"] == 4  # the first and three new ones
    assert swaps["errors"] == {}
    assert swaps["answers_unlike_the_version_that_they_name"] == 0
    assert swaps["largest_difference_from_the_named_version"] < 1e-6
    assert swaps["smallest_difference_between_two_versions"] > 1e-6
    assert not swaps["broken_version_answered"]
    restarts = json.loads((tmp_path / "restarts.json").read_text())
    assert restarts["lost"] == 0, restarts
    assert restarts["statuses"]["200"] > 50


def test_a_rate_leaves_out_the_warm_up_and_what_came_after_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]

    async def closed_loop(
        port: int, clients: int, until: Callable[[], bool], requests: object, heard: Any
    ) -> None:
        assert (port, clients) == (3000, 64)
        number = 0
        while not until():
            clock[0] += 0.25
            answer = Answer(503 if number % 4 == 3 else 200, b"", b"", clock[0] / 100)
            assert heard(number, answer) is None  # no pause
            number += 1
        heard(0, ConnectionError("closed"))  # after the end
        clock[0] = 12.0

    monkeypatch.setattr(client, "closed_loop", closed_loop)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    found = asyncio.run(faults._timed(3000, os.getpid(), [b""], 64, 9.0, 0))
    # From 3.25 to 8.75 s, four a second: 18 and 5 answers in 6 seconds.
    assert found["per_s"] == {"200": 3.0, "503": 0.8}
    assert found["offered_per_s"] == 3.8
    assert found["connections"] == 64
    assert found["p50_ms"] == 60.0
    assert 86 < found["p99_ms"] <= 87.5


def test_the_answers_are_compared_with_the_version_that_they_name() -> None:
    names = ("a", "b")

    def answer(version: str, *scores: float) -> Answer:
        body = [{"label": n, "score": s} for n, s in zip(names, scores, strict=True)]
        head = f"HTTP/1.1 200 OK\r\nX-Model-Version: {version}".encode()
        return Answer(200, head, json.dumps(body).encode(), 0.1)

    def rows(*first: float) -> NDArray[np.float32]:
        other = (first[0], first[0])
        return np.array([first, *[other] * (faults.N_IMAGES - 1)], np.float32)

    computed = {"00": rows(0.75, 0.25), "01": rows(0.25, 0.75)}
    pinned = faults.N_IMAGES
    answers = [
        (0, answer("00", 0.75, 0.25)),
        (0, answer("01", 0.25, 0.75)),
        (0, answer("01", 0.75, 0.25)),  # of the other version
        (pinned, answer("00", 0.75, 0.25)),
        (pinned, answer("01", 0.25, 0.75)),  # not the version that was asked for
    ]
    assert faults._differences(answers, computed, names, "00") == {
        "answers_unlike_the_version_that_they_name": 2,
        "largest_difference_from_the_named_version": 0.5,
        "smallest_difference_between_two_versions": 0.5,
    }


def test_a_soak_says_what_it_saw(digits_models: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    soak.main(
        ["--models", str(digits_models), "--images", str(images), "--minutes", "0.06",
         "--rate", "60", "--swap-seconds", "2", "--out", str(out)]
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert result["unexpected"] == {}
    assert result["errors_in_the_log"] == {}
    assert result["versions_that_answered"] > 1
    assert result["statuses"]["good"]["200"] > 50
    assert result["statuses"]["bad"]
    assert result["descriptors"]["max"] > 0
