"""The schema of `report.json`: what one run of `bench` measured, and under which conditions.

`python -m benchmarks.record` writes it as JSON Schema, to `report.schema.json`.
"""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from labelcurve.bundle.manifest import Choice, Epoch

SCHEMA: Final = Path(__file__).with_name("report.schema.json")

Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Part of a result: fixed, complete, without fields of another release."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Provenance(Record):
    """Conditions of a measurement, to assess it and to repeat it."""

    command: str
    date: str
    """ISO 8601, UTC, at the end of the run."""
    git_commit: str | None
    """Ends in `+` where tracked files had changes; None outside a git checkout."""
    cpu: str
    cores: int
    """Cores that the process may use (given affinity and cgroup)."""
    memory_gb: float
    gpu: str | None = None
    """Names of the GPUs that the process can see; None without one."""
    system: str
    python: str
    packages: dict[str, str]


class Estimate(Record):
    """A figure with a 95 % interval; the field says over what."""

    value: float
    low: float
    high: float


class ClassScore(Record):
    """Figures of one class; `support` counts its test images."""

    precision: float
    recall: float
    f1: float
    support: int


class Bin(Record):
    """Test images whose confidence lies in one bin."""

    n: int
    confidence: float
    """Mean confidence."""
    accuracy: float


class Calibration(Record):
    """Calibration; intervals from a bootstrap over test images."""

    ece: Estimate
    """Expected calibration error of the top-1 prediction, bins of equal width (Guo et al. 2017)."""
    nll: Estimate
    """Mean negative log-likelihood in nats."""
    brier: float
    """Mean squared error of the probabilities, summed over classes."""
    bins: tuple[Bin, ...]
    """The reliability diagram; empty bins are left out."""


class Point(Record):
    """Accuracy of the most confident share of the test images."""

    coverage: Share
    accuracy: Share


class Accepted(Record):
    """Answers accepted by the threshold for a target accuracy; all None without a threshold."""

    wished: Share
    forecast: Share | None = None
    """Share of the validation images that are accepted."""
    coverage: Share | None = None
    """Share of the test images."""
    accuracy: Share | None = None
    """Accuracy on the accepted test images; None where there are none."""
    why_none: str | None = None


class Accepting(Record):
    """Answers that are accepted without review (`bundle.acceptance`)."""

    levels: tuple[Accepted, ...]
    curve: tuple[Point, ...]


class Shift(Record):
    """Accuracy under one corruption."""

    kind: str
    level: str
    accuracy: float
    drop: Estimate
    """Clean minus corrupted accuracy on the same images; interval over test images, paired."""


class Robustness(Record):
    """Accuracy under corruptions."""

    n: int
    accuracy: float
    """On the same images without corruption."""
    shifts: tuple[Shift, ...]


