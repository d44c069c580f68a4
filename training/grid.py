"""What a command trains: one model for each fraction and seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bundle import store
from bundle.errors import BundleError
from training import fractions
from training.data import Data
from training.fractions import Subset
from training.options import Options
from training.recipes import TORCHVISION, Recipe, recipe

ENDLESS = 10_000
"""Epochs where time sets the end."""


@dataclass(frozen=True)
class Cell:
    """One model to train."""

    name: str
    """Of its bundle."""
    seed: int
    subset: Subset
    recipe: Recipe


def cells(options: Options, images: Data) -> list[Cell]:
    """The models of a command, seed by seed, fewest labels first.

    Raises:
        DataError: a fraction is too small for some class.
    """
    found = []
    for seed in options.all_seeds:
        for fraction in options.fractions:
            subset = fractions.subset(images.train, images.class_names, fraction, seed)
            name = bundle_name(options, images.name, fraction, seed)
            found.append(Cell(name, seed, subset, plan(options, subset)))
    return found


def bundle_name(options: Options, dataset: str, fraction: float, seed: int) -> str:
    """`cifar10-10`, `cifar10-2.5`, `cifar10-reference-100`, `cifar10-scratch-10-s1`,
    `cifar10-resnet18-10`.

    What differs from the default is named, so that it can lie and be compared in one folder.
    """
    middle = "" if options.preset == "default" else f"{options.preset}-"
    if options.extractor == "none":
        middle += "scratch-"
    elif options.extractor.startswith(TORCHVISION):
        middle += options.extractor.removeprefix(TORCHVISION).partition("=")[0] + "-"
    last = f"-s{seed}" if seed else ""
    return f"{options.name or dataset}-{middle}{fraction * 100:.6g}{last}"


def plan(options: Options, subset: Subset) -> Recipe:
    """The recipe for a subset, with what the options say of it."""
    found = recipe(
        options.preset,
        len(subset.train),
        flip=flip(options),
        unlabelled=not options.no_unlabelled and subset.fraction < 1,
        extractor=options.extractor,
    )
    if options.max_minutes is not None:
        found = replace(found, epochs=ENDLESS)
    return found if options.epochs is None else replace(found, epochs=options.epochs)


def flip(options: Options) -> bool:
    """Whether mirrored images keep their class."""
    return not options.no_flip and options.data != "digits"


def check_replaced(
    options: Options, images: Data, cells: Sequence[Cell], say: Callable[[str], None]
) -> None:
    """A service over `--out` must not change its classes because two folders have one name.

    Raises:
        BundleError: a bundle of one of the names has other classes.
    """
    for cell in cells:
        if not (options.out / cell.name / store.CURRENT).exists():
            continue
        try:
            before = store.read(options.out, cell.name).manifest
        except BundleError as error:
            say(f"{error}; a new one takes its place")
            continue
        if before.class_names != images.class_names:
            raise BundleError(
                f"{options.out / cell.name} has other classes ({_few(before.class_names)}) than "
                f"{options.data} ({_few(images.class_names)}): give this data set a name of its "
                "own with --name, or another folder with --out"
            )
        if before.dataset.hash != images.hash:
            say(
                f"{options.out / cell.name} was trained on other images; the new version "
                "replaces it"
            )


def dry_run(images: Data, cells: Sequence[Cell], say: Callable[[str], None]) -> dict[str, Any]:
    """Says the labels of each class at each fraction; the same as the command's document."""
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
    """Mean and spread over the seeds, of each fraction; said and returned.

    The spread is the sample standard deviation. Figures are those on test, or on validation where
    test was left unread.
    """
    by_fraction: dict[float, list[dict[str, Any]]] = {}
    for bundle in bundles:
        by_fraction.setdefault(bundle["fraction"], []).append(bundle)
    found = []
    say("\nfraction  seeds  accuracy: mean    std    min    max  balanced accuracy: mean    std")
    for fraction, group in sorted(by_fraction.items()):
        split = "val" if any(bundle["test"] is None for bundle in group) else "test"
        row: dict[str, Any] = {"fraction": fraction, "seeds": len(group), "split": split}
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
            f"{balanced['mean']:23.4f} {balanced['std']:6.4f}"
        )
    return found


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
