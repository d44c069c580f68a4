from __future__ import annotations

import importlib.util
import zlib

import pytest

from labelcurve.benchmarks.resilience import guided
from labelcurve.benchmarks.resilience.fuzz import seeds

pytest.importorskip("atheris", reason="atheris has no wheel for this Python")


def test_inputs_take_branches_that_whole_ones_do_not() -> None:
    files = {name: data for name, data in seeds().items() if name in ("png", "gif-animated")}
    found = guided.run(400, files)
    assert found["inputs"] == 400
    assert sum(found["outcomes"].values()) == 400
    assert found["unexpected"] == {}
    assert {"image", "Problem", "UnsupportedImage"} <= found["outcomes"].keys()
    assert 100 < found["branches"]["seeds"] < found["branches"]["all"]


def test_what_is_instrumented_has_the_names_that_the_fuzzer_imports() -> None:
    """A package under another name would be left out silently."""
    from labelcurve.bundle import preprocess
    from labelcurve.serving.web import request

    for module in (preprocess, request):
        assert any(module.__name__.startswith(f"{name}.") for name in guided.SEEN)
    assert all(importlib.util.find_spec(name) for name in guided.SEEN)


def test_a_png_has_checksums_again() -> None:
    whole = b"\x00" + seeds()["png"]
    damaged = bytearray(whole)
    damaged[20] ^= 1  # in IHDR, after length and name
    fixed = guided.with_checksums(bytes(damaged))
    assert fixed[:30] == damaged[:30]
    assert fixed[30:34] == zlib.crc32(fixed[13:30]).to_bytes(4, "big")
    assert guided.with_checksums(whole) == whole
