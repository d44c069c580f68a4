from __future__ import annotations

import copy
import io
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelcurve.training.learning.optimizers import (
    Muon,
    Optimizers,
    all_orthogonal,
    averaged,
    orthogonal,
)
from labelcurve.training.recipes import Optimisation, recipe

Name = Literal["muon", "sgd", "adam"]

PLANS = {
    "muon": Optimisation(optimizer="muon", lr=0.02, lr_vectors=0.002, momentum=0.9),
    "sgd": Optimisation(optimizer="sgd", lr=0.1, momentum=0.9),
    "adam": Optimisation(optimizer="adam", lr=0.01),
}
EACH = pytest.mark.parametrize("name", ["muon", "sgd", "adam"])


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 5)
    )


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (16,), generator=generator)
    images = torch.randn(16, 3, 6, 6, generator=generator) * 0.5
    # Each class has a different corner.
    images[torch.arange(16), labels % 3, labels, labels] += 3
    return images, labels


def steps(
    model: nn.Module, optimizers: Optimizers, numbers: range, total: int = 100
) -> list[float]:
    losses = []
    for number in numbers:
        images, labels = batch(number)
        optimizers.begin(number / total)
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizers.step()
        losses.append(loss.item())
    return losses


def rates(optimizers: Optimizers) -> list[float]:
    return [
        group["lr"] for optimizer, _ in optimizers._optimizers for group in optimizer.param_groups
    ]


@pytest.mark.parametrize(
    "shape", [(64, 64), (16, 256), (256, 16), (1, 40), (40, 1), (1, 1), (24, 216)]
)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_orthogonal_matrix_has_singular_values_near_1(
    shape: tuple[int, int], scale: float, dtype: torch.dtype
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale
    found = orthogonal(matrix, dtype)
    assert found.shape == shape
    assert found.dtype == torch.float32
    values = torch.linalg.svdvals(found)
    # The iteration brings small values up last; random square matrices have some near zero.
    assert values.max() < 1.3
    assert values.quantile(0.1) > 0.6
    if shape[0] != shape[1]:
        assert values.min() > 0.6


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (24, 24)])
def test_the_short_way_in_float32_gives_what_the_long_one_gives(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, wanted = orthogonal(matrix), orthogonal(matrix.double(), torch.float64)
    assert (found - wanted).abs().max() > 1e-4, "bfloat16, for comparison"
    found = orthogonal(matrix, torch.float32)
    assert (found - wanted).abs().max() < 1e-4


def test_an_orthogonal_matrix_keeps_its_singular_vectors() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(12, 30)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonal(matrix) @ v.T
    assert (inner - inner.diagonal().diag()).abs().max() < 0.1
    assert inner.diagonal().min() > 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pad", [False, True])
def test_matrices_together_are_what_each_is_alone(pad: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 20), (20, 6), (6, 9), (6, 20), (12, 12), (20, 6), (30, 12)]
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    found = all_orthogonal(matrices, dtype, pad)
    for matrix, together in zip(matrices, found, strict=True):
        assert together.shape == matrix.shape
        torch.testing.assert_close(
            together,
            orthogonal(matrix, dtype),
            atol=1e-2 if dtype == torch.bfloat16 else 1e-3,
            rtol=0,
        )


def test_a_gradient_of_zeros_moves_nothing() -> None:
    weight = nn.Parameter(torch.ones(4, 6))
    weight.grad = torch.zeros(4, 6)
    Muon([weight], lr=0.1).step()
    assert torch.equal(weight, torch.ones(4, 6))


def test_muon_steps_by_the_same_size_whatever_the_size_of_the_gradient() -> None:
    moves = []
    for scale in (1e-3, 1.0, 1e3):
        weight = nn.Parameter(torch.zeros(6, 12))
        weight.grad = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)) * scale
        Muon([weight], lr=0.1).step()
        moves.append(weight.detach().clone())
        values = torch.linalg.svdvals(weight.detach())
        assert values.min() > 0.06
        assert values.max() < 0.13
    directions = F.normalize(torch.stack(moves).flatten(1), dim=1)
    assert (directions @ directions.T).min() > 0.99


def test_muon_goes_against_the_gradient() -> None:
    weight = nn.Parameter(torch.zeros(6, 12))
    gradient = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    weight.grad = gradient
    Muon([weight], lr=0.1).step()
    assert (weight.detach() * gradient).sum() < 0


