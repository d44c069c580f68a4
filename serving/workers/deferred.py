"""Modules that are imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, MutableSequence
from types import ModuleType
from typing import Any


def defer(modules: Mapping[str, tuple[str, ...]]) -> None:
    """Registers lazy stand-ins for modules that are not imported yet.

    Args:
        modules: their names, and the names that other modules import from them.
    """
    for name, taken in modules.items():
        if name not in sys.modules:
            sys.modules[name] = _Deferred(name, taken)


class _Deferred(ModuleType):
    """Stand-in for a module until one of its attributes is used.

    Any name that it was not given is looked up in the module itself: a release that imports other
    names is as slow as without this, but still correct.
    """

    def __init__(self, name: str, taken: tuple[str, ...]) -> None:
        super().__init__(name)
        vars(self).update({each: _Name(self, each) for each in taken})

    @property
    def __path__(self) -> MutableSequence[str]:  # type: ignore[override]
        """Search path of its submodules; only used for packages."""
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
