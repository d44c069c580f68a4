from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from labelcurve.serving.errors import Problem
from labelcurve.serving.web import openapi, query
from tests.models import digit_png


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def check(document: dict[str, Any], response: httpx.Response) -> None:
    """The response is one that the document describes."""
    request = response.request
    path = re.sub(r"(?<=/models/)[^/]+", "{name}", request.url.path)
    path = re.sub(r"(?<=/versions/)[^/]+", "{version}", path)
    described = document["paths"][path][request.method.lower()]["responses"]
    content = described[str(response.status_code)]["content"]
    media_type = response.headers["content-type"].partition(";")[0]
    schema = {**content[media_type]["schema"], "components": document["components"]}
    body = response.text if media_type.startswith("text/") else response.json()
    Draft202012Validator(schema).validate(body)


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert document == openapi.document()
    validate(document)


def test_every_get_answers_as_described(document: dict[str, Any], client: httpx.Client) -> None:
    version = client.get("/v2/models/digits-10").json()["versions"][0]
    for path, methods in document["paths"].items():
        path = path.format(name="digits-10", version=version)
        if "get" in methods:
            response = client.get(path)
            assert response.status_code == 200
            check(document, response)
        else:
            assert client.get(path).status_code == 405


def test_classify_answers_as_described(document: dict[str, Any], client: httpx.Client) -> None:
    png = digit_png(0)
    responses = [
        client.post("/classify", content=png),
        client.post("/classify", files=[("images", png), ("images", png)]),
        client.post("/classify"),
        client.post("/classify", content=png, params={"model": "none"}),
        client.post("/classify", content=bytes(21 * 2**20)),
        client.post("/classify", content=b"text"),
        client.post("/classify", content=png[:-30]),
    ]
    assert [r.status_code for r in responses] == [200, 200, 400, 404, 413, 415, 422]
    for response in responses:
        check(document, response)


def test_numbers_of_the_parameters_are_those_that_are_read() -> None:
    parameters = openapi.document()["paths"]["/classify"]["post"]["parameters"]
    schemas = {parameter["name"]: parameter["schema"] for parameter in parameters}
    assert tuple(schemas) == query.ALLOWED
    assert schemas["top_k"]["default"] == query.DEFAULT_TOP_K
    for name, step in (("top_k", 1), ("accept", 1e-6), ("set", 1e-6)):
        least, most = schemas[name]["minimum"], schemas[name]["maximum"]
        for allowed in (least, most):
            read = query.parse(f"{name}={allowed}".encode())
            assert allowed in (read.top_k, read.wish.accept, read.wish.set)
        for refused in (least - step, most + step):
            with pytest.raises(Problem, match=f"{name}='{refused}'"):
                query.parse(f"{name}={refused}".encode())


def test_routes_are_described_where_the_service_has_them() -> None:
    def paths(**options: bool) -> set[str]:
        return set(openapi.document(**options)["paths"])

    assert paths() - paths(metrics=False) == {"/metrics"}
    assert paths(doubtful=True) - paths() == {"/doubtful.csv"}


def test_embed_and_infer_answer_as_described(
    document: dict[str, Any], client: httpx.Client
) -> None:
    png = digit_png(0)
    infer = "/v2/models/digits-10/infer"
    described = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    body = described["application/json"]["example"]
    responses = [
        client.post("/embed", content=png),
        client.post("/embed", files=[("images", png), ("images", png)]),
        client.post("/embed", content=png, params={"top_k": 3}),
        client.post(infer, json=body),
        client.post(infer, json={**body, "id": "mine"}),
        client.post(infer, json={}),
        client.post("/v2/models/none/infer", json=body),
    ]
    assert [r.status_code for r in responses] == [200, 200, 400, 200, 200, 400, 404]
    for response in responses:
        check(document, response)
    Draft202012Validator(
        {**document["components"]["schemas"]["InferenceRequest"], **document}
    ).validate(body)


def test_generators_of_clients_make_files_and_forms_of_the_bodies(
    document: dict[str, Any],
) -> None:
    """Requirements of openapi-python-client 0.29, whose `classify` else could not send a file.

    It knows bytes by `format: binary` alone, and makes a class of an object, not of a `oneOf`.
    """
    for path in ("/classify", "/embed"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert content["application/octet-stream"]["schema"]["format"] == "binary"
        form = content["multipart/form-data"]["schema"]
        assert form["type"] == "object"
        assert not form.keys() & {"oneOf", "anyOf", "allOf"}
        assert form["properties"]["image"]["format"] == "binary"
        assert form["properties"]["images"]["items"]["format"] == "binary"
        assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/Inputs"}
    identifiers = [
        operation["operationId"]
        for methods in document["paths"].values()
        for operation in methods.values()
        if "operationId" in operation
    ]
    assert identifiers == ["classify", "embed", "infer", "inferVersion"]
