"""Parts of BentoML that no worker uses: imported when something of them is used, not at the start.

They are its client for its cloud, its proxy for other programs and its own supervisor, and with
them two HTTP clients: a third of what a worker imports.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import MutableSequence
from types import ModuleType
from typing import Any

MODULES: dict[str, tuple[str, ...]] = {
    "bentoml._internal.cloud": (),
    "bentoml._internal.cloud.client": ("RestApiClient",),
    "bentoml._internal.utils.circus": ("Server",),
    "_bentoml_impl.server.proxy": ("create_proxy_app",),
}
"""The modules, and the names that others take from them when they are imported themselves."""


def defer() -> None:
    """Puts stand-ins in their places; to be called before anything of BentoML is imported."""
    for name, taken in MODULES.items():
        if name not in sys.modules:
            sys.modules[name] = _Deferred(name, taken)


class _Deferred(ModuleType):
    """In the place of a module, until something of it is used.

    What is not among the names that it was given is the module's own: a release of BentoML that
    takes others is as slow as without this, and no less right.
    """

    def __init__(self, name: str, taken: tuple[str, ...]) -> None:
        super().__init__(name)
        vars(self).update({each: _Name(self, each) for each in taken})

    @property
    def __path__(self) -> MutableSequence[str]:  # type: ignore[override]
        """Where its submodules are; only packages are asked."""
        parent, _, last = self.__name__.rpartition(".")
        return [f"{folder}/{last}" for folder in importlib.import_module(parent).__path__]

    def real(self) -> ModuleType:
        """The module itself."""
        if sys.modules[self.__name__] is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.real(), name)


class _Name:
    """A class or function of a module that is deferred."""

    def __init__(self, module: _Deferred, name: str) -> None:
        self._module = module
        self._name = name

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(self._module.real(), self._name)(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(self._module.real(), self._name), name)
