from __future__ import annotations

from dataclasses import replace

import pytest

from labelcurve.bundle import preprocess
from labelcurve.training.data.decoded import cache
from labelcurve.training.data.sources import digits


def test_the_key_of_decoded_pixels_changes_with_each_thing_they_depend_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = digits()
    keys = [
        cache.key_of(source, 16),
        cache.key_of(source, 8),
        cache.key_of(replace(source, fingerprint="other"), 16),
        cache.key_of(replace(source, class_names=source.class_names[::-1]), 16),
    ]
    assert cache.key_of(digits(), 16) == keys[0]
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "VERSION", preprocess.VERSION + 1)
        keys.append(cache.key_of(source, 16))
    with monkeypatch.context() as patch:
        patch.setattr(cache, "FORMAT", cache.FORMAT + 1)
        keys.append(cache.key_of(source, 16))
    assert len(set(keys)) == len(keys)
    assert cache.key_of(source, 16) == keys[0]


def test_the_bytes_of_a_source_are_three_for_each_pixel() -> None:
    assert cache.n_bytes(digits(), 16) == 1797 * 16 * 16 * 3