def test_muon_takes_a_convolution_as_a_matrix_and_learns_it() -> None:
    torch.manual_seed(0)
    conv, goal = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3, bias=False)
    muon = Muon(conv.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        images = torch.randn(32, 3, 6, 6)
        loss = F.mse_loss(conv(images), goal(images).detach())
        muon.zero_grad()
        loss.backward()
        muon.step()
        losses.append(loss.item())
    assert conv.weight.shape == (8, 3, 3, 3)
    assert losses[-1] < losses[0] / 5


def test_muon_skips_parameters_without_a_gradient() -> None:
    with_one, without = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    with_one.grad = torch.randn(3, 4)
    muon = Muon([with_one, without], lr=0.1)
    muon.step()
    assert not torch.equal(with_one, torch.ones(3, 4))
    assert torch.equal(without, torch.ones(3, 4))


@EACH
def test_every_optimiser_learns(name: Name) -> None:
    model = net()
    losses = steps(model, Optimizers([(model, 1.0)], PLANS[name]), range(100))
    assert sum(losses[-10:]) < sum(losses[:10]) / 2


@EACH
def test_every_parameter_moves_and_frozen_ones_stay(name: Name) -> None:
    model = net()
    for frozen in (model[0].weight, model[1].bias):
        assert isinstance(frozen, Tensor)
        frozen.requires_grad_(False)
    before = {key: value.clone() for key, value in model.named_parameters()}
    steps(model, Optimizers([(model, 1.0)], PLANS[name]), range(5))
    same = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert same == {"0.weight", "1.bias"}


@EACH
def test_a_part_without_parameters_to_learn_is_no_hindrance(name: Name) -> None:
    model, frozen = net(), net(1).requires_grad_(False)
    optimizers = Optimizers([(frozen, 1.0), (model, 1.0), (nn.Identity(), 0.5)], PLANS[name])
    losses = steps(model, optimizers, range(20))
    assert losses[-1] < losses[0]


@EACH
def test_the_rate_rises_stays_level_and_falls_to_zero(name: Name) -> None:
    plan = replace(PLANS[name], warmup=0.2, decay=0.5)
    optimizers = Optimizers([(net(), 1.0)], plan)
    found = []
    for step in range(1000):
        optimizers.begin(step / 1000)
        found.append(optimizers.lr)
    peak = plan.lr
    assert 0 < found[0] < peak / 50
    assert found[:200] == sorted(found[:200])
    assert found[100] == pytest.approx(peak / 2, rel=0.02)
    assert found[200:500] == [peak] * 300
    assert found[500:] == sorted(found[500:], reverse=True)
    assert found[750] == pytest.approx(peak / 2, rel=0.02)
    assert 0 < found[-1] < peak / 400


@EACH
def test_without_warmup_and_decay_the_rate_is_constant(name: Name) -> None:
    optimizers = Optimizers([(net(), 1.0)], PLANS[name])
    for progress in (0.0, 0.3, 0.999999):
        optimizers.begin(progress)
        assert optimizers.lr == PLANS[name].lr


def test_vectors_have_a_rate_of_their_own_with_muon() -> None:
    optimizers = Optimizers([(net(), 1.0)], replace(PLANS["muon"], decay=1.0))
    optimizers.begin(0.5)
    assert rates(optimizers) == pytest.approx([0.01, 0.001])


@EACH
def test_the_factor_of_a_part_is_on_its_rates_alone(name: Name) -> None:
    slow, fast = net(), net()
    optimizers = Optimizers([(slow, 0.25), (fast, 1.0)], PLANS[name])
    optimizers.begin(0.5)
    found = rates(optimizers)
    assert sorted(set(found[::2])) == pytest.approx([rate / 4 for rate in sorted(set(found[1::2]))])
    assert optimizers.lr == PLANS[name].lr, "the rate that is shown is that of the last part"


@EACH
def test_a_part_of_factor_0_stays(name: Name) -> None:
    still, moving = net(), net(1)
    before = copy.deepcopy(still.state_dict())
    optimizers = Optimizers([(still, 0.0), (moving, 1.0)], replace(PLANS[name], weight_decay=0.1))
    images, labels = batch(0)
    optimizers.begin(0.0)
    (
        F.cross_entropy(still.eval()(images), labels) + F.cross_entropy(moving(images), labels)
    ).backward()
    optimizers.step()
    assert all(torch.equal(value, before[key]) for key, value in still.state_dict().items())
    assert not torch.equal(next(moving.parameters()), next(net(1).parameters()))


@EACH
def test_halving_is_for_the_rest_of_the_run(name: Name) -> None:
    optimizers = Optimizers([(net(), 1.0)], PLANS[name])
    optimizers.begin(0.1)
    whole = rates(optimizers)
    optimizers.halve()
    optimizers.begin(0.2)
    assert rates(optimizers) == pytest.approx([rate / 2 for rate in whole])
    optimizers.halve()
    optimizers.begin(0.9)
    assert rates(optimizers) == pytest.approx([rate / 4 for rate in whole])


@EACH
def test_weight_decay_is_on_weights_of_two_and_more_dimensions_alone(name: Name) -> None:
    model = net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    optimizers = Optimizers([(model, 1.0)], replace(PLANS[name], weight_decay=0.5))
    for _ in range(3):
        optimizers.begin(0.0)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizers.step()
    for key, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert (parameter < 1).all(), key
        else:
            assert torch.equal(parameter, torch.ones_like(parameter)), key


def test_beginning_a_step_forgets_the_gradients_of_the_last() -> None:
    model = net()
    optimizers = Optimizers([(model, 1.0)], PLANS["muon"])
    images, labels = batch(0)
    F.cross_entropy(model(images), labels).backward()
    optimizers.begin(0.5)
    assert all(parameter.grad is None for parameter in model.parameters())


@EACH
def test_a_run_resumes_from_its_state_as_if_uninterrupted(name: Name) -> None:
    plan = replace(PLANS[name], warmup=0.1, decay=0.5, weight_decay=0.01)
    through = net()
    optimizers = Optimizers([(through, 0.5)], plan)
    steps(through, optimizers, range(10))
    optimizers.halve()
    steps(through, optimizers, range(10, 12))
    buffer = io.BytesIO()
    torch.save((through.state_dict(), optimizers.state_dict()), buffer)
    losses = steps(through, optimizers, range(12, 25))

    again = net(seed=5)
    other = Optimizers([(again, 0.5)], plan)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=True)
    again.load_state_dict(weights)
    other.load_state_dict(state)
    assert steps(again, other, range(12, 25)) == losses
    assert all(
        torch.equal(value, through.state_dict()[key]) for key, value in again.state_dict().items()
    )
    assert rates(other) == rates(optimizers)


