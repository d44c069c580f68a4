"""Labelcurve: image classifiers on fractions of the labels, served and compared.

    import labelcurve

    trained = labelcurve.train("path/to/images", fraction=0.1, out="models")
    model = labelcurve.load("models")
    print(model.predict(["a.jpg", "b.jpg"]).labels)
    report = labelcurve.bench("models", "path/to/images")

The command line is `labelcurve --help`. Errors are raised as `LabelcurveError`.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelcurve.bundle.errors import LabelcurveError
    from labelcurve.library import Model, Predictions, TrainedModel, bench, load, train

__all__ = [
    "LabelcurveError",
    "Model",
    "Predictions",
    "TrainedModel",
    "bench",
    "load",
    "train",
]

# In the repository the folders are links in this one. Copies lose them (`bentoml build`, archives):
# there the folders are siblings of this one.
_here = os.path.dirname(__file__)
if not os.path.isdir(f"{_here}/bundle"):
    __path__.append(os.path.dirname(_here))


def __getattr__(name: str) -> Any:
    """Imports attributes lazily, since each extra has different dependencies."""
    if name not in __all__:
        raise AttributeError(f"module 'labelcurve' has no attribute {name!r}")
    module = "bundle.errors" if name == "LabelcurveError" else "library"
    return getattr(import_module(f"labelcurve.{module}"), name)


def __dir__() -> list[str]:
    """Returns the public names, for completion."""
    return __all__
