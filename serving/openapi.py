"""The OpenAPI document of the routes."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from bundle.preprocess import FORMATS, MAX_BYTES, MAX_PIXELS
from serving.request import MAX_TOP_K

EXAMPLE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAIUlEQVR42mNggAJGBob/DAyMDAxMMBEmBgZGGIMBBwMO"
    "AD4WAQ3UJc3cAAAAAElFTkSuQmCC"
)
"""An image that may be sent, 8 x 8 pixels."""

_REF = "#/components/schemas/"


@cache
def document(metrics: bool = True) -> dict[str, Any]:
    """OpenAPI 3.1.

    Args:
        metrics: whether `/metrics` is among the routes, or on a port of its own.
    """
    own = {"/metrics": {"get": _get("Metrics in Prometheus' text format", _text())}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "labelcurve",
            "version": version("labelcurve"),
            "description": "Image classifiers trained on fractions of the labels.",
        },
        "paths": {
            "/classify": {"post": _classify()},
            "/models": {
                "get": _get("The models that are served", _json(_array("Model")), 401, 503)
            },
            "/livez": {"get": _get("The process answers", _text())},
            "/readyz": {"get": _get("Every model is warm", _json({"$ref": f"{_REF}Ready"}), 503)},
            **(own if metrics else {}),
            "/openapi.json": {"get": _get("This document", _json({"type": "object"}))},
            "/docs": {"get": _get("This document as a page", _text("text/html"))},
            "/": {"get": _get("The routes; to browsers, the page", _index())},
        },
        "components": {"schemas": _schemas()},
    }


def _classify() -> dict[str, Any]:
    image = {"type": "string", "contentMediaType": "image/*", "minLength": 1}
    return {
        "operationId": "classify",
        "summary": "Classes of one image, or of several, best first",
        "parameters": [
            {
                "name": "model",
                "in": "query",
                "description": "NAME or NAME@VERSION; by default the model with the most labels",
                "schema": {"type": "string"},
            },
            {
                "name": "top_k",
                "in": "query",
                "description": "Classes to answer; a JSON body's own top_k goes before it",
                "schema": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MAX_TOP_K,
                    "default": 5,
                },
            },
        ],
        "requestBody": {
            "required": True,
            "description": (
                f"{', '.join(FORMATS)}, told by content; at most {MAX_BYTES} bytes and "
                f"{MAX_PIXELS} pixels. Any other content type counts as image bytes"
            ),
            "content": {
                "image/*": {"schema": image},
                "application/octet-stream": {"schema": image},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "additionalProperties": False,
                        "oneOf": [{"required": ["image"]}, {"required": ["images"]}],
                        "properties": {
                            "image": image,
                            "images": {"type": "array", "items": image, "minItems": 1},
                        },
                    }
                },
                "application/json": {"schema": {"$ref": f"{_REF}Inputs"}},
            },
        },
        "responses": {
            "200": {
                "description": "A list; for the field `images` a list of lists",
                "headers": {
                    "X-Model-Name": _header("The model that answered"),
                    "X-Model-Version": _header("Its version"),
                    "Server-Timing": _header("Milliseconds of decode, queue, inference and encode"),
                    "X-Request-ID": _header("The client's own, or one made for this request"),
                },
                **_json({"oneOf": [_array("Class"), {"type": "array", "items": _array("Class")}]}),
            },
            **_problems(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
        },
    }


def _schemas() -> dict[str, Any]:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    metrics: dict[str, Any] = dict.fromkeys(
        ("accuracy", "f1", "precision", "recall", "loss"), number
    )
    # Bundles of releases that did not measure it have none.
    metrics["balanced_accuracy"] = {"type": ["number", "null"]}
    version = {"type": "string", "pattern": "^[0-9a-f]{12}$"}
    refused = _object({"name": text, "version": text, "error": text})
    running = {
        "name": text,
        "version": version,
        "provider": text,
        "precision": {"enum": ["fp32", "int8", "fp16"]},
        "batch_sizes": {"type": "array", "items": whole},
    }
    return {
        "Class": _object({"label": text, "score": {"type": "number", "minimum": 0, "maximum": 1}}),
        "Inputs": {
            **_object(
                {
                    "inputs": {
                        "type": "string",
                        "contentEncoding": "base64",
                        "minLength": 1,
                        "examples": [EXAMPLE],
                    },
                    "parameters": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "top_k": {
                                "type": ["integer", "null"],
                                "minimum": 1,
                                "maximum": MAX_TOP_K,
                            },
                            "function_to_apply": {"enum": ["softmax", None]},
                        },
                    },
                }
            ),
            "required": ["inputs"],
        },
        "Model": _object(
            {
                **running,
                "default": {"type": "boolean"},
                "fraction": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                "n_labels_train": whole,
                "n_labels_val": whole,
                "dataset": text,
                "class_names": {"type": "array", "items": text},
                "input_size": whole,
                "test": {"oneOf": [_object({"n": whole, **metrics}), {"type": "null"}]},
                "versions": {"type": "array", "items": version},
                "refused": {"oneOf": [refused, {"type": "null"}]},
            }
        ),
        "Ready": _object(
            {
                "ready": {"const": True},
                "device": _object({"kind": {"enum": ["cpu", "cuda"]}, "reason": text}),
                "models": {"type": "array", "items": _object(running)},
                "refused": {"type": "array", "items": refused},
            }
        ),
        "Problem": {
            "type": "object",
            "description": "RFC 9457",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": text,
                "title": text,
                "status": whole,
                "detail": text,
                "request_id": text,
            },
        },
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(properties),
        "properties": properties,
    }


def _array(name: str) -> dict[str, Any]:
    return {"type": "array", "items": {"$ref": f"{_REF}{name}"}}


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
    described = {
        400: "The request is malformed",
        401: "No API key, or none that is known; only where the service asks for one",
        404: "No such model; the answer lists those that exist",
        408: "The body did not arrive in time",
        413: "Too many bytes or pixels",
        415: "Not an image, or not of an accepted format",
        422: "The image is truncated or corrupt",
        429: "The API key has sent too many requests; Retry-After says when to try again",
        503: "Loading or overloaded; Retry-After says when to try again",
        504: "Not answered in time",
    }
    schema = {"$ref": f"{_REF}Problem"}
    return {
        str(status): {
            "description": described[status],
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in statuses
    }
