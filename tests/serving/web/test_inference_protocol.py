"""The Open Inference Protocol: by hand, and with Triton's own client where it is installed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from labelcurve.bundle import preprocess, store
from labelcurve.serving.errors import Problem
from labelcurve.serving.models.model import Model, open_model
from labelcurve.serving.web.inference_protocol import JSON_BYTES, Inference, answer, metadata, parse
from labelcurve.serving.web.multipart import MAX_PARTS
from tests.models import SIZE, digit_png
from tests.serving.conftest import Service
from tests.serving.models.test_engine import CPU
from tests.serving.web.test_request import problem

PIXELS = np.stack([preprocess.prepare(digit_png(i), SIZE) for i in range(3)])
INFER = "/v2/models/digits-100/infer"


def expected(client: httpx.Client) -> tuple[list[str], list[float]]:
    """Labels and scores of the first three digits, from POST /classify."""
    answers = [client.post("/classify", content=digit_png(i)).json()[0] for i in range(3)]
    return [a["label"] for a in answers], [a["score"] for a in answers]


def outputs(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output for output in answer.json()["outputs"]}


def test_health_and_metadata(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2").json()["name"] == "labelcurve"
    found = client.get("/v2/models/digits-100").json()
    assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}]
    assert found["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}
    (version,) = found["versions"]
    ready = client.get(f"/v2/models/digits-100/versions/{version}/ready").json()
    assert ready == {"name": "digits-100", "ready": True}
    problem(client.get("/v2/models/none"), 404)
    problem(client.get("/v2/models/digits-100/versions/000000000000/ready"), 404)


def test_pixels_and_files_are_answered_as_classify_does(client: httpx.Client) -> None:
    labels, scores = expected(client)
    pixels = {"datatype": "UINT8", "shape": [3, 8, 8, 3], "data": PIXELS.ravel().tolist()}
    files = [base64.b64encode(digit_png(i)).decode() for i in range(3)]
    for tensor in (
        pixels,
        {**pixels, "data": PIXELS.tolist()},
        {"datatype": "BYTES", "shape": [3], "data": files},
        {"datatype": "BYTES", "shape": [3, 1], "data": files},
    ):
        answer = client.post(INFER, json={"id": "mine", "inputs": [{"name": "images", **tensor}]})
        found = outputs(answer)
        assert answer.json()["id"] == "mine"
        assert answer.json()["model_version"] == answer.headers["x-model-version"]
        assert found["labels"]["data"] == labels
        assert found["probabilities"]["shape"] == [3, 10]
        rows = np.reshape(found["probabilities"]["data"], (3, 10))
        np.testing.assert_allclose(rows.max(1), scores, atol=1e-6)


@pytest.mark.parametrize("length", ["1" * 5_000, "\u0661", "-1", ""])
def test_a_length_that_is_no_number_is_400(length: str) -> None:
    with pytest.raises(Problem, match="of 2 bytes") as error:
        parse(b"{}", length, SIZE)
    assert error.value.status == 400


def test_what_does_not_follow_the_protocol_is_400(client: httpx.Client) -> None:
    good = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": [0] * 192}
    for wrong, status in (
        ({**good, "name": "image"}, 400),
        ({**good, "shape": [1, 9, 9, 3]}, 400),
        ({**good, "shape": [0, 8, 8, 3], "data": []}, 400),
        ({**good, "shape": [-1, 8, 8, 3]}, 400),
        ({**good, "data": [256] * 192}, 400),
        ({**good, "data": [0.5] * 192}, 400),
        ({**good, "data": [0] * 191}, 400),
        ({**good, "shape": [65, 8, 8, 3]}, 413),
        ({**good, "datatype": "BYTES", "shape": [1], "data": ["no base64"]}, 400),
        ({**good, "datatype": "BYTES", "shape": [2], "data": ["AAAA"]}, 400),
        ({**good, "datatype": "BYTES", "shape": [1], "data": ["AAAA"]}, 415),
    ):
        problem(client.post(INFER, json={"inputs": [wrong]}), status)
    problem(client.post(INFER, content=b"{"), 400)
    problem(client.post(INFER, content=bytes(5 * 2**20)), 413)
    problem(client.get(INFER), 405)


def test_as_many_images_as_allowed_are_taken_and_one_more_is_413() -> None:
    def body(n: int) -> bytes:
        data = [0] * (192 * n)
        tensor = {"name": "images", "datatype": "UINT8", "shape": [n, 8, 8, 3], "data": data}
        return json.dumps({"inputs": [tensor]}).encode()

    assert len(parse(body(MAX_PARTS), None, SIZE).pixels) == MAX_PARTS
    with pytest.raises(Problem, match="65 images in one request: at most 64") as error:
        parse(body(MAX_PARTS + 1), None, SIZE)
    assert error.value.status == 413
    assert error.value.members == {"found": 65, "allowed": 64}


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (b"{}", "3"),
        (b"{}", "-1"),
        (b'{"inputs": [{"name": "images", "datatype": "BYTES", "shape": [1],'
         b' "parameters": {"binary_data_size": 6}}]}\x03\0\0\0ab', None),
    ],
)  # fmt: skip
def test_binary_tensors_that_break_off_are_refused(body: bytes, length: str | None) -> None:
    with pytest.raises(Problem):
        parse(body, length or str(len(body) - 6), SIZE)


def kserve_body(tensor: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The JSON that `kserve.InferenceRESTClient` 0.21 sends for an `InferRequest`."""
    inputs = [{"name": "images", **tensor}]
    return {"id": "dd900d52-f82b", "model_name": "digits-100", "inputs": inputs, **more}


