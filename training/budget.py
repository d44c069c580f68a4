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

ONCE = 0.9
"""Share of it that later bundles of a command are spared: libraries are loaded, the graph is
traced."""

IMAGES_PER_S = 500.0
"""At which a bundle is tested at most, as far as is expected."""

ENOUGH = 5
"""Epochs: the fewest of a recipe."""

SPARE = 0.02
"""Of the time left, kept back."""

AROUND = 1.5
"""Seconds that the interpreter takes to start and to end, which no clock of the process sees."""


class Budget:
    """The time of a run, or no limit at all.

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

    def warnings(self, seconds: float, epochs: float) -> tuple[str, ...]:
        """What is to be said of the model in work, which had so many epochs in so many seconds."""
        if self._minutes is None or epochs >= ENOUGH:
            return ()
        missing = seconds * (ENOUGH / epochs - 1) * sum(self._waiting) / self._waiting[0]
        so_far = (
            "it saw every image once, so expect little"
            if epochs < 1
            else (f"it had {ENOUGH}, the fewest of the recipe, so expect less")
        )
        return (
            f"{epochs:.2f} epochs: --max-minutes {self._minutes:g} ended the training before "
            f"{so_far} of this model. With --max-minutes "
            f"{math.ceil(self._minutes + missing / 60)} it has some {ENOUGH} epochs",
        )

    def done(self, afterwards: float, export: float) -> None:
        """A model is published.

        Args:
            afterwards: seconds of all that came after its training.
            export: of them, those of export and parity, of which the next ones are spared a part.
        """
        self._waiting.pop(0)
        self._later = afterwards if self._first is None else afterwards - ONCE * export
        self._first = None
