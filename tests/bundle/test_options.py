from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import Annotated, Any

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.machine import cores
from labelcurve.bundle.options import MOST_A_CORE, PerCore, Within, check


@dataclass(frozen=True)
class Given:
    a_number: Annotated[int, Within(1)] = 1
    share: Annotated[float | None, Within(0, 1, above=True)] = None
    several: Annotated[tuple[float, ...], Within(0, 1, above=True, below=True, note="(0.9)")] = ()
    side: Annotated[int, Within(8, 1024, note="pixels")] = 8
    threads: Annotated[int | None, PerCore()] = None
    free: int = -5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a_number": 0}, "--a-number 0: allowed are 1 and more"),
        ({"share": 0.0}, "--share 0: allowed are values above 0 and up to 1"),
        ({"share": 1.5}, "--share 1.5: allowed are values above 0 and up to 1"),
        ({"share": nan}, "--share nan: allowed are values above 0 and up to 1"),
        ({"several": (0.5, 1.0)}, r"--several 1: allowed are values between 0 and 1 \(0.9\)"),
        ({"side": 7}, "--side 7: allowed are 8 to 1024 pixels"),
        ({"side": 2**32}, "--side 4294967296: allowed are 8 to 1024 pixels"),
        ({"a_number": inf}, "--a-number inf: allowed are 1 and more"),
    ],
)
def test_what_is_not_allowed_is_said_with_what_is(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelcurveError, match=f"^{message}$"):
        check(Given(**values))


def test_the_ends_that_belong_to_a_range_are_allowed() -> None:
    check(Given(share=1.0, several=(0.1, 0.9), side=1024, free=-(10**9)))
    check(Given(side=8))
    assert str(Within(0, above=True)) == "values above 0"


def test_threads_are_bounded_by_the_cores() -> None:
    most = MOST_A_CORE * cores()
    check(Given(threads=1))
    check(Given(threads=most))
    for wrong in (0, most + 1):
        with pytest.raises(LabelcurveError, match=f"^--threads {wrong}: allowed are 1 to {most}"):
            check(Given(threads=wrong))
