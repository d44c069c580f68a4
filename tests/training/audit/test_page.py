"""The page of an audit."""

from __future__ import annotations

import numpy as np

from labelcurve.training.audit.labels import Effect
from labelcurve.training.audit.page import Shown, page, uri
from labelcurve.training.data.corrections import Doubt

IMAGE = np.zeros((16, 16, 3), np.uint8)


def test_the_images_stand_in_order_and_nothing_is_loaded_from_elsewhere() -> None:
    doubts = [
        Doubt("cat/<1>.png", "cat", "dog & co", 0.93, "label"),
        Doubt("cat/2.png", "cat", "", 0.9, "duplicate: same pixels as cat/3.png (cat)"),
    ]
    shown = [Shown(doubts[0], IMAGE), Shown(doubts[1], IMAGE, IMAGE)]
    text = page("pets", {"label": 1, "duplicate": 2}, shown, Effect(100, 97, 0.8, 0.82, 0.83), [])
    assert "<h1>3 doubtful images in pets</h1>" in text
    assert text.index("cat/&lt;1&gt;.png") < text.index("cat/2.png")
    assert "<b>dog &amp; co</b>" in text
    assert "predicts 82.0 %, and 83.0 %" in text
    assert "The first 2 of 3" in text
    assert text.count("<img") == 3
    assert "<script" not in text
    assert "http" not in text


def test_thumbnails_are_small() -> None:
    random = np.random.default_rng(0)
    large = random.integers(0, 256, (224, 224, 3)).astype(np.uint8)
    assert len(uri(large)) < 20_000
    assert uri(large).startswith("data:image/jpeg;base64,")
    assert uri(IMAGE).startswith("data:image/png;base64,")
