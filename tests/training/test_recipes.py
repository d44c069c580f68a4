from __future__ import annotations

from dataclasses import replace

import pytest

from training.recipes import Optimisation, Recipe, pretraining, recipe

LABELS = (2, 18, 90, 900, 4_500, 22_500, 45_000, 1_000_000)


def test_the_reference_preset_is_the_published_fine_tuning() -> None:
    plan = recipe("reference", 45_000, flip=True, pretrained=True)
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


def planned(n_labels: int, **options: bool) -> Recipe:
    return recipe("default", n_labels, **({"flip": True, "pretrained": True} | options))


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("n_labels", LABELS)
def test_the_default_fits_any_number_of_labels(n_labels: int, pretrained: bool) -> None:
    plan = planned(n_labels, pretrained=pretrained)
    assert plan.backbone == "convnet"
    assert 1 <= plan.batch_size <= 512
    assert plan.epochs >= 1
    assert plan.lr > 0
    check_schedule(plan)


@pytest.mark.parametrize("pretrained", [True, False])
def test_fewer_labels_are_seen_at_least_as_often(pretrained: bool) -> None:
    epochs = [planned(n, pretrained=pretrained).epochs for n in LABELS]
    assert epochs == sorted(epochs, reverse=True)


@pytest.mark.parametrize("flip", [True, False])
def test_mirroring_is_the_callers_choice(flip: bool) -> None:
    assert planned(900, flip=flip).flip is flip


@pytest.mark.parametrize("pretrained", [True, False])
def test_more_labels_are_more_work(pretrained: bool) -> None:
    work = [planned(n, pretrained=pretrained).work(n) for n in LABELS]
    assert all(amount > 0 for amount in work)
    assert work[:4] == sorted(work[:4])
    assert work[0] < work[-1]


def test_images_without_labels_are_work_where_they_take_part() -> None:
    plan = replace(planned(900), consistency=0.0, unlabelled_ratio=3, unlabelled_from=0.5)
    alone = plan.work(900)
    assert replace(plan, consistency=1.0).work(900) == pytest.approx(alone * (1 + 3 * 0.5))
    assert replace(plan, consistency=1.0, unlabelled_from=0.0).work(900) == pytest.approx(4 * alone)


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
