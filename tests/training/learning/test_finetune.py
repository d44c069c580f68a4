from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import Epoch
from labelcurve.training.data import fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.stored import Images
from labelcurve.training.data.source import Index
from labelcurve.training.learning import finetune
from labelcurve.training.learning.finetune import Examples, Labelled, Result
from labelcurve.training.learning.loop import Control
from labelcurve.training.learning.metrics import scores
from labelcurve.training.models import backbones
from labelcurve.training.models.backbones import ConvNet, Network, ReferenceNet
from labelcurve.training.recipes import Recipe, recipe
from labelcurve.training.runtime import console
from labelcurve.training.runtime.device import FP32_CPU, choose

RECIPE = Recipe(
    backbone="convnet",
    optimizer="sgd",
    lr=0.02,
    schedule="linear",
    warmup=0.2,
    decay=0.8,
    epochs=3,
    patience=3,
    batch_size=32,
    weight_decay=5e-4,
    label_smoothing=0.1,
    crop=4,
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


def network(seed: int = 0, backbone: str = "convnet") -> Network:
    torch.manual_seed(seed)
    net = ConvNet((16, 32, 64)) if backbone == "convnet" else ReferenceNet(8)
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
    return finetune.finetune(
        net, Examples(train, val), recipe, FP32_CPU, seed, control=Control(say=said.append)
    ), said


def same_weights(a: Network, b: Network) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("recipe", [RECIPE, PLATEAU], ids=lambda r: r.backbone)
def test_digits_are_learnt_in_a_few_epochs(digits: Data, recipe: Recipe) -> None:
    result, _ = run(digits, replace(recipe, epochs=4), fraction=1.0)
    logits = backbones.predict_logits(result.network, digits.test.images, FP32_CPU)
    assert (logits.argmax(1) == digits.test.labels).mean() > 0.75
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_random_crops_of_an_area_are_smaller_than_the_images_that_validate(digits: Data) -> None:
    train, val = labelled(digits, 0.3)
    net, seen = network(), set()
    net.backbone.register_forward_pre_hook(
        lambda part, given: seen.add((part.training, given[0].shape[-1]))
    )
    crops = replace(RECIPE, epochs=1, crop=0, area=0.5, view_share=0.75)
    finetune.finetune(net, Examples(train, val), crops, FP32_CPU, 0)
    assert seen == {(True, 6), (False, 8)}


def accuracy(result: Result, images: Images, labels: Index) -> float:
    logits = backbones.predict_logits(result.network, images, FP32_CPU)
    return float((logits.argmax(1) == labels).mean())


def test_what_comes_back_is_in_fp32_on_the_cpu_and_in_evaluation_mode(digits: Data) -> None:
    result, _ = run(digits)
    assert not result.network.training
    assert {p.dtype for p in result.network.parameters()} == {torch.float32}
    assert {p.device.type for p in result.network.parameters()} == {"cpu"}


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_weights_are_those_of_the_last_epoch(digits: Data, ema: float) -> None:
    result, _ = run(digits, replace(RECIPE, ema=ema))
    _, val = labelled(digits, 0.3)
    assert result.best_epoch == len(result.history) == 3
    last = result.history[-1]
    assert accuracy(result, val.images, val.labels) == pytest.approx(last.val_accuracy)


def test_an_earlier_epoch_that_validates_better_is_not_taken(digits: Data) -> None:
    train, val = labelled(digits, 1.0)
    shown = Labelled(val.images, val.labels.copy())

    def corrupt(row: Epoch) -> None:
        """From the second epoch on half of the validation labels are wrong."""
        rows = slice(0, len(shown.labels) // 2)
        shown.labels[rows] = (val.labels[rows] + 5) % 10

    plan = replace(RECIPE, epochs=3, ema=0.0)
    control = Control(on_epoch=corrupt)
    result = finetune.finetune(network(), Examples(train, shown), plan, FP32_CPU, 0, control)
    accuracies = [row.val_accuracy or 0.0 for row in result.history]
    assert accuracies[0] == max(accuracies) > accuracies[-1] + 0.1
    assert result.best_epoch == 3
    last = accuracy(result, val.images, shown.labels)
    assert last == pytest.approx(accuracies[-1])


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, ema=0.0), PLATEAU])
def test_the_same_seed_gives_the_same_weights(digits: Data, recipe: Recipe) -> None:
    recipe = replace(recipe, epochs=2)
    first, second = run(digits, recipe)[0], run(digits, recipe)[0]
    assert same_weights(first.network, second.network)
    assert not same_weights(first.network, run(digits, recipe, seed=1)[0].network)


def test_one_row_an_epoch_with_an_estimate(digits: Data) -> None:
    seen: list[Epoch] = []
    said: list[str] = []
    train, val = labelled(digits, 0.3)
    result = finetune.finetune(
        network(),
        Examples(train, val),
        RECIPE,
        FP32_CPU,
        0,
        control=Control(say=said.append, on_epoch=seen.append),
    )
    assert tuple(seen) == result.history
    assert [row.epoch for row in seen] == [1, 2, 3]
    assert said[0] == console.EPOCHS
    for row, line in zip(seen, said[1:], strict=True):
        assert line.startswith(f"  {row.epoch}/3 ")
        assert f"{row.val_accuracy:.4f}" in line
        assert f"{row.val_f1:.4f}" in line
        assert line.endswith(" s")
    assert {len(line) for line in said[1:]} == {len(said[1])}, "the rows are of one width"
    assert said[-1].endswith(" 0 s"), "nothing is left at the end"


