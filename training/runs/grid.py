"""The models of a command: one for each fraction and seed, with its recipe."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from labelcurve.bundle import store
from labelcurve.bundle.errors import BundleError
from labelcurve.training.data import fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.fractions import Subset
from labelcurve.training.data.source import Index
from labelcurve.training.options import Options
from labelcurve.training.recipes import LIBRARIES, MOST_UNLABELLED, PHOTO_BACKBONE, Recipe, recipe

ENDLESS = 10_000
"""Epochs where a time limit ends the run."""


@dataclass(frozen=True)
class Cell:
    """One model to train."""

    name: str
    seed: int
    subset: Subset
    recipe: Recipe
    teacher: str | None = None
    """Name of the bundle whose answers it learns; None learns from labels."""
    measured: str | None = None
    """Of a final model, which learns from all labels: name of the bundle whose figures it has."""

    def others(self, n: int) -> Index:
        """Rows of the `n` training images that the model neither learns from with labels nor
        validates on: the same as if all others had come without labels (`--unlabelled`)."""
        if not self.recipe.unlabelled and not self.recipe.propagation:
            return np.zeros(0, np.int32)
        left = np.ones(n, bool)
        left[self.subset.train] = left[self.subset.val] = False
        rows = np.flatnonzero(left).astype(np.int32)
        return fractions.spread(rows, MOST_UNLABELLED) if self.recipe.propagation else rows

    def n_images(self, n: int) -> int:
        """Images of an epoch: the labelled ones, and the others that a teacher answers."""
        return len(self.subset.train) + (0 if self.teacher is None else len(self.others(n)))


def cells(options: Options, images: Data, say: Callable[[str], None]) -> list[Cell]:
    """The models of a command, seed by seed, fewest labels first.

    Default fractions that would leave a class empty are left out.

    Raises:
        DataError: a fraction that was asked for is too small for some class.
    """
    wanted = []
    for fraction in options.fractions:
        why = fractions.too_small(images.train, images.class_names, fraction)
        if why and not options.fraction:
            say(f"no model of {fraction * 100:g} % of the labels, which {why}")
        else:
            wanted.append(fraction)
    found = []
    for seed in options.all_seeds:
        for fraction in wanted:
            subset = fractions.subset(images.train, images.class_names, fraction, seed)
            name = bundle_name(options, images.name, fraction, seed)
            others = len(images.train) - len(subset.train) - len(subset.val)
            found.append(Cell(name, seed, subset, plan(options, subset, others)))
    return found


def bundle_name(
    options: Options, dataset: str, fraction: float | None, seed: int, *, compact: bool = False
) -> str:
    """`cifar10-10`, `cifar10-2.5`, `cifar10-reference-100`, `cifar10-scratch-10-s1`,
    `cifar10-resnet18-10`, `cifar10-compact-10`, `cifar10-mirror-10`; without a fraction, that of
    the final model, `cifar10-final`. The backbone that photos get by default is not named.

    It names what differs from the default, so that variants can be compared in one folder.
    """
    middle = "" if options.preset == "default" else f"{options.preset}-"
    if options.extractor == "none":
        middle += "scratch-"
    elif options.extractor.startswith(LIBRARIES) and options.extractor != PHOTO_BACKBONE:
        middle += options.extractor.partition(":")[2].partition("=")[0] + "-"
    middle += "compact-" if compact else ""
    middle += "mirror-" if options.mirror else ""
    last = f"-s{seed}" if seed else ""
    share = "final" if fraction is None else f"{fraction * 100:.6g}"
    return f"{options.name or dataset}-{middle}{share}{last}"


def plan(options: Options, subset: Subset, others: int = 0) -> Recipe:
    """The recipe for a subset and a number of other images, as the options change it."""
    unlabelled = not options.no_unlabelled and others > 0
    found = recipe(
        options.preset,
        len(subset.train),
        flip=flip(options),
        unlabelled=unlabelled,
        extractor=options.extractor,
    )
    return limited(replace(found, mirrored=options.mirror), options)


def limited(plan: Recipe, options: Options) -> Recipe:
    """The recipe with as many epochs as `--epochs` and `--max-minutes` allow."""
    if options.max_minutes is not None and not plan.backbone.startswith(LIBRARIES):
        plan = replace(plan, epochs=ENDLESS)  # a pretrained network is quickly tuned
    return plan if options.epochs is None else replace(plan, epochs=options.epochs)


def flip(options: Options) -> bool:
    """Returns whether mirrored images keep their class."""
    return not options.no_flip and options.data != "digits"


def check_replaced(
    out: Path, source: str, images: Data, cells: Sequence[Cell], say: Callable[[str], None]
) -> None:
    """Refuses to replace bundles of other classes, which a service over `out` may be serving.

    Args:
        source: `--data`, as it was given.

    Raises:
        BundleError: a bundle of one of the names has other classes.
    """
    _report_stale(out, cells, say)
    for cell in cells:
        if not (out / cell.name / store.CURRENT).exists():
            continue
        try:
            before = store.read(out, cell.name).manifest
        except BundleError as error:
            say(f"{error}; a new one takes its place")
            continue
        if before.class_names != images.class_names:
            raise BundleError(
                f"{out / cell.name} has other classes ({_few(before.class_names)}) than "
                f"{source} ({_few(images.class_names)}): give this data set a name of its "
                "own with --name, or another folder with --out"
            )
        if before.dataset.hash != images.hash:
            say(f"{out / cell.name} was trained on other images; the new version replaces it")


def _report_stale(out: Path, cells: Sequence[Cell], say: Callable[[str], None]) -> None:
    """Warns of final models whose figures are of a model that these cells replace."""
    names = {cell.name for cell in cells}
    for path in sorted(out.glob(f"*-final*/{store.CURRENT}")):
        with suppress(BundleError):
            manifest = store.read_manifest(path)
            if manifest.measured and manifest.measured.name in names and manifest.name not in names:
                say(
                    f"WARNING: {out / manifest.name} was made before and stays, perhaps as "
                    f"the default of {out}: `labelcurve models remove {manifest.name} "
                    f"--models {out}` removes it, and `train` without --no-final makes a new one"
                )


def dry_run(images: Data, cells: Sequence[Cell], say: Callable[[str], None]) -> dict[str, Any]:
    """Prints the labels of each class at each fraction; returns them as the command's document."""
    subsets = list({cell.subset.fraction: cell.subset for cell in cells}.values())
    width = max(len(name) for name in (*images.class_names, "class"))
    heads = [f"{subset.fraction * 100:.6g} %: train + val" for subset in subsets]
    say(f"\n{'class':{width}}  " + "  ".join(f"{head:>22}" for head in heads))
    rows = []
    for label, name in enumerate(images.class_names):
        pairs = [
            tuple(int((images.train.labels[rows] == label).sum()) for rows in (s.train, s.val))
            for s in subsets
        ]
        rows.append(pairs)
        say(f"{name:{width}}  " + "  ".join(f"{a:>14,} + {b:>5,}" for a, b in pairs))
    totals = [(len(s.train), len(s.val)) for s in subsets]
    say(f"{'total':{width}}  " + "  ".join(f"{a:>14,} + {b:>5,}" for a, b in totals))
    return {
        "dry_run": [
            {
                "fraction": subset.fraction,
                "n_labels_train": len(subset.train),
                "n_labels_val": len(subset.val),
                "classes": {
                    name: {"train": rows[label][i][0], "val": rows[label][i][1]}
                    for label, name in enumerate(images.class_names)
                },
            }
            for i, subset in enumerate(subsets)
        ]
    }


