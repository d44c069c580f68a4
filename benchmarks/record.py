"""The schema of `report.json`: what one run of `bench` measured, and under which conditions."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from bundle.manifest import Choice, Epoch

SCHEMA_VERSION: Final = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Provenance(_Record):
    """What a figure needs beside it to be believed, and to be measured again."""

    command: str
    date: str
    """ISO 8601, UTC, at the end of the run."""
    git_commit: str | None
    """With `-dirty` when tracked files differed from it; None outside a git checkout."""
    cpu: str
    cores: int
    """Cores that the process may use (affinity and cgroup counted in)."""
    memory_gb: float
    system: str
    python: str
    packages: dict[str, str]


class ClassScore(_Record):
    """Figures of one class; `support` counts its test images."""

    precision: float
    recall: float
    f1: float
    support: int


class Accuracy(_Record):
    """A model on the whole test split, from file bytes through ONNX Runtime on the CPU.

    F1, precision and recall are weighted by class frequency.
    """

    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    """Wilson's 95 % interval over test images; it says nothing about other seeds."""
    f1: float
    precision: float
    recall: float
    loss: float
    """Mean negative log-likelihood in nats."""
    per_class: dict[str, ClassScore]
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones."""
    manifest_accuracy: float | None
    """What training measured on test; None after `--no-test`."""
    difference: float | None
    """`accuracy` minus `manifest_accuracy`."""
    same_data: bool
    """Whether the data set's hash is the one in the manifest."""


class BatchLatency(_Record):
    """One ONNX Runtime call with a batch of `batch` images, in ms."""

    batch: int
    n: int
    """Timed calls. Below 100, `p99_ms` is close to the slowest call."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p50_low_ms: float
    p50_high_ms: float
    """Lowest and highest median among the fifths of the run: the spread."""
    images_per_s: float
    """`batch` over the mean time of a call."""


class Latency(_Record):
    """Session latency by batch size; the models took turns in every round."""

    provider: str
    threads: int
    rounds: int
    batches: tuple[BatchLatency, ...]


class Load(_Record):
    """`POST /classify` with this model, in a closed loop of `users` clients."""

    users: int
    same_machine: bool
    """Whether clients and service shared the machine."""
    rounds: int
    seconds: float
    """Measured time, summed over the rounds; the start of the clients is left out."""
    n: int
    """Requests that ended in the measured time, failed ones included."""
    errors: int
    messages: dict[str, int]
    """The commonest reasons of failure with their counts."""
    n_checked: int
    """Images sent whose first label was held against the offline prediction."""
    requests_per_s: float
    requests_per_s_low: float
    requests_per_s_high: float
    """Of the slowest and the fastest round."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    """From raw latencies of the answered requests; None when every request failed."""
    client_cpu: float
    """Cores that the load generator kept busy; near 1 it measures itself."""
    server_cpu_ms: float | None
    """CPU time of the server's processes per request; None where they cannot be seen."""


class Model(_Record):
    """One bundle and what was measured of it."""

    name: str
    version: str
    dataset: str
    fraction: float
    n_labels_train: int
    n_labels_val: int
    seed: int
    preset: str
    backbone: str
    n_parameters: int
    size: int
    """Side of the input images in pixels."""
    graph_bytes: int
    epochs: int
    best_epoch: int
    extractor: str | None = None
    """Objective of the extractor that it began with; None for random weights."""
    n_unlabelled: int = 0
    """Other training images that taught without their labels."""
    pretraining_seconds: float | None = None
    """What the extractor had cost when it was made, on whatever machine."""
    train_seconds: float
    trained_on: str
    device: Choice
    history: tuple[Epoch, ...]
    accuracy: Accuracy
    latency: Latency
    load: Load | None

    @property
    def variant(self) -> str:
        """What it is besides its number of labels: `default`, `scratch`, `reference`."""
        scratch = "scratch" if self.extractor is None else ""
        if self.preset == "default":
            return scratch or self.preset
        return f"{self.preset} {scratch}".rstrip()


class Dataset(_Record):
    """The data whose test split was used."""

    name: str
    hash: str
    n_test: int
    class_names: tuple[str, ...]


class Report(_Record):
    """`report.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    dataset: Dataset
    models: tuple[Model, ...]
    """Fewest labels first."""
    warnings: tuple[str, ...]
    """What the reader must know before using a figure; empty after a clean run."""
    provenance: Provenance
