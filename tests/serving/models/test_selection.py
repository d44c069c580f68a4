from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.bundle import promotion, store
from labelcurve.serving.errors import UnknownModel
from labelcurve.serving.models.selection import default, pick


def test_the_default_is_the_promoted_one_or_that_with_the_most_labels(
    digits_models: Path, tmp_path: Path
) -> None:
    bundles = store.read_all(digits_models)
    assert default(digits_models, bundles)[0] == "digits-100"
    assert default(digits_models, bundles[:2])[0] == "digits-50"
    (tmp_path / promotion.FILE).write_text('{"default": "digits-10"}')
    assert default(tmp_path, bundles)[0] == "digits-10"


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
