"""The numbers that an option takes: stated in its annotation, checked in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf
from typing import Any, get_type_hints

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores

MOST_A_CORE = 8
"""Processes or threads for each core, at most: more of them only take memory."""


@dataclass(frozen=True)
class Within:
    """Annotates an option, or each item of a tuple: `epochs: Annotated[int, Within(1)] = 6`.

    None is always allowed; NaN and infinity never are.
    """

    least: float = -inf
    most: float = inf
    above: bool = False
    """Whether `least` itself is excluded."""
    below: bool = False
    """Whether `most` itself is excluded."""
    note: str = ""
    """Unit or example at the end of the message."""

    def holds(self, value: float) -> bool:
        """Returns whether the value is allowed."""
        low = value > self.least if self.above else value >= self.least
        high = value < self.most if self.below else value <= self.most
        return low and high and -inf < value < inf

    def __str__(self) -> str:
        least, most = shown(self.least), shown(self.most)
        if self.most == inf:
            text = f"values above {least}" if self.above else f"{least} and more"
        elif self.above:
            text = f"values between {least} and {most}"
            if not self.below:
                text = f"values above {least} and up to {most}"
        else:
            text = f"{least} to {most}"
        return f"{text} {self.note}".rstrip()


@dataclass(frozen=True)
class PerCore:
    """Annotates an option that starts so many processes or threads."""

    def holds(self, value: float) -> bool:
        """Returns whether the value is allowed."""
        return 1 <= value <= MOST_A_CORE * cores()

    def __str__(self) -> str:
        n = cores()
        return (
            f"1 to {MOST_A_CORE * n}, {MOST_A_CORE} for each of the {n} cores that this process "
            "may use"
        )


def check(options: Any) -> None:
    """Check the annotated numbers of a dataclass of options.

    Raises:
        LabelcurveError: names the flag, the value and what is allowed.
    """
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        for bound in getattr(hints[field.name], "__metadata__", ()):
            if isinstance(bound, Within | PerCore):
                value = getattr(options, field.name)
                for each in value if isinstance(value, tuple) else (value,):
                    if each is not None and not bound.holds(each):
                        flag = field.name.replace("_", "-")
                        raise LabelcurveError(f"--{flag} {shown(each)}: allowed are {bound}")


def shown(value: float) -> str:
    """A number as a person would type it."""
    return str(value) if isinstance(value, int) else f"{value:g}"
