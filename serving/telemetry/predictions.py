"""Drift in production: a model's predictions compared with those on held-out images.

Drift shows without labels as a shift of the predicted classes or of the confidence (the probability
of the predicted class). Both are exported with the reference that training recorded in the
manifest; the comparison is left to Prometheus, which knows the window of time.
"""

from __future__ import annotations

from itertools import accumulate
from math import nan

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.manifest import CONFIDENCE_BOUNDS, Manifest
from labelcurve.serving.telemetry import metrics

CLASSES = 100
"""Classes per model with a separate time series; all others share one."""

OTHER = "(other)"
"""The label of those others."""

MIN_REFERENCE = 200
"""Held-out images required for a reference: with fewer, sampling error would look like drift."""


class Predictions:
    """The predictions of one version of a model. Called on the event loop, except at the start."""

    def __init__(self, manifest: Manifest) -> None:
        """Starts with no counts; every class has a series from now on."""
        self._name = manifest.name
        recorded = manifest.predicted
        self._reference = recorded if recorded and recorded.n >= MIN_REFERENCE else None
        n_classes = len(manifest.class_names)
        shown = set(range(n_classes))
        if n_classes > CLASSES:
            counts = recorded.classes if recorded else (0,) * n_classes
            shown = set(sorted(shown, key=lambda index: (-counts[index], index))[:CLASSES])
        self._labels = [
            name if index in shown else OTHER for index, name in enumerate(manifest.class_names)
        ]
        self._counters = [metrics.PREDICTIONS.labels(self._name, label) for label in self._labels]
        self._confidence = metrics.CONFIDENCE.labels(self._name)

    def count(self, probabilities: NDArray[np.float32]) -> None:
        """Count a batch of answers, float32 [N, K]."""
        for index in probabilities.argmax(1).tolist():
            metrics.count(self._counters[index])
        metrics.observe(self._confidence, probabilities.max(1).tolist())

    def publish_reference(self) -> None:
        """Export this version's reference in place of that of the previous version."""
        if self._reference is None and self._name not in _published:
            return
        shares = dict.fromkeys(self._labels, nan)
        levels = [str(bound) for bound in CONFIDENCE_BOUNDS]  # as the histogram's label `le`
        confidence = dict.fromkeys(levels, nan)
        if found := self._reference:
            shares = dict.fromkeys(self._labels, 0.0)
            for label, n in zip(self._labels, found.classes, strict=True):
                shares[label] += n / found.n
            below = [n / found.n for n in accumulate(found.confidence[:-1])]
            if found.bounds == CONFIDENCE_BOUNDS:
                confidence = dict(zip(levels, below, strict=True))
        for label in _published.get(self._name, set()) - shares.keys():
            metrics.REFERENCE_CLASSES.labels(self._name, label).set(0)
        _published.setdefault(self._name, set()).update(shares)
        for label, share in shares.items():
            metrics.REFERENCE_CLASSES.labels(self._name, label).set(share)
        for level, share in confidence.items():
            metrics.REFERENCE_CONFIDENCE.labels(self._name, level).set(share)


_published: dict[str, set[str]] = {}
"""Classes by model that have had a reference in this process."""
