"""The client of the Hugging Face Hub, unchanged, against the service."""

from __future__ import annotations

import base64
import json
import socket
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


CLIENTS = Path(__file__).parents[3] / "benchmarks/results/clients.json"


def recorded() -> dict[str, bytes]:
    """Requests of released versions of the clients, by client and version; each request once."""
    found: dict[bytes, str] = {}
    for trial in json.loads(CLIENTS.read_text())["trials"]:
        for number, text in enumerate(trial["requests"]):
            request = base64.b64decode(text)
            head, _, body = request.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if b"user-agent:" not in line.lower()]
            without = b"\r\n".join([*lines, b"", body])
            found.setdefault(without, f"{trial['client']} {trial['version']}, {number}")
    return {name: request for request, name in found.items()}


@pytest.mark.parametrize("name", recorded())
def test_what_released_versions_send_is_answered(name: str, service: Service) -> None:
    line, _, rest = recorded()[name].partition(b"\r\n")
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(line + b"\r\nHost: x\r\nConnection: close\r\n" + rest)
        answer = b""
        while received := connection.recv(2**16):
            answer += received
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), answer
    assert len(json.loads(body)) == (2 if b'"top_k"' in rest else 5)


def test_every_generation_of_the_clients_was_recorded() -> None:
    trials = json.loads(CLIENTS.read_text())["trials"]
    assert {trial["client"] for trial in trials} == {"huggingface_hub", "@huggingface/inference"}
    for client, releases in (
        ("huggingface_hub", {"0", "1", "2"}),
        ("@huggingface/inference", {"2", "3", "4"}),
    ):
        answered = [
            trial["version"]
            for trial in trials
            if trial["client"] == client and "5 classes" in trial["outcomes"].values()
        ]
        assert {version.partition(".")[0] for version in answered} == set(releases)
