"""Versions of a model to swap between, and the answers that each of them must give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from labelcurve.benchmarks.harness.session import Session
from labelcurve.benchmarks.resilience.client import Answer
from labelcurve.bundle import preprocess, store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.store import Bundle


def publish(root: Path, bundle: Bundle, seed: int) -> str:
    """Publish a variant with noise on the biases of its classes and make it current.

    Returns:
        Its version.
    """
    model = onnx.load_from_string(bundle.graph)
    n_classes = len(bundle.manifest.class_names)
    random = np.random.default_rng(seed)
    changed = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.shape == (n_classes,) and values.dtype == np.float32:
            noise = random.normal(0, 0.5, n_classes).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values + noise, tensor.name))
            changed += 1
    if not changed:
        raise LabelcurveError(f"{bundle.name}: no biases of {n_classes} classes in its graph")
    manifest = bundle.manifest.model_copy(update={"seed": seed})
    run = store.read_run(bundle.path)
    return store.publish(root, manifest, model.SerializeToString(), "", run).name


def point(root: Path, name: str, version: str) -> None:
    """Point `current` at an existing version."""
    temporary = root / name / ".next"
    temporary.symlink_to(version)
    temporary.replace(root / name / store.CURRENT)


def expected(bundle: Bundle, images: Sequence[bytes]) -> NDArray[np.float32]:
    """Compute probabilities float32 [N, K] of N images offline, one at a time."""
    session, size = Session(bundle, 1), bundle.manifest.preprocessing.size
    rows = [session.probabilities(preprocess.prepare(image, size)[None])[0] for image in images]
    return np.asarray(rows, np.float32)


def probabilities(answer: Answer, class_names: Sequence[str]) -> NDArray[np.float32]:
    """Read probabilities float32 [K], in the order of the classes, from an answer with all K."""
    by_label = {each["label"]: each["score"] for each in json.loads(answer.body)}
    return np.asarray([by_label[name] for name in class_names], np.float32)
