from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from labelcurve.benchmarks.study import rows, run
from labelcurve.benchmarks.study.rows import Study
from labelcurve.benchmarks.study.run import Arguments, Place
from labelcurve.bundle import store
from labelcurve.bundle.errors import LabelcurveError
from labelcurve.bundle.manifest import SHARED
from labelcurve.training.recipes import recipe
from tests.models import publish_digits

PLACE = Place("scratch", 0.1)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> Arguments:
    folder = tmp_path_factory.mktemp("study")
    return Arguments(
        data="digits",
        name="digits",
        models=folder / "models",
        out=folder / "results" / "study.json",
        shared=True,
    )


def publish(arguments: Arguments, place: Place) -> None:
    """Replaces half an hour of training: a bundle with the recipe of the row."""
    path = publish_digits(arguments.models, place.fraction, prefix=f"digits-{place.variant}")
    old = store.read(arguments.models, path.parent.name)
    plan = recipe("default", old.manifest.n_labels_train, flip=True, unlabelled=True)
    manifest = old.manifest.model_copy(update={"recipe": asdict(plan)})
    store.publish(arguments.models, manifest, old.graph, "card", store.read_run(path))


@pytest.fixture(scope="module")
def trained(arguments: Arguments) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train", publish)
        return run.run(arguments, [PLACE])


def test_a_row_says_what_was_trained_and_how(arguments: Arguments, trained: Study) -> None:
    (row,) = trained.rows
    bundle = store.read(arguments.models, "digits-scratch-10")
    assert bundle.manifest.test is not None
    assert (row.variant, row.fraction, row.seed, row.extractor) == ("scratch", 0.1, 0, None)
    assert (row.version, row.accuracy) == (bundle.version, bundle.manifest.test.accuracy)
    assert row.shared
    assert (row.hardware, row.arithmetic) == ("CPU", "fp32")
    assert row.command == "labelcurve train --fraction 0.1 --extractor none"
    assert row.mirrored is not None
    assert row.mirrored != row.accuracy
    assert 0.1 < row.mirrored < 1
    assert trained.missing == ()
    assert rows.read(arguments.out) == trained


