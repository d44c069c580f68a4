from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from bundle.errors import LabelcurveError
from bundle.manifest import Epoch
from training import finetune, fractions
from training.backbones import Network, ReferenceNet, ResNet9
from training.data import Data
from training.device import FP32_CPU, choose
from training.finetune import Labelled, Result
from training.recipes import Recipe

RECIPE = Recipe(
    backbone="resnet9",
    optimizer="sgd",
    lr=0.02,
    schedule="triangle",
    epochs=3,
    patience=3,
    batch_size=32,
    weight_decay=5e-4,
    label_smoothing=0.1,
    crop=4,
    cutout=4,
    ema=0.5,
)
PLATEAU = Recipe(
    backbone="reference",
    optimizer="adam",
    lr=5e-4,
    schedule="plateau",
    epochs=3,
    patience=6,
    batch_size=64,
)


def network(seed: int = 0, backbone: str = "resnet9") -> Network:
    torch.manual_seed(seed)
    net = ResNet9((8, 16, 32, 64)) if backbone == "resnet9" else ReferenceNet(8)
    return Network(net, net.dim, 10, torch.full((3,), 0.3), torch.full((3,), 0.35))


def labelled(digits: Data, fraction: float) -> tuple[Labelled, Labelled]:
    subset = fractions.subset(digits.train, digits.class_names, fraction, 0)
    parts = [digits.train.take(rows) for rows in (subset.train, subset.val)]
    return Labelled(parts[0].images, parts[0].labels), Labelled(parts[1].images, parts[1].labels)


def run(
    digits: Data, recipe: Recipe = RECIPE, seed: int = 0, fraction: float = 0.3
) -> tuple[Result, list[str]]:
    said: list[str] = []
    train, val = labelled(digits, fraction)
    net = network(seed, recipe.backbone)
    return finetune.finetune(net, train, val, recipe, FP32_CPU, seed, say=said.append), said


def same_weights(a: Network, b: Network) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("recipe", [RECIPE, PLATEAU], ids=lambda r: r.backbone)
def test_digits_are_learnt_in_a_few_epochs(digits: Data, recipe: Recipe) -> None:
    result, _ = run(digits, recipe.with_epochs(4), fraction=1.0)
    logits = finetune.predict_logits(
        result.network, torch.from_numpy(np.array(digits.test.images)).permute(0, 3, 1, 2), FP32_CPU
    )
    assert (logits.argmax(1) == digits.test.labels).mean() > 0.75
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_what_comes_back_is_the_best_epoch_in_fp32_on_the_cpu(digits: Data) -> None:
    result, _ = run(digits, RECIPE.with_epochs(5))
    assert not result.network.training
    assert {p.dtype for p in result.network.parameters()} == {torch.float32}
    assert {p.device.type for p in result.network.parameters()} == {"cpu"}
    best = max(result.history, key=lambda e: (e.val_accuracy, -e.val_loss))
    assert result.best_epoch == best.epoch
    _, val = labelled(digits, 0.3)
    logits = finetune.predict_logits(
        result.network, torch.from_numpy(val.images).permute(0, 3, 1, 2), FP32_CPU
    )
    assert (logits.argmax(1) == val.labels).mean() == pytest.approx(best.val_accuracy)


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, ema=0.0), PLATEAU])
def test_the_same_seed_gives_the_same_weights(digits: Data, recipe: Recipe) -> None:
    recipe = recipe.with_epochs(2)
    first, second = run(digits, recipe)[0], run(digits, recipe)[0]
    assert same_weights(first.network, second.network)
    assert not same_weights(first.network, run(digits, recipe, seed=1)[0].network)


def test_one_row_an_epoch_with_an_estimate(digits: Data) -> None:
    seen: list[Epoch] = []
    said: list[str] = []
    train, val = labelled(digits, 0.3)
    result = finetune.finetune(
        network(), train, val, RECIPE, FP32_CPU, 0, say=said.append, on_epoch=seen.append
    )
    assert tuple(seen) == result.history
    assert [row.epoch for row in seen] == [1, 2, 3]
    assert said[0] == finetune.HEADER
    for row, line in zip(seen, said[1:], strict=True):
        assert line.startswith(f"  {row.epoch}/3 ")
        assert f"{row.val_accuracy:.4f}" in line
        assert f"{row.val_f1:.4f}" in line
        assert line.endswith(" s")
    assert {len(line) for line in said[1:]} == {len(said[1])}, "the rows are of one width"
    assert said[-1].endswith(" 0 s"), "nothing is left at the end"


def test_the_learning_rate_rises_and_falls_to_zero(digits: Data) -> None:
    result, _ = run(digits, replace(RECIPE, epochs=10, patience=10))
    rates = [row.lr for row in result.history]
    assert max(rates) <= RECIPE.lr
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=RECIPE.lr / 50)


def test_on_a_plateau_the_rate_is_halved_and_the_run_stops(digits: Data) -> None:
    # Labels that mean nothing: the validation loss soon gets worse and stays so.
    train, val = labelled(digits, 0.3)
    noise = np.random.default_rng(0).permutation(train.labels)
    said: list[str] = []
    plan = replace(PLATEAU, epochs=50, patience=6, lr=3e-3, batch_size=128)
    result = finetune.finetune(
        network(backbone="reference"),
        Labelled(train.images, noise),
        val,
        plan,
        FP32_CPU,
        0,
        say=said.append,
    )
    losses = [row.val_loss for row in result.history]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert len(losses) == result.best_epoch + 6 < 50
    assert said[-1] == "no better validation result in 6 epochs: stopped"
    rates = [row.lr for row in result.history]
    best = result.best_epoch
    # rows show the rate that the epoch ran with: halved after three epochs that were no better
    assert rates[best + 3] == pytest.approx(rates[best] / 2)
    assert rates[best] == rates[best + 1] == rates[best + 2]


@pytest.mark.parametrize("lr", [1e30, math.inf, math.nan])
def test_a_loss_that_is_no_number_ends_the_run(digits: Data, lr: float) -> None:
    with pytest.raises(LabelcurveError) as error:
        run(digits, replace(RECIPE, lr=lr, ema=0.0))
    message = r"the (training|validation) loss is (nan|inf) in epoch 1 at learning rate"
    assert re.match(message, str(error.value))
    assert str(error.value).endswith("nothing was published")


@pytest.mark.parametrize("n", [2, 10, 33])
def test_any_number_of_labels_can_be_trained_on(digits: Data, n: int) -> None:
    train, val = labelled(digits, 0.3)
    few = Labelled(train.images[:n], train.labels[:n])
    result = finetune.finetune(network(), few, val, RECIPE, FP32_CPU, 0, say=lambda _: None)
    assert len(result.history) == 3


def test_training_leaves_the_images_and_labels_alone(digits: Data) -> None:
    train, val = labelled(digits, 0.3)
    arrays: list[NDArray[Any]] = [train.images, train.labels, val.images, val.labels]
    before = [array.copy() for array in arrays]
    finetune.finetune(network(), train, val, RECIPE, FP32_CPU, 0, say=lambda _: None)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays, strict=True))


def test_the_device_of_this_machine_trains_too(digits: Data) -> None:
    train, val = labelled(digits, 0.3)
    result = finetune.finetune(network(), train, val, RECIPE, choose(), 0, say=lambda _: None)
    assert all(math.isfinite(row.val_loss) for row in result.history)
    assert next(result.network.parameters()).dtype == torch.float32


def test_normalisation_is_not_trained(digits: Data) -> None:
    result, _ = run(digits, RECIPE)
    assert torch.equal(result.network.mean, network().mean)
    assert torch.equal(result.network.std, network().std)
