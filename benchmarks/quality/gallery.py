"""Test images worth looking at, with the predictions of every fraction."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from labelcurve.benchmarks.quality.accuracy import Predictions
from labelcurve.bundle.preprocess import prepare
from labelcurve.bundle.store import Bundle
from labelcurve.training.data.dataset import Data

N_EXAMPLES = 6
MAX_ANSWERS = 6


@dataclass(frozen=True)
class Answer:
    """The prediction of a model."""

    model: str
    label: str
    probability: float
    """Confidence, 0 to 1."""
    right: bool


@dataclass(frozen=True)
class Example:
    """A test image with its true class."""

    row: int
    uri: str
    """The preprocessed pixels, as a `data:` URI."""
    truth: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Gallery:
    """Examples chosen by one rule."""

    title: str
    rule: str
    examples: tuple[Example, ...]


def galleries(
    bundles: Sequence[Bundle], data: Data, predictions: Mapping[str, Predictions]
) -> tuple[Gallery, ...]:
    """Choose corrected, broken, most confidently wrong, and random test images.

    Bundles come fewest labels first; of several variants the default alone is shown. Predictions
    are by bundle name.
    """
    shown = _shown(bundles)
    truth = data.test.labels
    few, many = predictions[shown[0].name], predictions[shown[-1].name]
    first, last = shown[0].name, shown[-1].name
    rise = many.true_probability - few.true_probability
    right_few, right_many = few.right(truth), many.right(truth)
    chosen = (
        (
            "Corrected by more labels",
            f"{first} is wrong, {last} right; largest rise of the true class's probability.",
            _top(rise, ~right_few & right_many),
        ),
        (
            "Broken by more labels",
            f"{first} is right, {last} wrong; largest fall of the true class's probability.",
            _top(-rise, right_few & ~right_many),
        ),
        (
            "Most confident errors",
            f"Errors of {last} with the highest confidence. Some of the labels may be wrong.",
            _top(many.confidence, ~right_many),
        ),
        (
            "At random",
            f"{N_EXAMPLES} of {len(truth):,}, drawn at random (seed 0).",
            np.random.default_rng(0).permutation(len(truth))[:N_EXAMPLES].tolist(),
        ),
    )
    return tuple(
        Gallery(title, rule, tuple(_example(row, shown, data, predictions) for row in rows))
        for title, rule, rows in chosen
        if len(rows)
    )


def _shown(bundles: Sequence[Bundle]) -> list[Bundle]:
    """Choose one bundle per number of labels, of the default preset where there is one."""
    presets = {bundle.manifest.preset for bundle in bundles}
    preset = "default" if "default" in presets else bundles[-1].manifest.preset
    chosen: dict[int, Bundle] = {}
    for bundle in bundles:
        if bundle.manifest.preset == preset:
            chosen.setdefault(bundle.manifest.n_labels, bundle)
    found = list(chosen.values())
    if len(found) > MAX_ANSWERS:
        found = [*found[: MAX_ANSWERS - 1], found[-1]]
    return found


def _top(score: NDArray[np.float32], among: NDArray[np.bool_]) -> list[int]:
    rows = np.flatnonzero(among)
    found: list[int] = rows[np.argsort(-score[rows], kind="stable")][:N_EXAMPLES].tolist()
    return found


def _example(
    row: int, bundles: Sequence[Bundle], data: Data, predictions: Mapping[str, Predictions]
) -> Example:
    size = max(bundle.manifest.preprocessing.size for bundle in bundles)
    buffer = BytesIO()
    Image.fromarray(prepare(data.test.read(row), size)).save(buffer, "PNG")
    truth = int(data.test.labels[row])
    answers = []
    for bundle in bundles:
        said = predictions[bundle.name]
        label = int(said.labels[row])
        confidence = float(said.confidence[row])
        answers.append(Answer(bundle.name, data.class_names[label], confidence, label == truth))
    uri = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    return Example(row, uri, data.class_names[truth], tuple(answers))