def test_a_second_call_trains_nothing(
    arguments: Arguments, trained: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained again"))
    assert run.run(arguments, [PLACE]) == trained
    # Neither does one that only collects, and it says what is missing.
    other = Place("no-ema", 0.1)
    found = run.run(replace(arguments, collect=True), [PLACE, other])
    assert found.rows == trained.rows
    assert found.missing == ("python -m benchmarks.study --only no-ema",)


def test_rows_for_which_no_time_is_left_are_counted(
    arguments: Arguments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock, trained = [0.0], []

    def half_an_hour(options: Arguments, place: Place) -> None:
        publish(options, place)
        trained.append(place)
        clock[0] += 1800

    monkeypatch.setattr(run, "train", half_an_hour)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    options = replace(arguments, models=tmp_path, out=tmp_path / "study.json", minutes=20.0)
    others = [Place("scratch", 0.5), Place("scratch", 1.0)]
    found = run.run(options, [PLACE, *others])
    out = capsys.readouterr().out
    assert "== row 1 of 3: digits-scratch-10\n" in out
    assert "20 minutes are over: 2 rows are left\n" in out
    assert trained == [PLACE]
    assert [row.bundle for row in found.rows] == ["digits-scratch-10"]
    assert found.missing == (
        "labelcurve train --fraction 0.5 --extractor none",
        "labelcurve train --fraction 1 --extractor none",
    )


def test_only_and_fraction_choose_rows_together(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Place] = []

    def publish_and_note(options: Arguments, place: Place) -> None:
        publish(options, place)
        trained.append(place)

    monkeypatch.setattr(run, "train", publish_and_note)
    options = replace(arguments, models=tmp_path, out=tmp_path / "study.json")
    plan = [Place("default", 0.1), Place("scratch", 0.5), PLACE, Place("default", 0.5)]
    found = run.run(replace(options, only=("scratch",), fraction=(0.1,)), plan)
    assert trained == [PLACE]
    assert len(found.missing) == 3


def test_a_machine_that_did_other_work_marks_the_row(arguments: Arguments, tmp_path: Path) -> None:
    publish(replace(arguments, models=tmp_path), PLACE)
    bundle = store.read(tmp_path, "digits-scratch-10")
    written = store.read_run(bundle.path)
    for waited, shared in ((None, False), (SHARED, False), (SHARED + 0.01, True)):
        folder = tmp_path / f"waited {waited}"
        said = written.model_copy(update={"waited": waited, "git_commit": "abc"})
        store.publish(folder, bundle.manifest, bundle.graph, "card", said)
        row = run.collect(replace(arguments, models=folder, shared=False), PLACE)
        assert row is not None
        assert (row.shared, row.git_commit) == (shared, "abc")


def test_rows_are_written_by_variant_fraction_and_seed(trained: Study, tmp_path: Path) -> None:
    wanted = [
        Place("default", 0.05),
        Place("default", 0.5, 1),
        Place("default", 0.5, 2),
        Place("scratch", 0.1),
        Place("reference", 0.1),
        Place("no-flip", 0.1),
    ]
    found = {place: trained.rows[0].model_copy(update=asdict(place)) for place in wanted[::-1]}
    written = run._write(tmp_path / "study.json", found, ())
    assert [Place(row.variant, row.fraction, row.seed) for row in written.rows] == wanted


@pytest.mark.parametrize(
    ("place", "command"),
    [
        (Place("default", 0.05, 2), "labelcurve train --fraction 0.05 --seed 2"),
        (Place("reference", 1.0), "labelcurve train --fraction 1 --preset reference"),
        (Place("no-flip", 0.1), "python -m benchmarks.study --only no-flip"),
    ],
)
def test_a_row_names_the_command_that_trains_it(place: Place, command: str) -> None:
    assert run.command_of(place) == command


def test_a_bundle_of_another_recipe_is_not_counted(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_digits(tmp_path, 0.1, prefix="digits-scratch")
    options = replace(arguments, models=tmp_path, out=tmp_path / "study.json", collect=True)
    assert run.run(options, [PLACE]).rows == ()
    assert "its recipe has another optimizer" in capsys.readouterr().out


def test_the_changes_of_an_ablation_reach_the_recipe(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelcurve.training.jobs import train

    seen = []
    monkeypatch.setattr(train, "run", lambda options, changes: seen.append((options, changes)))
    for name in run.ABLATIONS:
        run.train(arguments, Place(name, 0.1))
        options, changes = seen.pop()
        assert options.name == f"digits-{name}"
        assert changes
        assert set(changes) <= set(recipe("default", 9, flip=True, unlabelled=True).__dict__)


def test_every_row_of_the_plan_has_a_bundle_of_its_own() -> None:
    names = [place.bundle("cifar10") for place in run.PLAN]
    assert len(set(names)) == len(run.PLAN) == len(set(run.PLAN))
    assert "cifar10-reference-scratch-50" in names
    assert "cifar10-10-s2" in names


def test_what_is_not_a_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text("{}")
    with pytest.raises(
        LabelcurveError,
        match=r"study.json does not follow this release.*: move it away, or choose another",
    ):
        rows.read(path)
    for wrong in (0.7, 2.0):
        with pytest.raises(LabelcurveError, match=rf"--fraction {wrong:g}: allowed are 0.05, 0.1"):
            Arguments(fraction=(wrong,))
    for minutes in (-1.0, 0.0, math.nan, math.inf):
        with pytest.raises(LabelcurveError, match=r"--minutes .*: allowed are values above 0"):
            Arguments(minutes=minutes)
    with pytest.raises(LabelcurveError, match="--only no-such: allowed are default, scratch"):
        Arguments(only=("no-such",))
