from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelcurve.bundle import acceptance, store
from labelcurve.bundle.manifest import Variant
from labelcurve.serving.models.verdict import Rule, Wish, rule

NAMES = ("a", "Ärger", "c")
ROW = np.array([0.2, 0.7, 0.1], np.float32)


def accepting(confidence: float) -> Rule:
    return Rule(NAMES, acceptance.Threshold(confidence, 0.5, 100), None)


def test_either_target_is_a_wish() -> None:
    assert [bool(wish) for wish in (Wish(), Wish(accept=0.9), Wish(set=0.9))] == [False, True, True]


def test_an_answer_as_confident_as_the_threshold_is_accepted() -> None:
    assert accepting(0.7).accepted(ROW) is True  # 0.7 as a float32 is less than 0.7
    assert accepting(0.70001).accepted(ROW) is False
    assert Rule(NAMES, None, 0.2).accepted(ROW) is None


def test_a_set_has_the_most_probable_class_first() -> None:
    assert Rule(NAMES, None, 0.2).set(ROW) == ["Ärger", "a"]
    assert Rule(NAMES, None, 0.9).set(ROW) == ["Ärger"]
    assert accepting(0.7).set(ROW) is None


def test_the_body_has_what_was_wished_and_no_more() -> None:
    both = Rule(NAMES, acceptance.Threshold(0.8, 0.5, 100), 0.2)
    assert both.body("[]", ROW) == '{"classes": [], "accepted": false, "set": ["Ärger", "a"]}'
    assert json.loads(accepting(0.7).body("[1]", ROW)) == {"classes": [1], "accepted": True}
    assert json.loads(Rule(NAMES, None, 0.9).body("[1]", ROW)) == {"classes": [1], "set": ["Ärger"]}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_each_precision_has_its_own_held_out_answers(precision: str, digits_models: Path) -> None:
    manifest = store.read(digits_models, "digits-100").manifest
    other = store.read(digits_models, "digits-10").manifest.held_out
    variant = Variant(
        precision="int8",
        graph_hash="0" * 64,
        n_calibration=1,
        val=manifest.val,
        test=None,
        n_compared=1,
        agreement=1.0,
        held_out=other,
    )
    held = manifest.held_out if precision == "fp32" else other
    found = rule(manifest.model_copy(update={"variants": (variant,)}), precision, Wish(0.9, 0.8))
    assert found == Rule(
        manifest.class_names,
        acceptance.threshold(held, 0.9),
        acceptance.set_threshold(held, 0.8),
    )
    assert found != rule(manifest, "fp32", Wish(0.9, 0.8)) or precision == "fp32"
