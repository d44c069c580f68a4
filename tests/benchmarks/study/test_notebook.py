from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from labelcurve.benchmarks.study import notebook
from labelcurve.benchmarks.study.notebook import BATCH, WINDOW, Options, Plateau
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.data.dataset import Data
from labelcurve.training.models.backbones import build


def test_the_buffer_hands_on_each_image_once_and_none_before_it_was_read() -> None:
    order = np.concatenate(notebook.kept(2_000, 1, np.random.default_rng(0)))
    assert sorted(order) == list(range(2_000))
    assert (order < np.arange(2_000) + WINDOW).all()
    assert (order != np.arange(2_000)).mean() > 0.9


def test_a_shard_is_every_tenth_batch_and_holds_other_images_each_epoch() -> None:
    random = np.random.default_rng(0)
    epochs = [notebook.kept(5_200, 10, random) for _ in range(10)]
    assert [len(batch) for batch in epochs[0]] == [BATCH] * 2 + [5_200 - 20 * BATCH]
    seen = {int(row) for epoch in epochs for batch in epoch for row in batch}
    assert len(seen) > 2 * sum(map(len, epochs[0]))


def test_keras_begins_with_uniform_weights_of_glorot_and_biases_of_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 100)
    notebook.initialise(layer)
    bound = (6 / 400) ** 0.5
    assert 0.98 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert not layer.bias.detach().any()


def test_the_weights_of_a_checkpoint_of_tensorflow(data: Data, tmp_path: Path) -> None:
    network = build("reference", data.train.images, 10)
    random = np.random.default_rng(0)
    shapes = ((3, 3, 3, 32), (3, 3, 32, 64), (2, 2, 64, 128))
    kernels = [random.normal(size=shape).astype("<f4") for shape in shapes]
    biases = [random.normal(size=shape[-1:]).astype("<f4") for shape in shapes]
    file = tmp_path / "backbone.data"
    pairs = zip(kernels, biases, strict=True)
    content = [part.tobytes() for pair in pairs for part in pair]
    file.write_bytes(b"".join(content) + b"the graph of its objects")
    notebook.load_backbone(network, file)
    found = [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    for convolution, kernel, bias in zip(found, kernels, biases, strict=True):
        np.testing.assert_allclose(convolution.weight.detach(), kernel.transpose(3, 2, 0, 1), 1e-6)
        assert convolution.bias is not None
        np.testing.assert_allclose(convolution.bias.detach(), bias, 1e-6)
    file.write_bytes(content[0])
    with pytest.raises(LabelcurveError, match=r"--backbone .*: not the 52,288 weights"):
        notebook.load_backbone(network, file)
    with pytest.raises(LabelcurveError, match="No such file"):
        notebook.load_backbone(network, tmp_path / "none")


def test_the_rate_is_halved_after_three_epochs_without_gain_and_the_run_stopped_after_six() -> None:
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], 1.0)
    plateau = Plateau(optimizer)
    # A gain of half of `MIN_DELTA` postpones stopping, not the halving.
    losses = (1.0, 1.1, 0.99995, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1)
    rates, ends = [], []
    for loss in losses:
        ends.append(plateau.over(loss))
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert ends == [False] * 8 + [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fraction", "0"], "--fraction 0: allowed are"),
        (["--seeds", "0"], "--seeds 0: allowed are"),
    ],
)
def test_options_that_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(LabelcurveError, match=message):
        notebook.main(options)


def test_what_is_in_the_file_is_not_trained_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "EPOCHS", 2)
    out = tmp_path / "notebook.json"
    options = Options(data="digits", fraction=(0.5,), cache=cache, out=out)
    (anew,) = notebook.run(options)["results"]
    assert (anew["draw"], anew["pretrained"], anew["epochs"]) == ("anew", False, 2)
    assert (anew["n_test"], anew["batches"]) == (71, 3)
    assert anew["images_an_epoch"] < anew["images_seen"]
    both = notebook.run(Options(data="digits", fraction=(0.5,), draw="once", cache=cache, out=out))
    first, once = both["results"]
    assert first == anew
    assert once["images_seen"] == once["images_an_epoch"]
    before = out.read_bytes()
    notebook.run(options)
    assert out.read_bytes() == before
