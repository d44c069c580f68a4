"""The null model: it answers a constant, like MLPerf's null backend.

Its figures are the overhead of the harness: HTTP, decoding, batching, the load generator. It is
served by a separate process and takes its turn in every round.
"""

from __future__ import annotations

from pathlib import Path

import onnx.checker
import onnx.parser

from labelcurve.bundle import store
from labelcurve.bundle.store import Bundle

NAME = "null"


def publish(root: Path, like: Bundle) -> Bundle:
    """Publish the null model in an empty folder, with the classes and input size of a bundle."""
    nothing = {"backbone": NAME, "preset": NAME, "n_parameters": 0, "test": None, "variants": ()}
    manifest = like.manifest.model_copy(update={"name": NAME, **nothing})
    graph = constant(like.manifest.preprocessing.size, len(like.manifest.class_names))
    store.publish(root, manifest, graph, "# null\n", store.read_run(like.path))
    return store.read(root, NAME)


def constant(size: int, k: int) -> bytes:
    """Build a graph that gives every image, of `size` pixels a side, the probabilities 1/`k`."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        {NAME} (uint8[batch, {size}, {size}, 3] images)
            => (float[batch, {k}] probabilities, float[batch, 1] embedding)
        <int64[1] k = {{{k}}}, int64[1] one = {{1}}>
        {{
            n = Shape <start = 0, end = 1> (images)
            answers = Concat <axis = 0> (n, k)
            features = Concat <axis = 0> (n, one)
            probabilities = ConstantOfShape <value = float[1] {{{1 / k:.9f}}}> (answers)
            embedding = ConstantOfShape <value = float[1] {{{1 / k:.9f}}}> (features)
        }}
    """)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
