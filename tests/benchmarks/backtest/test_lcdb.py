"""LCDB's table read back, and curves of a known law evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelcurve.benchmarks.backtest import lcdb

SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048)


def rows(learner: str, exponent: float, shift: int = 0) -> list[str]:
    """Lines of a curve that is a power law, over 12 splits that differ by up to 5 %."""
    return [
        f"3,{learner},{n},100,{split // 4},{split % 4},0.1,1,0.5,"
        f"{1 - (n + shift) ** -exponent * (1 + 0.05 * ((split + place) % 3 - 1))}"
        for place, n in enumerate(SIZES)
        for split in range(12)
    ]


def table(folder: Path, lines: list[str]) -> Path:
    head = "openmlid,learner,size_train,size_test,outer_seed,inner_seed,traintime"
    head += ",score_train,score_valid,score_test"
    path = folder / "database-accuracy.csv"
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


@pytest.fixture
def accuracies(tmp_path: Path) -> Path:
    lines = rows("SVC_linear", 0.5) + rows("sklearn.tree.DecisionTreeClassifier", 0.3)
    lines += rows("SVC_rbf", 0.4)[:60]  # five sizes: the last is not 3.5 times one with four before
    return table(tmp_path, lines)


def test_the_largest_size_is_the_truth_and_those_up_to_a_quarter_are_measured(
    accuracies: Path,
) -> None:
    tree, linear = lcdb.tasks(lcdb.read(accuracies))
    assert [task.linear for task in (tree, linear)] == [False, True]
    assert linear.points.sizes.tolist() == [16, 32, 64, 128, 256, 512]
    assert linear.points.errors == pytest.approx([n**-0.5 for n in SIZES[:6]])
    assert linear.labels == 2048
    assert linear.truth == pytest.approx(2048**-0.5)


def test_a_power_law_is_inside_and_a_wider_prior_widens_the_interval(accuracies: Path) -> None:
    tasks = list(lcdb.tasks(lcdb.read(accuracies)))
    alone, _, _, _, wide, both = (
        lcdb.judge(tasks, departures, shifts) for departures, shifts in lcdb.PRIORS.values()
    )
    assert alone["curves"] == 2
    assert wide["inside"] == both["inside"] == 1 >= alone["inside"]
    assert alone["median_error"] < 0.5
    assert wide["median_width"] > 1.5 * alone["median_width"]


def test_a_curve_that_falls_slowly_at_first_takes_the_shift(tmp_path: Path) -> None:
    lines = rows("SVC_linear", 0.5, shift=40) + rows("SVC_rbf", 0.5, shift=40)
    tasks = list(lcdb.tasks(lcdb.read(table(tmp_path, lines))))
    _, _, without, with_shift, _, _ = (
        lcdb.judge(tasks, departures, shifts) for departures, shifts in lcdb.PRIORS.values()
    )
    assert with_shift["inside"] == without["inside"] == 1
    assert without["median_error"] > 2 * with_shift["median_error"]
    assert without["median_width"] > 1.5 * with_shift["median_width"]
