"""The options of `train`, `pretrain`, `sweep` and `quantize`, in the groups that their help shows.

The text below each option becomes its help.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes

from bundle.errors import LabelcurveError, near
from training.recipes import TORCHVISION, Objective, Preset

DEFAULT_FRACTIONS = (0.1, 0.5, 1.0)

LAST_SEED = 2**32 - 1
"""numpy and scikit-learn take no larger one."""
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class ImageOptions:
    """What is learned from."""

    data: str = "cifar10"
    """`cifar10`, `digits`, a folder of class folders (with or without train/ and test/), or a
    folder of Parquet files in the Hub's image layout."""
    image_size: int | None = None
    """Side of the images in pixels; by default 32, for digits 16."""
    skip_unreadable: Flag = False
    """Go on without images that cannot be read, and count them."""
    cache: Path | None = None
    """Folder of downloads and decoded pixels; by default the user's cache folder,
    ~/.cache/labelcurve on Linux."""
    clear_cache: Flag = False
    """Remove the decoded pixels of all data sets from the cache first, but those in use."""
    memory_gb: float | None = None
    """Decoded images that take more are read from the cache while they are used; by default a
    quarter of the memory of the machine or the container."""


@dataclass(frozen=True)
class LabelOptions:
    """How many labels, and which."""

    fraction: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """Share of the labels, above 0 and up to 1; several of them, or the option again, for several
    models. Without it: 0.1, 0.5 and 1.0."""
    seed: int = 0
    """Of the subsets, the weights and the order of training."""
    seeds: int = 1
    """Train so many times, with this seed and those after it (bundles NAME-10, NAME-10-s1, ...),
    and report mean and spread."""
    no_unlabelled: Flag = False
    """Below a fraction of 1, do not learn from the other training images (without their labels)."""
    no_test: Flag = False
    """Leave the test split unread: for tuning."""
    dry_run: Flag = False
    """Print the labels per class and fraction, and stop."""


@dataclass(frozen=True)
class TrainingOptions:
    """How it is learned."""

    preset: Preset = "default"
    """`reference` is the reference experiment: its network, pretext task and fine-tuning, under our
    protocol."""
    extractor: str = "auto"
    """What the network knows before it sees a label. `auto`: the extractor that ships with
    Labelcurve where it was made from these images (CIFAR-10), or the one that `pretrain` left in
    the cache where its k-NN accuracy is higher, else a short `pretrain` first. `none`: nothing.
    Or a file that `pretrain` wrote. `torchvision:NAME`, such as torchvision:resnet18: that network
    and its ImageNet weights, which are downloaded; `torchvision:NAME=FILE`: its state dict from a
    file."""
    epochs: int | None = None
    """At most so many epochs, instead of the recipe's."""
    max_minutes: float | None = None
    """The whole command ends after so many minutes at the latest, whatever the machine, and each
    learning rate comes to its end. Such a run is not repeatable bit by bit."""
    no_flip: Flag = False
    """Do not mirror images while training: for text, digits and whatever has a left and a right."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes an NVIDIA GPU when there is one, else the CPU, and prints its reason."""
    self_test: Flag = False
    """Run one training step, print what it really ran on, and stop; no data is read. The exit
    status is 1 where that is not what `--device` says."""


@dataclass(frozen=True)
class OutputOptions:
    """Where the bundles go, and what happens after an interruption."""

    out: Path = Path("models")
    """Folder that the bundles are published in. Checkpoints and TensorBoard events lie in its
    .runs/, which `serve` and `bench` do not read."""
    name: str | None = None
    """First part of the bundles' names, NAME-10 and so on; by default the name of the data."""
    fresh: Flag = False
    """Start over where an interrupted run left a checkpoint; without it the run goes on."""
    checkpoint_seconds: float = 45.0
    """Between two checkpoints: about so much work is lost when the machine goes away."""
    mlflow: str | None = None
    """Experiment of MLflow that each model becomes a run of, at MLFLOW_TRACKING_URI; needs the
    extra `mlflow`."""


