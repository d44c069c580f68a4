"""The null model: it answers a constant, like MLPerf's null backend.

Its figures are the overhead of the harness: HTTP, decoding, batching, the load generator. It is
served by a separate process and takes its turn in every round.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
    value = numpy_helper.from_array(np.full(1, 1 / k, np.float32))
    nodes = [
        helper.make_node("Shape", ["images"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "k"], ["answers"], axis=0),
        helper.make_node("Concat", ["n", "one"], ["features"], axis=0),
        helper.make_node("ConstantOfShape", ["answers"], ["probabilities"], value=value),
        helper.make_node("ConstantOfShape", ["features"], ["embedding"], value=value),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", k]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            numpy_helper.from_array(np.array([k], np.int64), "k"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
