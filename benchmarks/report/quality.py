"""What the models get right: scores, tests, classes, calibration, robustness, pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.gallery import Gallery
from benchmarks.record import Model, Report
from benchmarks.report import accuracy_plots
from benchmarks.report.accuracy_plots import gain
from benchmarks.report.blocks import (
    NONE,
    Block,
    Pictures,
    Plot,
    Rows,
    Section,
    Text,
    count,
    interval,
    p_value,
    percent,
    points,
    points_interval,
)
from benchmarks.report.drawing import colour
from benchmarks.report.shown import main_models


def sections(report: Report, shown: Sequence[Gallery]) -> list[Section]:
    """Accuracy, classes, calibration, robustness, pictures."""
    found = [_scores(report), _classes(report), _calibration(report), _robustness(report)]
    if shown:
        found.append(Section("Test images", [Pictures(gallery) for gallery in shown]))
    return [section for section in found if section]


def _scores(report: Report) -> Section:
    body = []
    for model in report.models:
        a = model.accuracy
        body.append(
            (
                model.name,
                count(a.n),
                percent(a.accuracy),
                interval(a.accuracy_low, a.accuracy_high),
                NONE if a.balanced_accuracy is None else percent(a.balanced_accuracy),
                f"{a.f1:.4f}",
                NONE if a.f1_low is None or a.f1_high is None
                else f"{a.f1_low:.4f} to {a.f1_high:.4f}",
                f"{a.precision:.4f}",
                f"{a.recall:.4f}",
                NONE if a.difference is None else f"{a.difference:+.4f}",
            )
        )  # fmt: skip
    header = (
        "model",
        "n",
        "accuracy",
        "95 % interval",
        "balanced",
        "F1",
        "95 % interval",
        "precision",
    )
    blocks: list[Block] = [
        Text(
            f"From file bytes through ONNX Runtime on the CPU, all {report.dataset.n_test:,} test "
            "images. F1, precision and recall are weighted by class frequency; balanced accuracy "
            "is the mean of the classes' recalls, where all count the same. Intervals are over "
            "test images (accuracy: Wilson; F1: 1,000 bootstrap resamples); they say nothing of "
            "other seeds. The last column holds the accuracy against what training wrote into the "
            "manifest."
        ),
        Rows((*header, "recall", "minus manifest"), body, _hues(report)),
    ]
    if report.comparisons:
        pairs = [
            (
                f"{c.b} minus {c.a}",
                count(c.n),
                points_interval(c.difference),
                count(c.only_b),
                count(c.only_a),
                p_value(c.p_value),
            )
            for c in report.comparisons
        ]
        blocks += [
            Rows(("pair", "n", "points (95 %)", "only it right", "only the other", "p"), pairs),
            Text(
                "McNemar's exact test: among the images that only one of two models has right, a "
                "coin decides if they are equally good. With several seeds the lowest stands for "
                "its fraction; p is not corrected for the number of pairs."
            ),
        ]
    return Section("Accuracy", blocks)


def _classes(report: Report) -> Section:
    models = main_models(report)
    names = sorted(report.dataset.class_names, key=lambda name: -gain(models, name))
    several = len(models) > 1
    n = report.dataset.n_test
    blocks: list[Block] = []
    if several:
        blocks.append(
            Plot(
                "classes",
                accuracy_plots.classes,
                "Recall of each class by number of labels",
                "Recall by class and number of labels, largest gain first"
                f"{' (30 classes of the largest gain)' if len(names) > 30 else ''}; n by class in "
                "the table.",
            )
        )
    body = []
    for name in names:
        scores = [model.accuracy.per_class[name] for model in models]
        row = [name, count(scores[0].support), *(f"{score.f1:.3f}" for score in scores)]
        if several:
            row.append(points(gain(models, name), 1))
        body.append(row)
    header = ["class", "n", *(f"F1, {model.name}" for model in models)]
    header += ["recall gained, points"] if several else []
    blocks += [
        Rows(header, body, summary=None if len(names) <= 12 else "Figures by class"),
        Plot(
            "confusions",
            accuracy_plots.confusions,
            "Confusion matrices, true classes by row",
            f"Confusion matrices, n = {n:,}: rows are true classes, columns predicted ones; the "
            "shade is the share of the true class (square root).",
        ),
    ]
    if pairs := _confused(models, report.dataset.class_names):
        blocks.append(
            Rows(
                ("true class", "taken for", "n", *(model.name for model in models)),
                pairs,
                summary="What is most often taken for what, share of the true class",
                names=2,
            )
        )
    return Section("Classes", blocks)


def _confused(models: Sequence[Model], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The ten commonest mistakes of the model with the most labels, and how common each is with
    every number of labels."""
    counts = np.asarray([model.accuracy.confusion for model in models], dtype=float)
    shares = counts / np.maximum(1, counts.sum(axis=2, keepdims=True))
    wrong = counts[-1] * (1 - np.eye(len(names)))
    found = []
    for index in np.argsort(-wrong, axis=None, kind="stable")[:10]:
        true, said = np.unravel_index(index, wrong.shape)
        if wrong[true, said]:
            n = count(counts[-1, true].sum())
            cells = [percent(share, 1) for share in shares[:, true, said]]
            found.append((names[true], names[said], n, *cells))
    return found


