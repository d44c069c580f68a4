"""Limits the pieces that an image file consists of, before a decoder goes through them.

Each piece takes a decoder time or memory, however small it is, so that a file of some megabytes
with a million of them could take minutes or a gigabyte. Encoders write some tens.
"""

from __future__ import annotations

import re

from labelcurve.bundle.errors import UnreadableImage

MAX_SEGMENTS = 1_000
"""Segments of a JPEG before its pixels."""

MAX_SCANS, MAX_SCANNED = 1_000, 2_000_000_000
"""Scans of a JPEG, and scans times pixels: encoders write some ten. Each takes the time of a pass
over all pixels."""

MAX_CHUNKS = 20_000
"""Chunks of a PNG: 8 KB of pixels in each are usual."""

MAX_BLOCKS = 4_000
"""Blocks of a GIF before its first frame: 255 bytes of metadata in each are usual."""

_EXIF = 20
"""Segments that one with EXIF counts for: Pillow copies the earlier ones for each."""

_SCANS_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""The marker after a scan of a JPEG."""


def check(data: bytes) -> None:
    """Refuses a JPEG, PNG or GIF in too many pieces; of other files it says nothing.

    Raises:
        UnreadableImage: what it has too many of, and how many are allowed.
    """
    if data.startswith(b"\xff\xd8"):
        _check("JPEG", "segments", _segments(data), MAX_SEGMENTS)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check("PNG", "chunks", _chunks(data), MAX_CHUNKS)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check("GIF", "blocks", _blocks(data), MAX_BLOCKS)


def check_scans(data: bytes, pixels: int) -> None:
    """Refuses a JPEG with too many scans for its number of pixels.

    Raises:
        UnreadableImage: how many are allowed.
    """
    few = 30
    if data.count(b"\xff\xda") <= few:  # an upper bound, at hardly any cost
        return
    most = min(MAX_SCANS, max(few, MAX_SCANNED // max(1, pixels)))
    _check("JPEG", "scans", _scans(data, most), most)


def _check(kind: str, what: str, found: int, most: int) -> None:
    if found > most:
        raise UnreadableImage(
            f"the {kind} image has more than {most:,} {what}: not more are allowed"
        )


def _segments(data: bytes) -> int:
    """Segments of a JPEG up to its first scan, counted until they are too many."""
    # Photoshop's resources are gone through one by one, too.
    found, at = data.count(b"8BIM") // 10, 2
    while found <= MAX_SEGMENTS and (start := data.find(b"\xff", at)) >= 0:
        found += 1 + (start - at) // 100  # bytes between segments are skipped one by one
        marker = data[start + 1 : start + 2]
        if marker in (b"", b"\xda"):
            break
        if marker == b"\xff":
            at = start + 1
        elif marker[0] in (0x00, 0x01) or 0xD0 <= marker[0] <= 0xD9:  # without a length
            at = start + 2
        else:
            found += _EXIF if data[start + 4 : start + 8] == b"Exif" else 0
            at = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4]))
    return found


def _scans(data: bytes, most: int) -> int:
    """Scans of a JPEG up to its end, counted to one more than `most`."""
    found, at = 0, 2
    while found <= most and (start := data.find(b"\xff", at)) >= 0 and start + 4 <= len(data):
        marker = data[start + 1]
        if marker == 0xD9:  # end of the image: what follows is not decoded
            break
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # without a length
            found += 1  # no encoder writes them here
            at = start + (1 if marker == 0xFF else 2)
            continue
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if marker == 0xDA:
            found += 1
            end = _SCANS_END.search(data, at)
            at = end.start() if end else len(data)
    return found


def _chunks(data: bytes) -> int:
    """Chunks of a PNG up to its end, counted until they are too many."""
    found, at = 0, 8
    while found <= MAX_CHUNKS and at + 8 <= len(data) and data[at + 4 : at + 8] != b"IEND":
        found += 1
        at += 12 + int.from_bytes(data[at : at + 4])
    return found


def _blocks(data: bytes) -> int:
    """Blocks of a GIF up to its first frame, counted until they are too many."""
    colours = 3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0
    found, at = 0, 13 + colours
    while found <= MAX_BLOCKS and at < len(data) and data[at] not in (0x2C, 0x3B):
        found += 1
        if data[at] != 0x21:  # of no block: skipped byte by byte
            at += 1
            continue
        at += 2
        while found <= MAX_BLOCKS and at < len(data) and data[at]:
            found += 1
            at += 1 + data[at]
        at += 1
    return found
