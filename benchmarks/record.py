"""The schema of `report.json`: what one run of `bench` measured, and under which conditions."""

from __future__ import annotations

import binascii
from base64 import b64decode
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bundle.manifest import Choice, Epoch

SCHEMA_VERSION: Final = 1

Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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


class Estimate(_Record):
    """A figure with its 95 % interval; what the interval is over stands where it is used."""

    value: float
    low: float
    high: float


class ClassScore(_Record):
    """Figures of one class; `support` counts its test images."""

    precision: float
    recall: float
    f1: float
    support: int


class Bin(_Record):
    """Test images whose first answer had a probability within one stretch."""

    n: int
    confidence: float
    """Mean probability of the first answer."""
    accuracy: float


class Calibration(_Record):
    """Whether probabilities mean what they say; intervals from a bootstrap over test images."""

    ece: Estimate
    """Expected calibration error of the first answer, bins of equal width (Guo et al. 2017)."""
    nll: Estimate
    """Mean negative log-likelihood in nats."""
    brier: float
    """Mean squared distance of the probabilities from the truth, summed over classes."""
    bins: tuple[Bin, ...]
    """The reliability diagram; empty bins are left out."""


class Shift(_Record):
    """Accuracy on test images that were spoilt in one way."""

    kind: str
    level: str
    accuracy: float
    drop: Estimate
    """Against the same images unspoilt; interval over test images, paired."""


class Robustness(_Record):
    """What becomes of the accuracy when uploads are worse than the test images."""

    n: int
    accuracy: float
    """On the same images, unspoilt."""
    shifts: tuple[Shift, ...]


