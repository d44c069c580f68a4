from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from labelcurve.bundle import preprocess
from labelcurve.bundle.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from labelcurve.bundle.text import counted

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo() -> Image.Image:
    """A real photograph, 640 x 427."""
    return Image.fromarray(load_sample_image("china.jpg"))


def quarters() -> Image.Image:
    """16 x 16: red and green above, blue and white below."""
    image = Image.new("RGB", (16, 16), WHITE)
    for colour, box in ((RED, (0, 0, 8, 8)), (GREEN, (8, 0, 16, 8)), (BLUE, (0, 8, 8, 16))):
        image.paste(colour, box)
    return image


def corners(pixels: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """The colours of the corners, in reading order, each channel at one of two levels."""
    levels = np.where(pixels > 127, 255, 0)
    return [tuple(levels[y, x].tolist()) for y in (0, -1) for x in (0, -1)]


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixel."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    for kind, content in ((b"IHDR", ihdr), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        parts += [struct.pack(">I", len(content)), kind, content, crc]
    return b"".join(parts)


@pytest.mark.parametrize("size", [32, 48])
def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_size(size: int) -> None:
    """Pillow reduces by 2, 4 or 8: of 512 pixels 64 and 128 are enough for 32 and 48."""
    buffer = BytesIO()
    Image.new("RGB", (512, 512)).save(buffer, "JPEG")
    side = {32: 64, 48: 128}[size]
    assert preprocess.decode(buffer.getvalue(), size=size).size == (side, side)
    assert preprocess.decode(buffer.getvalue()).size == (512, 512)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(Image.new("RGB", (4, 4), (1, 2, 3))), (1, 2, 3), id="RGB"),
        pytest.param(encoded(Image.new("L", (4, 4), 77)), (77, 77, 77), id="L"),
        pytest.param(encoded(Image.new("LA", (4, 4), (100, 255))), (100, 100, 100), id="LA opaque"),
        pytest.param(encoded(Image.new("LA", (4, 4), (0, 51))), (204, 204, 204), id="LA fifth"),
        pytest.param(encoded(Image.new("RGBA", (4, 4), (9, 8, 7, 0))), WHITE, id="RGBA clear"),
        pytest.param(
            encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 102))), (255, 153, 153), id="RGBA part"
        ),
        pytest.param(encoded(palette()), (40, 50, 60), id="P"),
        pytest.param(encoded(palette(), transparency=1), WHITE, id="P clear colour"),
        pytest.param(encoded(palette(), transparency=0), (40, 50, 60), id="P other colour clear"),
        pytest.param(encoded(palette(), transparency=b"\xff\x00"), WHITE, id="P alpha table"),
        pytest.param(
            encoded(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3)), WHITE, id="tRNS"
        ),
        pytest.param(encoded(Image.new("L", (4, 4), 7), transparency=7), WHITE, id="L tRNS"),
        pytest.param(encoded(Image.new("1", (4, 4), 1)), WHITE, id="1-bit white"),
        pytest.param(encoded(Image.new("1", (4, 4), 0)), (0, 0, 0), id="1-bit black"),
        pytest.param(encoded(Image.new("I;16", (4, 4), 40_000)), (156, 156, 156), id="16-bit"),
        pytest.param(encoded(Image.new("I;16", (4, 4), 65_535)), WHITE, id="16-bit white"),
        pytest.param(
            encoded(Image.new("I;16", (4, 4), 40_000), transparency=40_000), WHITE, id="16-bit tRNS"
        ),
        pytest.param(
            encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "WEBP", lossless=True),
            (1, 2, 3),
            id="WebP",
        ),
        pytest.param(
            encoded(Image.new("RGBA", (4, 4), (1, 2, 3, 0)), "WEBP", lossless=True),
            WHITE,
            id="WebP clear",
        ),
        pytest.param(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "BMP"), (1, 2, 3), id="BMP"),
        pytest.param(encoded(palette(), "BMP"), (40, 50, 60), id="BMP palette"),
        pytest.param(encoded(palette(), "GIF"), (40, 50, 60), id="GIF"),
        pytest.param(encoded(palette(), "GIF", transparency=1), WHITE, id="GIF clear"),
    ],
)
def test_every_mode_becomes_the_rgb_that_a_viewer_shows(
    data: bytes, expected: tuple[int, int, int]
) -> None:
    image = preprocess.decode(data)
    assert image.mode == "RGB"
    assert np.asarray(image).reshape(-1, 3).tolist() == [list(expected)] * 16


