from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from labelcurve.bundle import promotion, store
from labelcurve.bundle.errors import BundleError
from labelcurve.serving.errors import Overloaded, UnknownModel
from labelcurve.serving.models.catalogue import Catalogue
from labelcurve.serving.models.device import Device
from labelcurve.serving.models.model import Model
from labelcurve.serving.settings import Settings
from labelcurve.serving.telemetry import metrics
from tests.models import publish_digits
from tests.permissions import forbidden, public_copy

CPU = Device("cpu", "a test")

REMEMBERED: list[str] = []
"""What the catalogues of `loaded` began to answer with."""


@pytest.fixture
def models(digits_models: Path, tmp_path: Path) -> Path:
    """A folder of three models that a test may change."""
    return Path(shutil.copytree(digits_models, tmp_path / "models", symlinks=True))


def loaded(models: Path, keep: int = 1, **known_good: str) -> Catalogue:
    catalogue = Catalogue(remember=lambda name, version: REMEMBERED.append(f"{name}@{version}"))
    names = {name.replace("_", "-"): version for name, version in known_good.items()}
    catalogue.load(Settings(models=models, threads=1, queue=10, keep=keep), CPU, names)
    return catalogue


def follow(catalogue: Catalogue, *steps: Callable[[], Any]) -> None:
    """Takes the steps on one event loop, checking the folder after each; then ends."""

    async def run() -> None:
        for step in steps:
            result = step()
            if asyncio.iscoroutine(result):
                await result
            await catalogue.look()

    try:
        asyncio.run(run())
    finally:
        catalogue.close()


def point(models: Path, name: str, version: str) -> None:
    temporary = models / name / ".current"
    temporary.symlink_to(version)
    temporary.replace(models / name / store.CURRENT)


def damage(folder: Path) -> None:
    with (folder / store.GRAPH).open("ab") as graph:
        graph.write(b"\0")


def current(catalogue: Catalogue, name: str = "digits-100") -> Model:
    model = catalogue.find(name)
    assert model is not None
    return model


def test_before_loading_it_is_overloaded_and_not_ready() -> None:
    catalogue = Catalogue()
    assert not catalogue.ready
    with pytest.raises(Overloaded, match="being loaded"):
        catalogue.find(None)


def test_every_model_is_there_and_described(digits_models: Path) -> None:
    catalogue = loaded(digits_models)
    assert catalogue.ready
    described = catalogue.describe()
    catalogue.close()
    assert [(d["name"], d["default"]) for d in described] == [
        ("digits-10", False),
        ("digits-50", False),
        ("digits-100", True),
    ]
    assert [d["n_labels_train"] for d in described] == [144, 718, 1437]
    assert {d["provider"] for d in described} == {"CPUExecutionProvider"}
    assert [d["versions"] for d in described] == [[d["version"]] for d in described]
    assert [d["refused"] for d in described] == [None] * 3
    for model in catalogue.models:
        assert model.batcher._limit == 10
        options = model.engine._session.get_session_options()
        assert options.intra_op_num_threads == 1


def test_refusals_are_exported_before_the_first_one(digits_models: Path) -> None:
    metrics.REFUSED.clear()
    loaded(digits_models).close()
    (metric,) = metrics.REFUSED.collect()
    counted = {s.labels["model"]: s.value for s in metric.samples if s.name.endswith("_total")}
    assert counted == {"digits-10": 0, "digits-50": 0, "digits-100": 0}


def test_find(digits_models: Path) -> None:
    catalogue = loaded(digits_models)
    assert current(catalogue) is catalogue.default
    wanted = current(catalogue, "digits-10")
    assert catalogue.find(f"digits-10@{wanted.version}") is wanted
    for unknown in ("digits-11", "digits-10@", "digits-10@..", "@", "digits-10@current"):
        with pytest.raises(UnknownModel):
            catalogue.find(unknown)
    catalogue.close()


def test_at_the_start_one_damaged_model_is_an_error(models: Path) -> None:
    damage(models / "digits-50/current")
    with pytest.raises(BundleError, match="damaged"):
        loaded(models)