class Accuracy(Record):
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
    """Test accuracy measured by `train`; None after `--no-test`."""
    difference: float | None
    """`accuracy` minus `manifest_accuracy`."""
    same_data: bool
    """Whether the data set's hash is the one in the manifest."""
    f1_low: float | None = None
    f1_high: float | None = None
    """95 % interval from a bootstrap over test images."""
    balanced_accuracy: float | None = None
    """Mean recall of the classes that occur, so that all classes weigh the same; computed from
    `confusion` where a report of an earlier release lacks it."""
    calibration: Calibration | None = None
    accepting: Accepting | None = None
    right: str | None = None
    """Correctly classified test images, for paired tests between reports: one bit each in the order
    of the data set's rows, most significant first, in base64."""

    @model_validator(mode="before")
    @classmethod
    def _with_balanced(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("balanced_accuracy") is not None:
            return data
        # Inconsistent values are refused later, by name.
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


class BatchLatency(Record):
    """One ONNX Runtime call with a batch of `batch` images, in ms."""

    batch: int
    n: int
    """Timed calls. Below 100, `p99_ms` is close to the slowest call."""
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p50_low_ms: float
    p50_high_ms: float
    """Spread: lowest and highest median among the fifths of the run."""
    images_per_s: float
    """`batch` over the mean time of a call."""
    stable: bool | None = None
    """Whether the medians of the last three windows agree within 10 %."""


class Latency(Record):
    """Session latency by batch size; the models take turns in every round."""

    provider: str
    threads: int
    rounds: int
    batches: Annotated[tuple[BatchLatency, ...], Field(min_length=1)]


class Stage(Record):
    """Time of answered requests in one stage, in ms, from `Server-Timing`; `other` is the rest of
    the client's latency."""

    mean_ms: float
    p50_ms: float
    p99_ms: float


class Window(Record):
    """A window of the measured time."""

    seconds: float
    n: int
    requests_per_s: float
    p50_ms: float | None


class Load(Record):
    """`POST /classify` with this model, in a closed loop of `users` clients."""

    users: int
    same_machine: bool
    """Whether clients and service shared the machine."""
    rounds: int
    seconds: float
    """Measured time, summed over the rounds, without the start of the clients."""
    n: int
    """Requests that ended in the measured time, failed ones included."""
    errors: int
    messages: dict[str, int]
    """The most frequent failures with their counts."""
    n_checked: int
    """Images whose label was compared with the offline prediction."""
    requests_per_s: float
    requests_per_s_low: float
    requests_per_s_high: float
    """Slowest and fastest round."""
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    """From raw latencies of the answered requests; None when every request failed."""
    client_cpu: float
    """Cores used by the load generator; near 1 it is the bottleneck."""
    server_cpu_ms: float | None
    """CPU time of the server's processes per request; None where they cannot be seen."""
    stages: dict[str, Stage] = {}
    """decode, queue, inference, encode and other; empty without `Server-Timing`."""
    windows: tuple[Window, ...] = ()
    stable: bool | None = None
    """Whether requests/s and p50 of the last three windows agree within 10 %."""
    server_memory_mb: float | None = None
    """Memory of the server's processes with all models loaded: proportional set size on Linux, else
    resident set size."""


class Step(Record):
    """A step of a growing number of clients, or of a growing rate."""

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
    """At a fixed rate counted from when the request was due."""
    batch: float | None
    """Mean images per batch, as counted by the service."""
    client_cpu: float
    """Cores used by the load generator."""
    server_cpu: float | None
    """Cores used by the service."""
    stable: bool


class Saturation(Record):
    """One model from a single client to saturation, and at fixed arrival rates."""

    model: str
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]
    knee: int | None
    """The fewest clients with 95 % of the best rate. None when nothing answered."""
    client_bound: bool
    """Whether the load generator was the bottleneck at the knee."""
    rates: tuple[Step, ...] = ()


class Null(Record):
    """The null model, which answers a constant like MLPerf's null backend."""

    latency: Latency
    load: Load | None
    saturation: Saturation | None = None


class Model(Record):
    """A bundle and its measurements."""

    name: str
    version: str
    dataset: str
    fraction: float
    n_labels_train: int
    n_labels_val: int
    seed: int
    besides: str = ""
    """Distinguishes it from others of its preset in this report: network, size, name."""
    preset: str
    backbone: str
    n_parameters: int
    size: int
    """Side of the input images in pixels."""
    graph_bytes: int
    epochs: int
    best_epoch: int
    extractor: str | None = None
    """Objective of the extractor that initialised it; None for random weights."""
    n_unlabelled: int = 0
    """Number of further training images used as unlabelled data."""
    pretraining_seconds: float | None = None
    """Training time of the extractor, on the machine that made it."""
    train_seconds: float
    shared: bool = False
    """Whether the machine did other work while it trained."""
    trained_on: str
    device: Choice
    history: tuple[Epoch, ...]
    accuracy: Accuracy
    latency: Latency
    load: Load | None
    robustness: Robustness | None = None

    @property
    def n_labels(self) -> int:
        """All labels that the model has used, validation included."""
        return self.n_labels_train + self.n_labels_val

    @property
    def variant(self) -> str:
        """Kind of model apart from its number of labels: `default`, `scratch`, `reference`, and
        `besides`."""
        words = [self.preset] if self.preset != "default" else []
        words += ["scratch"] if self.extractor is None else []
        found = " ".join(words) or self.preset
        return f"{found}, {self.besides}" if self.besides else found


