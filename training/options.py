"""The options of `train`, `pretrain` and `quantize`, in the groups that their help shows.

The text below each option becomes its help.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes

from labelcurve.bundle.command import Within, check
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.formats.split_names import Layout
from labelcurve.training.recipes import LIBRARIES, TIMM, Objective, Preset

DEFAULT_FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""Five make a learning curve, and a sixth checks it."""

RUNS = ".runs"
"""Below `--out`: checkpoints, events, logs and locks, a folder for each bundle's name."""

LAST_SEED = 2**32 - 1
"""The largest that numpy and scikit-learn accept."""
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Positive = Annotated[float | None, Within(0, above=True)]
Side = Annotated[int | None, Within(8, 1024, note="pixels")]
Fractions = Annotated[
    tuple[float, ...], tyro.conf.UseAppendAction, Within(0, 1, above=True, note="(0.1 is 10 %)")
]


@dataclass(frozen=True)
class _Source:
    """Options on the images, common to `train` and `pretrain`."""

    data: str = "cifar10"
    layout: Layout = "auto"
    """Meaning of the folder levels, outermost first: `class` (cat/1.jpg), `split/class`
    (train/cat/1.jpg) or `class/split` (cat/train/1.jpg). `auto` detects it, or says why it cannot.
    """
    label_column: str | None = None
    """Column of the labels in a table or in Parquet files, where its name does not say so."""
    image_size: Side = None
    """Side of the images in pixels; by default 32, 64, 128 or 224, whichever is nearest to their
    own (the median of the short sides); at most 64 without pretrained weights; digits: 16."""
    skip_unreadable: Flag = False
    """Go on without images that cannot be read, and count them."""
    cache: Path | None = None
    """Folder of downloads, decoded pixels and extractors; by default the user's cache folder,
    ~/.cache/labelcurve on Linux."""
    clear_cache: Flag = False
    """Remove the decoded pixels of all data sets from the cache first, except those in use."""
    memory_gb: Positive = None
    """Decoded images that take more are streamed from the cache; by default a quarter of the memory
    of the machine or the container."""

    @property
    def memory(self) -> int | None:
        """Bytes of memory for decoded images; None leaves it to `training.data.dataset`."""
        return None if self.memory_gb is None else max(1, int(self.memory_gb * 1e9))


@dataclass(frozen=True)
class ImageOptions(_Source):
    """Images and their cache."""

    data: str = "cifar10"
    """`cifar10`, `digits`, a folder of class folders (with or without train/ and test/), a folder
    of Parquet files in the Hub's image layout, or a table of paths and labels (CSV, JSON)."""
    unlabelled: Path | None = None
    """Folder of further images without labels, at any depth, to learn from. Images in unlabelled/
    next to the class folders, and those with an empty label in a table, are used likewise."""


@dataclass(frozen=True)
class LabelOptions:
    """Labels, seeds and the test split."""

    fraction: Fractions = ()
    """Share of the labels, above 0 and up to 1; several of them, or the option again, for several
    models. Without it: 0.05, 0.1, 0.2, 0.3, 0.5 and 1, as far as the labels allow."""
    seed: int = 0
    """Seed of the subsets, the initial weights and the order of training."""
    seeds: Annotated[int, Within(1)] = 1
    """Number of seeds, from the first one on (bundles NAME-10, NAME-10-s1, ...); reports mean and
    spread."""
    drop: Path | None = None
    """Table that `labelcurve audit` wrote: the training images in it are left out. Remove the lines
    of those to keep."""
    relabel: Path | None = None
    """The same table: the training images in it get the label in the column `suggested`, where
    there is one."""
    no_unlabelled: Flag = False
    """Leave images without labels, the training images outside the fraction among them, out of the
    linear head of few labelled photos and out of distillation."""
    no_test: Flag = False
    """Do not read the test split: for tuning."""
    no_final: Flag = False
    """Leave out the final model. Where images of your own have no test split, a fifth of the labels
    is test; NAME-final learns from all of them, once the model of 100 % has been measured."""
    dry_run: Flag = False
    """Print the labels per class and fraction, try --max-latency, and stop."""


