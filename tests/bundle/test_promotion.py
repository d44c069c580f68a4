from __future__ import annotations

import fcntl
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread

import pytest

from labelcurve.bundle import promotion, store
from labelcurve.bundle.errors import BundleError
from labelcurve.bundle.promotion import FILE, choose, promote, read, rollback
from tests.models import publish_digits
from tests.permissions import forbidden, public_copy

LABELS = {"b": 10, "a": 10, "c": 5}


@pytest.fixture
def root(tmp_path: Path, digits_models: Path) -> Path:
    """A models folder of digits-10, -50 and -100 that a test may change."""
    return Path(shutil.copytree(digits_models, tmp_path / "models", symlinks=True))


def current(root: Path, name: str) -> str:
    return (root / name / store.CURRENT).readlink().name


def history(root: Path) -> list[str]:
    found = read(root)
    return [each.name for each in found.promoted] if found else []


def test_the_default_is_the_named_one_then_the_first_listed_then_that_with_most_labels() -> None:
    assert choose(LABELS, "c") == ("c", "default.json names it")
    name, reason = choose(LABELS, "gone", ("gone", "c", "a"))
    assert (name, reason[:17]) == ("c", "the first --model")
    assert "names gone, which is not among them" in reason
    name, reason = choose(LABELS, None)
    assert name == "a"
    assert reason.endswith("the most labels, since there is no default.json")


def test_a_promotion_is_undone_by_a_rollback(root: Path) -> None:
    assert read(root) is None
    before, now = promote(root, "digits-10")
    assert (before.name, now.name) == ("digits-100", "digits-10")
    promote(root, "digits-50")
    promote(root, "digits-50")  # a second time changes nothing
    assert history(root) == ["digits-100", "digits-10", "digits-50"]
    assert rollback(root)[1].name == "digits-10"
    assert rollback(root)[1].name == "digits-100"  # which was never promoted
    with pytest.raises(BundleError, match=r"nothing in .* was promoted before digits-100@"):
        rollback(root)
    assert promotion.find(root, {"digits-10": 1, "digits-100": 2})[0] == "digits-100"
    assert not list(root.glob(".*"))


def test_versions_are_promoted_and_rolled_back(root: Path) -> None:
    first = current(root, "digits-100")
    second = publish_digits(root, seed=1).name
    promote(root, f"{'digits-100'}", first)
    assert current(root, "digits-100") == first
    promote(root, "digits-100", second)
    assert current(root, "digits-100") == second
    assert rollback(root)[1].version == first
    assert current(root, "digits-100") == first


def test_a_version_that_training_published_is_rolled_back_to_the_promoted_one(root: Path) -> None:
    promote(root, "digits-100")
    first = current(root, "digits-100")
    second = publish_digits(root, seed=1).name
    assert current(root, "digits-100") == second
    before, now, skipped = rollback(root)
    assert (before.version, now.version, skipped) == (second, first, [])
    assert current(root, "digits-100") == first


def test_what_is_not_there_any_more_is_skipped(root: Path) -> None:
    promote(root, "digits-10")
    promote(root, "digits-50")
    gone = f"digits-10@{current(root, 'digits-10')}"
    shutil.rmtree(root / "digits-10")
    _, now, skipped = rollback(root)
    assert (now.name, skipped) == ("digits-100", [gone])


def test_a_damaged_bundle_is_neither_promoted_nor_rolled_back_to(root: Path) -> None:
    promote(root, "digits-10")
    promote(root, "digits-50")
    with (root / "digits-10/current/model.onnx").open("ab") as graph:
        graph.write(b"\0")
    before = (root / FILE).read_bytes()
    for change in (lambda: promote(root, "digits-10"), lambda: rollback(root)):
        with pytest.raises(BundleError, match="damaged"):
            change()
    assert (root / FILE).read_bytes() == before
    with pytest.raises(BundleError, match="perhaps you meant digits-10"):
        promote(root, "digit-10")
    with pytest.raises(BundleError, match="cannot read the bundle"):
        promote(root, "digits-10", "0123456789ab")