class Comparison(Record):
    """Two models on the same test images, compared by McNemar's exact test."""

    a: str
    b: str
    n: int
    only_a: int
    """Images that only `a` classifies correctly."""
    only_b: int
    difference: Estimate
    """Accuracy of `b` minus that of `a`; interval over test images, paired."""
    p_value: float
    """Under the null hypothesis of equal accuracy; does not account for other seeds."""


class CurvePoint(Record):
    """Models that differ only in the seed."""

    n_labels: int
    fraction: float
    accuracies: tuple[float, ...]
    """One per seed."""
    seconds: tuple[float, ...]
    """Training times of the seeds that had the machine to themselves, or of all."""
    shared: bool = False
    """Whether no seed had the machine to itself."""


class Forecast(Record):
    """Accuracy that the fitted curve forecasts for a number of labels."""

    n_labels: int
    accuracy: Estimate


class Target(Record):
    """Number of labels that an accuracy needs; None where no number is enough."""

    accuracy: float
    n_labels: float | None
    low: float | None
    high: float | None
    text: str
    """The forecast in words, also where the curve gives no number."""


class Check(Record):
    """Forecast of the largest fraction from the smaller ones."""

    fitted_up_to: int
    """Labels of the largest fraction in the fit."""
    n_fractions: int
    n_labels: int
    predicted: Estimate
    """For a single run: the interval includes the spread between seeds."""
    measured: float
    error: float
    """Predicted minus measured."""
    inside: bool
    """Whether the measured value lies in the interval."""


class Curve(Record):
    """The learning curve of a variant: a power law with a smooth departure from it.

    Parameters of the bare law, which reports of earlier releases have, are ignored.
    """

    model_config = ConfigDict(extra="ignore")

    variant: str
    points: tuple[CurvePoint, ...]
    line: tuple[Forecast, ...] = ()
    """The fitted curve, for plots; empty with fewer than five fractions, where none is fitted."""
    next: tuple[Forecast, ...] = ()
    """At 1.1, 2 and 4 times the largest number of labels."""
    targets: tuple[Target, ...] = ()
    check: Check | None = None
    seed_spread: float | None = None
    """Relative standard deviation of the error over seeds, pooled; None without a second seed."""
    text: tuple[str, ...] = ()
    """Summary in words."""


class Dataset(Record):
    """The data set whose test split was used."""

    name: str
    hash: str
    n_test: int
    class_names: tuple[str, ...]


class Report(Record):
    """`report.json`."""

    schema_version: Literal[1] = 1
    dataset: Dataset
    models: Annotated[tuple[Model, ...], Field(min_length=1)]
    """Fewest labels first."""
    warnings: tuple[str, ...]
    """Warnings that limit the use of the figures; empty after a clean run."""
    notes: tuple[str, ...] = ()
    """Notes of the user who ran it."""
    curves: tuple[Curve, ...] = ()
    """One per variant."""
    comparisons: tuple[Comparison, ...] = ()
    saturation: Saturation | None = None
    null: Null | None = None
    price_per_hour: float | None = None
    """Price of the serving machine."""
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


def groups(models: Iterable[Model]) -> list[list[Model]]:
    """Group models that differ only in the seed, fewest labels first."""
    found: dict[tuple[str, float, int], list[Model]] = {}
    for model in models:
        found.setdefault((model.variant, model.fraction, model.n_labels_train), []).append(model)
    return list(found.values())


def timed(models: Sequence[Model]) -> Sequence[Model]:
    """Select the models whose training had the machine to itself; all, where none had."""
    return [model for model in models if not model.shared] or models


def schema() -> str:
    """The JSON Schema (2020-12) of report.json, as it is committed in `SCHEMA`."""
    return json.dumps(Report.model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(schema())
    print(f"{SCHEMA}: written")