class Accuracy(_Record):
    """A model on the whole test split, from file bytes through ONNX Runtime on the CPU.

    F1, precision and recall are weighted by class frequency.
    """

    n: Annotated[int, Field(gt=0)]
    accuracy: Share
    accuracy_low: Share
    accuracy_high: Share
    """Wilson's 95 % interval over test images; it says nothing about other seeds."""
    f1: Share
    precision: Share
    recall: Share
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
    f1_low: float | None = None
    f1_high: float | None = None
    """95 % interval from a bootstrap over test images."""
    balanced_accuracy: float | None = None
    """Mean of the recalls of the classes that occur, so that a rare class counts as a frequent one;
    made from `confusion` where a report of an earlier release lacks it."""
    calibration: Calibration | None = None
    right: str | None = None
    """Which test images were right, a bit each in the order of the data set's rows, most
    significant first, in base64: what a paired test between two reports needs."""

    @model_validator(mode="before")
    @classmethod
    def _with_balanced(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("balanced_accuracy") is not None:
            return data
        # What is not as it must be is refused by name, later.
        with suppress(KeyError, TypeError, ZeroDivisionError):
            recalls = [row[i] / sum(row) for i, row in enumerate(data["confusion"]) if sum(row)]
            data = data | {"balanced_accuracy": sum(recalls) / len(recalls)}
        return data

    @model_validator(mode="after")
    def _agree(self) -> Accuracy:
        images = sum(map(sum, self.confusion))
        if images != self.n:
            raise ValueError(f"confusion has {images:,} images where n is {self.n:,}")
        hits = round(self.accuracy * self.n)
        if sum(row[i] for i, row in enumerate(self.confusion)) != hits:
            raise ValueError(f"confusion has not the {hits:,} right answers of the accuracy")
        if self.right is not None:
            try:
                bits = b64decode(self.right, validate=True)
            except binascii.Error as error:
                raise ValueError(f"right: {error}") from error
            if len(bits) != -(-self.n // 8) or sum(map(int.bit_count, bits)) != hits:
                raise ValueError(f"right holds not {self.n:,} images of which {hits:,} are right")
        return self


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
    stable: bool | None = None
    """Whether the medians of the last three windows agree within 10 %."""


class Latency(_Record):
    """Session latency by batch size; the models took turns in every round."""

    provider: str
    threads: int
    rounds: int
    batches: Annotated[tuple[BatchLatency, ...], Field(min_length=1)]


class Stage(_Record):
    """Where the time of answered requests went, in ms. What the service says of itself is its
    `Server-Timing`; `other` is what is left of the client's latency."""

    mean_ms: float
    p50_ms: float
    p99_ms: float


class Window(_Record):
    """A stretch of the measured time."""

    seconds: float
    n: int
    requests_per_s: float
    p50_ms: float | None


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
    stages: dict[str, Stage] = {}
    """decode, queue, inference, encode and other; empty where the service does not tell."""
    windows: tuple[Window, ...] = ()
    stable: bool | None = None
    """Whether requests/s and p50 of the last three windows agree within 10 %."""
    server_memory_mb: float | None = None
    """Largest proportional (or resident) memory of the server's processes, with every model that
    it serves loaded."""


class Step(_Record):
    """One step of a load that grows, or of a rate that does."""

    users: int | None
    """Clients of the closed loop; None at a fixed arrival rate."""
    rate: float | None
    """Arrivals a second; None in a closed loop."""
    seconds: float
    n: int
    errors: int
    requests_per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    """At a fixed rate from the moment when the request was due, not from when it was sent."""
    batch: float | None
    """Mean images in a batch, as the service counted them."""
    client_cpu: float
    """Cores that the load generator kept busy."""
    server_cpu: float | None
    """Cores that the service kept busy."""
    stable: bool


class Saturation(_Record):
    """One model from a single client to saturation, and at fixed arrival rates."""

    model: str
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    knee: int | None
    """The fewest clients with 95 % of the best rate: more only wait. None when nothing answered."""
    client_bound: bool
    """Whether the load generator was the limit at the knee: then it measured itself."""
    rates: tuple[Step, ...] = ()


class Null(_Record):
    """A model that does nothing and answers a constant (as MLPerf's null backend): what the harness
    itself costs."""

    latency: Latency
    load: Load | None
    saturation: Saturation | None = None


class Model(_Record):
    """One bundle and what was measured of it."""

    name: str
    version: str
    dataset: str
    fraction: float
    n_labels_train: int
    n_labels_val: int
    seed: int
    besides: str = ""
    """What tells it from others of its preset in this report: network, size, name."""
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
    shared: bool = False
    """Other work ran on the machine while it trained: alone it takes less."""
    trained_on: str
    device: Choice
    history: tuple[Epoch, ...]
    accuracy: Accuracy
    latency: Latency
    load: Load | None
    robustness: Robustness | None = None

    @property
    def n_labels(self) -> int:
        """Labels that the model has seen in any way, validation included."""
        return self.n_labels_train + self.n_labels_val

    @property
    def variant(self) -> str:
        """What it is besides its number of labels: `default`, `scratch`, `reference`, and
        `besides`."""
        words = [self.preset] if self.preset != "default" else []
        words += ["scratch"] if self.extractor is None else []
        found = " ".join(words) or self.preset
        return f"{found}, {self.besides}" if self.besides else found


class Comparison(_Record):
    """Two models on the same test images: McNemar's exact test."""

    a: str
    b: str
    n: int
    only_a: int
    """Images that `a` alone has right."""
    only_b: int
    difference: Estimate
    """Accuracy of `b` minus that of `a`; interval over test images, paired."""
    p_value: float
    """Of two models that are equally good; says nothing about other seeds."""


class CurvePoint(_Record):
    """Models that differ in nothing but the seed."""

    n_labels: int
    fraction: float
    accuracies: tuple[float, ...]
    """One a seed."""
    seconds: tuple[float, ...]
    """Training time of those seeds that had the machine to themselves, or of all where none had."""
    shared: bool = False
    """Whether none had."""


class Forecast(_Record):
    """What the fitted curve says of a number of labels that was not measured."""

    n_labels: int
    accuracy: Estimate


class Target(_Record):
    """How many labels an accuracy needs; None is more than any number."""

    accuracy: float
    n_labels: float | None
    low: float | None
    high: float | None
    text: str
    """In words, and honest ones where the curve does not allow a number."""


class Check(_Record):
    """The largest fraction predicted from the others alone."""

    fitted_up_to: int
    """Labels of the largest fraction that the fit saw."""
    n_fractions: int
    n_labels: int
    predicted: Estimate
    """For one more run, so the interval has the seeds' spread in it."""
    measured: float
    error: float
    """Predicted minus measured."""
    inside: bool
    """Whether the measured value lies in the interval."""


class Curve(_Record):
    """error = floor + scale * labels ** -exponent, least squares weighted by the spread."""

    variant: str
    points: tuple[CurvePoint, ...]
    floor: Estimate | None
    scale: Estimate | None
    exponent: Estimate | None
    """None with fewer than five fractions: no curve is fitted then."""
    line: tuple[Forecast, ...] = ()
    """The fitted curve, for plots."""
    next: tuple[Forecast, ...] = ()
    """10 % more labels than the most, twice and four times as many."""
    targets: tuple[Target, ...] = ()
    check: Check | None = None
    seed_spread: float | None = None
    """Relative standard deviation of the error over seeds, pooled; None without a second seed."""
    misfit: float | None = None
    """Root of chi-squared over degrees of freedom; above 1 the intervals are widened by it."""
    text: tuple[str, ...] = ()
    """What it means, in words."""


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
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    """Fewest labels first."""
    warnings: tuple[str, ...]
    """What the reader must know before using a figure; empty after a clean run."""
    notes: tuple[str, ...] = ()
    """What whoever ran it wants said beside the figures."""
    curves: tuple[Curve, ...] = ()
    """One a variant."""
    comparisons: tuple[Comparison, ...] = ()
    saturation: Saturation | None = None
    null: Null | None = None
    price_per_hour: float | None = None
    """Of the machine that serves."""
    price_per_label: float | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _of_one_data_set(self) -> Report:
        names = self.dataset.class_names
        for model in self.models:
            if model.accuracy.n != self.dataset.n_test:
                raise ValueError(
                    f"{model.name} was measured on {model.accuracy.n:,} images, the data set has "
                    f"{self.dataset.n_test:,}"
                )
            if set(model.accuracy.per_class) != set(names):
                raise ValueError(f"{model.name} has other classes than the data set")
        return self