@pytest.mark.parametrize(
    ("ink", "expected"), [((0, 0, 0, 0), WHITE), ((0, 255, 255, 0), RED), ((255, 255, 0, 0), BLUE)]
)
def test_cmyk_jpeg_is_converted_to_the_colours_of_its_inks(
    ink: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    data = encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
    assert Image.open(BytesIO(data)).mode == "CMYK"
    found = np.asarray(preprocess.decode(data), np.int64)
    assert np.abs(found - np.array(expected)).max() <= 2


def test_the_16_bit_scale_keeps_the_order_of_greys() -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16).reshape(16, 16)
    found = np.asarray(preprocess.decode(encoded(Image.fromarray(ramp))))[:, :, 0]
    assert found.ravel().tolist() == list(range(256))


ORIENTATIONS: dict[int, list[tuple[int, ...]]] = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(quarters(), format, exif=exif, quality=95)
    assert corners(preprocess.prepare(data, 16)) == ORIENTATIONS[orientation]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"]
)
def test_damaged_exif_does_not_cost_the_image(exif: bytes, format: str) -> None:
    data = encoded(quarters(), format, exif=exif, quality=95)
    assert corners(preprocess.prepare(data, 16)) == ORIENTATIONS[1]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=100)
    assert corners(preprocess.prepare(data, 8)) == [RED] * 4


def test_a_phone_jpeg_with_a_second_picture_inside_is_read() -> None:
    data = encoded(quarters(), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))])
    assert corners(preprocess.prepare(data, 16)) == ORIENTATIONS[1]


@pytest.mark.parametrize("wide", [True, False])
def test_the_centre_square_of_an_oblong_image_is_taken(wide: bool) -> None:
    oblong = Image.new("RGB", (32, 16) if wide else (16, 32), BLUE)
    oblong.paste(RED, (8, 0, 24, 16) if wide else (0, 8, 16, 24))
    pixels = preprocess.prepare(encoded(oblong), 16)
    assert pixels.reshape(-1, 3).tolist() == [list(RED)] * 256


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    found = preprocess.prepare(encoded(Image.fromarray(pixels)), 16)
    assert np.array_equal(found, pixels)
    assert found.dtype == np.uint8


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 31), (333, 500)])
@pytest.mark.parametrize("size", [8, 32])
def test_any_shape_becomes_the_square(shape: tuple[int, int], size: int) -> None:
    pixels = preprocess.prepare(encoded(Image.new("RGB", shape, (9, 99, 199))), size)
    assert pixels.shape == (size, size, 3)
    assert (pixels == np.array([9, 99, 199])).all()


def test_downscaling_averages_instead_of_skipping_pixels() -> None:
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    pixels = preprocess.prepare(encoded(Image.fromarray(board)), 16)
    assert np.abs(pixels.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [32, 64])
def test_a_large_jpeg_decoded_at_reduced_scale_is_close_to_the_full_one(size: int) -> None:
    large = photo().resize((2560, 1708), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    assert preprocess.decode(data, size=size).width < 2560 / 2
    assert min(preprocess.decode(data, size=size).size) >= 2 * size
    full = preprocess.resize(preprocess.decode(data), size).astype(int)
    reduced = preprocess.prepare(data, size).astype(int)
    # A photo full of tiles and leaves; at a quarter of the scale nothing is visibly different.
    assert np.abs(full - reduced).mean() < 2
    assert np.abs(full - reduced).max() <= 32


def test_the_name_of_the_format_is_not_asked() -> None:
    # A file is recognised by content: `prepare` never sees a name, so a JPEG called .png works.
    data = encoded(quarters(), "JPEG", quality=95)
    assert corners(preprocess.prepare(data, 16)) == ORIENTATIONS[1]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x00" * 64, id="zeros"),
        pytest.param(b"# notes\nthis was saved as cat.png\n", id="text"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>', id="SVG"),
        pytest.param(b"https://example.org/cat.png", id="URL"),
        pytest.param(b"%PDF-1.7\n", id="PDF"),
        pytest.param(encoded(quarters(), "TIFF"), id="TIFF"),
        pytest.param(encoded(quarters(), "ICO"), id="ICO"),
        pytest.param(encoded(quarters(), "PPM"), id="PPM"),
    ],
)
def test_what_is_no_accepted_image_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match=r"allowed are PNG, JPEG, WEBP, BMP, GIF") as found:
        preprocess.decode(data)
    assert f"({len(data)} bytes)" in str(found.value)
    assert found.value.status == 415


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(UnsupportedImage, match="the file is empty"):
        preprocess.decode(b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "WEBP", "GIF"])
