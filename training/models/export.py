"""ONNX export, and the parity gate: proof that the graph is the same function as the network."""

from __future__ import annotations

import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelcurve.bundle import cuda, preprocess
from labelcurve.bundle.errors import ExportError
from labelcurve.bundle.manifest import Parity
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.models import stages, traces
from labelcurve.training.models.backbones import Group, Network

BATCH_SIZES = (1, 2, 7, 32)
TOLERANCE = 1e-4
"""Largest allowed difference of a probability."""
TIE = 5e-6
"""Of classes whose probabilities differ by less, either is top-1: float32 rounds that much."""
GRAPHS = "graphs"
GPU = "CUDAExecutionProvider"
PARITY_IMAGES = 1000
"""Validation images that the gate compares at least, or all where there are fewer."""
WARM_UP, TIMED = 5, 50
"""Single images before and while the time is taken."""


class Served(nn.Module):
    """The exported module: uint8 pixels in, probabilities and embedding out."""

    temperature: Tensor

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("temperature", torch.tensor(temperature))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Uint8 [N, H, W, 3] to float32 [N, K] and float32 [N, D]."""
        embedding = self.network.embed(self.network.normalise(images.permute(0, 3, 1, 2)))
        logits = self.network.classifier(embedding)
        return torch.softmax(logits / self.temperature, dim=1), embedding


def to_onnx(
    served: Served, size: int, class_names: tuple[str, ...], cache: Path | None = None
) -> bytes:
    """The graph as one ONNX file with a dynamic batch axis and the class names in its metadata.

    The same weights give the same bytes: traces with paths and source lines are removed. A network
    of an architecture that was traced before is its graph with other weights, which takes a small
    part of the time; that it is the same function is for the parity gate to prove.

    Args:
        size: side of the images in pixels.
        cache: folder that keeps what was traced for other processes; None keeps it for this one.
    """
    folded = _folded(served, size)
    weights = {name: tensor.numpy() for name, tensor in folded.state_dict().items()}
    twins = _twins(weights)
    architecture = f"{folded} {size} {twins}"
    # The exporter leaves out what adds 0 or divides by 1: then the graph is one of these weights.
    ordinary = not any(np.ptp(w) == 0 and w.flat[0] in (0, 1) for w in weights.values())
    known = _traced.get(architecture) if ordinary else None
    if ordinary and known is None and cache is not None:
        known = traces.read(cache / GRAPHS, architecture)
    model = onnx.ModelProto()
    if known is not None:
        model.CopyFrom(known)
        _traced[architecture] = known
        for found in model.graph.initializer:
            if found.name in weights:
                found.raw_data = weights[found.name].tobytes()
    else:
        model = _trace(folded, size)
        held = {found.name: found.raw_data for found in model.graph.initializer}
        # Where the exporter has changed a weight, others would not fit into its place.
        kept = (held.get(twins.get(n, n)) == w.tobytes() for n, w in weights.items())
        if ordinary and all(kept):
            _traced[architecture] = onnx.ModelProto()
            _traced[architecture].CopyFrom(model)
            if cache is not None:
                traces.keep(cache / GRAPHS, architecture, model, weights)
    onnx.helper.set_model_props(model, {"class_names": json.dumps(list(class_names))})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


_traced: dict[str, onnx.ModelProto] = {}


def _folded(served: Served, size: int) -> Served:
    """A copy on the CPU whose batch norms are part of the convolutions, as far as they can be."""
    found = deepcopy(served).cpu().eval()
    for module in list(found.modules()):
        if isinstance(module, Group):
            module.fold()
    network = found.network
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        pixels = np.random.default_rng(0).integers(0, 256, (2, 3, size, size), np.uint8)
        network.backbone = stages.folded(
            network.backbone, network.normalise(torch.from_numpy(pixels))
        )
    return found


def _twins(weights: Mapping[str, NDArray[np.generic]]) -> dict[str, str]:
    """Weights that are equal to an earlier one, which the exporter keeps once, and that one."""
    first: dict[tuple[object, ...], str] = {}
    found = {}
    for name, weight in weights.items():
        earlier = first.setdefault((weight.dtype, weight.shape, weight.tobytes()), name)
        if earlier != name:
            found[name] = earlier
    return found


def _trace(folded: nn.Module, size: int) -> onnx.ModelProto:
    # An example batch of 2, since an axis of 1 would be taken for a constant.
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with quiet():
        program = torch.onnx.export(
            folded,
            (example,),
            dynamo=True,
            input_names=["images"],
            output_names=["probabilities", "embedding"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program")
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    for part in (model.graph, model):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def session(graph: bytes, threads: int = 0) -> ort.InferenceSession:
    """An ONNX Runtime session on the CPU; `threads` 0 leaves the number to ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def gpu_session(graph: bytes) -> ort.InferenceSession | None:
    """A session on an NVIDIA GPU, in the arithmetic of the service there: fp32 is not TF32.

    None where no GPU is visible, or ONNX Runtime cannot use it: it may lack code for a card that
    torch has code for.
    """
    if not cuda.visible_gpus() or GPU not in ort.get_available_providers():
        return None
    ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        runtime = ort.InferenceSession(graph, options, providers=[(GPU, {"use_tf32": "0"})])
    except Exception:  # ONNX Runtime's own exceptions have no common base
        return None
    return runtime if runtime.get_providers()[0] == GPU else None


