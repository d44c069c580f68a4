from __future__ import annotations

import pytest

from training.recipes import Recipe, recipe

LABELS = (2, 18, 90, 900, 4_500, 22_500, 45_000, 1_000_000)


def test_the_reference_preset_is_the_published_fine_tuning() -> None:
    plan = recipe("reference", 45_000, flip=True)
    assert plan == Recipe(
        backbone="reference",
        optimizer="adam",
        lr=5e-4,
        schedule="plateau",
        epochs=50,
        patience=6,
        batch_size=256,
        plateau_patience=3,
        normalise=False,
    )
    assert not plan.flip, "the reference experiment does not augment"


@pytest.mark.parametrize("n_labels", LABELS)
def test_the_default_fits_any_number_of_labels(n_labels: int) -> None:
    plan = recipe("default", n_labels, flip=True)
    assert plan.backbone == "resnet9"
    assert 1 <= plan.batch_size <= 512
    assert plan.epochs >= 1
    assert plan.patience >= 1
    assert plan.lr > 0


def test_fewer_labels_are_seen_at_least_as_often() -> None:
    epochs = [recipe("default", n, flip=True).epochs for n in LABELS]
    assert epochs == sorted(epochs, reverse=True)


@pytest.mark.parametrize("flip", [True, False])
def test_mirroring_is_the_callers_choice(flip: bool) -> None:
    assert recipe("default", 900, flip).flip is flip


def test_the_number_of_epochs_alone_can_be_replaced() -> None:
    plan = recipe("default", 900, flip=True)
    shorter = plan.with_epochs(2)
    assert shorter.epochs == 2
    assert shorter.with_epochs(plan.epochs) == plan
