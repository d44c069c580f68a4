from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from labelcurve.serving.workers.deferred import defer


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with modules that note when they are imported."""
    folder = tmp_path / "deferredpackage"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("IMPORTED = []\n")
    note = "from deferredpackage import IMPORTED\nIMPORTED.append(__name__)\n"
    for name in ("plain", "inner/__init__", "inner/deep"):
        code = "class Made:\n    KIND = 'of this class'\n    def __init__(self, *a, **n):\n"
        code += "        self.given = a, n\n\nOTHER = 'another name'\n"
        (folder / f"{name}.py").write_text(note + code)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "deferredpackage"
    for name in [name for name in sys.modules if name.startswith("deferredpackage")]:
        del sys.modules[name]


def imported() -> list[str]:
    return list(import_module("deferredpackage").IMPORTED)


def test_a_module_is_imported_when_a_name_from_it_is_called(package: str) -> None:
    defer({f"{package}.plain": ("Made",)})
    made = import_module(f"{package}.plain").Made
    assert imported() == []
    assert made(1, named=2).given == ((1,), {"named": 2})
    assert imported() == [f"{package}.plain"]
    assert made.KIND == "of this class"
    assert imported() == [f"{package}.plain"]
    assert sys.modules[f"{package}.plain"].Made is type(made(1))


def test_a_name_that_was_not_given_is_looked_up_in_the_module(package: str) -> None:
    defer({f"{package}.plain": ()})
    plain = import_module(f"{package}.plain")
    assert imported() == []
    assert plain.OTHER == "another name"
    assert plain.OTHER == "another name"
    assert imported() == [f"{package}.plain"]
    with pytest.raises(AttributeError):
        _ = plain.NOWHERE
    with pytest.raises(AttributeError):
        _ = plain.__wrapped__


def test_a_module_that_is_imported_already_stays(package: str) -> None:
    before = import_module(f"{package}.plain")
    defer({f"{package}.plain": ("Made",), f"{package}.inner": ()})
    assert sys.modules[f"{package}.plain"] is before
    assert sys.modules[f"{package}.inner"] is not before
    assert imported() == [f"{package}.plain"]


def test_a_module_below_a_deferred_package_is_found_without_it(package: str) -> None:
    defer({f"{package}.inner": ("Made",)})
    assert import_module(f"{package}.inner.deep").OTHER == "another name"
    assert imported() == [f"{package}.inner.deep"]
