"""The schema of `manifest.json` and `run.json`.

The manifest holds what defines a model and what was verified of it: the same inputs give the same
bytes, and the bundle's version is a hash over it and the graph. Times, host, date and commit are in
`run.json`, outside the hash.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION: Final = 1

PREPROCESSING_VERSION: Final = 1
"""Version of what `bundle.preprocess.prepare` computes; a bundle records the one used in training.
It is defined here so that reading manifests needs neither numpy nor Pillow."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dataset(_Record):
    """The images that the model was trained on."""

    name: str
    hash: str
    """SHA-256 over pixels, splits and class names, whatever the order or the file format."""
    n_train: int
    """Images in the training split, labelled or not, validation rows included."""
    n_test: int
    left_out: dict[str, int] = {}
    """Files in the data that are not used, by reason."""
    dropped: int = 0
    """Training images that `train --drop` left out."""
    relabelled: int = 0
    """Training images that `train --relabel` gave another label than the data."""


class Preprocessing(_Record):
    """Conversion of file bytes to the graph's input: `bundle.preprocess.prepare(data, size)`."""

    version: int
    size: int
    crop: str = "centre square"
    resize: str = (
        "bilinear, antialiased (Pillow's BILINEAR over the box of the crop, reducing_gap 3)"
    )
    colour: str = "RGB; transparency on white; 16-bit grey by its high byte"
    orientation: str = "as EXIF says"
    jpeg: str = "decoded at 1/2, 1/4 or 1/8 where that leaves both sides at least twice the size"
    pixels: str = "uint8, 0 to 255: normalisation is in the graph"


class Metrics(_Record):
    """Figures over one split; F1, precision and recall are weighted by class frequency."""

    n: int
    accuracy: float
    balanced_accuracy: float | None = None
    """Mean of the classes' recalls; None in bundles of releases that did not measure it."""
    f1: float
    precision: float
    recall: float
    loss: float
    """Mean negative log-likelihood in nats, after temperature scaling."""


CONFIDENCE_BOUNDS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
"""Upper bounds of the bins of `Predicted.confidence`, and of the service's histogram."""


class Predicted(_Record):
    """Predictions on held-out images, counted: the reference for the service's drift metrics."""

    split: Literal["test", "validation"]
    n: int
    classes: tuple[int, ...]
    """Images by predicted class, in the order of `class_names`."""
    bounds: tuple[float, ...] = CONFIDENCE_BOUNDS
    confidence: tuple[int, ...]
    """Images by probability of the predicted class: in the bin up to each of `bounds`, that bound
    included, and above the last."""


class Parity(_Record):
    """The export against the network in torch (fp32, CPU), from file bytes to probabilities."""

    n_images: int
    batch_sizes: tuple[int, ...]
    max_abs_diff: float
    top1_agreement: float
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """ONNX Runtime providers on which the outputs were compared."""


class HeldOut(_Record):
    """Answers to the validation images, sorted, at a bounded number of ranks.

    From these `bundle.acceptance` computes thresholds for any wished accuracy.
    """

    n: int
    """Images."""
    ranks: tuple[int, ...]
    """Images that are at least as confident as `confidence`, ascending; the last is `n`."""
    confidence: tuple[float, ...]
    """Probability of the predicted class, descending, as float32."""
    wrong: tuple[int, ...]
    """Wrong answers among those images."""
    truth_ranks: tuple[int, ...]
    truth: tuple[float, ...]
    """Probability of the true class, descending, at `truth_ranks`."""


class Variant(_Record):
    """The same model in another number format: a graph next to `model.onnx`, with its own gate."""

    precision: Literal["int8", "fp16"]
    graph_hash: str
    """SHA-256 of `model.PRECISION.onnx`; through it the bundle's version covers that file."""
    n_calibration: int
    """Training images of the fraction that set the ranges of the activations."""
    val: Metrics
    test: Metrics | None
    n_compared: int
    agreement: float
    """Share of `n_compared` held-out images, labels unread, with the same top-1 as fp32."""
    held_out: HeldOut | None = None
    provider: str = "CPUExecutionProvider"
    """ONNX Runtime provider on which it was evaluated. A CPU computes fp16 in fp32 and rounds
    weights and activations to fp16."""


class Choice(_Record):
    """A choice made for the run, with the reason that was printed."""

    value: str
    reason: str


class Pretrained(_Record):
    """The feature extractor that initialised the network."""

    version: str
    """First 12 digits of a SHA-256 over its weights."""
    objective: str
    dataset: str
    pixels_hash: str
    """SHA-256 over the images that it was trained on, without labels."""
    license: str | None = None
    """SPDX identifier of third-party weights, where it is known."""
    source: str | None = None
    """Origin of such weights."""


