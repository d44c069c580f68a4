from __future__ import annotations

from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from serving import openapi
from tests.models import digit_png


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def check(document: dict[str, Any], response: httpx.Response) -> None:
    """The response is one that the document describes."""
    request = response.request
    described = document["paths"][request.url.path][request.method.lower()]["responses"]
    content = described[str(response.status_code)]["content"]
    media_type = response.headers["content-type"].partition(";")[0]
    schema = {**content[media_type]["schema"], "components": document["components"]}
    body = response.text if media_type.startswith("text/") else response.json()
    Draft202012Validator(schema).validate(body)


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    assert document == openapi.document()
    validate(document)


def test_every_get_answers_as_described(document: dict[str, Any], client: httpx.Client) -> None:
    for path, methods in document["paths"].items():
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