def test_a_worker_that_starts_again_serves_the_last_good_version(models: Path) -> None:
    good = (models / "digits-100").joinpath(store.CURRENT).readlink().name
    damage(publish_digits(models, seed=1))
    damage(models / "digits-50/current")
    catalogue = loaded(models, digits_100=good)
    assert [model.name for model in catalogue.models] == ["digits-10", "digits-100"]
    assert current(catalogue).version == good
    assert [refused["name"] for refused in catalogue.refused()] == ["digits-100", "digits-50"]
    catalogue.close()


def test_a_new_version_takes_over_and_the_old_one_stays_for_those_who_name_it(
    models: Path,
) -> None:
    catalogue = loaded(models)
    first = current(catalogue)
    swaps = metrics.SWAPS.labels("digits-100")._value
    before = swaps.get()
    REMEMBERED.clear()

    def check() -> None:
        second = current(catalogue)
        assert swaps.get() - before == 1
        assert [str(model) for model in catalogue.models] == REMEMBERED
        assert second.version == store.read(models, "digits-100").version != first.version
        assert catalogue.default is second
        assert catalogue.find(str(first)) is first
        (described,) = (d for d in catalogue.describe() if d["default"])
        assert described["versions"] == sorted([first.version, second.version])
        point(models, "digits-100", first.version)

    def rolled_back() -> None:
        assert current(catalogue) is first
        assert swaps.get() - before == 2
        threads.extend(model.batcher._thread for model in catalogue._kept.values())

    threads = [model.batcher._thread for model in catalogue.models]
    follow(catalogue, lambda: publish_digits(models, seed=1), check, rolled_back)
    # At the end, those of the kept version too.
    assert [thread.is_alive() for thread in threads] == [False] * 4


def test_a_model_is_ended_when_the_last_request_that_holds_it_is_done(models: Path) -> None:
    catalogue = loaded(models, keep=0)
    first = current(catalogue)
    first.hold()

    def check() -> None:
        assert first.retired
        assert first.batcher._thread.is_alive()
        first.release()
        first.batcher._thread.join(10)
        assert not first.batcher._thread.is_alive()
        with pytest.raises(UnknownModel):
            catalogue.find(str(first))

    follow(catalogue, lambda: publish_digits(models, seed=1), check)