def probabilities(
    runtime: ort.InferenceSession, images: Images, batch: int | None = None
) -> NDArray[np.float32]:
    """Probabilities of uint8 [N, H, W, 3], float32 [N, K].

    Args:
        batch: images at a time; by default as many as have the pixels of 64 at a size of 64.
    """
    batch = batch or min(64, max(1, 64 * 64**2 // images.shape[1] ** 2))
    parts = [
        runtime.run(["probabilities"], {"images": np.ascontiguousarray(images[i : i + batch])})[0]
        for i in range(0, len(images), batch)
    ]
    return np.concatenate(parts).astype(np.float32, copy=False)


def check_parity(
    graph: bytes,
    served: Served,
    images: Images,
    files: Sequence[bytes],
    class_names: tuple[str, ...],
    gpu: bool = False,
) -> Parity:
    """Compares ONNX Runtime with torch (fp32, CPU), from file bytes to probabilities.

    Args:
        images: validation images as training saw them, uint8 [N, size, size, 3]; torch's input.
        files: the same images as file bytes; ONNX Runtime gets them through `prepare`.
        class_names: as the metadata of the graph should have them.
        gpu: compare on an NVIDIA GPU, too, where ONNX Runtime can use it here.

    Raises:
        ExportError: further apart than `TOLERANCE`, another top-1, or other class names.
    """
    runtime = session(graph)
    names = json.loads(runtime.get_modelmeta().custom_metadata_map["class_names"])
    if tuple(names) != class_names:
        raise ExportError(f"the graph's class names are {names}, the data set's {class_names}")
    served = served.eval().cpu().float()
    prepared = np.stack([preprocess.prepare(file, images.shape[1]) for file in files])
    with torch.inference_mode():
        few = min(250, max(1, 250 * 64**2 // images.shape[1] ** 2))
        batches = torch.from_numpy(np.array(images)).split(few)
        expected = torch.cat([served(part)[0] for part in batches]).numpy()
    runtimes = [runtime]
    if gpu and (own := gpu_session(graph)):
        runtimes.append(own)
    worst, agreement = 0.0, 1.0
    for runtime, batch in product(runtimes, BATCH_SIZES):
        found = probabilities(runtime, prepared, batch)
        # numpy's maximum keeps NaN, which Python's max would drop
        worst = float(np.maximum(worst, np.abs(found - expected).max()))
        answer = found.argmax(1)[:, None]
        lost = expected.max(1) - np.take_along_axis(expected, answer, 1)[:, 0]
        agreement = min(agreement, float((lost <= TIE).mean()))
    parity = Parity(
        providers=tuple(runtime.get_providers()[0] for runtime in runtimes),
        n_images=len(images),
        batch_sizes=BATCH_SIZES,
        max_abs_diff=worst,
        top1_agreement=agreement,
    )
    if not worst <= TOLERANCE or agreement < 1.0:
        raise ExportError(
            f"the exported graph is not the same function: probabilities are up to {worst:.2e} "
            f"apart (allowed {TOLERANCE:.0e}), top-1 agrees on {agreement:.2%} of "
            f"{len(images)} validation images (needed 100 %), on {' and '.join(parity.providers)}. "
            "Nothing was published"
        )
    return parity


def p50_ms(graph: bytes, images: Images, timed: int = TIMED) -> float:
    """The median time of one image in ONNX Runtime on one thread of this CPU, in milliseconds.

    It is the CPU time of the thread: on a machine without other work the wall time, and other work
    hardly changes it.

    Args:
        images: uint8 [N, size, size, 3], taken one by one.
    """
    runtime = session(graph, threads=1)
    spent = []
    for i in range(WARM_UP + timed):
        one = np.ascontiguousarray(images[i % len(images)][None])
        since = time.thread_time()
        runtime.run(["probabilities"], {"images": one})
        spent.append(time.thread_time() - since)
    return round(statistics.median(spent[WARM_UP:]) * 1000, 2)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's own progress and its dependencies' deprecations off the terminal."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