def summary(bundles: Sequence[dict[str, Any]], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Prints and returns mean and spread over the seeds for each fraction.

    The spread is the sample standard deviation. Figures are those on test, or on validation where
    test was left unread.
    """
    by_fraction: dict[tuple[float, bool], list[dict[str, Any]]] = {}
    for bundle in bundles:
        by_fraction.setdefault((bundle["fraction"], "teacher" in bundle), []).append(bundle)
    found = []
    say("\nfraction  seeds  accuracy: mean    std    min    max  balanced accuracy: mean    std")
    for (fraction, compact), group in sorted(by_fraction.items()):
        split = "val" if any(bundle["test"] is None for bundle in group) else "test"
        row: dict[str, Any] = {"fraction": fraction, "seeds": len(group), "split": split}
        row |= {"compact": True} if compact else {}
        for metric in ("accuracy", "balanced_accuracy", "f1"):
            values = [bundle[split][metric] for bundle in group]
            row[metric] = {
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "min": min(values),
                "max": max(values),
            }
        found.append(row)
        accuracy, balanced = row["accuracy"], row["balanced_accuracy"]
        say(
            f"{fraction * 100:6.6g} %  {len(group):5d}  {accuracy['mean']:14.4f} "
            f"{accuracy['std']:6.4f} {accuracy['min']:6.4f} {accuracy['max']:6.4f}  "
            f"{balanced['mean']:23.4f} {balanced['std']:6.4f}{'  compact' if compact else ''}"
        )
    return found


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
