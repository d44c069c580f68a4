"""POST /embed: the graph's own output, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime

from labelcurve.bundle import preprocess, store
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.model import open_engine
from tests.models import SIZE, digit_png
from tests.serving.conftest import Service
from tests.serving.web.test_request import problem

PNGS = [digit_png(i) for i in range(20)]
PIXELS = [preprocess.prepare(png, SIZE) for png in PNGS]


def of_the_graph(models: Path, name: str) -> list[list[float]]:
    graph = store.read(models, name).graph
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    found: list[list[float]] = session.run(["embedding"], {"images": np.stack(PIXELS)})[0].tolist()
    return found


def test_it_is_the_graphs_own_output(client: httpx.Client, digits_models: Path) -> None:
    expected = of_the_graph(digits_models, "digits-50")
    raw = client.post("/embed", content=PNGS[0], params={"model": "digits-50"})
    assert raw.status_code == 200, raw.text
    assert raw.json() == expected[0]
    assert raw.headers["x-model-name"] == "digits-50"
    assert "inference;dur=" in raw.headers["server-timing"]
    inputs = {"inputs": base64.b64encode(PNGS[0]).decode()}
    assert client.post("/embed?model=digits-50", json=inputs).json() == expected[0]
    files = [("images", png) for png in PNGS]  # more than one batch holds
    assert client.post("/embed?model=digits-50", files=files).json() == expected


def test_what_is_refused(client: httpx.Client) -> None:
    said = problem(client.post("/embed?top_k=2", content=PNGS[0]), 400)
    assert "top_k is for /classify" in said["detail"]
    inputs = {"inputs": base64.b64encode(PNGS[0]).decode(), "parameters": {"top_k": 2}}
    problem(client.post("/embed", json=inputs), 400)
    problem(client.post("/embed?model=none", content=PNGS[0]), 404)
    problem(client.post("/embed", content=b"text"), 415)
    problem(client.get("/embed"), 405)


def test_a_batch_of_both_answers_each(digits_models: Path) -> None:
    engine = open_engine(store.read(digits_models, "digits-50"), Device("cpu", "a test"), 1)
    assert engine.embedding_size == SIZE * SIZE
    probabilities, embeddings = engine.embed(PIXELS[:3])
    np.testing.assert_array_equal(probabilities, engine.run(PIXELS[:3]))
    np.testing.assert_array_equal(embeddings, of_the_graph(digits_models, "digits-50")[:3])


def test_a_model_without_an_embedding(
    start_service: Callable[..., Service], digits_models: Path, tmp_path: Path
) -> None:
    bundle = store.read(digits_models, "digits-10")
    graph = onnx.load_from_string(bundle.graph)
    del graph.graph.output[1]
    run = store.read_run(bundle.path)
    store.publish(tmp_path, bundle.manifest, graph.SerializeToString(), "# digits\n", run)
    service = start_service(tmp_path)
    service.wait_until_ready()
    said = problem(httpx.post(f"{service.url}/embed", content=PNGS[0]), 400)
    assert "has no embedding: its graph lacks the output `embedding`" in said["detail"]
    assert httpx.post(f"{service.url}/classify", content=PNGS[0]).status_code == 200
