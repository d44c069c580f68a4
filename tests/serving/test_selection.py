from __future__ import annotations

from pathlib import Path

import pytest

from bundle import store
from serving.errors import UnknownModel
from serving.selection import pick


def test_without_a_name_the_one_with_the_most_labels(digits_models: Path) -> None:
    bundles = store.read_all(digits_models)
    assert bundles[pick(bundles, None)].name == "digits-100"
    assert bundles[pick(bundles[:2], None)].name == "digits-50"


def test_by_name_and_by_version(digits_models: Path) -> None:
    bundles = store.read_all(digits_models)
    for index, bundle in enumerate(bundles):
        assert pick(bundles, bundle.name) == index
        assert pick(bundles, f"{bundle.name}@{bundle.version}") == index


@pytest.mark.parametrize("wanted", ["", "digits", "digits-10@0123456789ab", "../x"])
def test_others_are_unknown_and_those_that_exist_are_named(
    digits_models: Path, wanted: str
) -> None:
    bundles = store.read_all(digits_models)
    with pytest.raises(UnknownModel, match="there are digits-10@") as caught:
        pick(bundles, wanted)
    assert len(caught.value.members["models"]) == 3
