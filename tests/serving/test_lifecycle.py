"""`labelcurve models` as a real process, on a folder that a service follows."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from labelcurve.bundle import promotion, store
from labelcurve.bundle.errors import BundleError, LabelcurveError
from labelcurve.serving.lifecycle import _show, describe, remove
from tests.models import digit_png, publish_digits
from tests.permissions import forbidden, public_copy
from tests.serving.conftest import LABELCURVE, Service, wait_for


@pytest.fixture
def root(tmp_path: Path, digits_models: Path) -> Path:
    return Path(shutil.copytree(digits_models, tmp_path / "models", symlinks=True))


def models(root: Path, *arguments: str) -> Any:
    """The document that `labelcurve models ...` answers."""
    done = subprocess.run(
        [LABELCURVE, "models", *arguments, "--models", str(root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answering(service: Service) -> str:
    answer = httpx.post(f"{service.url}/classify", content=digit_png(0))
    return answer.headers["x-model-name"]


def test_a_running_service_follows_promotion_and_rollback(
    root: Path, start_service: Callable[..., Service]
) -> None:
    service = start_service(root, "--watch", "0.05")
    service.wait_until_ready()
    assert "default  digits-100: it has the most labels, since there is no default.json" in (
        service.output
    )
    assert answering(service) == "digits-100"
    promoted = models(root, "promote", "digits-10")
    assert (promoted["default"], promoted["before"][:11]) == ("digits-10", "digits-100@")
    wait_for(lambda: answering(service) == "digits-10")
    wait_for(lambda: "digits-10 is the default now, in place of digits-100" in service.output)
    described = httpx.get(f"{service.url}/models").json()
    assert [each["name"] for each in described if each["default"]] == ["digits-10"]
    assert models(root, "rollback")["default"] == "digits-100"
    wait_for(lambda: answering(service) == "digits-100")
    # A file that is cut off changes nothing.
    (root / "default.json").write_text('{"default": "dig')
    wait_for(lambda: "the default stays as it is" in service.output)
    assert answering(service) == "digits-100"


def test_serve_only_some_models(root: Path, start_service: Callable[..., Service]) -> None:
    only = ("--model", "digits-50", "--model", "digits-10")
    service = start_service(root, "--watch", "0.05", *only)
    service.wait_until_ready()
    names = [each["name"] for each in httpx.get(f"{service.url}/models").json()]
    assert names == ["digits-10", "digits-50"]
    assert answering(service) == "digits-50"  # the first one that is listed
    missing = httpx.post(f"{service.url}/classify?model=digits-100", content=digit_png(0))
    assert missing.status_code == 404
    publish_digits(root, prefix="new")
    models(root, "promote", "digits-10")
    wait_for(lambda: answering(service) == "digits-10")
    assert "new-100" not in service.output


def test_list_shows_versions_newest_first_and_what_cannot_be_read(root: Path) -> None:
    second = publish_digits(root, 0.1, seed=1)
    record = second / store.RUN
    record.write_text(record.read_text().replace("2026-01-01", "2026-01-02"))
    (root / "digits-50/current/manifest.json").write_text("{}")
    found = {each["name"]: each for each in models(root, "list")["models"]}
    assert found["digits-10"]["current"] == second.name
    assert [each["version"] == second.name for each in found["digits-10"]["versions"]] == [
        True,
        False,
    ]
    assert found["digits-10"]["versions"][0]["n_labels_train"] == 144
    assert "schema_version" in found["digits-50"]["versions"][0]["error"]
    assert describe(root)["default"] == "digits-100"


def test_list_on_a_terminal_is_a_table(root: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [LABELCURVE, "models", "list", "--models", str(root)],
        stdout=theirs,
        check=False,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "100"},
    )
    os.close(theirs)
    text = os.read(ours, 2**16).decode()
    os.close(ours)
    assert done.returncode == 0
    (line,) = [line for line in text.splitlines() if line.startswith("digits-100")]
    assert line.split()[1] == store.read(root, "digits-100").version
    assert line.split()[-1] == "default"
    manifest = store.read(root, "digits-100").manifest
    assert manifest.n_labels_val > 0
    # To train and to validate, as in the table of `train`.
    assert line.split()[3] == f"{manifest.n_labels_train + manifest.n_labels_val:,}"


def test_the_default_and_a_current_version_are_not_removed(root: Path) -> None:
    first = (root / "digits-10/current").readlink().name
    second = publish_digits(root, 0.1, seed=1).name
    for wanted, says in (
        ("digits-100", "is the default"),
        (f"digits-10@{second}", "is the current version"),
        ("digits-10@0123456789ab", "no version"),
        ("digits", "no model"),
        ("../models", "NAME or NAME@VERSION"),
        ("digits-10@", "NAME or NAME@VERSION"),
    ):
        with pytest.raises((BundleError, LabelcurveError), match=says):
            remove(root, wanted, yes=True)
    assert models(root, "remove", f"digits-10@{first}", "--yes") == {
        "removed": [f"digits-10@{first}"]
    }
    assert models(root, "remove", "digits-50", "--yes")["removed"][0].startswith("digits-50@")
    assert sorted(path.name for path in root.iterdir()) == ["digits-10", "digits-100"]
    assert [path.name for path in (root / "digits-10").iterdir() if path.name != "current"] == [
        second
    ]


@pytest.mark.parametrize(("answer", "status"), [(" YES\n", 0), ("n\n", 1), ("\n", 1)])
def test_remove_asks(root: Path, answer: str, status: int) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [LABELCURVE, "models", "remove", "digits-10", "--models", str(root)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.write(ours, answer.encode())
        _, stderr = process.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert process.returncode == status, stderr
    assert stderr.startswith("Remove digits-10@")
    assert (root / "digits-10").exists() == bool(status)


def test_remove_without_a_terminal_needs_yes(root: Path) -> None:
    done = subprocess.run(
        [LABELCURVE, "models", "remove", "digits-10", "--models", str(root)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "add --yes" in done.stderr
    assert (root / "digits-10").exists()


def test_why_a_model_has_no_current_version_is_said(root: Path) -> None:
    (root / "digits-10" / store.CURRENT).unlink()
    link = root / "digits-50" / store.CURRENT
    link.unlink()
    link.symlink_to("000000000000")
    errors = {each["name"]: each["error"] for each in describe(root)["models"]}
    assert errors == {
        "digits-10": "it has versions and no link `current`",
        "digits-50": "the link `current` leads to 000000000000, which is not there",
        "digits-100": None,
    }


def test_each_version_is_described_and_promotions_are_listed_newest_first(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("digits-10", "digits-50"):
        promotion.promote(root, name)
    manifest = store.read(root, "digits-50").manifest
    assert manifest.test is not None
    other = manifest.model_copy(update={"val": manifest.val.model_copy(update={"accuracy": 0.5})})
    (root / "digits-50/current" / store.MANIFEST).write_text(other.model_dump_json())
    found = describe(root)
    (version,) = next(each for each in found["models"] if each["name"] == "digits-50")["versions"]
    assert version == {
        "version": (root / "digits-50/current").readlink().name,
        "started": "2026-01-01T00:00:00Z",
        "error": None,
        "n_labels_train": 718,
        "n_labels_val": 79,
        "classes": 10,
        "accuracy": manifest.test.accuracy,
        "split": "test",
        "measured": None,
    }
    assert (found["default"], found["reason"]) == ("digits-50", "default.json names it")
    _show(found)
    lines = capsys.readouterr().out.splitlines()
    marks = {line.split()[0]: line.split()[-1] for line in lines if line.startswith("digits-")}
    assert marks == {"digits-10": "current", "digits-50": "default", "digits-100": "current"}
    row = next(line for line in lines if line.startswith("digits-50"))
    assert row.split()[2:5] == ["2026-01-01", "797", "10"]
    assert f"{manifest.test.accuracy * 100:.2f} % (test)" in row
    at = lines.index("default: digits-50 (default.json names it)")
    n = len(found["promoted"])
    assert lines[at + 1] == f"{n} promotions, newest first:"
    listed = [line.split()[1].partition("@")[0] for line in lines[at + 2 :]]
    assert listed[:2] == ["digits-50", "digits-10"]
    assert len(listed) == n


def test_a_linked_model_is_removed_and_its_files_stay(root: Path, tmp_path: Path) -> None:
    (root / "digits-10").rename(tmp_path / "elsewhere")
    (root / "digits-10").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.glob("elsewhere/**/*"))
    assert [each.partition("@")[0] for each in remove(root, "digits-10", yes=True)] == ["digits-10"]
    assert sorted(path.name for path in root.iterdir()) == ["digits-100", "digits-50"]
    assert sorted(tmp_path.glob("elsewhere/**/*")) == before


def test_a_model_without_a_version_is_named_when_it_is_removed(root: Path) -> None:
    shutil.rmtree((root / "digits-10" / store.CURRENT).resolve())
    assert remove(root, "digits-10", yes=True) == ["digits-10"]


def test_what_cannot_be_removed_is_not_half_removed_in_silence(digits_models: Path) -> None:
    with public_copy(digits_models) as root:
        with forbidden(root / "digits-50"), pytest.raises(BundleError, match="Permission denied"):
            remove(root, "digits-50", yes=True)
        with forbidden(root, 0o755), pytest.raises(LabelcurveError, match=r"cannot remove .*-10: "):
            remove(root, "digits-10", yes=True)
        assert sorted(path.name for path in root.iterdir()) == [
            "digits-10",
            "digits-100",
            "digits-50",
        ]
        found = (
            r"digits-10 is removed, but .* cannot be deleted: Perm.*Delete .*/\.removed-digits-10"
        )
        with forbidden(root, 0o777), pytest.raises(LabelcurveError, match=found):
            remove(root, "digits-10", yes=True)


def test_brackets_in_names_are_no_markup(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = shutil.copytree(root, root.parent / "[" / "models]", symlinks=True)
    (other / "digits-10/current" / store.MANIFEST).write_text("{}")
    _show(describe(other))
    assert "[/models]" in "".join(capsys.readouterr().out.split())