@dataclass(frozen=True)
class TrainingOptions:
    """Recipe, initial weights and hardware."""

    preset: Preset = "default"
    """`reference` is the reference experiment: its network, pretext task and fine-tuning, under our
    protocol."""
    extractor: str = "auto"
    """Initial weights. `auto`: for photos (128 px and more) the pretrained
    timm:tf_efficientnet_lite0.in1k; for smaller images the one that `pretrain` left in the cache,
    or the extractor that ships with Labelcurve (CIFAR-10) where that has the higher k-NN accuracy
    or there is no other and the images are in colour and of 32 px, else a short `pretrain` first.
    `none`: random ones.
    Or a file that `pretrain` wrote. `timm:NAME`, such as timm:tf_efficientnet_lite0, or
    `torchvision:NAME`, such as torchvision:resnet18: that library's network and pretrained weights,
    which are downloaded once; `timm:NAME=FILE`, `torchvision:NAME=FILE`: a state dict from a
    file."""
    epochs: Annotated[int | None, Within(1)] = None
    """Maximum number of epochs, instead of the recipe's."""
    max_minutes: Positive = None
    """Time limit of the whole command; each learning rate still decays to its end. Such a run is
    not repeatable bit by bit."""
    max_latency: Positive = None
    """Milliseconds that one image may take: the median, in ONNX Runtime on one thread of this CPU
    (fp32). Where a model takes longer, a smaller one is distilled from it and is published as well
    (NAME-compact-10)."""
    no_flip: Flag = False
    """Do not mirror images while training: for text, digits and whatever is not symmetric."""
    mirror: Flag = False
    """Average the logits of an image and its mirror image, inside the graph: about half a point
    more accurate on CIFAR-10, in twice the time. Named NAME-mirror-10."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes an NVIDIA GPU when there is one, else the CPU, and prints its reason."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of training; `auto` takes bf16 where the hardware is faster with it. A run that is
    continued keeps the one it began with."""
    self_test: Flag = False
    """Run one training step, print what it ran on, and stop; no data is read. The exit status is 1
    where that is not what `--device` says."""


@dataclass(frozen=True)
class OutputOptions:
    """Output folder, resumption and tracking."""

    out: Path = Path("models")
    """Folder that the bundles are published in. Checkpoints and TensorBoard events lie in its
    .runs/, which `serve` and `bench` do not read."""
    name: str | None = None
    """Prefix of the bundles' names, NAME-10 and so on; by default the name of the data."""
    fresh: Flag = False
    """Start over where an interrupted run left a checkpoint, instead of resuming it."""
    checkpoint_seconds: Annotated[float, Within(0)] = 45.0
    """Seconds between two checkpoints: at most about this much work is lost in a crash."""
    mlflow: str | None = None
    """MLflow experiment in which each model is logged as a run, at MLFLOW_TRACKING_URI; needs the
    extra `mlflow`."""