@dataclass(frozen=True)
class Options(OutputOptions, TrainingOptions, LabelOptions, ImageOptions):
    """Fine-tunes a classifier on fractions of the labels and publishes one bundle a fraction.

    The last line on stdout is one JSON document; everything before it is for people.
    """

    def __post_init__(self) -> None:
        """Checks what no type can say.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        for fraction in self.fraction:
            if not 0 < fraction <= 1:
                raise LabelcurveError(
                    f"--fraction {fraction:g}: allowed are values above 0 and up to 1 (0.1 is 10 %)"
                )
        if self.epochs is not None and self.epochs < 1:
            raise LabelcurveError(f"--epochs {self.epochs}: allowed are 1 and more")
        _check_minutes(self.max_minutes)
        if self.epochs is not None and self.max_minutes is not None:
            raise LabelcurveError("--epochs and --max-minutes exclude each other: give one of them")
        if self.seeds < 1:
            raise LabelcurveError(f"--seeds {self.seeds}: allowed are 1 and more")
        # A bundle's name has more after it, and a file system takes 255.
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{,199}", self.name, re.A):
            raise LabelcurveError(
                f"--name {self.name!r}: allowed are up to 200 letters, digits, dots, underscores "
                "and hyphens, a letter or digit first"
            )
        if re.match(rf"{TORCHVISION}(?!\w+(=|$))", self.extractor):
            raise LabelcurveError(
                f"--extractor {self.extractor}: allowed are {TORCHVISION}NAME and "
                f"{TORCHVISION}NAME=FILE, such as {TORCHVISION}resnet18"
            )
        if self.preset == "reference" and self.extractor.startswith(TORCHVISION):
            raise LabelcurveError(
                f"--extractor {self.extractor}: --preset reference has a network of its own; "
                "leave one of the two out"
            )
        _check_common((self.seed, self.seeds), self.image_size, self.checkpoint_seconds)
        _bytes(self.memory_gb)

    @property
    def memory(self) -> int | None:
        """Bytes of memory for decoded images; None leaves it to `training.data`."""
        return _bytes(self.memory_gb)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions to train, each once, ascending."""
        return tuple(sorted(set(self.fraction or DEFAULT_FRACTIONS)))

    @property
    def all_seeds(self) -> range:
        """The seeds to train with."""
        return range(self.seed, self.seed + self.seeds)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options of `train`, from the command line where no arguments are given."""

    def gather(
        image: OmitArgPrefixes[ImageOptions] = ImageOptions(),
        label: OmitArgPrefixes[LabelOptions] = LabelOptions(),
        training: OmitArgPrefixes[TrainingOptions] = TrainingOptions(),
        output: OmitArgPrefixes[OutputOptions] = OutputOptions(),
    ) -> Options:
        return Options(**vars(image), **vars(label), **vars(training), **vars(output))

    given = _repeated(arguments, "--fraction")
    return tyro.cli(gather, prog="train", description=inspect.getdoc(Options), args=given)


@dataclass(frozen=True)
class PretrainImageOptions:
    """What is learned from."""

    data: str = "cifar10"
    """As for `train`: the training images are used, their labels only to judge the result. With
    `--unlabelled` any folder of images."""
    unlabelled: Flag = False
    """`--data` is a folder of images, at any depth, without classes."""
    image_size: int | None = None
    """Side of the images in pixels; by default 32, for digits 16."""
    skip_unreadable: Flag = False
    """Go on without images that cannot be read, and count them."""
    cache: Path | None = None
    """Folder of downloads, decoded pixels and extractors; by default the user's cache folder,
    ~/.cache/labelcurve on Linux."""
    clear_cache: Flag = False
    """Remove the decoded pixels of all data sets from the cache first, but those in use."""
    memory_gb: float | None = None
    """Decoded images that take more are read from the cache while they are used; by default a
    quarter of the memory of the machine or the container."""


@dataclass(frozen=True)
class PretrainTrainingOptions:
    """How it is learned."""

    objective: Objective = "contrastive"
    """`relative-position` is the reference experiment's, for `train --preset reference`."""
    epochs: float | None = None
    """Passes over the images, instead of the recipe's."""
    max_minutes: float | None = None
    """End after so many minutes instead, with the learning rate at its end."""
    batch_size: int | None = None
    """Images of a batch, instead of the recipe's; fewer need less memory and are fewer to tell
    apart."""
    start: Path | None = None
    """Begin with the weights of this extractor."""
    seed: int = 0
    """Of the weights, the order and the views."""
    no_flip: Flag = False
    """Do not mirror images: for text, digits and whatever has a left and a right."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes an NVIDIA GPU when there is one, else the CPU, and prints its reason."""


