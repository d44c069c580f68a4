from __future__ import annotations

import json
from pathlib import Path

import pytest

from labelcurve.benchmarks.resilience import faults, soak
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
