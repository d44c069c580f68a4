"""The reference experiment as its notebook runs it: its draw of the labels, its split, Keras's
defaults.

`python -m benchmarks.study.notebook --fraction 0.1` trains its network as TensorFlow does there:
Glorot's initialisation, Adam with Keras's epsilon, batches from a shuffle buffer of 500, every
tenth of which is kept, validation on 8,000 test images and figures on the other 2,000, with the
weights of the last epoch. The buffer is refilled each epoch, so the kept batches hold other
images every time; `--draw once` keeps the images of the first epoch, and nothing else changes. This
is not the protocol of the project (docs/reference.md): it shows what accounts for the published
figures.

The last line on stdout is one JSON document. Results in `--out` are kept, and not trained again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from labelcurve.benchmarks.harness.provenance import conditions, here, parsed, save, write
from labelcurve.bundle import command
from labelcurve.bundle.command import Within
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data import dataset
from labelcurve.training.data.dataset import Data, Split
from labelcurve.training.data.source import Index
from labelcurve.training.learning.metrics import scores
from labelcurve.training.models.backbones import Network, build

BATCH, WINDOW = 256, 500
EPOCHS, PATIENCE, PLATEAU = 50, 6, 3
LR, SMALLEST_LR, EPSILON = 5e-4, 1e-6, 1e-7
TEST_SHARE = 0.2
"""Share of the test images; the others are used for validation."""
SPLIT_SEED = 21
MIN_DELTA = 1e-4
"""Keras's `ReduceLROnPlateau` ignores smaller gains; its `EarlyStopping` counts any."""

say = partial(print, flush=True)


@dataclass(frozen=True)
class Options:
    """Runs the reference experiment under its own protocol."""

    data: str = "cifar10"
    """As for `labelcurve train`."""
    fraction: Annotated[tuple[float, ...], tyro.conf.UseAppendAction, Within(0, 1, above=True)] = ()
    """Share of the batches that are kept; may be repeated. By default 0.1, 0.5 and 1."""
    seeds: Annotated[int, Within(1)] = 1
    """Runs of each fraction, with seeds from 0."""
    draw: Literal["anew", "once"] = "anew"
    """When the kept images are drawn: each epoch, as in the notebook, or before the first one."""
    backbone: Path | None = None
    """The experiment's own pretrained backbone: `Weights/backbone.data-00000-of-00001` of its
    repository. By default random weights."""
    cache: Path | None = None
    """As for `labelcurve train`."""
    out: Path | None = None
    """Also write the JSON document to this file."""


@dataclass(frozen=True)
class Part:
    """Images with labels, on the host."""

    images: Tensor
    """uint8 [N, 3, H, W]"""
    labels: Tensor
    """int64 [N]"""


def kept(n: int, shards: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """The batches of an epoch of `n` images: `shuffle(500).batch(256).shard(shards, 0)` of tf.data.

    The buffer holds 500 images in the order of the files; one of them, at random, is handed on and
    the next takes its place. Every batch whose number divides by `shards` is kept: rows, each
    int64 [B]; the last may be smaller.
    """
    order = np.empty(n, np.int64)
    buffer = list(range(min(WINDOW, n)))
    for place in range(n):
        slot = int(random.integers(len(buffer)))
        order[place] = buffer[slot]
        if place + WINDOW < n:
            buffer[slot] = place + WINDOW
        else:
            buffer[slot] = buffer[-1]
            buffer.pop()
    batches = [order[first : first + BATCH] for first in range(0, n, BATCH)]
    return batches[::shards]


def initialise(network: nn.Module) -> None:
    """Keras's defaults: Glorot and Bengio's uniform weights, biases of zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)


def load_backbone(network: Network, path: Path) -> None:
    """Puts the experiment's pretrained weights into the backbone.

    TensorFlow's checkpoint holds them first: kernel (height, width, in, out) and bias of each
    convolution, float32.

    Raises:
        LabelcurveError: the file cannot be read, or is not of this backbone.
    """
    convolutions = [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    sizes = [size for conv in convolutions for size in (conv.weight.numel(), conv.out_channels)]
    try:
        values = np.fromfile(path, "<f4", sum(sizes))
    except OSError as error:
        raise LabelcurveError(f"--backbone {path}: {error.strerror}") from error
    if len(values) < sum(sizes) or not (np.abs(values) < 100).all():
        raise LabelcurveError(
            f"--backbone {path}: not the {sum(sizes):,} weights of the experiment's backbone; take "
            "Weights/backbone.data-00000-of-00001 of its branch homework_3"
        )
    parts = np.split(values, np.cumsum(sizes)[:-1])
    for conv, kernel, bias in zip(convolutions, parts[::2], parts[1::2], strict=True):
        c_out, c_in, high, wide = conv.weight.shape
        there = torch.from_numpy(kernel.reshape(high, wide, c_in, c_out)).permute(3, 2, 0, 1)
        assert conv.bias is not None
        with torch.no_grad():
            conv.weight.copy_(there)
            conv.bias.copy_(torch.from_numpy(bias))


def split_test(data: Data) -> tuple[Part, Part]:
    """The test images as validation and test part, four to one."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(data.test))
    val, test = train_test_split(rows, test_size=TEST_SHARE, random_state=SPLIT_SEED)
    return _part(data.test, val), _part(data.test, test)


def _part(split: Split, rows: Index) -> Part:
    pixels = torch.from_numpy(np.array(split.images[rows])).permute(0, 3, 1, 2).contiguous()
    return Part(pixels, torch.from_numpy(split.labels[rows]).long())


def logits(network: Network, images: Tensor) -> Tensor:
    """Computes logits, float32 [N, K], of images, uint8 [N, 3, H, W]."""
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(network.normalise(part)) for part in images.split(500)])