@dataclass(frozen=True)
class Options(OutputOptions, TrainingOptions, LabelOptions, ImageOptions):
    """Fine-tunes a classifier on fractions of the labels and publishes one bundle a fraction.

    On a terminal the result comes last as a table; elsewhere, and with --json, the last line on
    stdout is one JSON document.
    """

    def __post_init__(self) -> None:
        """Validates the values.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)
        _exclude(self.epochs, self.max_minutes)
        _check_seed(self.seed, self.seeds)
        shares = [f"{fraction * 100:.6g}" for fraction in self.fractions]
        if twice := sorted({share for share in shares if shares.count(share) > 1}):
            raise LabelcurveError(
                f"--fraction: two of them would have the same bundle's name, NAME-{twice[0]}: give "
                "one of them, or train the other with another --name"
            )
        for given, why in (
            (self.no_flip, "--no-flip: such images are not mirrored"),
            (self.data == "digits", "--data digits: digits are not mirrored"),
            (self.preset == "reference", "--preset reference: the experiment does not mirror"),
            (self.max_latency is not None, "--max-latency: it doubles the time"),
        ):
            if self.mirror and given:
                raise LabelcurveError(f"--mirror and {why}; omit one of the two")
        # A bundle's name has a suffix, and a file system takes 255.
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{,199}", self.name, re.A):
            raise LabelcurveError(
                f"--name {self.name!r}: allowed are up to 200 letters, digits, dots, underscores "
                "and hyphens, a letter or digit first"
            )
        if self.extractor.startswith(LIBRARIES):
            library, _, network = self.extractor.partition(":")
            if not re.match(r"[\w.-]+(=|$)", network):
                example = "tf_efficientnet_lite0" if f"{library}:" == TIMM else "resnet18"
                raise LabelcurveError(
                    f"--extractor {self.extractor}: allowed are {library}:NAME and "
                    f"{library}:NAME=FILE, such as {library}:{example}"
                )
            if self.preset == "reference":
                raise LabelcurveError(
                    f"--extractor {self.extractor}: --preset reference has its own network; "
                    "omit one of the two"
                )

    @property
    def fractions(self) -> tuple[float, ...]:
        """The fractions to train, each once, ascending."""
        return tuple(sorted(set(self.fraction or DEFAULT_FRACTIONS)))

    @property
    def all_seeds(self) -> range:
        """The seeds to train with."""
        return range(self.seed, self.seed + self.seeds)


def parse(arguments: Sequence[str]) -> Options:
    """The options of `train`."""

    def gather(
        image: OmitArgPrefixes[ImageOptions] = ImageOptions(),
        label: OmitArgPrefixes[LabelOptions] = LabelOptions(),
        training: OmitArgPrefixes[TrainingOptions] = TrainingOptions(),
        output: OmitArgPrefixes[OutputOptions] = OutputOptions(),
    ) -> Options:
        return Options(**vars(image), **vars(label), **vars(training), **vars(output))

    given = repeated(arguments, "--fraction")
    about = inspect.getdoc(Options)
    return tyro.cli(gather, prog="labelcurve train", description=about, args=given)


@dataclass(frozen=True)
class PretrainImageOptions(_Source):
    """Images and their cache."""

    data: str = "cifar10"
    """As for `train`: the training images are used, their labels only to evaluate the result. With
    `--unlabelled` any folder of images."""
    unlabelled: Flag = False
    """`--data` is a folder of images, at any depth, without classes."""


@dataclass(frozen=True)
class PretrainTrainingOptions:
    """Objective, time limit and hardware."""

    objective: Objective = "contrastive"
    """`relative-position` is the reference experiment's, for `train --preset reference`."""
    epochs: Positive = None
    """Passes over the images, instead of the recipe's."""
    max_minutes: Positive = None
    """Time limit instead; the learning rate still decays to its end."""
    batch_size: Annotated[int | None, Within(2)] = None
    """Images of a batch, instead of the recipe's."""
    start: Path | None = None
    """Start from the weights of this extractor."""
    seed: int = 0
    """Seed of the weights, the order and the views."""
    no_flip: Flag = False
    """Do not mirror images: for text, digits and whatever has a left and a right."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """`auto` takes an NVIDIA GPU when there is one, else the CPU, and prints its reason."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """As for `train`."""


@dataclass(frozen=True)
class PretrainOutputOptions:
    """Output file and resumption."""

    out: Path | None = None
    """File to write (.safetensors), with a card next to it (.md); by default one in the cache,
    where `train` looks. The checkpoint is a hidden file in the same folder."""
    trunk: Path | None = None
    """File for a run that can be extended. It keeps the state from before the learning rate falls,
    in the last quarter of --epochs or --max-minutes; the same command, run again, resumes from
    there and writes a better extractor."""
    fresh: Flag = False
    """Start over where an interrupted run left a checkpoint, instead of resuming it."""
    checkpoint_seconds: Annotated[float, Within(0)] = 45.0
    """Seconds between two checkpoints: at most about this much work is lost in a crash."""


@dataclass(frozen=True)
class PretrainOptions(PretrainOutputOptions, PretrainTrainingOptions, PretrainImageOptions):
    """Trains a feature extractor on the training images without their labels.

    `train` on the same images finds it. On a terminal the result comes last as a table; elsewhere,
    and with --json, the last line on stdout is one JSON document.
    """

    def __post_init__(self) -> None:
        """Validates the values.

        Raises:
            LabelcurveError: names the flag, the value and what is allowed.
        """
        check(self)
        _exclude(self.epochs, self.max_minutes)
        _check_seed(self.seed)
        if self.out is not None and (self.out.suffix != ".safetensors" or self.out.is_dir()):
            raise LabelcurveError(f"--out {self.out}: allowed is a file name in .safetensors")
        if self.trunk is not None and (self.trunk.suffix == ".safetensors" or self.trunk.is_dir()):
            raise LabelcurveError(
                f"--trunk {self.trunk}: allowed is the name of a file that is not the extractor's, "
                "such as mine.trunk"
            )


def parse_pretrain(arguments: Sequence[str]) -> PretrainOptions:
    """The options of `pretrain`."""

    def gather(
        image: OmitArgPrefixes[PretrainImageOptions] = PretrainImageOptions(),
        training: OmitArgPrefixes[PretrainTrainingOptions] = PretrainTrainingOptions(),
        output: OmitArgPrefixes[PretrainOutputOptions] = PretrainOutputOptions(),
    ) -> PretrainOptions:
        return PretrainOptions(**vars(image), **vars(training), **vars(output))

    about = inspect.getdoc(PretrainOptions)
    return tyro.cli(gather, prog="labelcurve pretrain", description=about, args=arguments)


@dataclass(frozen=True)
class QuantizeOptions:
    """Adds an INT8 graph for CPUs, or an fp16 graph for GPUs, to bundles.

    Ranges come from training images of the model's own fraction. Refused is a graph that loses
    more than 0.3 points of accuracy on the model's validation images (or than twice the standard
    error of the difference, where that is more), one that gives fewer than 95 % of up to 1,000
    held-out images the class that fp32 gives them, and INT8 that is not at least 1.1 times as fast
    as fp32 here. Each bundle becomes a new version of its name, with the fp32 graph in it;
    `labelcurve serve --precision` chooses between them.
    """

    models: Path = Path("models")
    """Folder of bundles, as `labelcurve train --out` wrote it."""
    data: str = "cifar10"
    """The training data of the models, as for `train`."""
    precision: Literal["int8", "fp16"] = "int8"
    """Number format of the added graph."""
    only: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Only this model; may be repeated."""
    drop: Path | None = None
    """The table that the models were trained with, as for `train`."""
    relabel: Path | None = None
    """The table that the models were trained with, as for `train`."""
    layout: Layout = "auto"
    """As for `train`."""
    label_column: str | None = None
    """As for `train`."""
    skip_unreadable: Flag = False
    """As for `train`."""
    cache: Path | None = None
    """As for `train`."""


def parse_quantize(arguments: Sequence[str]) -> QuantizeOptions:
    """The options of `quantize`."""
    return tyro.cli(QuantizeOptions, prog="labelcurve quantize", args=arguments)


def repeated(arguments: Sequence[str], *names: str) -> list[str]:
    """The command line with `--fraction 0.1 0.5` as `--fraction 0.1 --fraction 0.5`."""
    found: list[str] = []
    name, has_value = "", False
    for argument in arguments:
        if argument.startswith("-"):
            name, equals, _ = argument.partition("=")
            has_value = bool(equals)
        elif name in names and has_value:
            found.append(name)
        else:
            has_value = True
        found.append(argument)
    return found


def _exclude(epochs: float | None, minutes: float | None) -> None:
    if epochs is not None and minutes is not None:
        raise LabelcurveError("--epochs and --max-minutes exclude each other: give one of them")


def _check_seed(seed: int, seeds: int = 1) -> None:
    if not 0 <= seed <= LAST_SEED + 1 - seeds:
        several = f" (with --seeds {seeds})" if seeds > 1 else ""
        raise LabelcurveError(f"--seed {seed}: allowed are 0 to {LAST_SEED + 1 - seeds}{several}")
