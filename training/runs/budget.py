"""Divides the time of `--max-minutes` among pretraining, training, export and test."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from labelcurve.bundle.errors import LabelcurveError

PRETRAINING = 0.4
"""Share of the time for an extractor that has to be made first."""

AFTERWARDS = (5.0, 20.0)
"""Seconds for export, parity and publication of the first bundle: twice what reading the data and
the start of the process took, within these. Then they have been measured."""

ONCE = 0.9
"""Share of it that later bundles of a command save, since the graph is already traced."""

IMAGES_PER_S = 500.0
"""Upper bound of the expected speed of testing a bundle."""

ENOUGH = 5
"""Fewest epochs of any recipe without pretrained weights."""

SPARE = 0.02
"""Share of the remaining time held in reserve."""

AROUND = 1.5
"""Seconds for starting and ending the interpreter, which the process cannot measure."""


class Budget:
    """The time budget of a command; without a limit it grants everything.

    Args:
        start: of the run, by `time.monotonic`.
        minutes: of `--max-minutes`.
        work: of each model in the order in which they are trained: images to learn from.
        n_test: images that each is tested on.
        startup: seconds that reading the data and the start of the process took.
        images_per_s: at which this machine tests them.
    """

    def __init__(
        self,
        start: float,
        minutes: float | None,
        work: Sequence[float],
        n_test: int,
        startup: float,
        images_per_s: float = IMAGES_PER_S,
    ) -> None:
        self._end = None if minutes is None else start + minutes * 60 - AROUND
        self._minutes = minutes
        self._waiting = list(work)
        low, high = AFTERWARDS
        once = min(max(2 * startup, low), high)
        test = n_test / min(images_per_s, IMAGES_PER_S)
        self._first: float | None = once + test
        self._later = (1 - ONCE) * once + test

    def pretraining(self) -> float | None:
        """Seconds for making an extractor; None without a limit.

        Raises:
            LabelcurveError: as `finetuning`, before any of it is spent.
        """
        left = self._left()
        return None if left is None else PRETRAINING * left

    def finetuning(self) -> float | None:
        """Seconds for training the next model, by its share of the work that is left.

        Raises:
            LabelcurveError: nothing is left.
        """
        left = self._left()
        return None if left is None else left * self._waiting[0] / sum(self._waiting)

    def _left(self) -> float | None:
        """Seconds for all training that is left."""
        if self._end is None:
            return None
        left = (self._end - time.monotonic()) * (1 - SPARE)
        first = self._later if self._first is None else self._first
        afterwards = first + self._later * (len(self._waiting) - 1)
        if left - afterwards <= 1:
            raise LabelcurveError(
                f"--max-minutes {self._minutes:g} leaves no time to train {len(self._waiting)} "
                f"model(s): their export and test take about {afterwards:.0f} s. "
                "Allow more minutes or fewer fractions"
            )
        left -= afterwards
        return left

    def warnings(self, seconds: float, epochs: float, most: int) -> tuple[str, ...]:
        """Warnings about the current model.

        Args:
            seconds: of its training.
            epochs: that it had.
            most: that its recipe has: fewer than `ENOUGH` where pretrained weights are tuned.
        """
        enough = min(ENOUGH, most)
        if self._minutes is None or epochs >= enough:
            return ()
        missing = seconds * (enough / epochs - 1) * sum(self._waiting) / self._waiting[0]
        so_far = (
            "it saw every image once, so expect little"
            if epochs < 1
            else (f"it had {enough}, the minimum of the recipe, so expect less")
        )
        return (
            f"{epochs:.2f} epochs: --max-minutes {self._minutes:g} ended the training before "
            f"{so_far} of this model. With --max-minutes "
            f"{math.ceil(self._minutes + missing / 60)} it has some {enough} epochs",
        )

    def done(self, afterwards: float, export: float) -> None:
        """Records that a model was published.

        Args:
            afterwards: seconds of everything after its training.
            export: of them, those of export and parity; the next models need only a part.
        """
        self._waiting.pop(0)
        self._later = afterwards if self._first is None else afterwards - ONCE * export
        self._first = None
