"""File bytes to pixels: the one preprocessing that training, the parity gate, the service and
the benchmarks share.

Normalisation is not here: it is inside the graph.
"""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from bundle.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from bundle.manifest import PREPROCESSING_VERSION

VERSION = PREPROCESSING_VERSION
"""Of the function that `prepare` computes; a bundle names the one that it was trained with."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Accepted file formats, recognised by content and never by name. Of animations the first frame."""

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".dib", ".gif"))
"""Names under which files of these formats are looked for in folders."""

_SIGNATURES = {
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"(?s)RIFF....WEBPVP8": "WEBP",
    rb"GIF8[79]a": "GIF",
}
"""How files of a format begin, where that says enough. (BMP begins with two letters.)"""

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
BAND_PIXELS = 2**20

# Pillow's own guard warns at a limit of its own; `decode` holds the header against MAX_PIXELS.
Image.MAX_IMAGE_PIXELS = None


def decode(
    data: bytes,
    *,
    size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
) -> Image.Image:
    """The upright RGB image in `data`.

    Transparent pixels are laid on white; 16-bit grey is scaled to 8 bit; CMYK and palettes are
    converted; EXIF orientation is applied.

    Args:
        data: a file's bytes.
        size: shorter side that is enough in pixels; a large JPEG is then decoded at a reduced
            scale, never below twice that size.
        max_pixels: allowed width times height, checked on the header before decoding.
        max_memory: bytes that decoding may take, estimated from the header.

    Raises:
        UnsupportedImage: not an image, or a format outside `FORMATS`.
        ImageTooLarge: more pixels than `max_pixels`, or more than `max_memory`.
        UnreadableImage: truncated or corrupt.
    """
    if not data:
        raise UnsupportedImage("the file is empty: an image is needed")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise almost anything on malformed headers
        kinds = (kind for start, kind in _SIGNATURES.items() if re.match(start, data))
        if kind := next(kinds, None):
            # Pillow's own words for that name a Python object.
            unknown = isinstance(error, UnidentifiedImageError)
            detail = "its header cannot be read" if unknown else error
            raise UnreadableImage(f"the {kind} image is truncated or corrupt: {detail}") from error
        raise UnsupportedImage(
            f"not an image that can be read ({len(data)} bytes): allowed are {', '.join(FORMATS)}"
        ) from error
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"{width} x {height} pixels, {width * height:,} in all: at most {max_pixels:,} allowed",
            found=width * height,
            allowed=max_pixels,
        )
    try:
        if size is not None:
            image.draft(image.mode, (2 * size, 2 * size))
        if max_memory is not None and (memory := _memory(image, width * height)) > max_memory:
            raise ImageTooLarge(
                f"{width} x {height} pixels of this kind of {image.format} ({image.mode}) take "
                f"{memory / 1e6:,.0f} MB to decode: at most {max_memory / 1e6:,.0f} MB are allowed",
                found=memory,
                allowed=max_memory,
            )
        image.load()
        return _to_rgb(image)
    except (MemoryError, ImageTooLarge):
        raise
    except Exception as error:  # as above, while decoding
        raise UnreadableImage(
            f"the {image.format} image is truncated or corrupt: {error}"
        ) from error


def _memory(image: Image.Image, pixels: int) -> int:
    """Bytes that `load` and `_to_rgb` take at most, as measured with Pillow 11 to 13.

    `pixels` is the file's size; the image's own is smaller where a JPEG is decoded reduced. Pillow
    holds four bytes a pixel in every mode with more than one channel.
    """
    width, height = image.size
    if image.format == "JPEG":
        # libjpeg keeps all coefficients of a progressive file, at full size, two bytes each.
        kept = 2 * len(image.getbands()) * pixels if "progressive" in image.info else 0
        return kept + 12 * width * height
    turned = "exif" in image.info
    if image.format == "WEBP":
        each = 22 if image.mode == "RGBA" else 17  # two canvases, the bytes of one, the image
    elif image.mode.startswith("I"):
        each = 13 if turned else 10
    elif image.mode in ("1", "L", "P"):
        each = 7 if turned else 6
    elif image.mode == "RGB" and "transparency" not in image.info:
        each = 9 if turned else 5
    else:
        each = 14 if turned else 10
    return each * width * height


def _upright(image: Image.Image) -> Image.Image:
    if "exif" not in image.info and image.format != "WEBP":
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF says nothing of the pixels: viewers show them as they are
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    image = _upright(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)
        seen = (grey >> 8).astype(np.uint8)
        if "transparency" in image.info:
            seen[grey == image.info["transparency"]] = 255
        return Image.fromarray(seen).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Band by band: at once, it would take twenty bytes a pixel."""
    width, height = image.size
    result = Image.new("RGB", image.size)
    rows = max(1, BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height))).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, band).convert("RGB"), (0, top))
    return result


def resize(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The centre square of an RGB image, scaled to `size` (bilinear, antialiased).

    Returns:
        uint8 [size, size, 3].
    """
    width, height = image.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    return np.asarray(image)


def prepare(
    data: bytes, size: int, *, max_pixels: int = MAX_PIXELS, max_memory: int | None = None
) -> NDArray[np.uint8]:
    """A file's bytes as the graph takes them: `decode`, then `resize`.

    Returns:
        uint8 [size, size, 3].
    """
    return resize(decode(data, size=size, max_pixels=max_pixels, max_memory=max_memory), size)
