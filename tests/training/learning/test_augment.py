from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labelcurve.training.data.dataset import Data
from labelcurve.training.learning import augment
from labelcurve.training.learning.augment import LUMA, Views


def images(n: int = 6, size: int = 12) -> Tensor:
    return torch.randint(0, 256, (n, 3, size, size), generator=seeded(7)).to(torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("pixels", [0, 1, 4, 11])
@pytest.mark.parametrize("size", [12, 32])
def test_padding_reflects_as_torch_does(pixels: int, size: int) -> None:
    source = images(size=size)
    expected = F.pad(source.float(), (pixels,) * 4, mode="reflect").to(torch.uint8)
    assert torch.equal(augment.pad(source, pixels), expected)


def crops_of(padded: Tensor, size: int) -> list[Tensor]:
    """Every crop of one padded image, [3, P, P]."""
    span = padded.shape[-1] - size + 1
    return [padded[:, y : y + size, x : x + size] for y in range(span) for x in range(span)]


@pytest.mark.parametrize("flip", [True, False])
def test_each_row_is_a_crop_of_its_own_image_or_its_mirror(flip: bool) -> None:
    padded = augment.pad(images(), 2)
    rows = torch.tensor([5, 0, 3, 3, 1, 2, 4, 0] * 8)
    out = augment.crop_flip(padded, rows, 12, flip, seeded())
    assert out.shape == (64, 3, 12, 12)
    assert out.dtype == torch.uint8
    straight = mirrored = 0
    for row, found in zip(rows.tolist(), out, strict=True):
        crops = crops_of(padded[row], 12)
        is_crop = any(torch.equal(found, crop) for crop in crops)
        is_mirror = any(torch.equal(found, crop.flip(2)) for crop in crops)
        assert is_crop or is_mirror
        straight += is_crop
        mirrored += is_mirror
    assert mirrored == (64 - straight if flip else 0)
    assert not flip or 16 < mirrored < 48


def test_all_shifts_occur() -> None:
    padded = augment.pad(images(1), 1)
    out = augment.crop_flip(padded, torch.zeros(300, dtype=torch.int64), 12, False, seeded())
    assert len({bytes(found.contiguous().numpy().tobytes()) for found in out}) == 9


def test_without_padding_and_flip_nothing_changes() -> None:
    source = images()
    out = augment.crop_flip(source, torch.arange(6), 12, False, seeded())
    assert torch.equal(out, source)


def test_batches_are_laid_out_channels_last() -> None:
    out = augment.crop_flip(augment.pad(images(), 2), torch.arange(6), 12, True, seeded())
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_the_generator_alone_decides() -> None:
    padded = augment.pad(images(), 3)

    def batch(seed: int) -> Tensor:
        torch.rand(3)  # the global generator has no part in it
        generator = seeded(seed)
        rows = torch.arange(6)
        return augment.crop_flip(padded, rows, 12, True, generator)

    assert torch.equal(batch(1), batch(1))
    assert not torch.equal(batch(1), batch(2))


PLAIN = Views(8, flip=False, brightness=0, contrast=0, saturation=0, hue=0, grey=0)
"""Crops alone."""

WHOLE = replace(PLAIN, area=(1.0, 1.0))
"""Crops of the whole height or of the whole width."""

STILL = Views(8, brightness=0, contrast=0, saturation=0, hue=0, changed=1.0, grey=0)
"""Colours as they are; each test changes one thing."""


def pixels(digits: Data, n: int = 32) -> Tensor:
    return torch.from_numpy(np.array(digits.train.images[:n])).permute(0, 3, 1, 2)


def muted(n: int = 64) -> Tensor:
    """Colours that no change brings to the ends of the range, float [N, 3, 8, 8]."""
    return torch.rand(n, 3, 8, 8, generator=seeded(7)) * 0.2 + 0.4


def luma(images: Tensor) -> Tensor:
    return torch.einsum("c,nchw->nhw", torch.tensor(LUMA), images)


def ramp(n: int) -> Tensor:
    """Uint8 [N, 3, 8, 8], brighter from left to right."""
    row = torch.arange(8, dtype=torch.uint8) * 30
    return row.expand(n, 3, 8, 8)


def test_views_are_as_strong_as_they_were_measured_to_be_best() -> None:
    assert Views(8) == Views(8, (0.2, 1.0), True, 0.4, 0.4, 0.4, 0.1, changed=0.8, grey=0.2)


@pytest.mark.parametrize("size", [4, 8, 13])
def test_a_view_is_of_its_size_and_from_0_to_1(digits: Data, size: int) -> None:
    found = Views(size)(pixels(digits), seeded())
    assert found.shape == (32, 3, size, size)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1
    assert found.isfinite().all()


def test_strong_changes_of_bright_images_stay_within_the_range() -> None:
    strong = Views(8, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, changed=1.0)
    images = torch.randint(0, 2, (64, 3, 8, 8), generator=seeded(), dtype=torch.uint8) * 255
    found = strong(images, seeded())
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_images_are_left_alone(digits: Data) -> None:
    images = pixels(digits)
    before = images.clone()
    Views(8)(images, seeded())
    assert torch.equal(images, before)


def test_equal_images_of_one_batch_get_different_views(digits: Data) -> None:
    found = Views(8)(pixels(digits, 1).expand(16, -1, -1, -1), seeded())
    assert len({view.numpy().tobytes() for view in found}) == 16


@pytest.mark.parametrize("views", [PLAIN, replace(STILL, brightness=0.4), replace(STILL, hue=0.2)])
def test_each_change_is_drawn_for_each_image(views: Views) -> None:
    one = torch.rand(1, 3, 8, 8, generator=seeded(3)) * 255
    found = views(one.to(torch.uint8).expand(16, -1, -1, -1), seeded())
    assert len({view.numpy().tobytes() for view in found}) == 16


def test_the_same_seed_gives_the_same_views_and_another_seed_others(digits: Data) -> None:
    views, images = Views(8), pixels(digits)
    assert torch.equal(views(images, seeded(1)), views(images, seeded(1)))
    assert not torch.equal(views(images, seeded(1)), views(images, seeded(2)))


def test_no_randomness_but_the_generators_is_used(digits: Data) -> None:
    images = pixels(digits)
    torch.manual_seed(0)
    first = Views(8)(images, seeded(1))
    state = torch.random.get_rng_state()
    torch.manual_seed(99)
    assert torch.equal(first, Views(8)(images, seeded(1)))
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("area", [(0.2, 1.0), (1.0, 1.0)])
def test_without_flip_no_view_is_mirrored(area: tuple[float, float]) -> None:
    found = replace(PLAIN, area=area)(ramp(200), seeded())
    # A crop at the rim reflects a pixel, so the halves are compared.
    assert (found[..., 4:].mean((1, 2, 3)) > found[..., :4].mean((1, 2, 3))).all()


def test_with_flip_about_half_of_the_views_are_mirrored() -> None:
    found = replace(PLAIN, flip=True)(ramp(400), seeded())
    mirrored = found[..., 4:].mean((1, 2, 3)) < found[..., :4].mean((1, 2, 3))
    assert 0.4 < mirrored.float().mean() < 0.6


def test_no_view_is_upside_down() -> None:
    upright = ramp(200).transpose(2, 3)
    found = Views(8, grey=0, changed=0)(upright, seeded())
    assert (found[:, :, 4:].mean((1, 2, 3)) > found[:, :, :4].mean((1, 2, 3))).all()


def test_a_crop_of_everything_spans_the_image_in_one_direction() -> None:
    # Of a ramp in both directions, some row or column reaches from one end to the other.
    across, down = WHOLE(ramp(50), seeded()), WHOLE(ramp(50).transpose(2, 3), seeded())
    spans = [
        across.amax((1, 2, 3)) - across.amin((1, 2, 3)),
        down.amax((1, 2, 3)) - down.amin((1, 2, 3)),
    ]
    assert torch.maximum(*spans).min() == pytest.approx(210 / 255, abs=1e-3)


@pytest.mark.parametrize("area", [(0.25, 0.25), (0.5, 0.5)])
def test_a_crop_covers_its_share_of_the_image(area: tuple[float, float]) -> None:
    # Fine ramps: the slope of a crop is its width, and its height.
    line = torch.linspace(0, 1, 64)
    images = torch.stack([line.expand(64, 64), line[:, None].expand(64, 64), torch.zeros(64, 64)])
    found = replace(PLAIN, size=32, area=area).crop(images.expand(100, 3, 64, 64), seeded())
    width = (found[:, 0, 16, 24] - found[:, 0, 16, 8]) * 2
    height = (found[:, 1, 24, 16] - found[:, 1, 8, 16]) * 2
    assert (width * height).tolist() == pytest.approx([area[0]] * 100, rel=0.1)
    shapes = width / height
    assert 0.7 < shapes.min() < 0.85
    assert 1.18 < shapes.max() < 1.4


def test_crops_lie_anywhere_and_within_the_image() -> None:
    line = torch.linspace(0.1, 0.9, 64).expand(300, 3, 64, 64)
    found = replace(PLAIN, area=(0.2, 0.3)).crop(line, seeded())
    assert found.min() >= 0.1 - 1e-5, "nothing from beyond the rim"
    assert found.max() <= 0.9 + 1e-5
    middles = found.mean((1, 2, 3))
    assert middles.min() < 0.36
    assert middles.max() > 0.64


def test_without_any_strength_the_colours_stay() -> None:
    images = torch.rand(32, 3, 8, 8, generator=seeded())
    assert torch.allclose(STILL.recolour(images, seeded()), images, atol=1e-5)


def test_with_no_probability_the_colours_stay_whatever_the_strengths() -> None:
    images = torch.rand(32, 3, 8, 8, generator=seeded())
    never = Views(8, brightness=0.9, contrast=0.9, saturation=0.9, hue=0.5, changed=0.0, grey=0)
    assert torch.allclose(never.recolour(images, seeded()), images, atol=1e-5)


def test_the_probability_is_the_share_of_images_that_change() -> None:
    images = muted(1000)
    found = replace(STILL, brightness=0.3, changed=0.7).recolour(images, seeded())
    changed = (found - images).abs().amax((1, 2, 3)) > 1e-4
    assert 0.65 < changed.float().mean() < 0.75


def test_a_view_in_grey_has_three_equal_channels_and_its_luma() -> None:
    images = torch.rand(32, 3, 8, 8, generator=seeded())
    found = replace(STILL, grey=1.0, changed=0.0).recolour(images, seeded())
    assert (found - found[:, :1]).abs().max() < 0.01
    assert torch.allclose(luma(found), luma(images), atol=0.01)


def test_the_share_of_grey_views_is_the_one_asked_for() -> None:
    found = replace(STILL, grey=0.2).recolour(muted(1000), seeded())
    grey = (found - found[:, :1]).abs().amax((1, 2, 3)) < 0.01
    assert 0.15 < grey.float().mean() < 0.25


def test_hue_turns_the_colours_and_keeps_the_luma() -> None:
    images = muted()
    found = replace(STILL, hue=0.5).recolour(images, seeded())
    assert torch.allclose(luma(found), luma(images), atol=1e-4)
    assert ((found - images).abs().amax((1, 2, 3)) > 0.01).float().mean() > 0.9


def test_a_full_turn_of_hue_takes_red_to_green_and_to_blue() -> None:
    red = torch.full((200, 3, 8, 8), 0.4)
    red[:, 0] = 0.6
    found = replace(STILL, hue=0.5).recolour(red, seeded())[:, :, 0, 0]
    assert {0, 1, 2} == set(found.argmax(1).tolist())


def test_the_angle_of_hue_is_a_share_of_a_full_turn_either_way() -> None:
    images, yiq = muted(300), torch.tensor(augment.YIQ)
    found = replace(STILL, hue=0.1).recolour(images, seeded())
    before, after = (
        torch.complex(*(each[:, :, 0, 0] @ yiq.T)[:, 1:].T.contiguous()) for each in (images, found)
    )
    turns = (after / before).angle() / (2 * np.pi)
    assert -0.1 - 1e-3 <= turns.min() < -0.09
    assert 0.09 < turns.max() <= 0.1 + 1e-3


def test_brightness_multiplies_all_channels_alike() -> None:
    images = muted()
    ratio = replace(STILL, brightness=0.3).recolour(images, seeded()) / images
    assert (ratio.amax((1, 2, 3)) - ratio.amin((1, 2, 3))).max() < 1e-4
    factors = ratio[:, 0, 0, 0]
    assert 0.7 <= factors.min() < 0.8
    assert 1.2 < factors.max() <= 1.3


def test_contrast_keeps_the_mean_luma_of_an_image() -> None:
    images = muted()
    found = replace(STILL, contrast=0.4).recolour(images, seeded())
    assert torch.allclose(luma(found).mean((1, 2)), luma(images).mean((1, 2)), atol=1e-3)
    ratio = luma(found).std((1, 2)) / luma(images).std((1, 2))
    assert 0.6 - 1e-3 <= ratio.min() < 0.75
    assert 1.25 < ratio.max() <= 1.4 + 1e-3


def test_saturation_keeps_the_luma_and_grey_pixels() -> None:
    images = muted()
    found = replace(STILL, saturation=0.4).recolour(images, seeded())
    assert torch.allclose(luma(found), luma(images), atol=1e-4)
    assert (found - images).abs().max() > 0.01
    grey = images[:, :1].expand(-1, 3, -1, -1)
    same = replace(STILL, saturation=0.4).recolour(grey, seeded())
    assert torch.allclose(same, grey, atol=2e-3)
