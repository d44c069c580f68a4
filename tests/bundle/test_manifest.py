from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from labelcurve.bundle import store
from labelcurve.bundle.manifest import Manifest


@pytest.fixture
def fields(digits_models: Path) -> dict[str, Any]:
    manifest = store.read(digits_models, "digits-10").manifest
    content: dict[str, Any] = json.loads(manifest.model_dump_json())
    return content


def test_a_manifest_survives_the_way_through_json(fields: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(fields)
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.class_names[3] == "3"


def test_the_labels_of_a_model_are_those_it_was_given_and_not_in_the_file(
    fields: dict[str, Any],
) -> None:
    manifest = Manifest.model_validate(fields | {"n_labels_train": 9, "n_labels_val": 1})
    assert manifest.n_labels == 10
    assert '"n_labels"' not in manifest.model_dump_json()


def test_a_commit_of_an_older_release_is_read_and_not_written(fields: dict[str, Any]) -> None:
    assert "git_commit" not in fields, "it would change the version"
    manifest = Manifest.model_validate(fields | {"git_commit": "abc"})
    assert manifest.git_commit == "abc"
    assert "git_commit" not in manifest.model_dump_json()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema_version", 2),
        ("name", "../elsewhere"),
        ("name", ".hidden"),
        ("name", ""),
        ("name", "two\nlines"),
        ("fraction", 0),
        ("fraction", 1.01),
        ("class_names", ["cat"]),
        ("class_names", ["cat", "dog", "cat"]),
        ("seed", "many"),
        ("test", {"accuracy": 1}),
        ("fraction", -0.1),
        (
            "predicted",
            {"split": "test", "n": 2, "classes": [1, 1], "confidence": [0] * 20},
        ),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        Manifest.model_validate(fields | {key: value})


def test_an_unknown_field_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="colour"):
        Manifest.model_validate(fields | {"colour": "blue"})


@pytest.mark.parametrize("key", ["class_names", "dataset", "parity", "n_labels_train"])
def test_a_missing_field_is_named(fields: dict[str, Any], key: str) -> None:
    del fields[key]
    with pytest.raises(ValidationError, match=key):
        Manifest.model_validate(fields)


def test_the_test_figures_may_be_left_out(fields: dict[str, Any]) -> None:
    assert Manifest.model_validate(fields | {"test": None}).test is None


def test_a_manifest_cannot_be_changed(fields: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(fields)
    with pytest.raises(ValidationError, match="frozen"):
        manifest.__setattr__("seed", 3)