@dataclass(frozen=True)
class PretrainOutputOptions:
    """Where the extractor goes, and what happens after an interruption."""

    out: Path | None = None
    """File to write (.safetensors), with a card beside it (.md); by default one in the cache, where
    `train` looks. The checkpoint is a hidden file beside it."""
    fresh: Flag = False
    """Start over where an interrupted run left a checkpoint; without it the run goes on."""
    checkpoint_seconds: float = 45.0
    """Between two checkpoints: about so much work is lost when the machine goes away."""


@dataclass(frozen=True)
class PretrainOptions(PretrainOutputOptions, PretrainTrainingOptions, PretrainImageOptions):
    """Learns a feature extractor from the training images without their labels.

    `train` on the same images finds it. The last line on stdout is one JSON document.
    """

    def __post_init__(self) -> None:
        """Checks what no type can say.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise LabelcurveError(f"--epochs {self.epochs:g}: allowed are values above 0")
        _check_minutes(self.max_minutes)
        if self.epochs is not None and self.max_minutes is not None:
            raise LabelcurveError("--epochs and --max-minutes exclude each other: give one of them")
        if self.batch_size is not None and self.batch_size < 2:
            raise LabelcurveError(f"--batch-size {self.batch_size}: allowed are 2 and more")
        if self.out is not None and (self.out.suffix != ".safetensors" or self.out.is_dir()):
            raise LabelcurveError(f"--out {self.out}: allowed is a file name in .safetensors")
        _check_common((self.seed, 1), self.image_size, self.checkpoint_seconds)
        _bytes(self.memory_gb)

    @property
    def memory(self) -> int | None:
        """Bytes of memory for decoded images; None leaves it to `training.data`."""
        return _bytes(self.memory_gb)


def parse_pretrain(arguments: Sequence[str] | None = None) -> PretrainOptions:
    """The options of `pretrain`, from the command line where no arguments are given."""

    def gather(
        image: OmitArgPrefixes[PretrainImageOptions] = PretrainImageOptions(),
        training: OmitArgPrefixes[PretrainTrainingOptions] = PretrainTrainingOptions(),
        output: OmitArgPrefixes[PretrainOutputOptions] = PretrainOutputOptions(),
    ) -> PretrainOptions:
        return PretrainOptions(**vars(image), **vars(training), **vars(output))

    return tyro.cli(
        gather, prog="pretrain", description=inspect.getdoc(PretrainOptions), args=arguments
    )


@dataclass(frozen=True)
class SweepOptions:
    """Trains the grid of data, fractions and seeds as independent jobs on Ray.

    Any option of `train` may follow and holds for each job, such as --out, --epochs and
    --max-minutes. Bundles, checkpoints and the jobs' logs (.runs/sweep/) lie in --out; give the
    same command again after an interruption. The last line on stdout is one JSON document.
    """

    data: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """As for `train`; several of them, or the option again. Without it: cifar10."""
    fraction: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    """As for `train`. Without it: 0.1, 0.5 and 1.0."""
    seed: int = 0
    """The first one."""
    seeds: int = 1
    """So many, one job each."""
    address: str | None = None
    """Of a Ray cluster, HOST:PORT of its head, or `auto` on one of its machines, which must all
    have Labelcurve and see --data and --out under the same paths. Without it, Ray starts on this
    machine alone, and ends with the command."""
    cpus: float = 1
    """Of each job; also its threads."""
    gpus: float | None = None
    """Of each job; by default 1 where the cluster has GPUs. With 0.25, four jobs share one."""
    retries: int = 3
    """Times that a job runs again whose worker or machine died; it goes on from its checkpoint."""

    def __post_init__(self) -> None:
        """Checks what no type can say.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        if self.seeds < 1:
            raise LabelcurveError(f"--seeds {self.seeds}: allowed are 1 and more")
        if self.address is not None and not re.fullmatch(r"auto|\S+:\d+", self.address):
            raise LabelcurveError(
                f"--address {self.address}: allowed are HOST:PORT of the cluster's head, and "
                "`auto` on one of its machines"
            )
        if not 0 < self.cpus < math.inf:
            raise LabelcurveError(f"--cpus {self.cpus:g}: allowed are values above 0")
        if self.gpus is not None and not 0 <= self.gpus < math.inf:
            raise LabelcurveError(f"--gpus {self.gpus:g}: allowed are 0 and more")
        if self.retries < 0:
            raise LabelcurveError(f"--retries {self.retries}: allowed are 0 and more")


