"""The run of `plan`, top to bottom: images, embedding, curve, forecast, answer, page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from labelcurve.bundle import files
from labelcurve.bundle.errors import DataError
from labelcurve.bundle.text import counted, duration
from labelcurve.training.data import fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.source import UNLABELLED, Index
from labelcurve.training.embedding_options import PlanOptions
from labelcurve.training.extractors import choice, embedded
from labelcurve.training.forecast import balance, distinct, head, measurement
from labelcurve.training.forecast.advice import REACH, Advice, TargetLabels, advise
from labelcurve.training.forecast.balance import Balance
from labelcurve.training.forecast.distinct import Distinct
from labelcurve.training.forecast.head import Rows
from labelcurve.training.forecast.law import Points
from labelcurve.training.forecast.measurement import FOLDS, Measured
from labelcurve.training.forecast.page import page
from labelcurve.training.forecast.sentences import sentences
from labelcurve.training.recipes import LIBRARIES, MOST_UNLABELLED, TUNED_FROM
from labelcurve.training.runtime.console import Bar, say
from labelcurve.training.runtime.device import check as check_device

FEWEST = 50


def run(options: PlanOptions, start: float | None = None) -> dict[str, Any]:
    """Measures, forecasts, answers, and writes the page.

    Args:
        start: of the process, by `time.monotonic`; None means now.

    Returns:
        The JSON document for the last line on stdout.

    Raises:
        LabelcurveError: the data, the extractor or the device cannot be used.
    """
    start = time.monotonic() if start is None else start
    files.check_out(options.out.parent)
    choice.check(options.extractor)
    check_device(options.device)
    images, options = embedded.load_labelled(options, options.skip_unreadable)
    kept, notes = _kept(options, images)
    notes += _unlabelled(options, images)
    rows = embedded.embed_labelled(options, images)
    images, began = rows.images, time.monotonic()
    features = rows.parts[0][kept.train], rows.parts[1][kept.test]
    images = replace(images, train=images.train.take(kept.train), test=images.test.take(kept.test))
    with Bar("curve") as bar:
        measured = _measure(images, features, options.seed, bar)
    points = measured.points()
    advice = advise(points, options.more, options.bar, options.target)
    done = time.monotonic()
    classes = balance.balance(measured, *_labels(images), images.class_names)
    said = [*sentences(advice, options.price_per_label), *_further(options, advice, classes)]
    for sentence in said:
        say(sentence)
    seconds = {"embedding": rows.seconds, "curve": done - began, "all": done - start}
    details = _details(options, images, rows.source, measured, seconds)
    notes += choice.doubts(rows.extractor, rows.images)
    files.write_out(options.out, page(advice, points, [*said, *notes], details))
    say(f"wrote {options.out}, {duration(time.monotonic() - start)}")
    return {
        **document(advice, points, options.price_per_label),
        "most_frequent_class": classes.share,
        "balanced_accuracy": classes.balanced,
        "copies": kept.copies,
        "seconds": round(time.monotonic() - start, 1),
    }


def _kept(options: PlanOptions, images: Data) -> tuple[Distinct, tuple[str, ...]]:
    """The labelled images to measure on, and notes on them.

    Raises:
        DataError: they are too few.
    """
    kept = distinct.distinct(images.labelled(), options.seed)
    if kept.n_labels < FEWEST:
        copies = f" ({kept.copies:,} copies of images count once)" if kept.copies else ""
        raise DataError(
            f"{options.data} has {kept.n_labels} labels to learn from{copies}: a forecast needs "
            f"at least {FEWEST}"
        )
    if not images.test_given:
        fifth = "that fifth is for `train`: " if len(images.test) else ""
        labels = counted(kept.n_labels, "label")
        say(f"{fifth}`plan` uses all {labels}, each of them test in turn")
    if not kept.copies:
        return kept, ()
    note = distinct.said(kept, images.test_given)
    say(f"WARNING: {note}")
    return kept, (note,)


def _further(options: PlanOptions, advice: Advice, classes: Balance) -> list[str]:
    """Sentences after the first three: the target's, and one on rare classes."""
    found = []
    if advice.target is not None:
        found.append(f"{_target(advice.target)}.")
    elif options.target is not None:
        found.append(f"Without a forecast no labels are named for {options.target * 100:g} %.")
    hidden = balance.said(classes)
    return found if hidden is None else [*found, hidden]


