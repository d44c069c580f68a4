from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training import augment


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


@pytest.mark.parametrize("size", [1, 3, 6])
def test_cutout_zeroes_one_square_that_the_rim_may_cut(size: int) -> None:
    source = torch.ones(200, 3, 12, 12)
    out = augment.cutout(source, size, seeded())
    whole = 0
    for found in out:
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
        down, across = (found[0] == 0).nonzero().unbind(1)
        height = int(down.max() - down.min()) + 1
        width = int(across.max() - across.min()) + 1
        assert len(down) == height * width, "a filled rectangle"
        assert (size + 1) // 2 <= height <= size
        assert (size + 1) // 2 <= width <= size
        whole += height == width == size
    assert whole > 20
    assert torch.equal(source, torch.ones(200, 3, 12, 12)), "the source is left alone"


def test_cutout_of_nothing_leaves_the_images() -> None:
    source = torch.rand(2, 3, 8, 8)
    assert augment.cutout(source, 0, seeded()) is source


def test_the_generator_alone_decides() -> None:
    padded = augment.pad(images(), 3)

    def batch(seed: int) -> Tensor:
        torch.rand(3)  # the global generator has no part in it
        generator = seeded(seed)
        rows = torch.arange(6)
        return augment.cutout(
            augment.crop_flip(padded, rows, 12, True, generator).float(), 4, generator
        )

    assert torch.equal(batch(1), batch(1))
    assert not torch.equal(batch(1), batch(2))