def parse_sweep(arguments: Sequence[str] | None = None) -> tuple[SweepOptions, list[str]]:
    """The options of `sweep`, and those that are left for `train`."""
    given = _repeated(arguments, "--fraction", "--data")
    found: tuple[SweepOptions, list[str]] = tyro.cli(
        SweepOptions, prog="sweep", args=given, return_unknown_args=True
    )
    chosen, others = found
    _check_known(others)
    return replace(chosen, data=chosen.data or ("cifar10",)), others


def _check_known(given: Sequence[str]) -> None:
    """What neither `sweep` nor `train` has ends it as a typing error does, with what is like it."""
    known = {
        "--" + field.name.replace("_", "-")
        for kind in (SweepOptions, Options)
        for field in fields(kind)
    }
    for argument in given:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known:
            print(
                f"error: {argument}: neither `sweep` nor `train` has this option{near(name, known)}"
                ". `sweep --help` and `train --help` list them",
                file=sys.stderr,
            )
            sys.exit(2)


@dataclass(frozen=True)
class QuantizeOptions:
    """Adds an INT8 graph for CPUs, or an fp16 graph for GPUs, to bundles.

    Ranges come from training images of the model's own fraction. A graph that loses more than 0.3
    points of accuracy on its validation images is refused, and so is INT8 that is not at least 1.1
    times as fast as fp32 here. Each bundle becomes a new version of its name, with the fp32 graph
    in it; `serve --precision` says which of them answers.
    """

    models: Path = Path("models")
    """Folder of bundles, as `train --out` wrote it."""
    data: str = "cifar10"
    """What the models were trained on, as for `train`."""
    precision: Literal["int8", "fp16"] = "int8"
    """Number format of the added graph."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only this model; may be repeated."""
    skip_unreadable: Flag = False
    """As for `train`."""
    cache: Path | None = None
    """As for `train`."""


def parse_quantize(arguments: Sequence[str] | None = None) -> QuantizeOptions:
    """The options of `quantize`, from the command line where no arguments are given."""
    return tyro.cli(QuantizeOptions, prog="quantize", args=arguments)


def _repeated(arguments: Sequence[str] | None, *names: str) -> list[str]:
    """The command line with `--fraction 0.1 0.5` as `--fraction 0.1 --fraction 0.5`."""
    found: list[str] = []
    name, has_value = "", False
    for argument in sys.argv[1:] if arguments is None else arguments:
        if argument.startswith("-"):
            name, equals, _ = argument.partition("=")
            has_value = bool(equals)
        elif name in names and has_value:
            found.append(name)
        else:
            has_value = True
        found.append(argument)
    return found


def _check_minutes(minutes: float | None) -> None:
    if minutes is not None and not 0 < minutes < math.inf:
        raise LabelcurveError(f"--max-minutes {minutes:g}: allowed are values above 0")


def _bytes(memory_gb: float | None) -> int | None:
    if memory_gb is None:
        return None
    if not 0 < memory_gb < math.inf:
        raise LabelcurveError(f"--memory-gb {memory_gb:g}: allowed are values above 0")
    return max(1, int(memory_gb * 1e9))


def _check_common(
    seeds: tuple[int, int], image_size: int | None, checkpoint_seconds: float
) -> None:
    if not 0 <= checkpoint_seconds < math.inf:
        raise LabelcurveError(
            f"--checkpoint-seconds {checkpoint_seconds:g}: allowed are 0 (after every step) and "
            "more"
        )
    if not 0 <= seeds[0] <= LAST_SEED + 1 - seeds[1]:
        several = f" (with --seeds {seeds[1]})" if seeds[1] > 1 else ""
        raise LabelcurveError(
            f"--seed {seeds[0]}: allowed are 0 to {LAST_SEED + 1 - seeds[1]}{several}"
        )
    if image_size is not None and not 8 <= image_size <= 1024:
        raise LabelcurveError(f"--image-size {image_size}: allowed are 8 to 1024 pixels")
