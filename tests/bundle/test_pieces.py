from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from labelcurve.bundle import pieces, preprocess
from labelcurve.bundle.errors import UnreadableImage

SMALL = Image.new("L", (64, 64))


def encoded(format: str, image: Image.Image = SMALL, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


JPEG, PNG, GIF = encoded("JPEG"), encoded("PNG"), encoded("GIF")


def segment(marker: int, content: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


APP, COM = segment(0xE5), segment(0xFE)


def in_jpeg(n: int, piece: bytes) -> bytes:
    """With `n` segments before its pixels."""
    there = pieces._segments(JPEG)
    return JPEG[:2] + piece * (n - there) + JPEG[2:]


def in_png(n: int) -> bytes:
    """With `n` chunks before its end."""
    empty = struct.pack(">I", 0) + b"prVt" + struct.pack(">I", zlib.crc32(b"prVt"))
    return PNG[:33] + empty * (n - pieces._chunks(PNG)) + PNG[33:]


def in_gif(n: int, piece: bytes = b"\x01a") -> bytes:
    """With `n` blocks before its first frame, all but one in one comment."""
    colours = 13 + (3 << ((GIF[10] & 7) + 1))
    comment = b"\x21\xfe" + piece * (n - 1 - pieces._blocks(GIF)) + b"\0"
    return GIF[:colours] + comment + GIF[colours:]


@pytest.mark.parametrize(
    ("made", "most", "what"),
    [
        pytest.param(
            lambda n: in_jpeg(n, segment(0xE5)), pieces.MAX_SEGMENTS, "segments", id="APP"
        ),
        pytest.param(
            lambda n: in_jpeg(n, segment(0xFE)), pieces.MAX_SEGMENTS, "segments", id="COM"
        ),
        pytest.param(lambda n: in_jpeg(n, b"\xff"), pieces.MAX_SEGMENTS, "segments", id="fill"),
        pytest.param(in_png, pieces.MAX_CHUNKS, "chunks", id="PNG"),
        pytest.param(in_gif, pieces.MAX_BLOCKS, "blocks", id="GIF"),
    ],
)
def test_as_many_pieces_as_allowed_are_decoded_and_one_more_is_refused(
    made: Callable[[int], bytes], most: int, what: str
) -> None:
    assert preprocess.decode(made(most)).size == (64, 64)
    with pytest.raises(UnreadableImage, match=f"more than {most:,} {what}: not more"):
        preprocess.decode(made(most + 1))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(in_jpeg(100, segment(0xE1, b"Exif\0\0" + bytes(8))), id="EXIF"),
        pytest.param(in_jpeg(20, bytes(20_000)), id="junk between segments"),
        pytest.param(in_jpeg(20, segment(0xED, b"8BIM\4\4\0\0\0\0\0\0" * 1_000)), id="Photoshop"),
    ],
)
def test_what_takes_longer_counts_for_more(data: bytes) -> None:
    with pytest.raises(UnreadableImage, match="more than 1,000 segments"):
        preprocess.decode(data)


def test_metadata_as_cameras_and_editors_write_them_are_allowed() -> None:
    exif, profile = b"Exif\0\0" + bytes(60_000), segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))
    data = JPEG[:2] + segment(0xE1, exif) + profile * 255 + JPEG[2:]
    assert preprocess.decode(data).size == (64, 64)
    plain = encoded("GIF", comment=bytes(100_000))
    assert preprocess.decode(plain).size == (64, 64)


def scans(image: Image.Image, n: int) -> bytes:
    """A progressive JPEG with one of its scans repeated, until there are `n`."""
    data = encoded("JPEG", image, progressive=True)
    # The last one refines a bit of one channel: it may come any number of times.
    start, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    there = data.count(b"\xff\xda")
    return data[:end] + data[start:end] * (n - there) + data[end:]


def test_a_jpeg_of_very_many_scans_is_refused_before_they_are_decoded() -> None:
    large = Image.new("L", (4_000, 4_000))
    assert preprocess.decode(scans(SMALL, pieces.MAX_SCANS)).size == (64, 64)
    with pytest.raises(UnreadableImage, match="more than 1,000 scans"):
        preprocess.decode(scans(SMALL, pieces.MAX_SCANS + 1))
    with pytest.raises(UnreadableImage, match="more than 125 scans"):
        preprocess.decode(scans(large, 126))


def test_fill_bytes_between_scans_count_as_scans() -> None:
    data = scans(SMALL, 40)
    last = data.rfind(b"\xff\xda")
    with pytest.raises(UnreadableImage, match="more than 1,000 scans"):
        preprocess.decode(data[:last] + COM + b"\xff" * 1_000 + data[last:])


def test_what_looks_like_scans_behind_the_image_or_in_its_metadata_does_not_count() -> None:
    plain = encoded("JPEG", progressive=True, exif=b"Exif\0\0" + b"\xff\xda" * 2_000)
    assert preprocess.decode(plain + b"\xff\xda" * 2_000).size == (64, 64)


def test_what_follows_the_pixels_does_not_count() -> None:
    end = JPEG.rindex(b"\xff\xd9")
    assert preprocess.decode(JPEG[:end] + segment(0xFE) * 2_000 + JPEG[end:]).size == (64, 64)
    assert preprocess.decode(GIF + b"\x21\xfe\x01a\0" * 5_000).size == (64, 64)
    assert preprocess.decode(PNG + in_png(30_000)[33:]).size == (64, 64)


def test_a_cut_off_file_is_left_to_the_decoder() -> None:
    for data in (JPEG, PNG, GIF, in_gif(100)):
        for end in range(len(data)):
            pieces.check(data[:end])