def test_what_kserves_client_sends_and_reads(client: httpx.Client) -> None:
    """Its dependencies clash with the project's: these are its requests, and what it reads."""
    labels, _ = expected(client)
    # It reads the members `live` and `ready` of the health routes, and the status of the model's.
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json()["ready"] is True
    assert client.get("/v2/models/digits-100/ready").is_success
    pixels = {"shape": [3, 8, 8, 3], "datatype": "UINT8"}
    answer = client.post(INFER, json=kserve_body({**pixels, "data": PIXELS.ravel().tolist()}))
    assert outputs(answer)["labels"]["data"] == labels
    assert answer.json()["id"] == "dd900d52-f82b"
    packed = len(digit_png(0)).to_bytes(4, "little") + digit_png(0)
    for tensor, binary, n in (
        (pixels, PIXELS.tobytes(), 3),
        ({"shape": [1], "datatype": "BYTES"}, packed, 1),
    ):
        parameters = {"binary_data_size": len(binary)}
        head = json.dumps(kserve_body({**tensor, "parameters": parameters})).encode()
        answer = client.post(
            INFER,
            content=head + binary,
            headers={
                "inference-header-content-length": str(len(head)),
                "content-type": "application/octet-stream",
            },
        )
        assert outputs(answer)["labels"]["data"] == labels[:n]
    wanted = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    body = kserve_body({**pixels, "data": PIXELS.ravel().tolist()}, outputs=wanted)
    answer = client.post(INFER, json=body)
    length = int(answer.headers["inference-header-content-length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(answer.content) - length == 3 * 10 * 4


def test_tritons_client_works_unchanged(service: Service, client: httpx.Client) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    labels, scores = expected(client)
    asked = triton.InferenceServerClient(f"127.0.0.1:{service.port}")
    try:
        assert asked.is_server_live()
        assert asked.is_server_ready()
        assert asked.is_model_ready("digits-100")
        (version,) = asked.get_model_metadata("digits-100")["versions"]
        for binary in (True, False):
            pixels = triton.InferInput("images", [3, 8, 8, 3], "UINT8")
            pixels.set_data_from_numpy(PIXELS, binary_data=binary)
            found = asked.infer("digits-100", [pixels], model_version=version)
            assert [label.decode() for label in found.as_numpy("labels")] == labels
            rows = found.as_numpy("probabilities")
            np.testing.assert_allclose(rows.max(1), scores, atol=1e-6)
        files = triton.InferInput("images", [3], "BYTES")
        files.set_data_from_numpy(np.array([digit_png(i) for i in range(3)], dtype=object))
        only = triton.InferRequestedOutput("probabilities", binary_data=False)
        found = asked.infer("digits-100", [files], outputs=[only])
        np.testing.assert_allclose(found.as_numpy("probabilities").max(1), scores, atol=1e-6)
        assert found.as_numpy("labels") is None
    finally:
        asked.close()


def request(data: Any, **more: Any) -> bytes:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3], "data": data}
    return json.dumps({"inputs": [tensor], **more}).encode()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (request(["a" * 1_000_000] + [""] * 500), "whole numbers from 0 to 255"),
        (request(["a"] + [""] * 2_000), 'more than 2,000 ": too many strings'),
        (request([[[[1]]] * 9] * 30_000), r"more than [0-9,]+ \[: too many arrays"),
        (request([{}] * 200), "more than 100 {: too many objects"),
        (request([True] * 192), "whole numbers"),
        (request([1.0] * 192), "whole numbers"),
        (request([256] + [0] * 191), "whole numbers"),
        (request([-1] + [0] * 191), "whole numbers"),
        (request([10**30] + [0] * 191), "whole numbers"),
        (request([]), "whole numbers"),
        (request([[1, 2], 3]), "whole numbers"),
        (request([[[[[1]]]]] * 9), "whole numbers"),
        (request([0] * 191), "reshape"),
        (request(None, parameters={"x" * 20: 1}), "data, or binary_data_size"),
    ],
)
def test_tensors_of_anything_but_bytes_are_refused(body: bytes, says: str) -> None:
    with pytest.raises(Problem, match=says):
        parse(body, None, 8)


