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

from labelcurve.bundle import pieces
from labelcurve.bundle.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from labelcurve.bundle.manifest import PREPROCESSING_VERSION
from labelcurve.bundle.text import counted

VERSION = PREPROCESSING_VERSION
"""Version of the function `prepare`; a bundle records the one used in training."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Accepted file formats, recognised by content and never by name. Animations: the first frame."""

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".dib", ".gif"))
"""File name suffixes of these formats, to find them in folders."""

OTHER_SUFFIXES = frozenset(
    (
        *(".heic", ".heif", ".avif", ".tif", ".tiff", ".jp2", ".jxl", ".psd", ".svg", ".raw"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".ppm", ".pgm", ".tga", ".ico"),
    )
)
"""File name suffixes of other image formats, which are reported, not silently skipped."""

_SIGNATURES = {
    rb"\x89PNG\r\n\x1a\n": "PNG",
    rb"\xff\xd8\xff": "JPEG",
    rb"(?s)RIFF....WEBPVP8": "WEBP",
    rb"GIF8[79]a": "GIF",
}
"""Signatures of the accepted formats, where they are distinctive. (BMP's has only two letters.)"""

_OTHERS = {
    rb"(?s)....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)": "HEIC",
    rb"(?s)....ftypavi[fs]": "AVIF",
    rb"II\*\0|MM\0\*": "TIFF",
    rb"\0\0\0\x0cjP": "JPEG 2000",
    rb"\xff\x0a|\0\0\0\x0cJXL": "JPEG XL",
    rb"8BPS": "Photoshop",
    rb"%PDF": "PDF",
    rb"(?s)\s*(<\?xml.{0,500})?<svg": "SVG",
}
"""Signatures of other formats, named in the error message for a file that is not accepted."""

MAX_RLE_PIXELS = 4_000_000
"""Pixels of a run-length encoded BMP, which Pillow decodes in Python: 0.4 s. Without such a limit a
file of 1 KB could take seconds."""

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 50_000_000
BAND_PIXELS = 2**20

# Pillow's built-in check warns at a different limit; `decode` compares the header with MAX_PIXELS.
Image.MAX_IMAGE_PIXELS = None


def decode(
    data: bytes,
    *,
    size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_memory: int | None = None,
) -> Image.Image:
    """The upright RGB image in `data`.

    Transparent images are composited on white; 16-bit grey is scaled to 8 bit; CMYK and palettes
    are converted; EXIF orientation is applied.

    Args:
        size: shorter side in pixels that is sufficient; a large JPEG is then decoded at a reduced
            scale, never below twice that size.
        max_pixels: allowed width times height, checked on the header before decoding.
        max_memory: bytes that decoding may take, estimated from the header.

    Raises:
        UnsupportedImage: not an image, or a format outside `FORMATS`.
        ImageTooLarge: more pixels than `max_pixels`, or more than `max_memory`.
        UnreadableImage: truncated, corrupt, or in too many pieces (`bundle.pieces`).
    """
    if not data:
        raise UnsupportedImage("the file is empty: an image is needed")
    pieces.check(data)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise almost anything on malformed headers
        kinds = (kind for start, kind in _SIGNATURES.items() if re.match(start, data))
        if kind := next(kinds, None):
            # Pillow's own message for that names a Python object.
            unknown = isinstance(error, UnidentifiedImageError)
            # As text: an exception kept in this frame, which its traceback references, is a cycle
            # that would keep the whole file in memory until the garbage collector runs.
            detail = "its header cannot be read" if unknown else str(error)
            raise UnreadableImage(f"the {kind} image is truncated or corrupt: {detail}") from error
        length = counted(len(data), "byte")
        others = (kind for start, kind in _OTHERS.items() if re.match(start, data))
        if kind := next(others, None):
            raise UnsupportedImage(
                f"{kind} ({length}) is not read: convert it to JPEG or PNG "
                f"(allowed are {', '.join(FORMATS)})"
            ) from error
        raise UnsupportedImage(
            f"not an image that can be read ({length}): allowed are {', '.join(FORMATS)}"
        ) from error
    width, height = image.size
    if image.format == "MPO":  # a JPEG with further pictures behind the first
        image.format = "JPEG"
    if image.tile and image.tile[0][0] == "bmp_rle":
        max_pixels = min(max_pixels, MAX_RLE_PIXELS)
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"{width} x {height} pixels, {width * height:,} in all: at most {max_pixels:,} allowed",
            found=width * height,
            allowed=max_pixels,
        )
    if image.format == "JPEG":
        pieces.check_scans(data, width * height)
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


def ending(data: bytes) -> str:
    """The end of a name for an image that `decode` takes: `png`, `jpeg`, ..."""
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        return "jpeg" if image.format == "MPO" else str(image.format).lower()


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
    except Exception:  # damaged EXIF says nothing about the pixels: viewers show them as they are
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
    """Works band by band, since all at once would take twenty bytes per pixel."""
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
    # As `np.asarray`, which first queries the image for its type and shape.
    return np.frombuffer(image.tobytes(), np.uint8).reshape(size, size, 3)


def prepare(
    data: bytes, size: int, *, max_pixels: int = MAX_PIXELS, max_memory: int | None = None
) -> NDArray[np.uint8]:
    """Converts a file's bytes to the input of the graph: `decode`, then `resize`.

    Returns:
        uint8 [size, size, 3].
    """
    return resize(decode(data, size=size, max_pixels=max_pixels, max_memory=max_memory), size)


def prepare_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Converts an opened image in any mode to the input of the graph.

    Returns:
        uint8 [size, size, 3].

    Raises:
        UnreadableImage: its pixels cannot be decoded.
    """
    try:
        return resize(_to_rgb(image), size)
    except MemoryError:
        raise
    except Exception as error:  # as in `decode`: a truncated file, for example
        raise UnreadableImage(f"the image cannot be decoded: {error}") from error