def test_averaged_weights_forget_the_initial_ones_first_and_then_decay_by_epoch() -> None:
    network = nn.Linear(1, 1, bias=False)
    plan = recipe("default", 4_500, flip=True, unlabelled=False)
    mean = averaged(network, replace(plan, ema=0.5), steps=2)
    assert mean is not None
    weight = next(mean.module.parameters()).detach()  # shares its memory
    values = []
    for value in (0.0, 1.0, 1.0, 1.0):
        nn.init.constant_(network.weight, value)
        mean.update(network)
        values.append(float(weight))
    # The first update copies; after n updates the memory is (1 + n) / (10 + n).
    expected = [0.0, 9 / 11]
    for memory in (3 / 12, 4 / 13):
        expected.append(1 - memory * (1 - expected[-1]))
    assert values == pytest.approx(expected)
    # Later it is ema ** (1 / steps): half of the memory is left after an epoch of two steps.
    for _ in range(100):
        mean.update(network)
    nn.init.constant_(network.weight, 0.0)
    before = float(weight)
    for _ in range(2):
        mean.update(network)
    assert float(weight) == pytest.approx(0.5 * before)


def test_without_ema_nothing_is_averaged() -> None:
    plan = recipe("default", 4_500, flip=True, unlabelled=False)
    assert averaged(nn.Linear(1, 1), replace(plan, ema=0.0), steps=2) is None


@pytest.mark.parametrize(("shape", "scale"), [((6, 12), 1.0), ((12, 6), 2**0.5), ((8, 2, 1), 2.0)])
def test_two_steps_of_muon_are_those_worked_out_by_hand(
    shape: tuple[int, ...], scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second, start = (torch.randn(shape, generator=generator) for _ in range(3))
    weight = nn.Parameter(start.clone())
    muon = Muon([weight], lr=0.1, momentum=0.5, dtype=torch.float32)
    muon.param_groups[0]["weight_decay"] = 0.2
    expected, momentum = start.clone(), torch.zeros(shape)
    for gradient in (first, second):
        weight.grad = gradient.clone()
        muon.step()
        momentum = 0.5 * momentum + gradient
        step = orthogonal((gradient + 0.5 * momentum).flatten(1), torch.float32).view(shape)
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * scale * step
    assert torch.allclose(weight, expected, atol=1e-5)


def test_sgd_looks_ahead() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizers = Optimizers([(model, 1.0)], PLANS["sgd"])
    values = []
    for _ in range(2):
        optimizers.begin(0.0)
        model.weight.grad = torch.ones(1, 1)
        optimizers.step()
        values.append(model.weight.item())
    # The momentum is 1 and then 1.9; each step goes on by nine tenths of it.
    assert values == pytest.approx([-0.1 * 1.9, -0.1 * (1.9 + 1 + 0.9 * 1.9)])
