from __future__ import annotations

import re

import pytest

from labelcurve.bundle.errors import LabelcurveError
from labelcurve.training.runs.budget import AFTERWARDS, AROUND, IMAGES_PER_S, ONCE, SPARE, Budget
from labelcurve.training.runs.grid import ENDLESS

STARTUP = 30.0
"""So long that the maximum is reserved for what follows the first training."""


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("labelcurve.training.runs.budget.time.monotonic", lambda: clock.now)
    return clock


def seconds(budget: Budget) -> float:
    found = budget.finetuning()
    assert found is not None
    return found


def test_without_a_limit_nothing_is_limited(clock: Clock) -> None:
    budget = Budget(clock.now, None, [1.0, 2.0], 1_000, STARTUP)
    clock.now += 1e9
    assert budget.pretraining() is None
    assert budget.finetuning() is None
    budget.done(1e9, 0.0)
    assert budget.finetuning() is None


def test_time_is_shared_by_work_and_all_of_it_is_given_out(clock: Clock) -> None:
    budget = Budget(clock.now, 60, [100.0, 300.0, 600.0], 0, STARTUP)
    given = []
    for _ in range(3):
        given.append(seconds(budget))
        clock.now += given[-1] + 10
        budget.done(10.0, 0.0)
    end = 1_000 + 60 * 60
    assert given[1] / given[0] == pytest.approx(3, rel=0.05)
    assert given[2] / given[1] == pytest.approx(2, rel=0.05)
    assert end - 0.05 * 3_600 < clock.now <= end, "no minute too many, and few unused"


def test_before_the_first_model_what_comes_after_training_is_estimated(clock: Clock) -> None:
    untested = seconds(Budget(clock.now, 30, [1.0], 0, STARTUP))
    assert untested == pytest.approx((1_800 - AROUND) * (1 - SPARE) - AFTERWARDS[1])
    tested = seconds(Budget(clock.now, 30, [1.0], 10_000, STARTUP))
    assert untested - tested == pytest.approx(10_000 / IMAGES_PER_S)
    slow = seconds(Budget(clock.now, 30, [1.0], 10_000, STARTUP, images_per_s=50.0))
    assert untested - slow == pytest.approx(200)
    fast = seconds(Budget(clock.now, 30, [1.0], 10_000, STARTUP, images_per_s=1e6))
    assert fast == tested, "a short measure promises nothing better"


def test_a_quick_start_promises_a_quick_end(clock: Clock) -> None:
    slow, quick, quickest = (
        seconds(Budget(clock.now, 30, [1.0], 0, startup)) for startup in (30, 6, 0)
    )
    assert quick - slow == pytest.approx(AFTERWARDS[1] - 12)
    assert quickest - slow == pytest.approx(AFTERWARDS[1] - AFTERWARDS[0])


def test_after_the_first_model_what_came_after_training_is_known(clock: Clock) -> None:
    quick, slow = (Budget(clock.now, 30, [1.0, 1.0], 0, STARTUP) for _ in range(2))
    quick.done(5.0, 0.0)
    slow.done(100.0, 0.0)
    assert seconds(quick) - seconds(slow) == pytest.approx(95)


def test_later_models_are_expected_to_take_less_of_it(clock: Clock) -> None:
    one = seconds(Budget(clock.now, 30, [1.0], 0, STARTUP))
    three = seconds(Budget(clock.now, 30, [1.0] * 3, 0, STARTUP))
    assert one - 3 * three == pytest.approx(2 * (1 - ONCE) * AFTERWARDS[1])


def test_the_seeds_of_a_short_run_get_the_same_time(clock: Clock) -> None:
    # As digits were measured: the first export takes 4 s, the next 0.6 s.
    budget = Budget(clock.now, 1, [1.0, 3.0, 4.0] * 2, 360, startup=4.0)
    given = []
    for number in range(6):
        given.append(seconds(budget))
        export = 3.4 if number == 0 else 0.1
        clock.now += given[-1] + export + 0.5
        budget.done(export + 0.5, export)
    for fraction in range(3):
        assert given[fraction + 3] / given[fraction] == pytest.approx(1, abs=0.3)
    assert clock.now <= 1_060


def test_the_time_that_has_passed_is_not_given_out_again(clock: Clock) -> None:
    budget = Budget(clock.now, 30, [1.0], 0, STARTUP)
    before = seconds(budget)
    clock.now += 600
    assert before - seconds(budget) == pytest.approx(600 * (1 - SPARE))