def test_a_broken_version_is_refused_and_the_old_one_keeps_serving(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    catalogue = loaded(models)
    first = current(catalogue)
    broken = ""

    def publish() -> None:
        nonlocal broken
        path = publish_digits(models, seed=1)
        broken = path.name
        damage(path)

    def check() -> None:
        assert current(catalogue) is first
        (described,) = (d for d in catalogue.describe() if d["default"])
        assert described["refused"]["version"] == broken
        assert "damaged" in described["refused"]["error"]
        assert str(models) not in described["refused"]["error"]
        assert caplog.text.count("is refused") == 1

    def repair() -> None:
        publish_digits(models, seed=1)

    def repaired() -> None:
        assert current(catalogue).version == broken
        assert catalogue.refused() == []

    follow(catalogue, publish, check, check, repair, repaired)


def test_a_model_that_was_removed_is_drained_and_a_new_one_joins(models: Path) -> None:
    catalogue = loaded(models)
    version = current(catalogue, "digits-50").version

    def change() -> None:
        shutil.rmtree(models / "digits-100")
        (models / "digits-50/current").unlink()
        publish_digits(models, prefix="new")

    def check() -> None:
        assert [model.name for model in catalogue.models] == ["digits-10", "new-100"]
        for gone in ("digits-100", "digits-50", f"digits-50@{version}"):
            with pytest.raises(UnknownModel):
                catalogue.find(gone)

    follow(catalogue, change, check)


def test_a_default_that_is_removed_is_replaced_and_comes_back(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "labelcurve")
    promotion.promote(models, "digits-10")
    catalogue = loaded(models)
    assert catalogue.default is current(catalogue, "digits-10")
    folder, aside = models / "digits-10", models / ".digits-10"

    def replaced() -> None:
        assert catalogue.default is current(catalogue, "digits-100")
        assert (
            "digits-100 is the default now, in place of digits-10: it has the most" in caplog.text
        )

    def back() -> None:
        assert catalogue.default is current(catalogue, "digits-10")

    follow(catalogue, lambda: folder.rename(aside), replaced, lambda: aside.rename(folder), back)


def test_a_default_that_is_not_there_is_logged_once_even_if_the_default_stays(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "labelcurve")
    catalogue = loaded(models)

    def name_default(name: str) -> None:
        (models / promotion.FILE).write_text(json.dumps({"default": name}))

    def more() -> None:
        publish_digits(models, prefix="new")
        name_default("new-100")  # which is not there until it is loaded

    follow(
        catalogue,
        lambda: None,
        lambda: name_default("nope"),
        lambda: None,
        lambda: publish_digits(models, seed=1),
        lambda: name_default("digits-100"),
        more,
    )
    said = [(r.levelname, r.getMessage()) for r in caplog.records if "default" in r.getMessage()]
    assert said == [
        (
            "WARNING",
            "digits-100 stays the default: it has the most labels, since default.json names nope, "
            f"which is not among them; `labelcurve models promote NAME --models {models}` names "
            "another",
        ),
        ("INFO", "digits-100 stays the default: default.json names it"),
        ("INFO", "new-100 is the default now, in place of digits-100: default.json names it"),
    ]


def test_a_missing_folder_removes_no_model(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalogue = loaded(models)
    first = current(catalogue)

    def check() -> None:
        assert current(catalogue) is first
        assert len(catalogue.describe()) == 3

    def empty() -> None:
        models.mkdir()

    follow(catalogue, lambda: shutil.rmtree(models), check, empty, check)
    assert "cannot read the folder" in caplog.text
    assert "no model left" in caplog.text


def test_a_name_without_a_link_is_warned_of_once(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (models / "digits-50/current").unlink()
    catalogue = loaded(models)
    catalogue.warn_of_unlinked()
    follow(catalogue, lambda: None, lambda: None)
    assert caplog.text.count("digits-50 has") == 1


def test_it_is_ready_when_the_last_model_is_loaded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    open_one = Catalogue._open

    def watched(self: Catalogue, name: str, version: str | None = None) -> Model:
        seen.append(self.ready)
        opened = open_one(self, name, version)
        seen.append(self.ready)
        return opened

    monkeypatch.setattr(Catalogue, "_open", watched)
    catalogue = loaded(models)
    catalogue.close()
    assert seen == [False] * 6
    assert catalogue.ready


def test_folders_that_cannot_be_read_are_warned_of_once_and_change_nothing(
    digits_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with public_copy(digits_models) as models, ExitStack() as forbidding:
        (models / "lost+found").mkdir()
        catalogue = loaded(models)
        before = catalogue.models

        def forbid() -> None:
            forbidding.enter_context(forbidden(models / "lost+found"))
            forbidding.enter_context(forbidden(models / "digits-50"))

        def check() -> None:
            assert catalogue.models == before

        follow(catalogue, forbid, check, check)
    assert [record.message for record in caplog.records] == [
        "digits-50 cannot be read: Permission denied; what is loaded is still served",
        "lost+found cannot be read: Permission denied; it is not served",
    ]


def test_other_versions_are_loaded_when_named_and_few_of_them_stay(models: Path) -> None:
    versions = [publish_digits(models, seed=seed).name for seed in range(4)]
    catalogue = loaded(models, keep=2)

    async def ask() -> None:
        found = []
        for version in versions:
            wanted = f"digits-100@{version}"
            model = catalogue.find(wanted) or await catalogue.fetch(wanted)
            assert model.version == version
            found.append(model)
        assert [model.retired for model in found] == [True, False, False, False]
        assert catalogue.find(f"digits-100@{versions[1]}") is found[1]
        shutil.rmtree(models / "digits-100" / versions[1])
        await catalogue.look()
        assert found[1].retired
        with pytest.raises(UnknownModel):
            catalogue.find(f"digits-100@{versions[1]}")

    follow(catalogue, ask)


def test_the_version_that_was_named_longest_ago_goes_first(models: Path) -> None:
    versions = [publish_digits(models, seed=seed).name for seed in range(4)]
    catalogue = loaded(models, keep=2)

    async def ask() -> None:
        first, second = [await catalogue.fetch(f"digits-100@{v}") for v in versions[:2]]
        assert catalogue.find(f"digits-100@{versions[0]}") is first
        third = await catalogue.fetch(f"digits-100@{versions[2]}")
        assert [model.retired for model in (first, second, third)] == [False, True, False]

    follow(catalogue, ask)


def test_with_a_name_its_other_versions_are_let_go(models: Path) -> None:
    before = [publish_digits(models, seed=seed).name for seed in range(2)]
    catalogue = loaded(models, keep=2)
    found: list[Model] = []

    async def ask() -> None:
        found.append(await catalogue.fetch(f"digits-100@{before[0]}"))
        found.append(current(catalogue))
        shutil.rmtree(models / "digits-100")

    def check() -> None:
        assert [model.retired for model in found] == [True, True]
        with pytest.raises(UnknownModel):
            catalogue.find(f"digits-100@{before[0]}")

    follow(catalogue, ask, check)


def test_without_kept_versions_only_the_current_ones_can_be_named(models: Path) -> None:
    first, second = [publish_digits(models, seed=seed).name for seed in range(2)]
    catalogue = loaded(models, keep=0)
    old = current(catalogue)
    assert old.version == second
    assert catalogue.versions(old) == [second]
    with pytest.raises(UnknownModel):
        catalogue.find(f"digits-100@{first}")

    def check() -> None:
        assert current(catalogue).version == first
        assert old.retired

    follow(catalogue, lambda: point(models, "digits-100", first), check)


def test_a_damaged_version_that_is_named_is_unknown(models: Path) -> None:
    first = (models / "digits-100").joinpath(store.CURRENT).readlink().name
    publish_digits(models, seed=1)
    damage(models / "digits-100" / first)
    catalogue = loaded(models)

    async def ask() -> None:
        for _ in range(2):
            with pytest.raises(UnknownModel, match="damaged"):
                await catalogue.fetch(f"digits-100@{first}")

    follow(catalogue, ask)


def test_the_same_version_is_loaded_once_and_few_at_a_time(models: Path) -> None:
    first = (models / "digits-100").joinpath(store.CURRENT).readlink().name
    versions = [first, *(publish_digits(models, seed=seed).name for seed in range(1, 6))]
    catalogue = loaded(models, keep=4)

    async def ask() -> None:
        asking = [asyncio.ensure_future(catalogue.fetch(f"digits-100@{first}")) for _ in range(6)]
        await asyncio.sleep(0)
        asking.pop(0).cancel()  # the first client leaves: the others still get their answer
        same = await asyncio.gather(*asking)
        assert len({id(model) for model in same}) == 1
        answers = await asyncio.gather(
            *[catalogue.fetch(f"digits-100@{version}") for version in versions[:5]],
            return_exceptions=True,
        )
        (refused,) = (answer for answer in answers if isinstance(answer, Overloaded))
        assert refused.headers == {"Retry-After": "5"}

    follow(catalogue, ask)


def test_only_the_models_that_are_listed_are_served(models: Path) -> None:
    catalogue = Catalogue()
    only = ("digits-10", "digits-50")
    catalogue.load(Settings(models=models, model=only, threads=1, queue=10), CPU)

    def check() -> None:
        assert [model.name for model in catalogue.models] == ["digits-10", "digits-50"]
        assert catalogue.default is current(catalogue, "digits-10")  # the first that is listed
        with pytest.raises(UnknownModel, match="there are digits-10@"):
            catalogue.find("digits-100")

    follow(catalogue, check, check)


def test_a_default_that_cannot_be_read_stays_as_it_is(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    promotion.promote(models, "digits-10")
    catalogue = loaded(models)
    good = (models / promotion.FILE).read_text()

    def damaged() -> None:
        (models / promotion.FILE).write_text(good[:-9])

    def check() -> None:
        assert catalogue.default is current(catalogue, "digits-10")
        assert caplog.text.count("the default stays as it is") == 1

    follow(catalogue, damaged, check, check)
