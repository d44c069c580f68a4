from __future__ import annotations

from typing import Any

import pytest

from labelcurve.training.recipes import Optimisation, Recipe, pretraining, recipe, work

LABELS = (2, 18, 90, 900, 4_500, 22_500, 45_000, 1_000_000)


def test_the_reference_preset_is_the_published_fine_tuning() -> None:
    plan = recipe("reference", 45_000, flip=True, unlabelled=False)
    assert plan == Recipe(
        backbone="reference",
        optimizer="adam",
        lr=5e-4,
        schedule="plateau",
        epochs=50,
        patience=6,
        batch_size=256,
        plateau_patience=3,
    )
    assert not plan.flip, "the reference experiment does not augment"


def planned(n_labels: int, **options: Any) -> Recipe:
    flags: dict[str, Any] = {"flip": True, "unlabelled": False} | options
    return recipe("default", n_labels, **flags)


@pytest.mark.parametrize("unlabelled", [True, False])
@pytest.mark.parametrize("n_labels", LABELS)
def test_the_default_fits_any_number_of_labels(n_labels: int, unlabelled: bool) -> None:
    plan = planned(n_labels, unlabelled=unlabelled)
    assert plan.backbone == "convnet"
    assert 1 <= plan.batch_size <= 512
    assert plan.epochs >= 1
    assert plan.lr > 0
    check_schedule(plan)


@pytest.mark.parametrize("unlabelled", [True, False])
def test_fewer_labels_are_seen_at_least_as_often(unlabelled: bool) -> None:
    epochs = [planned(n, unlabelled=unlabelled).epochs for n in LABELS]
    assert epochs == sorted(epochs, reverse=True)


@pytest.mark.parametrize("flip", [True, False])
def test_mirroring_is_the_callers_choice(flip: bool) -> None:
    assert planned(900, flip=flip).flip is flip


def test_more_labels_are_more_work_and_less_for_each() -> None:
    amounts = [work(n) for n in LABELS]
    assert amounts == sorted(amounts)
    each = [work(n) / n for n in LABELS]
    assert each == sorted(each, reverse=True)


@pytest.mark.parametrize("size", [8, 32, 224])
@pytest.mark.parametrize("n_images", [20, 200, 1_442, 50_000, 1_000_000])
def test_pretraining_fits_any_number_of_images(n_images: int, size: int) -> None:
    plan = pretraining("contrastive", n_images, size)
    assert plan.objective == "contrastive"
    assert plan.backbone == "convnet"
    assert plan.n_views >= 2
    assert plan.batch_size >= 2
    assert plan.epochs > 0
    assert 0 < plan.view_share <= 1
    assert plan.temperature > 0
    check_schedule(plan)


def test_the_reference_pretext_is_the_published_one() -> None:
    plan = pretraining("relative-position", 45_000, 32)
    assert plan.backbone == "reference"
    assert (plan.optimizer, plan.lr, plan.epochs, plan.batch_size) == ("adam", 5e-4, 25, 256)
    assert plan.n_views == 2, "two quarters of each image"


def check_schedule(plan: Optimisation) -> None:
    assert 0 <= plan.warmup < 1
    assert 0 <= plan.decay <= 1
    assert plan.warmup + plan.decay <= 1
    if plan.optimizer == "muon":
        assert plan.lr_vectors > 0


@pytest.mark.parametrize("n_labels", LABELS)
def test_a_pretrained_network_is_tuned_in_few_epochs_on_random_crops(n_labels: int) -> None:
    plan = planned(n_labels, extractor="timm:resnet18=weights.pth")
    assert plan.backbone == "timm:resnet18"
    assert 3 <= plan.epochs <= 8
    assert plan.area < 1
    assert plan.view_share < 1
    check_schedule(plan)
