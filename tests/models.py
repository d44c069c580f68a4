"""Real, small bundles made in a second and without torch: logistic regression on digits."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from labelcurve.bundle import acceptance, preprocess, store
from labelcurve.bundle.manifest import (
    CONFIDENCE_BOUNDS,
    Choice,
    Dataset,
    Epoch,
    Manifest,
    Metrics,
    Parity,
    Predicted,
    Preprocessing,
    Run,
)

SIZE = 8
CLASS_NAMES = tuple(str(digit) for digit in range(10))


digits = cache(load_digits)
"""Read once: it unpacks and parses a file of text."""


def digit_png(index: int) -> bytes:
    """File bytes of digit number `index` (grey, 8 x 8)."""
    pixels = np.round(digits().images[index] * 255 / 16).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def digit_label(index: int) -> int:
    """The true class of digit number `index`."""
    return int(digits().target[index])


def graph(weight: NDArray[np.float32], bias: NDArray[np.float32], size: int = SIZE) -> bytes:
    """`images` uint8 [N, size, size, 3] to `probabilities` [N, K] and `embedding` [N, size**2].

    Args:
        weight: float32 [size**2, K], on the first channel scaled to 0..1.
        bias: float32 [K].
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["float", "zero", "one", "three"], ["channel"]),
        helper.make_node("Reshape", ["channel", "flat"], ["raw"]),
        helper.make_node("Div", ["raw", "scale"], ["embedding"]),
        helper.make_node("Gemm", ["embedding", "weight", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    constants: dict[str, NDArray[Any]] = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "three": np.array([3], np.int64),
        "flat": np.array([-1, size * size], np.int64),
        "scale": np.array(255, np.float32),
        "weight": weight,
        "bias": bias,
    }
    built = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(bias)]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", size * size]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def publish_digits(
    root: Path, fraction: float = 1.0, seed: int = 0, prefix: str = "digits"
) -> Path:
    """Fits a logistic regression on `fraction` of the digits and publishes it as a bundle.

    The first 1,437 digits are train, the last 360 test; returns the bundle's folder.
    """
    images, target = digits().images, digits().target
    pixels = np.round(images * 255 / 16).reshape(len(images), -1) / 255
    n = round(1437 * fraction)
    model = LogisticRegression(max_iter=2000, C=1.0 + seed).fit(pixels[:n], target[:n])
    accuracy = float(model.score(pixels[1437:], target[1437:]))
    probabilities = model.predict_proba(pixels[1437:])
    metrics = Metrics(
        n=360, accuracy=accuracy, f1=accuracy, precision=accuracy, recall=accuracy, loss=0.3
    )
    manifest = Manifest(
        name=f"{prefix}-{round(fraction * 100)}",
        class_names=CLASS_NAMES,
        preprocessing=Preprocessing(version=preprocess.VERSION, size=SIZE),
        dataset=Dataset(name=prefix, hash="0" * 64, n_train=1437, n_test=360),
        fraction=fraction,
        n_labels_train=n,
        n_labels_val=max(10, n // 9),
        indices_hash="0" * 64,
        seed=seed,
        preset="test",
        backbone="logistic regression",
        n_parameters=int(model.coef_.size + model.intercept_.size),
        epochs=2,
        best_epoch=2,
        temperature=1.0,
        recipe={"C": 1.0 + seed},
        device=Choice(value="cpu", reason="a test"),
        precision=Choice(value="fp32", reason="a test"),
        val=metrics,
        test=metrics,
        predicted=Predicted(
            split="test",
            n=360,
            classes=tuple(np.bincount(probabilities.argmax(1), minlength=10).tolist()),
            confidence=tuple(
                np.bincount(
                    np.searchsorted(CONFIDENCE_BOUNDS, probabilities.max(1)),
                    minlength=len(CONFIDENCE_BOUNDS) + 1,
                ).tolist()
            ),
        ),
        held_out=acceptance.held_out(probabilities, target[1437:]),
        parity=Parity(
            n_images=100, batch_sizes=(1, 2, 7, 32), max_abs_diff=1e-6, top1_agreement=1.0
        ),
        packages={"scikit-learn": "test"},
    )
    history = tuple(
        Epoch(
            epoch=epoch,
            train_loss=1.0 / epoch,
            train_accuracy=0.5,
            val_loss=1.1 / epoch,
            val_accuracy=0.5,
            val_f1=0.5,
            val_precision=0.5,
            val_recall=0.5,
            lr=0.1,
            images_per_s=1000.0,
            seconds=0.1,
        )
        for epoch in (1, 2)
    )
    run = Run(
        command="train --data digits",
        started="2026-01-01T00:00:00Z",
        host="host",
        hardware="CPU",
        seconds={"train": 0.2, "evaluate": 0.1, "export": 0.1, "total": 0.4},
        history=history,
        report={},
        confusion=(),
    )
    weight = np.ascontiguousarray(model.coef_.T, np.float32)
    return store.publish(
        root, manifest, graph(weight, model.intercept_.astype(np.float32)), "# digits\n", run
    )
