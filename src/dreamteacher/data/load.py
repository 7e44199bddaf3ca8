"""Load the first picture of a file with Pillow, or at full depth if Pillow has no mode for it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from dreamteacher.data import tiff
from dreamteacher.data.deep import Deep, jpeg_2000_facts, read_deep, read_deep_tiff
from dreamteacher.data.formats import FORMATS, BadPicture, describe_unreadable
from dreamteacher.data.metadata import without_metadata
from dreamteacher.data.tiff import Layout
from dreamteacher.errors import is_memory_error

SMALL_BLOCK = 64 << 20  # bytes
MAX_PROBED = 1 << 28  # pixels
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MAX_ZEROS = 64  # consecutive zero bytes; a JPEG has fewer before its end
# `_check_size` enforces the caller's limit, which may be higher than Pillow's, before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

_T = TypeVar("_T")


@dataclass(frozen=True)
class Source:
    """A loaded file.

    image: Pillow's image, loaded (Pillow applies the orientation of a TIFF); None if Pillow has no mode for it. Any, as classes differ by
    format. deep: the values, if 8 bits do not hold them. layout: of a TIFF. mode, lossless, frames: see `decode.Picture`.
    """

    image: Any
    deep: Deep | None
    layout: Layout | None
    mode: str
    lossless: bool
    frames: int


def retry_without_metadata(read: Callable[[bytes, int | None], _T], data: bytes, what: str, max_pixels: int) -> _T:
    """read(data, None); on an error again without the file's metadata, which may be the damaged part: read(pixels, orientation)."""
    if not data:
        raise BadPicture(f"{what} is empty (0 bytes)")
    try:
        return read(data, None)
    except BadPicture:
        raise
    except Exception as error:  # Pillow's parsers raise almost anything
        _raise_if_memory_is_short(error, max_pixels)
        first = error
    try:
        plain = without_metadata(data)
        if plain:
            return read(*plain)
    except Exception as error:  # the first error is reported
        _raise_if_memory_is_short(error, max_pixels)
    if isinstance(first, UnidentifiedImageError):
        raise BadPicture(describe_unreadable(data, what)) from first
    words = re.sub(r"0x[0-9a-f]+|\s+", " ", str(first)).strip()[:200]
    raise BadPicture(f"damaged {what}: {words or type(first).__name__}") from first


def _raise_if_memory_is_short(error: Exception, max_pixels: int) -> None:
    """Raise MemoryError if memory is really short.

    Some libraries report a failed allocation as damaged data, and some a damaged size as a failed allocation. So an allocation is tried: as
    much as the largest picture needs, or a small block if the error does not mention memory.
    """
    try:
        claimed = is_memory_error(error) or "could not create decoder object" in str(error)  # the latter: WebP
        np.empty(4 * min(max_pixels, MAX_PROBED) if claimed else SMALL_BLOCK, np.uint8)  # not filled, which would take 50 ms
    except MemoryError:
        raise MemoryError(str(error)) from error


def load(data: bytes, max_pixels: int, min_side: int) -> Source:
    """Load a file after checking its header against the limits.

    Raises:
        BadPicture: it exceeds the limits, or its format cannot be read.
        Exception: of almost any kind, if it is damaged.
    """
    if data[:4] in TIFF_MARKS:
        return _load_tiff(data, max_pixels, min_side)
    if data[:2] == b"\xff\xd8" and data[-MAX_ZEROS:] == bytes(MAX_ZEROS) and data.find(b"\xff\xd9", _start_of_scan(data)) < 0:
        raise BadPicture("its end is zero bytes, as of a copy that was not finished; copy it again")
    image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    _check_size(image.width, image.height, max_pixels, min_side)
    mode, lossless, frames = image.mode, _is_lossless(image, data), _count_frames(image, data)
    deep = read_deep(image, data)
    if deep is None:
        image.load()
    return Source(image, deep, None, mode, lossless, frames)


def _start_of_scan(data: bytes) -> int:
    """Offset of the scan of a JPEG, after a preview in EXIF; the length of the data if it is not found."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == 0xDA:
            return at
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return len(data)


def _load_tiff(data: bytes, max_pixels: int, min_side: int) -> Source:
    layout = tiff.read_layout(data)
    _check_size(layout.width, layout.height, max_pixels, min_side)
    _check_size(*layout.tile, max_pixels, 1)  # a tile is decompressed entirely, even if it is mostly padding
    image = None if layout.is_deep or layout.rgb != tiff.FIRST_THREE else _open_tiff(data, layout)
    if image is None or (layout.colours == 3 and image.mode == "L"):  # Pillow reads only the first of planar bands
        deep = read_deep_tiff(data, layout, max_pixels)
        bands = f"x{layout.bands}" if layout.bands > 1 else ""
        return Source(None, deep, layout, f"{deep.values.dtype}{bands}", True, layout.frames)
    mode, lossless = image.mode, "jpeg" not in str(image.info.get("compression"))
    image.load()
    return Source(image, None, layout, mode, lossless, layout.frames)


def _open_tiff(data: bytes, layout: Layout) -> Any:
    """The TIFF as Pillow opens it; None if Pillow has no mode for it."""
    if layout.is_first:
        with suppress(UnidentifiedImageError):
            return Image.open(io.BytesIO(data), formats=("TIFF",))
    with suppress(UnidentifiedImageError):
        return Image.open(io.BytesIO(tiff.without_metadata(data, layout)), formats=("TIFF",))
    return None


def _check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    if width * height > max_pixels:
        raise BadPicture(f"too large: {width} x {height} is more than {max_pixels} pixels")
    if min(width, height) < min_side:
        raise BadPicture(f"too small: {width} x {height}, the shorter side must have {min_side} pixels")


def _count_frames(image: Any, data: bytes) -> int:
    """Number of pictures in the file, without previews and gain maps of an MPO."""
    with suppress(Exception):  # further frames may be broken or too large
        if image.format == "GIF":  # counting reads the file
            image = Image.open(io.BytesIO(data), formats=("GIF",))
        if image.format == "MPO":
            return 1 + sum("Multi-Frame" in entry["Attribute"]["MPType"] for entry in image.mpinfo[0xB002][1:])
        return getattr(image, "n_frames", 1)
    return 1


def _is_lossless(image: Any, data: bytes) -> bool:
    if image.format == "WEBP":
        return b"VP8L" in data[:64]
    if image.format == "JPEG2000":
        return jpeg_2000_facts(data).lossless
    return image.format not in ("JPEG", "MPO", "AVIF", "HEIF")


def drop_false_alpha(source: Source, data: bytes) -> Image.Image:
    """The image without a fourth (or second) band that Pillow takes for alpha, but the file does not declare so."""
    image, layout = source.image, source.layout
    if image.mode in ("RGBA", "LA", "PA") and (
        (layout and layout.alpha is None) or (image.format == "JPEG2000" and not jpeg_2000_facts(data).alpha)
    ):
        return image.convert({"RGBA": "RGB", "LA": "L", "PA": "RGB"}[image.mode])
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any of Pillow's modes to RGB."""
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return to_rgb.apply(image)
    return image.convert("RGB")
