from __future__ import annotations

import json

import numpy as np

from labelcurve.serving.models.answer import body, heads, ranked

NAMES = ("a", "b", "c")
PROBABILITIES = np.array([0.25, 0.5, 0.25], np.float32)


def test_best_first_and_ties_in_the_order_of_the_classes() -> None:
    assert ranked(PROBABILITIES, NAMES, 3) == [
        {"label": "b", "score": 0.5},
        {"label": "a", "score": 0.25},
        {"label": "c", "score": 0.25},
    ]


def test_top_k_cuts_and_more_than_there_are_is_all() -> None:
    assert [c["label"] for c in ranked(PROBABILITIES, NAMES, 1)] == ["b"]
    assert len(ranked(PROBABILITIES, NAMES, 99)) == 3


def test_the_body_is_their_json() -> None:
    names = ("Ärger", 'a "quoted" one', "c\n")
    for top_k in (1, 2, 99):
        text = body(PROBABILITIES, heads(names), top_k)
        assert text == json.dumps(ranked(PROBABILITIES, names, top_k), ensure_ascii=False)
