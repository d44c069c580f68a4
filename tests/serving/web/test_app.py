from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from labelcurve.bundle import preprocess, store
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.model import open_engine
from tests.models import SIZE, digit_png
from tests.serving.conftest import Service, wait_for
from tests.serving.web.test_request import problem


def test_the_answer_is_the_models(client: httpx.Client, digits_models: Path) -> None:
    response = client.post("/classify", content=digit_png(3), params={"top_k": 99})
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    bundle = store.read(digits_models, "digits-100")
    engine = open_engine(bundle, Device("cpu", "a test"), 1)
    (row,) = engine.run([preprocess.prepare(digit_png(3), SIZE)])
    scores = {c["label"]: c["score"] for c in answer}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    expected = dict(zip(bundle.manifest.class_names, row.tolist(), strict=True))
    assert scores == pytest.approx(expected)


def test_five_classes_unless_told_otherwise(client: httpx.Client) -> None:
    assert len(client.post("/classify", content=digit_png(0)).json()) == 5
    one = client.post("/classify", content=digit_png(0), params={"top_k": 1})
    assert len(one.json()) == 1


@pytest.mark.parametrize("top_k", ["0", "-1", "x", "", "1.5", "1_0", "9" * 5000])
def test_top_k_must_be_a_positive_number(client: httpx.Client, top_k: str) -> None:
    response = client.post("/classify", content=digit_png(0), params={"top_k": top_k})
    assert "top_k" in problem(response, 400)["detail"]


def test_the_headers_say_who_answered_and_how_long_it_took(
    client: httpx.Client, digits_models: Path
) -> None:
    for name in store.names(digits_models):
        version = store.read(digits_models, name).version
        for wanted in (name, f"{name}@{version}"):
            headers = client.post(
                "/classify", content=digit_png(0), params={"model": wanted}
            ).headers
            assert headers["x-model-name"] == name
            assert headers["x-model-version"] == version
            assert re.fullmatch(
                ", ".join(
                    rf"{stage};dur=\d+\.\d+" for stage in ("decode", "queue", "inference", "encode")
                ),
                headers["server-timing"],
            )
    default = client.post("/classify", content=digit_png(0))
    assert default.headers["x-model-name"] == "digits-100"


@pytest.mark.parametrize("wanted", ["digits", "digits-10@000000000000", "../digits-10", ""])
def test_an_unknown_model_is_404_and_names_those_that_exist(
    client: httpx.Client, digits_models: Path, wanted: str
) -> None:
    response = client.post("/classify", content=digit_png(0), params={"model": wanted})
    exist = {f"{b.name}@{b.version}" for b in store.read_all(digits_models)}
    assert set(problem(response, 404)["models"]) == exist


def test_models(client: httpx.Client, digits_models: Path) -> None:
    listed = client.get("/models").json()
    bundles = store.read_all(digits_models)
    assert [m["name"] for m in listed] == [b.name for b in bundles]
    for model, bundle in zip(listed, bundles, strict=True):
        manifest = bundle.manifest
        assert model["version"] == bundle.version
        assert model["fraction"] == manifest.fraction
        assert model["n_labels_train"] == manifest.n_labels_train
        assert model["class_names"] == list(manifest.class_names)
        assert manifest.test is not None
        assert model["test"] == manifest.test.model_dump()
    assert [m["default"] for m in listed] == [False, False, True]


def test_readiness_names_the_provider_in_use(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    ready = client.get("/readyz").json()
    assert ready["ready"] is True
    assert ready["device"]["reason"]
    assert len(ready["models"]) == 3
    for model in ready["models"]:
        assert model["provider"] == {
            "cpu": "CPUExecutionProvider",
            "cuda": "CUDAExecutionProvider",
        }[ready["device"]["kind"]]  # fmt: skip
        assert model["batch_sizes"][0] == 1


def test_the_index_leads_to_every_route(client: httpx.Client) -> None:
    for link in client.get("/").json()["links"]:
        assert client.get(link).status_code == 200


def test_answers_do_not_get_mixed_up_under_load(client: httpx.Client) -> None:
    images = [digit_png(i) for i in range(10)]
    alone = [client.post("/classify", content=image).json() for image in images]
    with ThreadPoolExecutor(16) as pool:
        together = list(
            pool.map(lambda image: client.post("/classify", content=image).json(), images * 20)
        )
    for answer, expected in zip(together, alone * 20, strict=True):
        assert [c["label"] for c in answer] == [c["label"] for c in expected]
        for ours, theirs in zip(answer, expected, strict=True):
            assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)


def test_a_full_queue_is_503_and_a_slow_body_408(
    start_service: Callable[..., Service], digits_models: Path
) -> None:
    service = start_service(digits_models, "--queue", "2", "--body-timeout", "0.5", "--access-log")
    service.wait_until_ready()
    with httpx.Client(base_url=service.url, timeout=30) as client:
        response = client.post("/classify", files=[("images", digit_png(0))] * 3)
        problem(response, 503)
        assert response.headers["retry-after"] == "1"
        assert client.post("/classify", files=[("images", digit_png(0))] * 2).status_code == 200

        def slow() -> Iterator[bytes]:
            yield b"never the end"
            wait_for(lambda: " 408 POST /classify" in service.output)
            yield b""

        response = client.post("/classify", content=slow())
        problem(response, 408)
        assert response.headers["connection"] == "close"
    assert "POST" in service.output
    assert service.stop() == 0