def test_a_nested_tensor_of_the_most_pixels_is_taken() -> None:
    zeros = np.zeros((2, 224, 224, 3), np.uint8)
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(zeros.shape)}
    body = json.dumps({"inputs": [{**tensor, "data": zeros.tolist()}]}, separators=(",", ":"))
    assert len(parse(body.encode(), None, 224).pixels) == 2


@pytest.fixture(scope="module")
def model(digits_models: Path) -> Iterator[Model]:
    model = open_model(store.read(digits_models, "digits-50"), CPU, 1, 8)
    yield model
    model.batcher.close()


def test_an_output_is_binary_where_it_or_the_whole_request_says_so() -> None:
    def wanted(**more: Any) -> dict[str, bool]:
        return parse(request([0] * 192, **more), None, 8).outputs

    labels, both = {"name": "labels"}, {"probabilities": False, "labels": False}
    assert wanted() == both
    assert wanted(parameters={"binary_data_output": True}) == dict.fromkeys(both, True)
    assert wanted(outputs=[labels]) == {"labels": False}
    assert wanted(outputs=[labels], parameters={"binary_data_output": True}) == {"labels": True}
    plain = {**labels, "parameters": {"binary_data": False}}
    assert wanted(outputs=[plain], parameters={"binary_data_output": True}) == {"labels": False}
    assert parse(request([0] * 192), None, 8).request_id is None
    assert parse(request([0] * 192, id="x" * 128), None, 8).request_id == "x" * 128
    with pytest.raises(Problem, match="id: "):
        parse(request([0] * 192, id="x" * 129), None, 8)


def test_an_answer_is_json_and_after_it_the_binary_outputs_in_their_order(model: Model) -> None:
    rows = np.eye(10, dtype=np.float32)[[3, 7]]
    asked = Inference("mine", [], [], {"labels": True, "probabilities": True})
    body, headers = answer(model, asked, rows)
    length = int(headers["inference-header-content-length"])
    assert headers["content-type"] == "application/octet-stream"
    assert json.loads(body[:length]) == {
        "model_name": "digits-50",
        "model_version": model.version,
        "outputs": [
            {"name": "labels", "datatype": "BYTES", "shape": [2],
             "parameters": {"binary_data_size": 10}},
            {"name": "probabilities", "datatype": "FP32", "shape": [2, 10],
             "parameters": {"binary_data_size": 80}},
        ],
        "id": "mine",
    }  # fmt: skip
    assert body[length:] == b"\1\0\0\0003\1\0\0\0007" + rows.tobytes()
    plain, headers = answer(model, Inference(None, [], [], {"labels": False}), rows)
    assert headers == {"content-type": "application/json"}
    assert json.loads(plain) == {
        "model_name": "digits-50",
        "model_version": model.version,
        "outputs": [{"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["3", "7"]}],
    }


def test_metadata_name_what_goes_in_and_comes_out(model: Model) -> None:
    assert metadata(model, ["1", "2"]) == {
        "name": "digits-50",
        "versions": ["1", "2"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "labels", "datatype": "BYTES", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize(("more", "status"), [(0, 400), (1, 413)])
def test_json_has_a_limit_that_binary_tensors_do_not_count_for(more: int, status: int) -> None:
    with pytest.raises(Problem) as caught:
        parse(b" " * (JSON_BYTES + more) + b"\0" * 100, str(JSON_BYTES + more), 8)
    assert caught.value.status == status


@pytest.mark.parametrize("rest", [b"\0" * 191, b"\0" * 193])
def test_as_many_bytes_follow_as_were_announced(rest: bytes) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 3]}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 192}}]}).encode()
    with pytest.raises(Problem, match=f"192', and {len(rest)} bytes after"):
        parse(head + rest, str(len(head)), 8)
    (pixels,) = parse(head + bytes(range(192)), str(len(head)), 8).pixels
    assert pixels.ravel().tolist() == list(range(192))