def test_without_images_that_validate_the_run_is_the_same_one(digits: Data) -> None:
    said: list[str] = []
    train, val = labelled(digits, 0.3)
    nothing = Labelled(val.images[:0], val.labels[:0])
    result = finetune.finetune(
        network(), Examples(train, nothing), RECIPE, FP32_CPU, 0, control=Control(say=said.append)
    )
    other, lines = run(digits)
    assert same_weights(result.network, other.network)
    last = result.history[-1]
    assert (last.val_loss, last.val_accuracy, last.val_f1) == (None, None, None)
    assert (last.val_precision, last.val_recall) == (None, None)
    assert last.train_loss == other.history[-1].train_loss
    assert said[-1].split()[3:6] == ["-", "-", "-"]
    assert len(said[-1]) == len(lines[-1]), "below the same columns"


def test_the_learning_rate_rises_and_falls_to_zero(digits: Data) -> None:
    result, _ = run(digits, replace(RECIPE, epochs=10, patience=10))
    rates = [row.lr for row in result.history]
    assert max(rates) <= RECIPE.lr
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=RECIPE.lr / 50)


def test_on_a_plateau_the_rate_is_halved_and_the_best_epoch_is_taken(digits: Data) -> None:
    # Random labels: the validation loss soon gets worse and stays so.
    train, val = labelled(digits, 0.3)
    noise = np.random.default_rng(0).permutation(train.labels)
    said: list[str] = []
    plan = replace(PLATEAU, epochs=50, patience=6, lr=3e-3, batch_size=128)
    result = finetune.finetune(
        network(backbone="reference"),
        Examples(Labelled(train.images, noise), val),
        plan,
        FP32_CPU,
        0,
        control=Control(say=said.append),
    )
    losses = [row.val_loss or 0.0 for row in result.history]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert len(losses) == result.best_epoch + 6 < 50
    taken = result.history[result.best_epoch - 1].val_accuracy
    assert accuracy(result, val.images, val.labels) == pytest.approx(taken)
    assert taken != pytest.approx(result.history[-1].val_accuracy), "or this tells nothing"
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
    assert "nothing was published" in str(error.value)


@pytest.mark.parametrize("n", [2, 10, 33])
def test_any_number_of_labels_can_be_trained_on(digits: Data, n: int) -> None:
    train, val = labelled(digits, 0.3)
    few = Labelled(train.images[:n], train.labels[:n])
    result = finetune.finetune(network(), Examples(few, val), RECIPE, FP32_CPU, 0)
    assert len(result.history) == 3


def test_training_leaves_the_images_and_labels_alone(digits: Data) -> None:
    train, val = labelled(digits, 0.3)
    arrays: list[Any] = [np.array(train.images), train.labels, np.array(val.images), val.labels]
    train, val = Labelled(arrays[0], arrays[1]), Labelled(arrays[2], arrays[3])
    before = [array.copy() for array in arrays]
    finetune.finetune(network(), Examples(train, val), RECIPE, FP32_CPU, 0)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays, strict=True))


def test_the_device_of_this_machine_trains_too(digits: Data) -> None:
    train, val = labelled(digits, 0.3)
    result = finetune.finetune(network(), Examples(train, val), RECIPE, choose(), 0)
    assert all(math.isfinite(row.val_loss or math.nan) for row in result.history)
    assert next(result.network.parameters()).dtype == torch.float32


def test_normalisation_is_not_trained(digits: Data) -> None:
    result, _ = run(digits, RECIPE)
    assert torch.equal(result.network.mean, network().mean)
    assert torch.equal(result.network.std, network().std)


