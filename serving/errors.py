"""Error responses as exceptions.

Problem
├── UnknownModel   404   (selection.py)
└── Overloaded     503   (batcher.py, request.py, catalogue.py)
    └── DeviceLost       (engine.py)

`bundle.errors.ImageError` and Starlette's own become answers too: problems.py.
"""

from __future__ import annotations

from typing import Any

from labelcurve.bundle.errors import DeviceError, LabelcurveError


class Problem(Exception):
    """An error response; `members` are added to status, title and detail in its body."""

    status = 400

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status or type(self).status
        self.headers = headers
        self.members = members


class UnknownModel(Problem, LabelcurveError):
    """No model of that name and version is served."""

    status = 404


class Overloaded(Problem):
    """The queue is full, or the models are not loaded yet."""

    status = 503

    def __init__(self, detail: str, retry_after: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class DeviceLost(Overloaded, DeviceError):
    """The GPU failed: this process cannot use it any more, a new one perhaps."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, retry_after=5)
