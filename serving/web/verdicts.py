"""Members of an answer in addition to its classes: whether it is accepted, and a set of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle.acceptance import NotEnough
from labelcurve.serving.errors import Problem
from labelcurve.serving.models.model import Model
from labelcurve.serving.models.verdict import Rule, Wish

Row = NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """Verdict on the answers to one request."""

    asked: Rule | None
    """Rule for the JSON; None: only the classes."""
    accepting: Rule | None
    """What the header says; None: the model cannot show the accuracy that the service was started
    with, so nothing is accepted."""
    header: bool

    def bodies(self, bodies: list[str], rows: Sequence[Row]) -> list[str]:
        """The JSON of each answer, with the requested members.

        Args:
            bodies: the JSON of its list of classes.
            rows: its probabilities, float32 [K].
        """
        if self.asked is None:
            return bodies
        return [self.asked.body(*pair) for pair in zip(bodies, rows, strict=True)]

    def headers(self, rows: Sequence[Row]) -> list[tuple[bytes, bytes]]:
        """`X-Accepted`, as ASGI takes it: true or false for each image."""
        if not self.header:
            return []
        said = ("true" if self.accepted(row) else "false" for row in rows)
        return [(b"x-accepted", ", ".join(said).encode())]

    def accepted(self, row: Row) -> bool:
        """Returns whether an answer needs no check by a person."""
        return bool(self.accepting and self.accepting.accepted(row))


class Verdicts:
    """Finds the rules of a model for a request."""

    def __init__(self, accept: float | None) -> None:
        """`accept`: the target accuracy where a request names none."""
        self._accept = accept

    def of(self, model: Model, wish: Wish) -> Verdict | None:
        """The verdict on the answers of a model; None if the request asks for none.

        Raises:
            Problem: the model's held-out images do not show what the request asks for (409).
        """
        if not wish and self._accept is None:
            return None
        try:
            asked = model.rule(wish) if wish else None
        except NotEnough as error:
            raise Problem(f"{model}: {error}", status=409) from error
        accept = wish.accept or self._accept
        try:
            accepting = model.rule(Wish(accept=accept))
        except NotEnough:
            accepting = None
        return Verdict(asked, accepting, header=accept is not None)