class Clock:
    """A clock that moves by a second at each step of training."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("labelcurve.training.learning.loop.time.monotonic", lambda: self.now)

    def tick(self, net: Network, seconds: float = 1.0) -> Network:
        def move(*_: object) -> None:
            if torch.is_grad_enabled():
                self.now += seconds

        net.classifier.register_forward_hook(move)
        return net


@pytest.mark.parametrize("recipe", [RECIPE, PLATEAU], ids=lambda r: r.backbone)
def test_the_seconds_end_the_run_whatever_the_epochs(
    digits: Data, monkeypatch: pytest.MonkeyPatch, recipe: Recipe
) -> None:
    clock = Clock(monkeypatch)
    train, val = labelled(digits, 0.3)
    said: list[str] = []
    result = finetune.finetune(
        clock.tick(network(0, recipe.backbone)),
        Examples(train, val),
        replace(recipe, epochs=10_000, patience=10_000),
        FP32_CPU,
        0,
        control=Control(seconds=40.0, say=said.append),
    )
    assert clock.now == 39, "a step is not begun that might end too late"
    steps = len(train.labels) // recipe.batch_size
    assert len(result.history) == math.ceil(39 / steps)
    assert said[-1].endswith(" 0 s")


def test_when_the_seconds_are_over_the_learning_rate_has_come_down(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    train, val = labelled(digits, 0.3)
    result = finetune.finetune(
        clock.tick(network()),
        Examples(train, val),
        replace(RECIPE, epochs=10_000),
        FP32_CPU,
        0,
        control=Control(seconds=60.0),
    )
    rates = [row.lr for row in result.history]
    assert max(rates) > RECIPE.lr / 2
    assert 0 < rates[-1] < RECIPE.lr / 20


def test_few_seconds_are_one_step_at_least(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    train, val = labelled(digits, 0.3)
    result = finetune.finetune(
        clock.tick(network()),
        Examples(train, val),
        RECIPE,
        FP32_CPU,
        0,
        control=Control(seconds=0.01),
    )
    assert len(result.history) == 1
    assert clock.now == 1


def test_seconds_that_run_out_between_two_epochs_end_the_run_too(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    train, val = labelled(digits, 0.3)
    steps = len(train.labels) // RECIPE.batch_size

    def slow(line: str) -> None:
        if line.split()[0].split("/")[0] == "1":
            clock.now += 1

    result = finetune.finetune(
        clock.tick(network()),
        Examples(train, val),
        RECIPE,
        FP32_CPU,
        0,
        control=Control(seconds=steps + 1.5, say=slow),
    )
    assert len(result.history) == 1


def test_frozen_weights_stay(digits: Data) -> None:
    net = network()
    assert isinstance(net.backbone, ConvNet)
    whiten = net.backbone.whiten.weight.detach().clone()
    train, val = labelled(digits, 0.3)
    result = finetune.finetune(net, Examples(train, val), RECIPE, FP32_CPU, 0)
    assert isinstance(result.network.backbone, ConvNet)
    assert torch.equal(result.network.backbone.whiten.weight, whiten)


@pytest.mark.parametrize("backbone_lr", [0.0, 1.0])
def test_the_backbone_has_a_learning_rate_of_its_own(digits: Data, backbone_lr: float) -> None:
    net = network()
    before = {name: value.clone() for name, value in net.named_parameters()}
    train, val = labelled(digits, 0.3)
    plan = replace(RECIPE, backbone_lr=backbone_lr, ema=0.0, weight_decay=0.0)
    after = finetune.finetune(net, Examples(train, val), plan, FP32_CPU, 0).network
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before[n])}
    assert {"classifier.weight", "classifier.bias"} <= moved
    assert any(name.startswith("backbone.") for name in moved) is bool(backbone_lr)


def test_the_default_recipe_learns_the_digits(digits: Data) -> None:
    train, val = labelled(digits, 1.0)
    plan = recipe("default", len(train.labels), flip=False, unlabelled=False)
    result = finetune.finetune(
        network(), Examples(train, val), replace(plan, epochs=4), FP32_CPU, 0
    )
    assert accuracy(result, digits.test.images, digits.test.labels) > 0.8


def test_a_row_has_the_figures_of_its_epoch(digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    train, val = labelled(digits, 0.3)
    train = Labelled(train.images[:192], train.labels[:192])
    net = network(backbone="reference")
    for part in net.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    # Without a step the network stays as it is: the row shows its figures on the training images.
    logits = backbones.predict_logits(net, train.images, FP32_CPU)
    expected = scores(logits, train.labels)
    assert expected.accuracy > 0
    logs = torch.from_numpy(logits).log_softmax(1)
    smoothed = 0.8 * expected.loss - 0.2 * float(logs.mean())
    judged = scores(backbones.predict_logits(net, val.images, FP32_CPU), val.labels)
    plan = replace(PLATEAU, lr=0.0, epochs=2, label_smoothing=0.2)
    said: list[str] = []
    left: list[tuple[float, float]] = []
    control = Control(say=said.append, on_step=lambda *given: left.append(given))
    result = finetune.finetune(
        clock.tick(net, 0.5), Examples(train, val), plan, FP32_CPU, 0, control
    )
    first, second = result.history
    for row in (first, second):
        assert row.train_accuracy == pytest.approx(expected.accuracy)
        assert row.train_loss == pytest.approx(smoothed, rel=1e-5)
        assert (row.val_loss, row.val_accuracy) == pytest.approx((judged.loss, judged.accuracy))
        assert (row.val_f1, row.val_precision, row.val_recall) == pytest.approx(
            (judged.f1, judged.precision, judged.recall)
        )
        assert row.images_per_s == pytest.approx(192 / 1.5)
        assert row.seconds == pytest.approx(1.5)
    assert (result.seconds, result.epochs, result.micro_batches) == (3.0, 2.0, 1)
    assert [line.split()[-2] for line in said[1:]] == ["2", "0"], "1.5 s of 3 are left, rounded"
    # Three steps an epoch of half a second each.
    assert [done for done, _ in left] == pytest.approx([i / 6 for i in range(6)])
    assert [seconds for _, seconds in left] == pytest.approx([0, 2.5, 2, 1.5, 1, 0.5])
