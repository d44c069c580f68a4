"""Optimisers that follow a schedule of progress from 0 to 1, by steps or by time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labelcurve.training.recipes import Optimisation, Recipe


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for weights of two and more dimensions.

    Source: K. Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024.
    `torch.optim.Muon` takes matrices alone; a convolution is one of [C_out, C_in * k * k] here.

    Args:
        dtype: of the arithmetic that makes the step orthogonal.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients; parameters without one stay."""
        assert closure is None
        for group in self.param_groups:
            momentum, lr = group["momentum"], group["lr"]
            learned = [p for p in group["params"] if p.grad is not None]
            if not learned:
                continue
            gradients = [p.grad for p in learned]
            for parameter in learned:
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter.grad)
            averages = [self.state[p]["momentum"] for p in learned]
            torch._foreach_mul_(averages, momentum)
            torch._foreach_add_(averages, gradients)
            nesterov = torch._foreach_add(gradients, averages, alpha=momentum)
            torch._foreach_mul_(learned, 1 - lr * group["weight_decay"])
            matrices = [each.flatten(1) for each in nesterov]
            for parameter, update in zip(
                learned, all_orthogonal(matrices, self._dtype), strict=True
            ):
                # The same size of step for wide and for tall matrices.
                scale = math.sqrt(max(1.0, update.shape[0] / update.shape[1]))
                parameter.add_(update.view_as(parameter), alpha=-lr * scale)


def all_orthogonal(
    matrices: Sequence[Tensor], dtype: torch.dtype = torch.bfloat16, pad: bool | None = None
) -> list[Tensor]:
    """`orthogonal` of each matrix, float [M, N], in few operations: those of one shape together.

    Args:
        pad: fill matrices of one short side with columns of zeros to the same long side, which stay
            zeros and change no sum, so that these go together, too: more arithmetic in fewer
            operations. By default on a GPU, where launching small ones takes longer than they do.
    """
    if pad is None:
        pad = matrices[0].is_cuda
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        key = (min(matrix.shape),) if pad else tuple(matrix.shape)
        alike.setdefault(key, []).append(i)
    found = list(matrices)
    for numbers in alike.values():
        own = [matrices[i] for i in numbers]
        if len(own) == 1:
            found[numbers[0]] = orthogonal(own[0], dtype)
            continue
        if pad:
            own = [m if m.shape[0] <= m.shape[1] else m.T for m in own]
            most = max(m.shape[1] for m in own)
            own = [m if m.shape[1] == most else F.pad(m, (0, most - m.shape[1])) for m in own]
        for i, update in zip(numbers, orthogonal(torch.stack(own), dtype), strict=True):
            m, n = matrices[i].shape
            found[i] = update[:, :n] if not pad or m <= n else update[:, :m].T
    return found


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> Tensor:
    """Float [..., M, N] to matrices whose singular values are near 1 (0.7 to 1.2).

    Newton-Schulz iteration of the fifth order with the coefficients of the source of `Muon`. It
    needs no precision, so bfloat16 does; a processor without bf16 arithmetic is faster in float32.
    There the iteration runs on the product of the matrix with its transpose, which is small, and
    meets the matrix itself at the end alone: the same polynomial, too inexact in bfloat16.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.to(dtype).reshape(-1, *matrix.shape[-2:])
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if dtype == torch.float32:
        gram, product = x @ x.mT, None
        for _ in range(steps):
            polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
            polynomial.diagonal(dim1=-2, dim2=-1).add_(3.4445)
            product = polynomial if product is None else polynomial @ product
            gram = polynomial @ gram @ polynomial
        assert product is not None
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
            x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    out: Tensor = x.mT if tall else x
    return out.to(matrix.dtype).view(matrix.shape)


class Optimizers:
    """The optimisers of a run on one schedule: up to the peak, level, linearly down to zero.

    Args:
        parts: modules, each with the factor on the learning rates of its parameters.
        recipe: the learning rates and the schedule.
        dtype: of `Muon`'s arithmetic.
    """

    def __init__(
        self,
        parts: Sequence[tuple[nn.Module, float]],
        recipe: Optimisation,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self._recipe = recipe
        self._factor = 1.0
        self.warm = False
        """Whether the learning rate has risen in an earlier run that this one continues."""
        matrices, vectors = [], []
        for module, factor in parts:
            learned = [p for p in module.parameters() if p.requires_grad]
            matrices.append({"params": [p for p in learned if p.ndim > 1], "factor": factor})
            vectors.append({"params": [p for p in learned if p.ndim <= 1], "factor": factor})
        # No weight decay on biases and batch norm (He et al., Bag of Tricks, 2019).
        for group in matrices:
            group["weight_decay"] = recipe.weight_decay
        for group in vectors:
            group["weight_decay"] = 0.0
        # One operation for all parameters on a GPU; on a CPU the sums of a loop over them.
        on_gpu = any(p.is_cuda for module, _ in parts for p in module.parameters())
        how: dict[str, Any] = {"fused": True} if on_gpu else {"foreach": True}
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if recipe.optimizer == "muon":
            self._optimizers = [
                (Muon(matrices, recipe.lr, recipe.momentum, dtype), recipe.lr),
                (torch.optim.AdamW(vectors, recipe.lr_vectors, **how), recipe.lr_vectors),
            ]
        elif recipe.optimizer == "sgd":
            sgd = torch.optim.SGD(
                [*matrices, *vectors], recipe.lr, momentum=recipe.momentum, nesterov=True, **how
            )
            self._optimizers = [(sgd, recipe.lr)]
        else:
            adam = torch.optim.Adam([*matrices, *vectors], recipe.lr, **how)
            self._optimizers = [(adam, recipe.lr)]

    @property
    def lr(self) -> float:
        """Learning rate of the weights at the last step."""
        return float(self._optimizers[0][0].param_groups[-1]["lr"])

    def halve(self) -> None:
        """Halves all learning rates from now on."""
        self._factor /= 2

    def begin(self, progress: float) -> None:
        """Clears the gradients and sets the learning rates.

        Args:
            progress: of the whole run, from 0 to below 1.
        """
        r = self._recipe
        up = 1.0 if self.warm or r.warmup == 0 else (progress + 1e-3) / r.warmup
        down = 1.0 if r.decay == 0 else (1 - progress) / r.decay
        for optimizer, peak in self._optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = peak * group["factor"] * self._factor * min(1.0, up, down)

    def step(self) -> None:
        """One update of all parameters."""
        for optimizer, _ in self._optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        states = [optimizer.state_dict() for optimizer, _ in self._optimizers]
        return {"factor": self._factor, "optimizers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state from a checkpoint of the same parameters."""
        self._factor = state["factor"]
        for (optimizer, _), own in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)