def test_a_model_that_ended_early_leaves_its_time_to_the_others(clock: Clock) -> None:
    early, full = (Budget(clock.now, 30, [1.0, 1.0], 0, STARTUP) for _ in range(2))
    share = seconds(early)
    clock.now += 1
    early.done(0.0, 0.0)
    left_by_early = seconds(early)
    clock.now += share - 1
    full.done(0.0, 0.0)
    assert left_by_early > seconds(full) + share / 2


def test_an_extractor_gets_a_part_of_the_time_that_is_left(clock: Clock) -> None:
    budget = Budget(clock.now, 10, [1.0], 0, STARTUP)
    first = budget.pretraining()
    clock.now += 300
    second = budget.pretraining()
    assert first is not None
    assert second is not None
    assert 0 < first < 600 - AFTERWARDS[1]
    assert first - second == pytest.approx(
        first * 300 * (1 - SPARE) / ((600 - AROUND) * (1 - SPARE) - 20)
    )


def test_no_extractor_is_made_where_no_time_is_left_for_a_model(clock: Clock) -> None:
    budget = Budget(clock.now, 1, [1.0] * 21, 0, STARTUP)
    with pytest.raises(LabelcurveError, match="leaves no time to train 21 model"):
        budget.pretraining()


@pytest.mark.parametrize(("minutes", "models"), [(0.1, 1), (0.35, 3), (1.0, 21), (0.001, 1)])
def test_a_limit_that_leaves_nothing_says_which_and_what_to_do(
    clock: Clock, minutes: float, models: int
) -> None:
    budget = Budget(clock.now, minutes, [1.0] * models, 0, STARTUP)
    expected = (
        f"--max-minutes {minutes:g} leaves no time to train {models} model(s): their export and "
        f"test take about {20 + 2 * (models - 1)} s. Allow more minutes or fewer fractions"
    )
    with pytest.raises(LabelcurveError, match=re.escape(expected)):
        budget.finetuning()


def test_too_few_epochs_are_warned_of_with_the_minutes_that_would_do(clock: Clock) -> None:
    budget = Budget(clock.now, 1, [1.0, 3.0], 0, 0)
    assert budget.warnings(10, 5.0, ENDLESS) == ()
    (few,) = budget.warnings(10, 2.5, ENDLESS)
    assert few == (
        "2.50 epochs: --max-minutes 1 ended the training before it had 5, the minimum of the "
        "recipe, so expect less of this model. With --max-minutes 2 it has some 5 epochs"
    )
    assert Budget(clock.now, None, [1.0], 0, 0).warnings(10, 0.5, ENDLESS) == ()
    (warning,) = budget.warnings(10, 0.5, ENDLESS)
    assert warning.startswith("0.50 epochs: --max-minutes 1 ended the training before ")
    # 90 s more for a quarter of the work, 6 minutes in all.
    assert warning.endswith("With --max-minutes 7 it has some 5 epochs")


def test_a_recipe_of_few_epochs_that_had_them_all_was_not_ended_early(clock: Clock) -> None:
    budget = Budget(clock.now, 1, [1.0], 0, 0)
    assert budget.warnings(10, 3.0, 3) == ()  # as many photos are tuned
    (few,) = budget.warnings(10, 1.5, 3)
    assert "before it had 3, the minimum of the recipe" in few
    assert few.endswith("it has some 3 epochs")


def test_a_limit_that_has_passed_is_an_error_too(clock: Clock) -> None:
    budget = Budget(clock.now, 5, [1.0, 1.0], 0, STARTUP)
    assert seconds(budget) > 0
    clock.now += 3_600
    with pytest.raises(LabelcurveError, match=r"--max-minutes 5 leaves no time to train 2 model"):
        budget.finetuning()


def test_the_time_of_a_command_worked_out_by_hand(clock: Clock) -> None:
    # 10 minutes less 1.5 s for the interpreter, 2 % of them kept back; 20 s of export and 2 s of
    # test for the first model, 2 + 2 s for the second.
    budget = Budget(clock.now, 10, [1.0, 3.0], 1_000, STARTUP)
    left = 598.5 * 0.98 - 22 - 4
    assert budget.pretraining() == pytest.approx(0.4 * left)
    assert budget.finetuning() == pytest.approx(left / 4)
    clock.now += 200
    budget.done(30.0, 20.0)  # its export was measured: a tenth of it is expected again
    assert budget.finetuning() == pytest.approx(398.5 * 0.98 - 12)
    clock.now += 100
    budget.done(9.0, 2.0)
    budget = Budget(clock.now, 10, [1.0], 1_000, 0.0, images_per_s=100.0)
    assert budget.finetuning() == pytest.approx(598.5 * 0.98 - 5 - 10)
