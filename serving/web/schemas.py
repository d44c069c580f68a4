"""The answers as pydantic models, from which the OpenAPI document takes their schemas.

They are not used to build answers: `json.dumps` of a dict costs a fraction of it. The tests check
every answer against the document.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from labelcurve.bundle.manifest import Metrics

Version = Annotated[str, Field(pattern="^[0-9a-f]{12}$")]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Class(_Answer):
    """A class of an image."""

    label: str
    score: Annotated[float, Field(ge=0, le=1)]


class Verdict(_Answer):
    """The classes of an image, with the members for `accept` and `set`."""

    classes: list[Class]
    accepted: bool = False
    set: Annotated[list[str], Field(min_length=1)] = []


class _Running(_Answer):
    name: str
    version: Version
    provider: str
    precision: Literal["fp32", "int8", "fp16"]
    batch_sizes: list[int]


class Refused(_Answer):
    """A version that cannot be served."""

    name: str
    version: str
    error: str


class Model(_Running):
    """A model that is served."""

    default: bool
    fraction: Annotated[float, Field(gt=0, le=1)]
    n_labels_train: int
    n_labels_val: int
    dataset: str
    class_names: list[str]
    input_size: int
    test: Metrics | None
    measured: str | None
    """Of a final model, trained on the test labels, too: the model that `test` is of."""
    versions: list[Version]
    refused: Refused | None


class ReadyModel(_Running):
    """A model that is loaded and warm."""


class Device(_Answer):
    """The device that the models run on."""

    kind: Literal["cpu", "cuda"]
    reason: str


class Ready(_Answer):
    """Every model is loaded and warm."""

    ready: Literal[True]
    device: Device
    models: list[ReadyModel]
    refused: list[Refused]
    keeps_doubtful: bool


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str = ""


class Server(_Answer):
    """The server, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class Live(_Answer):
    """The process answers."""

    live: Literal[True]


class TensorMetadata(_Answer):
    """Name, type and shape of an input or output; -1 stands for any number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(_Answer):
    """A model, in the Open Inference Protocol."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(_Answer):
    """The model is loaded and warm."""

    name: str
    ready: Literal[True]


class OutputTensor(_Answer):
    """An output; its data, row by row, unless they are binary and follow the JSON."""

    name: Literal["probabilities", "labels"]
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    data: list[float] | list[str] = []
    parameters: dict[str, int] = {}


class InferenceAnswer(_Answer):
    """Probabilities and labels of the images."""

    id: str = ""
    model_name: str
    model_version: Version
    outputs: list[OutputTensor]