def test_a_truncated_image_is_unreadable(format: str) -> None:
    data = encoded(photo().resize((200, 133)), format)
    preprocess.decode(data)
    for left in (len(data) // 2, 60):
        with pytest.raises(UnreadableImage, match=f"the {format} image is truncated or corr"):
            preprocess.decode(data[:left])


def test_metadata_that_inflates_to_100_mb_is_no_other_format() -> None:
    chunk = b"zTXt" + b"a\0\0" + zlib.compress(bytes(10**8))
    data = encoded(quarters())
    bomb = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with pytest.raises(UnreadableImage, match="the PNG image is truncated or corrupt"):
        preprocess.decode(data[:33] + bomb + data[33:])


def test_a_file_cut_off_in_its_header_is_told_without_a_python_object() -> None:
    with pytest.raises(UnreadableImage) as error:
        preprocess.decode(encoded(quarters())[:30])
    assert str(error.value) == "the PNG image is truncated or corrupt: its header cannot be read"


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    data = bytearray(encoded(photo().resize((64, 64))))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnreadableImage, match="PNG image is truncated or corrupt"):
        preprocess.decode(bytes(data))


def test_no_prefix_of_a_file_raises_anything_else() -> None:
    for format in preprocess.FORMATS:
        data = encoded(quarters(), format)
        for end in range(len(data)):
            try:
                preprocess.prepare(data[:end], 16)
            except (UnsupportedImage, UnreadableImage):
                continue


def bomb_png() -> bytes:
    return png_header(60_000, 60_000)


def bomb_webp() -> bytes:
    """A lossless WebP whose header announces 16,383 x 16,383 pixels."""
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[at : at + 4], "little")
    data[at : at + 4] = (bits >> 28 << 28 | 16_382 << 14 | 16_382).to_bytes(4, "little")
    return bytes(data)


def bomb_bmp() -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 50_000, 50_000)
    return bytes(data)


@pytest.mark.parametrize("bomb", [bomb_png, bomb_webp, bomb_bmp])
def test_too_many_pixels_are_refused_on_the_header(bomb: Callable[[], bytes]) -> None:
    # The files hold no such pixels: decoding them would fail in another way.
    with pytest.raises(ImageTooLarge, match="at most 50,000,000 allowed") as found:
        preprocess.decode(bomb())
    assert found.value.status == 413


def test_the_limit_is_on_the_product_and_can_be_lowered() -> None:
    data = encoded(Image.new("RGB", (20, 10)))
    assert preprocess.decode(data, max_pixels=200).size == (20, 10)
    with pytest.raises(ImageTooLarge, match="20 x 10 pixels, 200 in all: at most 199"):
        preprocess.prepare(data, 8, max_pixels=199)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_bands_on_white_are_the_same_as_the_whole(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (37, 23, 4), np.uint8))
    file = BytesIO()
    image.convert(mode).save(file, "PNG", **({"transparency": 3} if mode == "P" else {}))
    whole = preprocess.decode(file.getvalue())
    monkeypatch.setattr(preprocess, "BAND_PIXELS", 23 * 5)
    assert np.array_equal(np.asarray(preprocess.decode(file.getvalue())), np.asarray(whole))


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [("RGB", "PNG", {}), ("RGBA", "WEBP", {}), ("L", "GIF", {}), ("I;16", "PNG", {}),
     ("RGB", "JPEG", {"progressive": True}), ("CMYK", "JPEG", {"progressive": True})],
)  # fmt: skip
def test_what_would_take_too_much_memory_is_too_large(
    mode: str, form: str, options: dict[str, bool]
) -> None:
    file = BytesIO()
    Image.new(mode, (100, 100)).save(file, form, **options)
    with pytest.raises(ImageTooLarge, match="MB to decode"):
        preprocess.prepare(file.getvalue(), 8, max_memory=30_000)
    preprocess.prepare(file.getvalue(), 8, max_memory=300_000)