def averaged(network: nn.Module, recipe: Recipe, steps: int) -> Average | None:
    """The moving average of `network`'s weights, `ema` an epoch.

    Args:
        network: the trained network.
        recipe: with `ema`; 0 disables averaging.
        steps: in an epoch.
    """
    return Average(network, recipe.ema ** (1 / max(1, steps))) if recipe.ema > 0 else None


class Average:
    """The exponential moving average of a network's weights and buffers.

    `torch.optim.swa_utils.AveragedModel` does the same, and asks the device at each step, once for
    each weight, how many there were.

    Args:
        network: the trained network.
        decay: of the average, a step.
    """

    module: nn.Module
    """A copy of the network, with the averages."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network)
        self._decay, self._n = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Takes the present weights in; the first time they replace the average."""
        pairs = [
            *zip(self.module.parameters(), network.parameters(), strict=True),
            *zip(self.module.buffers(), network.buffers(), strict=True),
        ]
        # A shorter memory at first, so that the initial weights are soon forgotten.
        n = self._n
        weight = 1 - min(self._decay, (1 + n) / (10 + n)) if n else 1.0
        floats = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
        others = [(mean, value) for mean, value in pairs if not mean.is_floating_point()]
        copied = others if n else pairs
        if n and floats:
            means, values = zip(*floats, strict=True)
            torch._foreach_lerp_(means, values, weight)
        if copied:
            means, values = zip(*copied, strict=True)
            torch._foreach_copy_(means, values)
        self._n += 1

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"n": self._n, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state from a checkpoint of the same network."""
        self._n = state["n"]
        self.module.load_state_dict(state["module"])