def test_the_history_has_an_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "KEPT", 3)
    for name in ("digits-10", "digits-50") * 3:
        promote(root, name)
    assert history(root) == ["digits-50", "digits-10", "digits-50"]


def test_a_copy_without_links_keeps_all_of_its_models(root: Path) -> None:
    for link in root.glob("*/current"):
        link.unlink()
    promote(root, "digits-10")
    assert len(store.names(root)) == 3
    # Of a name with several versions none is current: its promotion makes the first link.
    shutil.copytree(next((root / "digits-50").iterdir()), root / "digits-50" / "0123456789ab")
    version = next(v for v in store.scan(root)["digits-50"].versions if v != "0123456789ab")
    promote(root, "digits-50", version)
    assert store.names(root) == ["digits-10", "digits-100", "digits-50"]
    assert current(root, "digits-50") == version


@pytest.mark.parametrize("content", ["", "[]", "digits-10", '{"default": 1}', '{"defualt": "a"}'])
def test_another_content_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(BundleError, match="labelcurve models promote NAME"):
        read(tmp_path)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(BundleError, match=f"cannot read .*/{FILE}: it is a pipe"):
        read(tmp_path)


def test_a_default_by_hand_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"default": "c"}))
    assert promotion.find(tmp_path, LABELS)[0] == "c"
    with pytest.raises(BundleError, match="names c as the default, which is not among a, b"):
        promotion.find(tmp_path, {"a": 1, "b": 2})
    assert promotion.find(tmp_path, {"a": 1, "b": 2}, ("a", "b"))[0] == "a"


def test_a_folder_that_cannot_be_written_is_explained(digits_models: Path) -> None:
    with public_copy(digits_models) as root, forbidden(root, 0o555):
        with pytest.raises(BundleError, match=rf"cannot write {root / FILE}: Permission denied"):
            promote(root, "digits-10")
        assert read(root) is None


def test_of_models_with_as_many_labels_the_compact_one_is_the_default() -> None:
    for names in (("x-100", "x-compact-100"), ("x-compact-final", "x-final")):
        chosen, reason = choose(dict.fromkeys(names, 10), None)
        assert "-compact-" in chosen
        assert (
            reason
            == "it is the first of those with the most labels, since there is no default.json"
        )
    assert choose({"x-100": 9, "x-compact-100": 9, "y": 10}, None)[1].startswith("it has the most")


def test_a_promotion_waits_for_another_one(root: Path) -> None:
    first = current(root, "digits-10")
    second = publish_digits(root, 0.1, seed=1).name
    thread = Thread(target=promote, args=(root, "digits-10", second))
    held = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        assert read(root) is None
        store.point(root, "digits-10", first)  # what the other one does
    finally:
        os.close(held)
    thread.join(30)
    assert history(root) == ["digits-100", "digits-10"]
    assert current(root, "digits-10") == second
    with pytest.raises(BundleError, match="cannot read the folder"):
        rollback(root / "none")


def test_the_file_says_when_which_version_became_the_default(root: Path) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=1)
    before, now = promote(root, "digits-10")
    text = (root / FILE).read_text()
    assert text.endswith("}\n")
    found = json.loads(text)
    assert found["default"] == "digits-10"
    assert [f"{each['name']}@{each['version']}" for each in found["promoted"]] == [
        f"digits-100@{current(root, 'digits-100')}",
        f"digits-10@{current(root, 'digits-10')}",
    ]
    assert [str(before), str(now)] == [f"{e['name']}@{e['version']}" for e in found["promoted"]]
    for each in found["promoted"]:
        assert each["time"].endswith("+00:00")
        assert begun < datetime.fromisoformat(each["time"]) <= datetime.now(UTC)
    assert promotion.KEPT == 50
