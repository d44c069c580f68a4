"""How the minutes of `--max-minutes` are shared out."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from bundle.errors import LabelcurveError

PRETRAINING = 0.4
"""Share of the time for an extractor that has to be made first."""

AFTERWARDS = (5.0, 20.0)
"""Seconds for export, parity and publication of the first bundle: twice what reading the data and
the start of the process took, within these. Then they have been measured."""

IMAGES_PER_S = 500.0
"""At which the first bundle is expected to be tested at least."""

ENOUGH = 5
"""Epochs: the fewest of a recipe."""

SPARE = 0.02
"""Of the time left, kept back."""


class Budget:
    """The time of a run, or no limit at all.

    Args:
        start: of the run, by `time.monotonic`.
        minutes: of `--max-minutes`.
        work: of each model in the order in which they are trained: images to learn from.
        n_test: images that each is tested on.
        startup: seconds that reading the data and the start of the process took.
    """

    def __init__(
        self,
        start: float,
        minutes: float | None,
        work: Sequence[float],
        n_test: int,
        startup: float,
    ) -> None:
        self._end = None if minutes is None else start + minutes * 60
        self._minutes = minutes
        self._waiting = list(work)
        low, high = AFTERWARDS
        self._afterwards = min(max(2 * startup, low), high)
        self._afterwards += n_test / IMAGES_PER_S

    def pretraining(self) -> float | None:
        """Seconds for making an extractor; None where there is no limit.

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
        left -= self._afterwards * len(self._waiting)
        if left <= 1:
            raise LabelcurveError(
                f"--max-minutes {self._minutes:g} leaves no time to train {len(self._waiting)} "
                f"model(s): reading, export and test take about {self._afterwards:.0f} s each. "
                "Allow more minutes or fewer fractions"
            )
        return left

    def warnings(self, seconds: float, epochs: float) -> tuple[str, ...]:
        """What is to be said of the model in work, which had so many epochs in so many seconds."""
        if self._minutes is None or epochs >= 1:
            return ()
        missing = seconds * (ENOUGH / epochs - 1) * sum(self._waiting) / self._waiting[0]
        return (
            f"{epochs:.2f} epochs: --max-minutes {self._minutes:g} ended the training before it "
            "saw every image once, so expect little of this model. With --max-minutes "
            f"{math.ceil(self._minutes + missing / 60)} it has some {ENOUGH} epochs",
        )

    def done(self, afterwards: float) -> None:
        """A model is published; what came after its training took so many seconds."""
        self._waiting.pop(0)
        self._afterwards = afterwards
