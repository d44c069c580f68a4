from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.serving.api_key import NewKey, make_key
from labelcurve.serving.web.access import read_keys


def test_a_file_of_keys_holds_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    tokens = [make_key(NewKey("alice", file)), make_key(NewKey("bob", file, rate=2))]
    assert [(key.name, key.rate) for key in read_keys(file)] == [("alice", 0), ("bob", 2)]
    assert len(set(tokens)) == 2
    # 256 random bits each, in 43 characters.
    assert [(token[:3], len(token)) for token in tokens] == [("lc_", 46)] * 2
    digests = [key.digest for key in read_keys(file)]
    assert digests == [hashlib.sha256(token.encode()).digest() for token in tokens]
    assert not any(token in file.read_text() for token in tokens)
    assert file.stat().st_mode & 0o077 == 0
    with pytest.raises(LabelcurveError, match="has a key for bob"):
        make_key(NewKey("bob", file))
    for name in ("a b", ""):
        with pytest.raises(LabelcurveError, match="a name has 1 to 64 letters"):
            make_key(NewKey(name, file))
    for rate in (-1.0, 1e-9, 1e9, float("nan")):
        with pytest.raises(LabelcurveError, match="0 for no limit"):
            make_key(NewKey("x", file, rate=rate))
    for rate in (1e6, 0.001, 123456.75):
        make_key(NewKey(f"of-{rate:.0f}", file, rate=rate))
        assert read_keys(file)[-1].rate == rate


def test_a_key_is_added_to_what_an_editor_left(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    make_key(NewKey("alice", file))
    file.write_text("\ufeff" + file.read_text().rstrip("\n"), encoding="utf-8")
    make_key(NewKey("bob", file, rate=2))
    assert [(key.name, key.rate) for key in read_keys(file)] == [("alice", 0), ("bob", 2)]


@pytest.mark.parametrize("there", ["", "# keys of the service\n", "  # indented\n"])
def test_the_first_key_is_added_to_a_file_that_holds_none(tmp_path: Path, there: str) -> None:
    file = tmp_path / "keys"
    file.write_text(there)
    make_key(NewKey("alice", file))
    assert file.read_text().startswith(there)
    assert [key.name for key in read_keys(file)] == ["alice"]


def test_two_commands_at_a_time_keep_both_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    make_key(NewKey("carol", file))
    open_file = Path.open

    def opened(path: Path, mode: str) -> Any:
        """While the first one adds its key, the second one does."""
        if "b" in mode:
            return open_file(path, mode)
        monkeypatch.setattr(Path, "open", open_file)
        handle = open_file(path, mode)
        read = handle.read

        def slow() -> str:
            text = read()
            make_key(NewKey("bob", file))
            return str(text)

        monkeypatch.setattr(handle, "read", slow)
        return handle

    monkeypatch.setattr(Path, "open", opened)
    make_key(NewKey("alice", file))
    assert sorted(key.name for key in read_keys(file)) == ["alice", "bob", "carol"]