class Plateau:
    """Keras's `ReduceLROnPlateau` and `EarlyStopping` on the validation loss."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._rate = ReduceLROnPlateau(
            optimizer,
            factor=0.5,
            patience=PLATEAU - 1,  # Keras acts in that epoch, torch after it
            threshold=MIN_DELTA,
            threshold_mode="abs",
            min_lr=SMALLEST_LR,
        )
        self._best, self._stale = float("inf"), 0

    def over(self, loss: float) -> bool:
        """Called after each epoch: halves the learning rate if due; returns whether to stop."""
        self._rate.step(loss)
        self._stale = 0 if loss < self._best else self._stale + 1
        self._best = min(self._best, loss)
        return self._stale >= PATIENCE


def train(data: Data, fraction: float, seed: int, options: Options) -> dict[str, Any]:
    """Train and evaluate one network; its row of the document."""
    torch.manual_seed(seed)
    random = np.random.default_rng([seed, 1])
    train_part = _part(data.train, np.arange(len(data.train)))
    val, test = split_test(data)
    network = build("reference", data.train.images, len(data.class_names))
    initialise(network)
    if options.backbone is not None:
        load_backbone(network, options.backbone)
    optimizer = torch.optim.Adam(network.parameters(), LR, eps=EPSILON)
    plateau = Plateau(optimizer)
    shards = max(1, round(1 / fraction))
    seen = np.zeros(len(train_part.labels), bool)
    first = kept(len(seen), shards, random)
    began = time.monotonic()
    for epoch in range(1, EPOCHS + 1):
        if options.draw == "once":
            # The same images in another order.
            rows = random.permutation(np.concatenate(first))
            batches = np.split(rows, range(BATCH, len(rows), BATCH))
        else:
            batches = first if epoch == 1 else kept(len(seen), shards, random)
        network.train()
        losses = []
        for rows in batches:
            seen[rows] = True
            part = torch.from_numpy(rows)
            found = network(network.normalise(train_part.images[part]))
            loss = F.cross_entropy(found, train_part.labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        val_loss = float(F.cross_entropy(logits(network, val.images), val.labels))
        say(
            f"{fraction:g} {options.draw} seed {seed} epoch {epoch:2d}  loss {np.mean(losses):.4f}"
            f"  val {val_loss:.4f}  {time.monotonic() - began:5.0f} s"
        )
        if plateau.over(val_loss):
            break
    figures = _figures(logits(network, test.images).double().numpy(), test.labels.numpy())
    return {
        **_key(fraction, seed, options),
        **figures,
        "epochs": epoch,
        "batches": len(first),
        "images_an_epoch": int(sum(map(len, first))),
        "images_seen": int(seen.sum()),
        "seconds": round(time.monotonic() - began, 1),
    }


def _figures(found: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Compute the notebook's figures: precision and recall count probabilities above 0.5."""
    of = scores(found, labels)
    sure = torch.softmax(torch.from_numpy(found), 1).numpy() > 0.5
    right = float(sure[np.arange(len(labels)), labels].sum())
    return {
        "accuracy": of.accuracy,
        "standard_error": (of.accuracy * (1 - of.accuracy) / len(labels)) ** 0.5,
        "f1": of.f1,
        "precision": right / max(1.0, float(sure.sum())),
        "recall": right / len(labels),
        "n_test": len(labels),
    }


def _key(fraction: float, seed: int, options: Options) -> dict[str, Any]:
    return {
        "fraction": fraction,
        "draw": options.draw,
        "pretrained": options.backbone is not None,
        "seed": seed,
    }


def run(options: Options) -> dict[str, Any]:
    """Train what `--out` does not hold yet and write the document after each run."""
    rows: list[dict[str, Any]] = []
    if options.out is not None and options.out.exists():
        rows = json.loads(options.out.read_text())["results"]
    data = dataset.load(options.data, cache=options.cache, say=say)
    if len(data.test) < 10:
        raise LabelcurveError(
            f"--data {options.data}: a test split is needed, to validate and to test on"
        )
    document: dict[str, Any] = {"results": rows}
    commit = here().git_commit  # before the first write, which may change a tracked file
    for fraction in options.fraction or (0.1, 0.5, 1.0):
        for seed in range(options.seeds):
            key = _key(fraction, seed, options)
            if any(key.items() <= row.items() for row in rows):
                continue
            row = train(data, fraction, seed, options)
            conditioned = conditions("labelcurve", "torch", "numpy")
            conditioned["git_commit"] = commit
            rows.append({**row, "threads": torch.get_num_threads(), **conditioned})
            if options.out is not None:
                save(options.out, document)
    return document


def main(arguments: Sequence[str]) -> None:
    """The command `python -m benchmarks.study.notebook`."""
    options = parsed(Options, arguments)
    write(options.out, run(options))


if __name__ == "__main__":
    command.enter(main, extra="train")
