"""The Open Inference Protocol, version 2, as Triton's and KServe's clients speak it over HTTP.

Images come as one tensor `images`: UINT8 [N, size, size, 3] pixels, or BYTES [N] encoded files
(base64 in JSON). The outputs are `probabilities` FP32 [N, K] and `labels` BYTES [N], the most
probable class of each. Tensors may be binary, after a JSON header whose length is in
`Inference-Header-Content-Length`, as Triton's extension for binary data has it.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from labelcurve.serving.errors import Problem
from labelcurve.serving.models.model import Model
from labelcurve.serving.web.multipart import MAX_PARTS, too_many
from labelcurve.serving.web.request import check_json

HEADER_LENGTH = "inference-header-content-length"

JSON_BYTES = 4 * 2**20
"""Limit of a request's JSON: parsed into Python objects, it takes many times that."""


class InputTensor(BaseModel):
    """Images: UINT8 pixels [N, size, size, 3], or BYTES [N] of encoded files, base64 in JSON.

    With `binary_data_size` among the parameters, the data follow the JSON.
    """

    model_config = ConfigDict(strict=True)
    name: Literal["images"]
    datatype: Literal["UINT8", "BYTES"]
    shape: list[int] = Field(min_length=1, max_length=4)
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class RequestedOutput(BaseModel):
    """An output, binary with the parameter `binary_data`."""

    model_config = ConfigDict(strict=True)
    name: Literal["probabilities", "labels"]
    parameters: dict[str, Any] = {}


class InferenceRequest(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(strict=True)
    id: str | None = Field(default=None, max_length=128)
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] = []
    parameters: dict[str, Any] = {}


@dataclass(frozen=True)
class Inference:
    """An inference request."""

    request_id: str | None
    pixels: list[NDArray[np.uint8]]
    """uint8 [size, size, 3] each; empty where files were sent."""
    files: list[bytes]
    outputs: dict[str, bool]
    """Names of the outputs, and whether each is binary."""


def parse(body: bytes, header_length: str | None, size: int) -> Inference:
    """Parses the inference that a body requests of a model with images of `size`.

    Args:
        body: JSON, or JSON and binary tensors.
        header_length: bytes of the JSON, where binary tensors follow.
        size: pixels of a side.

    Raises:
        Problem: 400 for a body that does not follow the protocol, 413 for too many images.
    """
    length = len(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) < 100
        if not digits or int(header_length) > length:
            raise Problem(f"{HEADER_LENGTH}: {header_length[:80]!r} of {length} bytes")
        length = int(header_length)
    if length > JSON_BYTES:
        raise Problem(
            f"{length:,} bytes of JSON: at most {JSON_BYTES:,} are allowed; send a binary tensor",
            status=413,
            found=length,
            allowed=JSON_BYTES,
        )
    head = body[:length]
    # Nested, each pixel is an array of at least eight bytes, the comma after it included.
    check_json(head, strings=1_000, objects=100, arrays=64 + length // 6)
    try:
        content = InferenceRequest.model_validate_json(head)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"]) or "the body"
        raise Problem(f"{where}: {first['msg']}") from error
    (tensor,) = content.inputs
    n = tensor.shape[0]
    if n > MAX_PARTS:
        raise too_many(n, "images")
    binary = _binary(tensor, body[length:])
    everywhere = bool(content.parameters.get("binary_data_output", False))
    wanted = content.outputs or [
        RequestedOutput(name="probabilities"),
        RequestedOutput(name="labels"),
    ]
    outputs: dict[str, bool] = {
        o.name: bool(o.parameters.get("binary_data", everywhere)) for o in wanted
    }
    if tensor.datatype == "UINT8":
        return Inference(content.id, _pixels(tensor, binary, size), [], outputs)
    files = _unpack(binary) if binary is not None else _decoded(tensor.data)
    if tensor.shape not in ([len(files)], [len(files), 1]) or not files:
        raise Problem(f"images: shape {tensor.shape} for {len(files)} BYTES; expected [N]")
    return Inference(content.id, [], files, outputs)


def _binary(tensor: InputTensor, rest: bytes) -> bytes | None:
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if tensor.data is None or rest:
            raise Problem("images: data, or binary_data_size and as many bytes after the JSON")
        return None
    if size != len(rest) or tensor.data is not None:
        raise Problem(
            f"images: binary_data_size {str(size)[:80]!r}, and {len(rest)} bytes after the JSON"
        )
    return rest


def _pixels(tensor: InputTensor, binary: bytes | None, size: int) -> list[NDArray[np.uint8]]:
    expected = [tensor.shape[0], size, size, 3]
    if tensor.shape != expected or tensor.shape[0] < 1:
        raise Problem(
            f"images: shape {tensor.shape}; UINT8 pixels are [N, {size}, {size}, 3], and BYTES [N] "
            "are encoded files of any size"
        )
    try:
        if binary is not None:
            flat = np.frombuffer(binary, np.uint8)
        else:
            flat = np.frombuffer(_whole_numbers(tensor.data or []), np.uint8)
        return list(flat.reshape(expected))
    except ValueError as error:
        raise Problem(f"images: {error}") from error


def _whole_numbers(data: list[Any]) -> bytes:
    """A byte for each number of nested lists.

    Raises:
        ValueError: something else is among them.
    """
    for _ in range(3):
        if {type(item) for item in data} == {list}:
            data = list(chain.from_iterable(data))
    if {type(item) for item in data} != {int} or not 0 <= min(data) <= max(data) <= 255:
        raise ValueError("whole numbers from 0 to 255 are expected")
    return bytes(data)


def _decoded(data: list[Any] | None) -> list[bytes]:
    try:
        return [base64.b64decode(item, validate=True) for item in data or ()]
    except (TypeError, ValueError, binascii.Error) as error:
        raise Problem(f"images: BYTES in JSON are base64 of encoded files ({error})") from error


def _unpack(data: bytes) -> list[bytes]:
    """BYTES: four bytes that say how many follow, little-endian, before each element."""
    found, position = [], 0
    while position < len(data):
        end = position + 4
        length = int.from_bytes(data[position:end], "little")
        if end + length > len(data):
            raise Problem("images: the binary BYTES are truncated")
        found.append(data[end : end + length])
        position = end + length
    return found


def answer(
    model: Model, inference: Inference, probabilities: NDArray[np.float32]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and its headers.

    Args:
        model: that answered.
        inference: what was asked for.
        probabilities: float32 [N, K].
    """
    names = model.bundle.manifest.class_names
    labels = [names[best] for best in probabilities.argmax(1).tolist()]
    outputs, tail = [], b""
    for name, binary in inference.outputs.items():
        of_labels = name == "labels"
        shape = [len(labels)] if of_labels else list(probabilities.shape)
        output: dict[str, Any] = {
            "name": name,
            "datatype": "BYTES" if of_labels else "FP32",
            "shape": shape,
        }
        if binary:
            data = b"".join(map(_packed, labels)) if of_labels else probabilities.tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            tail += data
        else:
            output["data"] = labels if of_labels else probabilities.ravel().tolist()
        outputs.append(output)
    content = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if inference.request_id is not None:
        content["id"] = inference.request_id
    head = json.dumps(content).encode()
    if not tail:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return head + tail, headers


def _packed(label: str) -> bytes:
    data = label.encode()
    return struct.pack("<I", len(data)) + data


def metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """Response of `GET /v2/models/NAME`."""
    size, classes = model.engine.size, len(model.bundle.manifest.class_names)
    return {
        "name": model.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, size, size, 3]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
            {"name": "labels", "datatype": "BYTES", "shape": [-1]},
        ],
    }