def _calibration(report: Report) -> Section | None:
    body, hues = [], []
    for model in report.models:
        if (found := model.accuracy.calibration) is None:
            continue
        hues.append(colour(report, model))
        body.append(
            (
                model.name,
                count(model.accuracy.n),
                percent(found.ece.value),
                interval(found.ece.low, found.ece.high),
                f"{found.nll.value:.4f}",
                f"{found.nll.low:.4f} to {found.nll.high:.4f}",
                f"{found.brier:.4f}",
            )
        )
    if not body:
        return None
    header = ("model", "n", "ECE", "95 % interval", "NLL, nats", "95 % interval", "Brier score")
    return Section(
        "Calibration",
        [
            Plot(
                "reliability",
                accuracy_plots.reliability,
                "Reliability diagram",
                f"n = {report.dataset.n_test:,}, 15 bins of equal width. On the dashed line a "
                "probability means what it says; below it the model is too sure.",
            ),
            Rows(header, body, hues),
            Text(
                "ECE: mean distance of accuracy from probability over the bins, weighted by their "
                "images (bootstrap intervals; resampling pushes a small ECE up). Temperatures were "
                "fitted on validation labels alone."
            ),
        ],
    )


def _robustness(report: Report) -> Section | None:
    models = [model for model in report.models if model.robustness]
    if not models:
        return None
    first = models[0].robustness
    assert first is not None
    body = []
    for index, shift in enumerate(first.shifts):
        row = [f"{shift.kind}: {shift.level}"]
        for model in models:
            assert model.robustness is not None
            d = model.robustness.shifts[index].drop
            half = (d.high - d.low) / 2
            row.append(f"{points(-d.value, 1)} ± {half * 100:.1f}")
        body.append(row)
    clean = [f"{model.robustness.accuracy * 100:.1f} %" for model in models if model.robustness]
    return Section(
        "Robustness",
        [
            Text(
                f"Accuracy on {first.n:,} test images, drawn at random, that were spoilt as "
                "uploads are, then prepared as the service does it. No model was trained "
                "for it."
            ),
            Plot(
                "robustness",
                accuracy_plots.robustness,
                "Accuracy by kind and level of damage",
                f"n = {first.n:,}; the same spoilt images for every model.",
            ),
            Rows(
                ("change, points", *(model.name for model in models)),
                [["clean", *clean], *body],
                summary="Change of accuracy in points, with 95 % intervals over images (paired)",
            ),
        ],
    )


def _hues(report: Report) -> list[str]:
    return [colour(report, model) for model in report.models]
