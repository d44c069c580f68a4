"""Real files, damaged at random: an image, or an error that says what is wrong with it."""

from __future__ import annotations

import httpx
import pytest

from labelcurve.benchmarks.resilience.fuzz import mutate, seeds
from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import ImageError
from tests.serving.conftest import Service

SEEDS = seeds()


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_a_damaged_file_is_an_image_or_an_image_error(name: str) -> None:
    outcomes = set()
    for number in range(300):
        data = mutate(SEEDS[name], number)
        try:
            pixels = preprocess.prepare(data, 8, max_memory=170_000_000)
        except ImageError as error:
            outcomes.add(type(error).__name__)
        else:
            assert pixels.shape == (8, 8, 3)
            outcomes.add("image")
    assert len(outcomes) > 1 or name == "tiff"  # not an accepted format, intact or damaged


def test_no_damaged_file_is_an_error_of_the_service(client: httpx.Client, service: Service) -> None:
    statuses = set()
    for number in range(300):
        name = sorted(SEEDS)[number % len(SEEDS)]
        answer = client.post("/classify", content=mutate(SEEDS[name], number))
        statuses.add(answer.status_code)
    assert statuses <= {200, 400, 413, 415, 422}
    assert len(statuses) > 2
    assert "Traceback" not in service.output
