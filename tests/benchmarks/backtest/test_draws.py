"""A back-test's table by hand, and draws of digits against a known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

from labelcurve.benchmarks.backtest import populations
from labelcurve.benchmarks.backtest.__main__ import Options, _populations, rows
from labelcurve.benchmarks.backtest.draws import HEADER, HELD_OUT, Draw, draw, row
from labelcurve.benchmarks.backtest.populations import Population
from labelcurve.benchmarks.record import Estimate
from labelcurve.training.forecast import head, measurement
from labelcurve.training.forecast.advice import Answer
from labelcurve.training.models import propagation
from labelcurve.training.models.linear_head import fit_linear
from tests.training.sets import digit_rows, write_folder


def made(answer: Answer, then: float, true_then: float, true_now: float = 0.80) -> Draw:
    gain = (then - 0.80) * 100
    return Draw(
        population="set",
        n_labels=200,
        more=600,
        seed=0,
        held_out=1000,
        answer=answer,
        failed_check=False,
        now=Estimate(value=0.80, low=0.75, high=0.85),
        then=Estimate(value=then, low=then - 0.03, high=then + 0.03),
        gain=Estimate(value=gain, low=gain - 2, high=gain + 2),
        true_now=true_now,
        true_then=true_then,
        gain_deviation=1.5,
    )


def test_a_row_counts_what_was_inside_and_right() -> None:
    draws = [
        made("yes", 0.85, 0.86),  # inside, a gain of 6: right
        made("yes", 0.85, 0.815),  # outside, a gain of 1.5: wrong
        made("no", 0.81, 0.815),  # inside, a gain of 1.5: right
        made("cannot tell", 0.82, 0.83),  # inside, neither right nor wrong
    ]
    cells = dict(zip(HEADER, row("all", draws), strict=True))
    assert cells == {
        "population": "all",
        "labels": "200 → 800",
        "draws": "4",
        "truth inside": "75 %",
        "median error": "1.00",  # of 1, 3.5, 0.5 and 1 points
        "mean error": "1.50 ± 1.35",
        "median width": "6.0",
        "true gain": "3.0",  # of 6, 1.5, 1.5 and 3
        "its standard error": "1.50",
        "gain inside": "75 %",
        "or within its error": "100 %",  # 3.5 points off, and 2² + (1.96 * 1.5)² is 3.55²
        "error of the gain": "1.00",
        "yes": "50 %",
        "no": "25 %",
        "cannot tell": "25 %",
        "right": "67 %",
        "failed check": "0 %",
    }


def test_a_row_a_population_and_number_of_labels_then_one_for_few_and_one_for_many() -> None:
    few = made("yes", 0.85, 0.86)
    many = few.model_copy(update={"population": "other", "n_labels": 800, "more": 2000})
    found = rows([many, few, few.model_copy(update={"population": "other"})])
    assert [row[:3] for row in found] == [
        ["other", "200 → 800", "1"],
        ["set", "200 → 800", "1"],
        ["other", "800 → 2,800", "1"],
        ["all", "200 → 800", "2"],
        ["all", "800 → 2,800", "1"],
    ]


def test_what_is_embedded_goes_into_the_cache_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    photos = str(write_folder(tmp_path / "photos", digit_rows(3)))
    options = Options(
        cifar10=photos,
        trashnet=photos,
        trashnet_extractor="none",
        unlabelled=True,
        cache=tmp_path / "cache",
    )
    found = _populations(options)
    assert [population.name for population in found] == [
        "trashnet",
        "cifar10-96px",
        "cifar10-96px-animals",
        "trashnet-noisy-labels",
        "cifar10-96px-noisy-labels",
    ]
    assert [len(population.labels) for population in found[:3]] == [30, 30, 18]
    assert any((tmp_path / "cache").iterdir())
    assert not (tmp_path / "user").exists()


def cifar(n: int = 2000) -> Population:
    """Labels of ten classes, and features that tell which row each is of."""
    labels = np.random.default_rng(5).integers(0, 10, n)
    return Population("cifar10", np.arange(n, dtype=np.float32)[:, None], labels)


def test_a_fifth_of_the_noisy_labels_is_drawn_from_all_classes() -> None:
    random = np.random.default_rng(0)
    noisy = populations._noisy(np.repeat([3, 9], 5000), random)
    drawn = noisy[:5000][noisy[:5000] != 3]
    # One in ten draws is the class itself.
    assert len(drawn) == pytest.approx(5000 * 0.2 * 0.9, rel=0.1)
    counts = np.bincount(drawn, minlength=10)
    assert counts[3] == 0
    assert np.delete(counts, 3) == pytest.approx(100, rel=0.35)
    assert set(noisy[5000:].tolist()) == set(range(10))


def test_the_variants_of_cifar10_hold_the_rows_and_classes_that_they_name() -> None:
    whole = cifar()
    found = {one.name.removeprefix("cifar10-"): one for one in populations.derived(whole)}
    assert list(found) == ["animals", "living-or-not", "cat-or-dog", "noisy-labels", "long-tail"]

    def old(one: Population) -> list[int]:
        """The classes that its rows have in the whole."""
        found: list[int] = whole.labels[one.features[:, 0].astype(int)].tolist()
        return found

    assert found["animals"].labels.tolist() == [label - 2 for label in old(found["animals"])]
    assert set(old(found["animals"])) == {2, 3, 4, 5, 6, 7}
    living = [int(2 <= label <= 7) for label in whole.labels]
    assert found["living-or-not"].labels.tolist() == living
    pets = found["cat-or-dog"]
    assert pets.labels.tolist() == [int(label == 5) for label in old(pets)]
    assert set(old(pets)) == {3, 5}
    noisy = found["noisy-labels"]
    assert (noisy.features == whole.features).all()
    assert 0.15 < (noisy.labels != whole.labels).mean() < 0.21
    tail = found["long-tail"]
    assert tail.labels.tolist() == old(tail)
    left = np.bincount(tail.labels, minlength=10) / np.bincount(whole.labels)
    assert left[0] == 1
    assert left == pytest.approx(0.75 ** np.arange(10), abs=0.1)
    assert not any(one.pool for one in found.values())


def test_with_images_without_labels_every_population_has_a_pool() -> None:
    found = populations.semi_supervised(replace(cifar(50), name="trash"), cifar(60))
    assert [(one.name, len(one.labels)) for one in found[:2]] == [("trash", 50), ("cifar10", 60)]
    assert all(one.pool for one in found)
    assert (found[3].labels != cifar(50).labels).any()
    assert (found[3].features == cifar(50).features).all()


def test_a_draw_learns_from_both_numbers_of_labels_and_is_true_on_all_others() -> None:
    digits = load_digits()
    features = digits.data.astype(np.float32)
    population = Population("digits", features, digits.target)
    found = draw(population, 200, 500, seed=3)
    assert found == draw(population, 200, 500, seed=3)
    assert found.held_out == 1797 - 700
    assert found.then.low < found.then.value < found.then.high
    # The truth again, by scikit-learn.
    order = np.random.default_rng([3, 200]).permutation(1797)
    train, test = order[:700], order[700:]
    scaled = head.standardise(features, features[train])
    targets = 2.0 * np.eye(10)[digits.target[train]] - 1
    now = head.standardise(features[order[:200]]), digits.target[order[:200]]
    penalty = measurement.best_penalty(*now, 10, np.random.default_rng(3))
    fitted = Ridge(alpha=penalty).fit(scaled[train].astype(np.float64), targets)
    accuracy = (fitted.predict(scaled[test]).argmax(axis=1) == digits.target[test]).mean()
    assert found.true_then == pytest.approx(accuracy, abs=0.002)
    assert found.true_now < found.true_then
    # A gain of -1, 0 or 1 an image varies at least as much as one of 0 or 1.
    gain = found.true_gain / 100
    assert 100 * np.sqrt(gain * (1 - gain) / 1097) < found.gain_deviation < 1


def test_with_a_pool_the_others_teach_the_truth_and_the_forecast_is_the_same() -> None:
    digits = load_digits()
    features, labels = digits.data.astype(np.float32), digits.target
    found = draw(Population("digits", features, labels, pool=True), 100, 200, seed=3)
    assert found.held_out == HELD_OUT
    # The truth again, as `train` fits its head.
    order = np.random.default_rng([3, 100]).permutation(1797)
    seen, test = order[:-HELD_OUT], order[-HELD_OUT:]
    for n, true in ((100, found.true_now), (300, found.true_then)):
        pool = propagation.Pool(features[seen], labels[seen[:n]])
        own = fit_linear(features[seen[:n]], labels[seen[:n]], 10, seed=3)
        logits = pool.learned(own).logits(features[test])
        assert (logits.argmax(axis=1) == labels[test]).mean() == pytest.approx(true)
    alone = draw(Population("digits", features, labels), 100, 200, seed=3)
    assert (found.now, found.then, found.gain) == (alone.now, alone.then, alone.gain)
    assert found.true_now > alone.true_now
