from __future__ import annotations

import re

import pytest

from bundle.errors import LabelcurveError
from training.budget import AFTERWARDS, IMAGES_PER_S, SPARE, Budget


class Clock:
    """Time as the test wants it."""

    def __init__(self) -> None:
        self.now = 1_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("training.budget.time.monotonic", lambda: clock.now)
    return clock


def seconds(budget: Budget) -> float:
    found = budget.finetuning()
    assert found is not None
    return found


def test_without_a_limit_nothing_is_limited(clock: Clock) -> None:
    budget = Budget(clock.now, None, [1.0, 2.0], 1_000)
    clock.now += 1e9
    assert budget.pretraining() is None
    assert budget.finetuning() is None
    budget.done(1e9)
    assert budget.finetuning() is None


def test_time_is_shared_by_work_and_all_of_it_is_given_out(clock: Clock) -> None:
    budget = Budget(clock.now, 60, [100.0, 300.0, 600.0], 0)
    given = []
    for _ in range(3):
        given.append(seconds(budget))
        clock.now += given[-1] + 10
        budget.done(10.0)
    end = 1_000 + 60 * 60
    assert given[1] / given[0] == pytest.approx(3, rel=0.05)
    assert given[2] / given[1] == pytest.approx(2, rel=0.05)
    assert end - 0.05 * 3_600 < clock.now <= end, "no minute too many, and few unused"


def test_before_the_first_model_what_comes_after_training_is_estimated(clock: Clock) -> None:
    untested = seconds(Budget(clock.now, 30, [1.0], 0))
    assert untested == pytest.approx(1_800 * (1 - SPARE) - AFTERWARDS)
    tested = seconds(Budget(clock.now, 30, [1.0], 10_000))
    assert untested - tested == pytest.approx(10_000 / IMAGES_PER_S)


def test_after_the_first_model_what_came_after_training_is_known(clock: Clock) -> None:
    quick, slow = (Budget(clock.now, 30, [1.0, 1.0], 0) for _ in range(2))
    quick.done(5.0)
    slow.done(100.0)
    assert seconds(quick) - seconds(slow) == pytest.approx(95)


def test_the_time_that_has_passed_is_not_given_out_again(clock: Clock) -> None:
    budget = Budget(clock.now, 30, [1.0], 0)
    before = seconds(budget)
    clock.now += 600
    assert before - seconds(budget) == pytest.approx(600 * (1 - SPARE))


def test_a_model_that_ended_early_leaves_its_time_to_the_others(clock: Clock) -> None:
    early, full = (Budget(clock.now, 30, [1.0, 1.0], 0) for _ in range(2))
    share = seconds(early)
    clock.now += 1
    early.done(0.0)
    left_by_early = seconds(early)
    clock.now += share - 1
    full.done(0.0)
    assert left_by_early > seconds(full) + share / 2


def test_an_extractor_gets_a_part_of_the_time_that_is_left(clock: Clock) -> None:
    budget = Budget(clock.now, 10, [1.0], 0)
    first = budget.pretraining()
    clock.now += 300
    second = budget.pretraining()
    assert first is not None
    assert second is not None
    assert 0 < first < 600
    assert second == pytest.approx(first / 2)


def test_an_extractor_gets_a_second_also_where_the_time_is_over(clock: Clock) -> None:
    budget = Budget(clock.now, 1, [1.0], 0)
    clock.now += 3_600
    assert budget.pretraining() == 1.0


@pytest.mark.parametrize(("minutes", "models"), [(0.1, 1), (0.5, 3), (1.0, 3), (0.001, 1)])
def test_a_limit_that_leaves_nothing_says_which_and_what_to_do(
    clock: Clock, minutes: float, models: int
) -> None:
    budget = Budget(clock.now, minutes, [1.0] * models, 0)
    expected = (
        f"--max-minutes {minutes:g} leaves no time to train {models} model(s): reading, export and "
        "test take about 20 s each. Allow more minutes or fewer fractions"
    )
    with pytest.raises(LabelcurveError, match=re.escape(expected)):
        budget.finetuning()


def test_a_limit_that_has_passed_is_an_error_too(clock: Clock) -> None:
    budget = Budget(clock.now, 5, [1.0, 1.0], 0)
    assert seconds(budget) > 0
    clock.now += 3_600
    with pytest.raises(LabelcurveError, match=r"--max-minutes 5 leaves no time to train 2 model"):
        budget.finetuning()
