"""The work of each of several processes in the tests of `training.runtime.distributed`.

`torchrun ... -m tests.training.ranks OUT`, or with one process; the leader writes what it found.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelcurve.training.data import dataset, sources
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.decoded.stored import Images, encoded
from labelcurve.training.learning import batches, finetune
from labelcurve.training.learning.augment import Views
from labelcurve.training.learning.finetune import Examples
from labelcurve.training.learning.objectives import Contrastive
from labelcurve.training.learning.pretrain import pretrain
from labelcurve.training.recipes import pretraining
from labelcurve.training.runtime import distributed
from labelcurve.training.runtime.device import FP32_CPU
from tests.training.learning.test_finetune import RECIPE, labelled, network

# Without random changes to the images, the number of processes must not matter.
PLAIN = replace(RECIPE, crop=0, epochs=2)
SEED = 1
"""With others a channel of these grey images is nearly constant at first: batch norm makes a step
of 10,000 times its rounding."""


class Shades(Views):
    """Views without randomness."""

    def __call__(self, images: Tensor, generator: torch.Generator, n_views: int = 1) -> Tensor:
        shaded = images.float() / 255 * torch.linspace(0.5, 1, images.shape[-1])
        return shaded.repeat(n_views, 1, 1, 1)


def tuned(digits: Data) -> Any:
    train, val = labelled(digits, 0.2)
    # An odd batch: the processes' parts of it differ in size.
    recipe = replace(PLAIN, batch_size=33)
    return distributed.together(
        finetune.finetune,
        network(SEED),
        Examples(train, val),
        recipe,
        FP32_CPU,
        0,
        mine={},
    )


def learn(images: Images) -> dict[str, Any]:
    torch.manual_seed(distributed.rank())  # the leader's weights are to count
    net = network(SEED + distributed.rank())
    objective = Contrastive(net.dim, Shades(8), 2, 0.2, FP32_CPU)
    before = copy.deepcopy(objective.projector.state_dict())
    # Muon would make large steps of the rounding in directions without a gradient.
    recipe = replace(
        pretraining("contrastive", len(images), 8), optimizer="sgd", epochs=2, batch_size=45
    )
    result = pretrain(net, objective, images, recipe, FP32_CPU, 0)
    return {
        "loss": result.loss,
        "before": before,
        "backbone": net.state_dict(),
        "projector": objective.projector.state_dict(),
    }


def rows(images: Images) -> list[Any]:
    """The rows of three epochs that each process draws."""
    stream = batches.Crops(images, 7, 0, 0, FP32_CPU, print)
    generator = torch.Generator()
    drawn = [stream.draw(i, False, generator)[0].tolist() for i in range(3 * stream.steps)]
    found: list[Any] = [None] * distributed.size()
    if distributed.size() > 1:
        torch.distributed.all_gather_object(found, drawn)
        return found
    return [drawn]


def work(out: Path, cache: Path) -> dict[str, Any]:
    digits = dataset.load("digits", size=8, cache=cache, say=lambda _: None)
    result = tuned(digits)
    images = digits.train.images[:90]
    # Encoded, as where neither memory nor disk have room for them; a window is one batch.
    source = sources.digits().splits["train"]
    outside = encoded(source, np.arange(30), 8, 1)
    found = {
        "weights": result.network.state_dict(),
        "before": network(SEED).state_dict(),
        "history": [row.model_dump() for row in result.history],
        "extractor": distributed.together(learn, images, mine={}),
        "rows": distributed.together(rows, digits.train.images[:30], mine={}),
        "rows_outside": distributed.together(rows, outside, mine={}),
    }
    torch.save(found, out)
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.run(lambda: work(Path(sys.argv[1]), Path(sys.argv[2])), "cpu")
    # The process group has ended: each process is alone again.
    assert not torch.distributed.is_initialized()
    assert (distributed.size(), distributed.rank()) == (1, 0)
