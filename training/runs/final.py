"""The final model: trained on all labels, after the model of 100 % has been measured.

Where the data have no test split, a fifth of the labels measures the models and a tenth of the
rest validates them, so that the best one was trained on 72 % of the labels. The final model has
the same recipe and is trained on all of them. None is left to measure it with: temperature and
figures are those of the model that was measured before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from labelcurve.training.data import fractions
from labelcurve.training.data.dataset import Data
from labelcurve.training.data.fractions import Subset
from labelcurve.training.data.source import UNLABELLED
from labelcurve.training.learning import finetune
from labelcurve.training.models.export import PARITY_IMAGES
from labelcurve.training.options import Options
from labelcurve.training.runs import frozen, grid
from labelcurve.training.runs.budget import Budget
from labelcurve.training.runs.grid import Cell
from labelcurve.training.runs.model_run import ModelRun
from labelcurve.training.runtime.console import say
from labelcurve.training.runtime.experiment import Tracking


@dataclass(frozen=True)
class Final:
    """The final model of a command; its figures are those of all labels and the first seed."""

    images: Data
    """With all labels to train on, and nothing to test."""
    cell: Cell


def planned(options: Options, images: Data, cells: Sequence[Cell]) -> Final | None:
    """The final model that follows the cells.

    Returns:
        None where it is not wanted, where no model of all labels comes before it, or where the
        data have a test split, so that the measured model has nearly all labels. Nor for the digits
        of scikit-learn, which nobody classifies in production.
    """
    if options.no_final or options.no_test or options.preset != "default":
        return None
    if options.data == "digits":
        return None
    before = [c for c in cells if c.subset.fraction == 1 and c.seed == options.seed]
    if images.test_given or not before:
        return None
    every = whole(images)
    labelled = subset(every)
    recipe = grid.plan(options, labelled, len(every.train) - len(labelled.train))
    # A tenth more labels must not make a different head from the one that was measured.
    recipe = replace(recipe, propagation=before[0].recipe.propagation)
    name = grid.bundle_name(options, images.name, None, options.seed)
    cell = Cell(name, options.seed, labelled, recipe, measured=before[0].name)
    return Final(every, cell)


def whole(images: Data) -> Data:
    """The data with the test images, as `--drop` and `--relabel` correct them, among the training
    images."""
    test = images.test if images.corrected_test is None else images.corrected_test
    return replace(
        images,
        train=images.train.joined(test),
        test=images.test.take(np.arange(0)),
        whole_pixels_hash=images.pixels_hash,
    )


def subset(images: Data) -> Subset:
    """All labelled rows of `whole`, none of them held out."""
    rows = np.flatnonzero(images.train.labels != UNLABELLED).astype(np.int32)
    return Subset(
        fraction=1.0,
        train=rows,
        val=rows[:0],
        val_pool=fractions.spread(rows, PARITY_IMAGES).astype(np.int32),
        hash=fractions.rows_hash(images.train, rows, rows[:0]),
    )


class FinalRun(ModelRun):
    """Trains and publishes the final model, when the one of 100 % has been published."""

    def learn(self, budget: Budget, run: Tracking) -> finetune.Result:
        """Trains as the measured model was trained: a linear head, fine-tuning, or both."""
        command, before = self.command, self.measured
        assert before is not None
        say(
            f"\n{self.cell.name}: the final model, on all {len(self.cell.subset.train):,} labels; "
            f"its figures are those of {before.cell.name}"
        )
        network = self.network()
        chosen = before.bundle().manifest.recipe.get("linear_head")
        linear = self.linear(network, chosen=chosen)
        if linear is None:
            return self.tune(network, budget, run)
        self.n_unlabelled = linear.head.n_unlabelled if linear.head else 0
        if chosen is not None:
            return linear
        network = frozen.tunable(linear, self.cell.recipe, command.images.train.images)
        return self.tune(network, budget, run)
