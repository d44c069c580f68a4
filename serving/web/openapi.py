"""The OpenAPI document of the routes; schemas are those of the pydantic models."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from labelcurve.bundle.acceptance import LEAST_WISHED, MOST_WISHED
from labelcurve.bundle.preprocess import FORMATS, MAX_BYTES, MAX_PIXELS
from labelcurve.serving.web import inference_protocol, schemas
from labelcurve.serving.web.request import EXAMPLE, MAX_TOP_K, Inputs

_REF = "#/components/schemas/"
_OF_IMAGES = (400, 401, 404, 408, 413, 415, 422, 429, 503, 504)
_OF_MODELS = (401, 404, 429, 503)

REQUESTS: tuple[type[BaseModel], ...] = (Inputs, inference_protocol.InferenceRequest)
ANSWERS: tuple[type[BaseModel], ...] = (
    schemas.Class,
    schemas.Verdict,
    schemas.Model,
    schemas.Ready,
    schemas.Problem,
    schemas.Server,
    schemas.Live,
    schemas.ModelMetadata,
    schemas.ModelReady,
    schemas.InferenceAnswer,
)

PROBLEMS = {
    400: "The request is malformed",
    401: "No API key, or none that is known; only where the service asks for one",
    404: "No such model; the answer lists those that exist",
    408: "The body did not arrive in time",
    409: "The model's held-out images do not show what `accept` or `set` asks for",
    413: "Too many bytes or pixels",
    415: "Not an image, or not of an accepted format",
    422: "The image is truncated or corrupt",
    429: "The API key has sent too many requests; Retry-After says when to try again",
    503: "Loading or overloaded; Retry-After says when to try again",
    504: "Not answered in time",
}


@cache
def document(metrics: bool = True, doubtful: bool = False) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
        metrics: whether `/metrics` is among the routes rather than on a separate port.
        doubtful: whether doubtful uploads are kept.
    """
    own = {"/metrics": {"get": _get("Metrics in Prometheus' text format", _text(), 401, 429)}}
    table = _get("The doubtful uploads that are kept, for labelling", _text("text/csv"), 401, 429)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "labelcurve",
            "version": version("labelcurve"),
            "description": "Image classifiers trained on fractions of the labels.",
        },
        "paths": {
            "/classify": {"post": _classify()},
            "/embed": {"post": _embed()},
            "/models": {
                "get": _get("The models that are served", _json(_array("Model")), 401, 429, 503)
            },
            "/livez": {"get": _get("The process answers", _text())},
            "/readyz": {"get": _get("Every model is warm", _json(_ref("Ready")), 503)},
            **(own if metrics else {}),
            **({"/doubtful.csv": {"get": table}} if doubtful else {}),
            **_inference_protocol(),
            "/openapi.json": {"get": _get("This document", _json({"type": "object"}))},
            "/docs": {"get": _get("This document as a page", _text("text/html"))},
            "/": {"get": _get("The routes; to browsers, the page", _index())},
        },
        "components": {"schemas": _schemas()},
    }


def _schemas() -> dict[str, Any]:
    """Returns the schemas of the models, without titles, which only repeat the names."""
    _, found = models_json_schema(
        [
            *((model, "validation") for model in REQUESTS),
            *((model, "serialization") for model in ANSWERS),
        ],
        ref_template=f"{_REF}{{model}}",
    )
    for schema in found["$defs"].values():
        schema.pop("title", None)
        for member in schema.get("properties", {}).values():
            member.pop("title", None)
    # Optional members of a response have a default in the models; pydantic offers no other way.
    for name in ("Problem", "OutputTensor", "InferenceAnswer", "Verdict"):
        optional = {"request_id", "data", "parameters", "id", "accepted", "set"}
        schema = found["$defs"][name]
        schema["required"] = [key for key in schema["properties"] if key not in optional]
        for key in optional & schema["properties"].keys():
            schema["properties"][key].pop("default", None)
    schemas: dict[str, Any] = found["$defs"]
    return schemas


def _classify() -> dict[str, Any]:
    top_k = {
        "name": "top_k",
        "in": "query",
        "description": "Classes to answer; a JSON body's own top_k goes before it",
        "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOP_K, "default": 5},
    }
    one_or_several = [
        _array("Class"),
        {"type": "array", "items": _array("Class")},
        _ref("Verdict"),
        _array("Verdict"),
    ]
    answer = _answer(
        "A list; for the field `images` a list of lists. Where `accept` or `set` is asked for, an "
        "object in place of each list of classes",
        {"anyOf": one_or_several},
    )
    answer["headers"]["X-Accepted"] = _header(
        "true or false for each image, comma-separated; with `accept`, or where the service was "
        "started with --accept"
    )
    return {
        "operationId": "classify",
        "summary": "Classes of one image, or of several, best first",
        "parameters": [
            _MODEL,
            top_k,
            _share("accept", "Accuracy wished among accepted answers: says which are accepted"),
            _share("set", "Wished share of images whose set holds the true class: names the set"),
        ],
        "requestBody": _images(),
        "responses": {
            "200": answer,
            **_problems(*_OF_IMAGES, 409),
        },
    }


