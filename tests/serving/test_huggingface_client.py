"""The client of the Hugging Face Hub, unchanged, against the service."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.models import digit_png
from tests.serving.conftest import Service


@pytest.fixture
def hub(service: Service) -> InferenceClient:
    return InferenceClient(model=f"{service.url}/classify")


def test_bytes(hub: InferenceClient) -> None:
    answer = hub.image_classification(digit_png(3))
    assert answer[0].label == "3"
    assert len(answer) == 5
    assert [c.score for c in answer] == sorted((c.score for c in answer), reverse=True)


def test_a_path(hub: InferenceClient, tmp_path: Path) -> None:
    path = tmp_path / "three.png"
    path.write_bytes(digit_png(3))
    for image in (path, str(path)):
        assert hub.image_classification(image)[0].label == "3"


def test_top_k(hub: InferenceClient, tmp_path: Path) -> None:
    path = tmp_path / "three.png"
    path.write_bytes(digit_png(3))
    for image in (digit_png(3), path):
        assert [c.label for c in hub.image_classification(image, top_k=2)] == ["3", "5"]


def test_a_model_in_the_url(service: Service) -> None:
    hub = InferenceClient(model=f"{service.url}/classify?model=digits-10")
    assert hub.image_classification(digit_png(3))[0].label == "3"


def test_its_errors_have_our_status(hub: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError) as caught:
        hub.image_classification(b"not an image")
    assert caught.value.response.status_code == 415