def _unlabelled(options: PlanOptions, images: Data) -> tuple[str, ...]:
    """Notes on images without labels."""
    labels = images.train.labels[images.train.labels != UNLABELLED]
    n_unlabelled = len(images.train) - len(labels)
    notes = _too_few(n_unlabelled, options.more)
    n = min(MOST_UNLABELLED, n_unlabelled)
    n_labels = sum(fractions.counts(int(own), 1.0)[0] for own in np.bincount(labels))
    if n and options.extractor.startswith(LIBRARIES) and n_labels < TUNED_FROM:
        notes += (
            f"`train` also learns from {counted(n, 'image')} without labels, and this forecast "
            "does not: with few labels the models of `train` may start higher and gain less from "
            "more of them (docs/plan.md)",
        )
    for note in notes:
        say(note)
    return notes


def _too_few(n_unlabelled: int, more: int) -> tuple[str, ...]:
    if not 0 < n_unlabelled < more:
        return ()
    return (
        f"only {counted(n_unlabelled, 'image')} without labels "
        f"{'is' if n_unlabelled == 1 else 'are'} there to label, and --more asks for {more:,}: "
        "the others have to be found first",
    )


def document(advice: Advice, points: Points, price_per_label: float | None) -> dict[str, Any]:
    """The result: accuracies as shares, gains in points of 100."""
    price = None if price_per_label is None else advice.more * price_per_label
    forecast = advice.failed_check is None
    return {
        "answer": advice.answer,
        "n_labels": advice.n_labels,
        "more": advice.more,
        "accuracy_now": asdict(advice.accuracy_now),
        "accuracy_then": asdict(advice.then) if forecast else None,
        "gain": asdict(advice.gain) if forecast else None,
        "least_gain": advice.least_gain,
        "probability": advice.probability if forecast else None,
        "price": price,
        "would_tell": advice.would_tell,
        "failed_check": advice.failed_check,
        "target": None if advice.target is None else asdict(advice.target),
        "measured": [
            {"n_labels": int(n), "accuracy": 1 - float(e), "deviation": float(d)}
            for n, e, d in zip(
                points.sizes, points.errors, np.sqrt(np.diag(points.covariance)), strict=True
            )
        ],
    }


def _measure(images: Data, parts: Sequence[Rows], seed: int, bar: Bar) -> Measured:
    """Cross-validates all labels, or takes the test split where one is given."""
    n_classes = len(images.class_names)
    if images.test_given:
        test = (head.standardise(parts[1], parts[0]), images.test.labels)
        return measurement.hold_out(
            head.standardise(parts[0]),
            images.train.labels,
            n_classes,
            test,
            seed=seed,
            progress=bar.update,
        )
    labels, _ = _labels(images)
    return measurement.cross_validate(
        head.standardise(np.concatenate(parts)), labels, n_classes, seed=seed, progress=bar.update
    )


def _labels(images: Data) -> tuple[Index, Index]:
    """The labels that are trained on, and those of the tested images."""
    if images.test_given:
        return images.train.labels, images.test.labels
    every: Index = np.concatenate([images.train.labels, images.test.labels])
    return every, every


def _details(
    options: PlanOptions, images: Data, source: str, measured: Measured, seconds: dict[str, float]
) -> list[tuple[str, str]]:
    times = len(measured.wrong)
    how = f"each label was test {times} times ({FOLDS}-fold cross-validation, stratified)"
    if images.test_given:
        how = f"on the {len(images.test):,} images of the given test split"
    return [
        ("Data", f"{images.name}, {measured.n:,} labels of {len(images.class_names)} classes"),
        ("Image size", f"{images.size} px"),
        ("Tested", how),
        ("Training sets of each size", f"{measured.subsets}"),
        ("Features", source),
        ("Classifier", f"linear, ridge regression, penalty {measured.penalty:g} at every size"),
        ("Forecast", "shifted power law and a smooth departure from it; Bayesian 95 % intervals"),
        ("Time", ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())),
    ]


def _target(target: TargetLabels) -> str:
    share = f"{target.accuracy * 100:g} %"
    if target.value is None:
        text = f"{share} takes more than {REACH:g} times these labels, or cannot be reached"
        if target.low is None:
            return text
        return f"{share} most likely{text.removeprefix(share)}; it takes at least {target.low:,}"
    if target.fewest:
        return f"{share} takes {target.value:,} labels, the fewest measured, or fewer"
    most = "no upper bound is known" if target.high is None else f"at most {target.high:,}"
    least = "" if not target.low else f"at least {target.low:,}, "
    return f"{share} takes about {target.value:,} labels ({least}{most})"
