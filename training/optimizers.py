"""Optimisers that follow a schedule of progress from 0 to 1, by steps or by time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.recipes import Optimisation


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
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter.grad)
                average = state["momentum"].mul_(momentum).add_(parameter.grad)
                nesterov = parameter.grad.add(average, alpha=momentum).flatten(1)
                # The same size of step for wide and for tall matrices.
                scale = math.sqrt(max(1.0, nesterov.shape[0] / nesterov.shape[1]))
                update = orthogonal(nesterov, self._dtype).view_as(parameter)
                parameter.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr * scale)


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> Tensor:
    """Float [M, N] to a matrix whose singular values are near 1 (0.7 to 1.2).

    Newton-Schulz iteration of the fifth order with the coefficients of the source of `Muon`. It
    needs no precision, so bfloat16 does; a processor without bf16 arithmetic is faster in float32.
    There the iteration runs on the product of the matrix with its transpose, which is small, and
    meets the matrix itself at the end alone: the same polynomial, too inexact in bfloat16.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    if dtype == torch.float32:
        gram = x @ x.T
        product = torch.eye(len(gram), device=gram.device)
        for _ in range(steps):
            polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
            polynomial.diagonal().add_(3.4445)
            product = polynomial @ product
            gram = polynomial @ gram @ polynomial
        x = product @ x
    else:
        for _ in range(steps):
            gram = x @ x.T
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    out: Tensor = x.T if tall else x
    return out.to(matrix.dtype)


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
        self._optimizers: list[tuple[torch.optim.Optimizer, float]] = []
        if recipe.optimizer == "muon":
            self._optimizers = [
                (Muon(matrices, recipe.lr, recipe.momentum, dtype), recipe.lr),
                (torch.optim.AdamW(vectors, recipe.lr_vectors), recipe.lr_vectors),
            ]
        elif recipe.optimizer == "sgd":
            sgd = torch.optim.SGD(
                [*matrices, *vectors], recipe.lr, momentum=recipe.momentum, nesterov=True
            )
            self._optimizers = [(sgd, recipe.lr)]
        else:
            self._optimizers = [(torch.optim.Adam([*matrices, *vectors], recipe.lr), recipe.lr)]

    @property
    def lr(self) -> float:
        """Of the weights, at the last step."""
        return float(self._optimizers[0][0].param_groups[-1]["lr"])

    def halve(self) -> None:
        """Halves all learning rates from now on."""
        self._factor /= 2

    def begin(self, progress: float) -> None:
        """Forgets the gradients and sets the learning rates.

        Args:
            progress: of the whole run, from 0 to below 1.
        """
        r = self._recipe
        up = 1.0 if r.warmup == 0 else (progress + 1e-3) / r.warmup
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
        """For a checkpoint."""
        states = [optimizer.state_dict() for optimizer, _ in self._optimizers]
        return {"factor": self._factor, "optimizers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From a checkpoint of the same parameters."""
        self._factor = state["factor"]
        for (optimizer, _), own in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
