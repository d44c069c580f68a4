from __future__ import annotations

import pytest

from benchmarks import curve_words


@pytest.mark.parametrize(
    ("value", "text"), [(31_234, "31,000"), (98, "98"), (1_249, "1,200"), (4, "4")]
)
def test_labels_to_two_digits(value: float, text: str) -> None:
    assert curve_words.count(value) == text