class Measured(_Record):
    """The model whose figures a final model has: trained alike, without the held-out labels."""

    name: str
    version: str
    graph_hash: str
    """SHA-256 of its `model.onnx`, which `quantize` leaves as it is."""
    n_labels_train: int
    n_labels_val: int


class Teacher(_Record):
    """The bundle whose answers the model learned in place of labels."""

    name: str
    version: str
    n_images: int
    """Training images that it answered, labelled or not."""


class Manifest(_Record):
    """Contents of `manifest.json`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    dataset: Dataset
    fraction: Annotated[float, Field(gt=0, le=1)]
    n_labels_train: int
    n_labels_val: int
    indices_hash: str
    """SHA-256 over the pixel digests of the labelled training and validation rows."""
    n_unlabelled: int = 0
    """Other training images, used as unlabelled data."""
    extractor: Pretrained | None = None
    """None when the network began with random weights."""
    teacher: Teacher | None = None
    """None for models trained on the labels themselves."""
    seed: int
    preset: str
    backbone: str
    n_parameters: int
    epochs: int
    """Epochs that were run; the weights are those of `best_epoch`."""
    best_epoch: int
    temperature: float
    """Fitted on the validation rows; inside the graph."""
    recipe: dict[str, Any]
    """Hyperparameters of the fine-tuning."""
    micro_batches: int = 1
    """Micro-batches per batch where GPU memory was short; batch norm saw each separately."""
    device: Choice
    precision: Choice
    measured: Measured | None = None
    """Set for a final model, which was also trained on the test and validation labels:
    temperature, `val`, `test`, `predicted` and `held_out` are this other model's."""
    val: Metrics
    test: Metrics | None
    """None when the test split was left unread (`--no-test`)."""
    predicted: Predicted | None = None
    """None in bundles of releases that did not record it."""
    held_out: HeldOut | None = None
    """None in bundles of releases that did not keep it."""
    parity: Parity
    variants: tuple[Variant, ...] = ()
    packages: dict[str, str]
    git_commit: Annotated[str | None, Field(exclude=True)] = None
    """Read from bundles of older releases; now in `run.json`, since git may not tell it
    everywhere."""

    @property
    def n_labels(self) -> int:
        """Training plus validation labels of the model: what `labels` means in every table and
        message with a single number."""
        return self.n_labels_train + self.n_labels_val

    @model_validator(mode="after")
    def _distinct_names(self) -> Manifest:
        if len(set(self.class_names)) != len(self.class_names) or len(self.class_names) < 2:
            raise ValueError("class_names: at least two names, each once")
        if self.predicted and len(self.predicted.classes) != len(self.class_names):
            raise ValueError("predicted.classes: a count for each of class_names")
        return self


class Epoch(_Record):
    """One row of the training history."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    """None, like the other validation figures, where no label was held out."""
    val_accuracy: float | None
    val_f1: float | None
    val_precision: float | None
    val_recall: float | None
    lr: float
    images_per_s: float
    seconds: float


class Gain(_Record):
    """Speed of a variant against fp32, in turns, in ONNX Runtime on one thread of the CPU."""

    images_per_s: float
    images_per_s_fp32: float
    ratio: float
    """Median over the turns."""
    batch: int
    turns: int
    hardware: str


class Latency(_Record):
    """Time of one image in ONNX Runtime on one thread, in ms: medians of the thread's CPU time."""

    limit_ms: float
    """`--max-latency`."""
    p50_ms: float
    teacher_p50_ms: float | None = None
    """Of its teacher; None for a model trained on labels."""


SHARED = 0.15
"""A run that waits for cores for a larger share of its time did not have the machine to itself."""


class Run(_Record):
    """Contents of `run.json`: how this copy of the model was made. Not part of the version."""

    command: str
    started: str
    """ISO 8601, UTC."""
    host: str
    hardware: str
    git_commit: str | None = None
    """Commit of the code; None outside a git checkout."""
    seconds: dict[str, float]
    """Wall time by stage: train, evaluate, export; `total` of this bundle, and `command` from the
    start of the process to the end of this bundle. Over all parts of an interrupted run."""
    waited: float | None = None
    """Share of the training time, since its last start, in which its threads were runnable but
    other work had the cores. Above `SHARED`, `seconds` say little. None where the system does not
    report it."""
    interruptions: int = 0
    """Number of times that the run was interrupted and resumed from a checkpoint."""
    warnings: tuple[str, ...] = ()
    """Reasons to expect little of the model."""
    pretraining_seconds: float | None = None
    """Training time of the extractor in seconds, on the machine that made it."""
    latency: Latency | None = None
    """None without `--max-latency`."""
    gains: dict[str, Gain | None] = {}
    """By precision; None where the machine that made the variant could not measure it."""
    history: tuple[Epoch, ...]
    report: dict[str, Any]
    """Per-class precision, recall, F1 and support on test (validation with `--no-test`)."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows are true classes, columns predicted ones; the same images as `report`."""
