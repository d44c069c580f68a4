"""What each of several processes runs in the tests of `training.distributed`.

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

from tests.training.test_finetune import RECIPE, labelled, network
from training import data, distributed, finetune, sources
from training.data import Data
from training.device import FP32_CPU
from training.finetune import Labelled
from training.objectives import Contrastive
from training.pretrain import pretrain
from training.recipes import pretraining
from training.stored import Images, encoded
from training.views import Views

# Without random changes to the images, the number of processes must not matter.
PLAIN = replace(
    RECIPE, crop=0, cutout=0, epochs=2, consistency=1.0, unlabelled_ratio=2, confidence=0.0
)


class Shades(Views):
    """Views without chance."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images.float() / 255 * torch.linspace(0.5, 1, images.shape[-1])


def tuned(digits: Data, **mine: Any) -> Any:
    train, val = labelled(digits, 0.2)
    # An odd batch: the processes' parts of it differ in size.
    recipe = replace(PLAIN, batch_size=33)
    return distributed.together(
        finetune.finetune,
        network(),
        Labelled(train.images, train.labels),
        val,
        recipe,
        FP32_CPU,
        0,
        unlabelled=digits.train.images[600:900],
        mine=mine,
    )


def learn(images: Images, say: Any = print) -> dict[str, Any]:
    torch.manual_seed(distributed.rank())  # the leader's weights are to count
    net = network(distributed.rank())
    objective = Contrastive(net.dim, Shades(8), 2, 0.2, FP32_CPU)
    before = copy.deepcopy(objective.projector.state_dict())
    # Muon would make large steps of the rounding in directions without a gradient.
    recipe = replace(
        pretraining("contrastive", len(images), 8), optimizer="sgd", epochs=2, batch_size=45
    )
    result = pretrain(net, objective, images, recipe, FP32_CPU, 0, say=say)
    return {
        "loss": result.loss,
        "before": before,
        "backbone": net.state_dict(),
        "projector": objective.projector.state_dict(),
    }


def rows(images: Images, say: Any = print) -> list[Any]:
    """The rows of three epochs that each process draws."""
    stream = finetune._Stream(images, 7, 0, 0, FP32_CPU, say)
    generator = torch.Generator()
    drawn = [stream.draw(i, False, generator)[0].tolist() for i in range(3 * stream.steps)]
    found: list[Any] = [None] * distributed.size()
    if distributed.size() > 1:
        torch.distributed.all_gather_object(found, drawn)
        return found
    return [drawn]


def work(out: Path, cache: Path) -> dict[str, Any]:
    digits = data.load("digits", size=8, cache=cache, say=lambda _: None)
    result = tuned(digits, say=lambda _: None)
    images = digits.train.images[:90]
    # Encoded, as where neither memory nor disk have room for them; a window is one batch.
    source = sources.digits().splits["train"]
    outside = encoded(source, np.arange(30), 8, 1)
    found = {
        "weights": result.network.state_dict(),
        "before": network().state_dict(),
        "history": [row.model_dump() for row in result.history],
        "extractor": distributed.together(learn, images, mine={"say": lambda _: None}),
        "rows": distributed.together(rows, digits.train.images[:30], mine={}),
        "rows_outside": distributed.together(rows, outside, mine={}),
    }
    torch.save(found, out)
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.run(lambda: work(Path(sys.argv[1]), Path(sys.argv[2])), "cpu")
