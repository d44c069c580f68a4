from __future__ import annotations

import zlib

import pytest

from benchmarks import guided
from benchmarks.fuzz import seeds

pytest.importorskip("atheris", reason="atheris has no wheel for this Python")


def test_inputs_take_branches_that_whole_ones_do_not() -> None:
    files = {name: data for name, data in seeds().items() if name in ("png", "gif-animated")}
    found = guided.run(400, files)
    assert found["inputs"] == 400
    assert sum(found["outcomes"].values()) == 400
    assert found["unexpected"] == {}
    assert {"image", "Problem", "UnsupportedImage"} <= found["outcomes"].keys()
    assert 100 < found["branches"]["seeds"] < found["branches"]["all"]


def test_a_png_has_checksums_again() -> None:
    whole = b"\x00" + seeds()["png"]
    damaged = bytearray(whole)
    damaged[20] ^= 1  # in IHDR, after length and name
    fixed = guided.with_checksums(bytes(damaged))
    assert fixed[:30] == damaged[:30]
    assert fixed[30:34] == zlib.crc32(fixed[13:30]).to_bytes(4, "big")
    assert guided.with_checksums(whole) == whole
