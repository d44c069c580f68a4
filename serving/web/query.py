"""The parameters of `/classify`."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from starlette.datastructures import QueryParams

from labelcurve.bundle.acceptance import LEAST_WISHED, MOST_WISHED
from labelcurve.serving.errors import Problem
from labelcurve.serving.models.verdict import Wish
from labelcurve.serving.web.request import MAX_TOP_K

DEFAULT_TOP_K = 5
ALLOWED = ("model", "top_k", "accept", "set")


class Query(NamedTuple):
    """Query parameters of a request."""

    model: str | None = None
    top_k: int | None = None
    wish: Wish = Wish()


NOTHING = Query()


def parse(text: bytes) -> Query:
    """The query string of a request.

    Raises:
        Problem: a parameter is unknown, given twice, or has no value that is allowed.
    """
    parameters = QueryParams(text)
    for name, count in Counter(name for name, _ in parameters.multi_items()).items():
        if name not in ALLOWED:
            allowed = f"{', '.join(ALLOWED[:-1])} and {ALLOWED[-1]}"
            raise Problem(f"unknown parameter {name[:80]!r}: allowed are {allowed}")
        if count > 1:
            raise Problem(f"the parameter {name} is given {count} times")
    wish = Wish(*(_share(name, parameters.get(name)) for name in ("accept", "set")))
    return Query(parameters.get("model"), _top_k(parameters.get("top_k")), wish)


def _top_k(text: str | None) -> int | None:
    if text is None:
        return None
    digits = text.isascii() and text.isdigit() and len(text) < 100
    if not (digits and 1 <= int(text) <= MAX_TOP_K):
        raise Problem(f"top_k={text[:80]!r}: a whole number from 1 to {MAX_TOP_K} is needed")
    return int(text)


def _share(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not LEAST_WISHED <= found <= MOST_WISHED:  # NaN is neither
        raise Problem(
            f"{name}={text[:80]!r}: a share from {LEAST_WISHED} to {MOST_WISHED} is needed"
        )
    return found
