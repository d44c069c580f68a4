"""Acceptance of answers and sets of classes, calibrated on a model's own held-out images."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labelcurve.bundle import acceptance
from labelcurve.bundle.manifest import Manifest


@dataclass(frozen=True)
class Wish:
    """Target accuracy and coverage of a request, a command or a service."""

    accept: float | None = None
    """Accuracy among the accepted answers."""
    set: float | None = None
    """Share of the images whose set of classes contains the true one."""

    def __bool__(self) -> bool:
        return self.accept is not None or self.set is not None


@dataclass(frozen=True)
class Rule:
    """The thresholds of one model for one wish."""

    class_names: tuple[str, ...]
    accept: acceptance.Threshold | None
    least: float | None
    """Result of `acceptance.set_threshold`."""

    def accepted(self, probabilities: NDArray[np.float32]) -> bool | None:
        """Returns whether the answer is accepted; None where that was not wished.

        Args:
            probabilities: float32 [K].
        """
        if self.accept is None:
            return None
        return bool(probabilities.max() >= np.float32(self.accept.confidence))

    def set(self, probabilities: NDArray[np.float32]) -> list[str] | None:
        """The classes of the set, most probable first; None where that was not wished."""
        if self.least is None:
            return None
        return [self.class_names[i] for i in acceptance.members(probabilities, self.least)]

    def body(self, classes: str, probabilities: NDArray[np.float32]) -> str:
        """The JSON of an answer with what was wished.

        Args:
            classes: the JSON of its list of classes.
            probabilities: float32 [K].
        """
        parts = [f'"classes": {classes}']
        if (accepted := self.accepted(probabilities)) is not None:
            parts.append(f'"accepted": {json.dumps(accepted)}')
        if (found := self.set(probabilities)) is not None:
            parts.append(f'"set": {json.dumps(found, ensure_ascii=False)}')
        return f"{{{', '.join(parts)}}}"


def rule(manifest: Manifest, precision: str, wish: Wish) -> Rule:
    """The rule of a model for a wish.

    Args:
        manifest: of the bundle.
        precision: of the graph that answers; each has separate held-out answers.
        wish: the targets.

    Raises:
        NotEnough: the model's held-out images cannot show it.
        LabelcurveError: no such accuracy or share.
    """
    variant = next((v for v in manifest.variants if v.precision == precision), None)
    held = variant.held_out if variant else manifest.held_out
    accept = None if wish.accept is None else acceptance.threshold(held, wish.accept)
    least = None if wish.set is None else acceptance.set_threshold(held, wish.set)
    return Rule(manifest.class_names, accept, least)