@pytest.mark.parametrize(
    ("mode", "form", "options", "each", "turned"),
    [
        ("L", "PNG", {}, 6, 7),
        ("P", "GIF", {}, 6, None),
        ("I;16", "PNG", {}, 10, 13),
        ("RGB", "PNG", {}, 5, 9),
        ("RGB", "PNG", {"transparency": (1, 2, 3)}, 10, 14),
        ("RGBA", "PNG", {}, 10, 14),
        ("RGB", "WEBP", {}, 17, 17),
        ("RGBA", "WEBP", {}, 22, 22),
        ("RGB", "JPEG", {}, 12, 12),
        ("RGB", "JPEG", {"progressive": True}, 18, 18),
        ("L", "JPEG", {"progressive": True}, 14, 14),
    ],
)
def test_the_memory_is_estimated_from_the_kind_of_image(
    mode: str, form: str, options: dict[str, Any], each: int, turned: int | None
) -> None:
    def memory(**more: Any) -> int:
        image = Image.open(BytesIO(encoded(Image.new(mode, (20, 10)), form, **options, **more)))
        return preprocess._memory(image, 200)

    assert memory() == each * 200
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6
        assert memory(exif=exif) == turned * 200


def test_one_image_takes_no_more_memory_than_allowed(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    Image.new("RGBA", (4600, 3600), (9, 9, 9, 128)).save(file, compress_level=1)
    script = (
        "import pathlib, sys\n"
        "from labelcurve.bundle import preprocess\n"
        "def peak():\n"
        "    status = pathlib.Path('/proc/self/status').read_text()\n"
        "    return int(status.split('VmHWM:')[1].split()[0]) * 1024\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "before = peak()\n"
        "preprocess.prepare(data, 32, max_memory=170_000_000)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True
    )
    assert 100_000_000 < int(done.stdout) < 180_000_000


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (encoded(quarters(), "TIFF"), "TIFF"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG"),
        (b"<svg/>", "SVG"),
        (b"8BPS\0\1", "Photoshop"),
    ],
)
def test_a_format_that_is_not_read_is_called_by_its_name(data: bytes, kind: str) -> None:
    with pytest.raises(UnsupportedImage) as error:
        preprocess.decode(data)
    assert str(error.value) == (
        f"{kind} ({counted(len(data), 'byte')}) is not read: convert it to JPEG or PNG "
        "(allowed are PNG, JPEG, WEBP, BMP, GIF)"
    )


def mpo(data: bytes) -> bytes:
    """A JPEG with a second picture behind it, as some cameras write them."""
    file = BytesIO()
    two = [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))]
    two[0].save(file, "MPO", save_all=True, append_images=two[1:])
    both = file.getvalue()
    start = both.index(b"\xff\xe2")
    index = both[start : start + 2 + int.from_bytes(both[start + 2 : start + 4])]
    return data[:2] + index + data[2:] + encoded(two[1], "JPEG")


def test_a_jpeg_with_further_pictures_is_a_jpeg() -> None:
    plain = encoded(photo(), "JPEG", progressive=True)
    two = mpo(plain)
    with Image.open(BytesIO(two)) as opened:
        assert opened.format == "MPO"
    assert np.array_equal(preprocess.prepare(two, 32), preprocess.prepare(plain, 32))
    for data in (plain, two):
        with pytest.raises(ImageTooLarge, match=r"this kind of JPEG .* MB to decode"):
            preprocess.prepare(data, 32, max_memory=1_000_000)
    assert [preprocess.ending(data) for data in (plain, two, encoded(photo()))] == [
        *("jpeg", "jpeg"),
        "png",
    ]
    few = mpo(encoded(Image.new("L", (4_000, 4_000)), "JPEG", progressive=True))
    end = few.index(b"\xff\xd9")
    start = few.rfind(b"\xff\xda", 0, end)
    with pytest.raises(UnreadableImage, match="more than 125 scans"):
        preprocess.decode(few[:end] + few[start:end] * 126 + few[end:])


def test_a_run_length_encoded_bmp_may_have_fewer_pixels() -> None:
    def bmp(width: int) -> bytes:
        start, pixels = 14 + 40 + 1024, b"\x01\x01\0\0\0\1"
        head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
        about = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, len(pixels), 0, 0, 0, 0)
        return head + about + bytes(1024) + pixels

    assert preprocess.decode(bmp(1_000)).size == (1_000, 1)
    with pytest.raises(ImageTooLarge, match="at most 4,000,000 allowed"):
        preprocess.decode(bmp(preprocess.MAX_RLE_PIXELS + 1))