def _share(name: str, description: str) -> dict[str, Any]:
    schema = {"type": "number", "minimum": LEAST_WISHED, "maximum": MOST_WISHED}
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _embed() -> dict[str, Any]:
    numbers = {"type": "array", "items": {"type": "number"}, "minItems": 1}
    return {
        "operationId": "embed",
        "summary": "Embedding of one image, or of several: the features before the classes",
        "parameters": [_MODEL],
        "requestBody": _images(),
        "responses": {
            "200": _answer(
                "A list of numbers; for the field `images` a list of lists",
                {"oneOf": [numbers, {"type": "array", "items": numbers, "minItems": 1}]},
            ),
            **_problems(*_OF_IMAGES),
        },
    }


_MODEL = {
    "name": "model",
    "in": "query",
    "description": "NAME or NAME@VERSION; without it, the default model",
    "schema": {"type": "string"},
}


def _images() -> dict[str, Any]:
    # Client generators know `format`; JSON Schema has `contentMediaType` for it.
    image = {"type": "string", "format": "binary", "contentMediaType": "image/*", "minLength": 1}
    images = {"type": "array", "items": image}
    form = {
        "type": "object",
        "description": "Either `image` or `images`",
        "additionalProperties": False,
        # Not oneOf with `required`, for which client generators make no class.
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {"image": image, "images": images},
    }
    return {
        "required": True,
        "description": (
            f"{', '.join(FORMATS)}, detected from the content; at most {MAX_BYTES} bytes and "
            f"{MAX_PIXELS} pixels. Any other content type counts as image bytes"
        ),
        "content": {
            "image/*": {"schema": image},
            "application/octet-stream": {"schema": image},
            "multipart/form-data": {"schema": form},
            **_json(_ref("Inputs"))["content"],
        },
    }


def _inference_protocol() -> dict[str, Any]:
    """Version 2 of the Open Inference Protocol."""
    paths = {
        "/v2": {"get": _get("The server", _json(_ref("Server")), 401, 429)},
        "/v2/health/live": {"get": _get("The process answers", _json(_ref("Live")))},
        "/v2/health/ready": {"get": _get("Every model is warm", _json(_ref("Ready")), 503)},
    }
    name, of_version = (
        {"name": key, "in": "path", "required": True, "schema": {"type": "string"}}
        for key in ("name", "version")
    )
    for path, parameters, suffix in (
        ("/v2/models/{name}", [name], ""),
        ("/v2/models/{name}/versions/{version}", [name, of_version], "Version"),
    ):
        metadata = _get("The model's inputs and outputs", _json(_ref("ModelMetadata")), *_OF_MODELS)
        ready = _get("The model is warm", _json(_ref("ModelReady")), *_OF_MODELS)
        for operation in (metadata, ready):
            operation["parameters"] = parameters
        paths[path] = {"get": metadata}
        paths[f"{path}/ready"] = {"get": ready}
        paths[f"{path}/infer"] = {"post": _infer(f"infer{suffix}", parameters)}
    return paths


def _infer(operation_id: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "description": "Bytes of the JSON, where binary tensors follow it",
        "schema": {"type": "integer", "minimum": 0},
    }
    image = {"name": "images", "datatype": "BYTES", "shape": [1], "data": [EXAMPLE]}
    tensors = {"schema": {"type": "string", "format": "binary"}}
    answer = _answer("The outputs", _ref("InferenceAnswer"))
    answer["content"]["application/octet-stream"] = tensors
    del answer["headers"]["Server-Timing"]
    return {
        "operationId": operation_id,
        "summary": "Probabilities and labels, by the Open Inference Protocol",
        "parameters": [*parameters, length],
        "requestBody": {
            "required": True,
            "description": "JSON, or JSON and binary tensors",
            "content": {
                "application/json": {
                    "schema": _ref("InferenceRequest"),
                    "example": {"inputs": [image]},
                },
                "application/octet-stream": tensors,
            },
        },
        "responses": {"200": answer, **_problems(*_OF_IMAGES)},
    }


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {
            "X-Model-Name": _header("The model that answered"),
            "X-Model-Version": _header("Its version"),
            "Server-Timing": _header("Milliseconds of decode, queue, inference and encode"),
            "X-Request-ID": _header("The client's own, or one made for this request"),
        },
        **_json(schema),
    }


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"{_REF}{name}"}


def _array(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _text(media_type: str = "text/plain") -> dict[str, Any]:
    return {"content": {media_type: {"schema": {"type": "string"}}}}


def _index() -> dict[str, Any]:
    return {"content": _json({"type": "object"})["content"] | _text("text/html")["content"]}


def _get(summary: str, content: dict[str, Any], *problems: int) -> dict[str, Any]:
    return {
        "summary": summary,
        "responses": {"200": {"description": summary, **content}, **_problems(*problems)},
    }


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {
            "description": PROBLEMS[status],
            "content": {"application/problem+json": {"schema": _ref("Problem")}},
        }
        for status in statuses
    }
