"""Bytes of unknown origin -> an RGB picture or a class mask, or a reason why not."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Only the readers that are needed: each further one is a parser for hostile bytes. (JPEG's reader also takes the MPO of some phones.)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm"})

ORIENTATION = 0x0112  # EXIF's number of it

Image.init()  # all readers are known at once, whichever picture comes first
# `_open` below compares the header's size with the caller's own limit before any pixel is decoded, which may be higher than Pillow's.
Image.MAX_IMAGE_PIXELS = None


class BadPicture(Exception):
    """The bytes are no usable picture or mask; `reason` says why in words for the quarantine list."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what is needed to store it again without loss.

    image: uint8 (H, W, 3) RGB, upright. mode: Pillow's name of the source's pixel type. grey: the source had one channel.
    lossless: the source's compression lost nothing. suffix: "jpg" or "png" when the source's own bytes show exactly this
    picture to any reader (8-bit RGB or grey, no orientation tag, no transparency), else None. orientation: of EXIF, 1 to 8, before it
    was turned upright.
    """

    image: np.ndarray
    mode: str
    grey: bool
    lossless: bool
    suffix: str | None
    orientation: int


def decode(data: bytes, *, max_pixels: int = 100_000_000, min_side: int = 1) -> Picture:
    """Decode a picture of any kind people have: JPEG (CMYK too), PNG, WebP, TIFF, BMP, GIF, PNM; of several frames the first.

    - EXIF orientation is applied.
    - Transparency is composed on white, the paper that such pictures are drawn for.
    - One channel of 16 or 32 bits (or float) is stretched from its own minimum and maximum to 0..255, as ImageJ does when it shows
      or converts it: cameras fill 10 to 14 of 16 bits, so scaling by the type's range would leave near-black pictures.
      Colour of 16 bits is scaled by its range (the high byte).
    - CMYK is converted without its colour profile; embedded profiles are not applied.

    Raises:
        BadPicture: empty, unknown or damaged data, more than `max_pixels` by its header (nothing is decoded then), a side shorter
            than `min_side`. Never anything else, whatever the bytes.
    """
    with _open(data, max_pixels, "picture") as image:
        if min(image.size) < min_side:
            raise BadPicture(f"too small: {image.width} x {image.height}, the shorter side must have {min_side} pixels")
        mode, form = image.mode, image.format or ""
        lossless = _is_lossless(image, data)
        image.load()
        clear = image.has_transparency_data
        orientation = _orientation(image)
        turned = ImageOps.exif_transpose(image) if orientation != 1 else image
        keeps = mode in ("RGB", "L") and turned is image and not clear
        is_png = form == "PNG" and data[24] == 8 and not getattr(image, "is_animated", False)
        suffix = ("png" if is_png else "jpg" if form in ("JPEG", "MPO") else None) if keeps else None
        pixels = _to_rgb(turned, clear)
        return Picture(pixels, mode, mode in ("1", "L") or mode[0] in "IF", lossless, suffix, orientation)


def decode_mask(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a class mask: uint8 (H, W) of class ids, as stored in a grey (8 or 16 bit), palette (the index) or one-bit picture.

    Raises:
        BadPicture: as `decode`; a mask in colour, or with a value above 255.
    """
    with _open(data, max_pixels, "mask") as image:
        image.load()
        if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
            raise BadPicture(f"mask is a picture of mode {image.mode}; one channel of class ids is needed (grey, palette or one bit)")
        values = np.asarray(image)
        if values.dtype in (np.bool_, np.uint8):
            return values.astype(np.uint8)
        if values.size and (values.min() < 0 or values.max() > 255):
            raise BadPicture(f"mask holds the value {int(values.max() if values.max() > 255 else values.min())}; class ids are 0 to 254")
        return values.astype(np.uint8)


def turn_upright(mask: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF's `orientation` does to a picture, done to its mask."""
    image = Image.fromarray(mask)
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


@contextmanager
def _open(data: bytes, max_pixels: int, what: str) -> Iterator[Image.Image]:
    """Parse the header; turn whatever Pillow raises here or in the body into a BadPicture (its parsers raise almost anything)."""
    if not data:
        raise BadPicture(f"{what} is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise BadPicture(f"too large: {image.width} x {image.height} is more than {max_pixels} pixels")
            yield image
    except BadPicture:
        raise
    except UnidentifiedImageError as error:
        raise BadPicture(f"not a {what} in a known format ({', '.join(FORMATS)})") from error
    except Exception as error:
        words = re.sub(r"0x[0-9a-f]+|\s+", " ", str(error)).strip()[:200]
        raise BadPicture(f"damaged {what}: {words or type(error).__name__}") from error


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged EXIF block says nothing about the picture
        return 1


def _is_lossless(image: Image.Image, data: bytes) -> bool:
    if image.format == "WEBP":
        return b"VP8L" in data[:64]
    if image.format == "TIFF":
        return "jpeg" not in str(image.info.get("compression"))
    return image.format not in ("JPEG", "MPO")


def _to_rgb(image: Image.Image, transparent: bool) -> np.ndarray:
    if image.mode[0] in "IF":  # I, I;16, I;16B, F
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise BadPicture("holds values that are not finite")
        low, high = values.min(), values.max()
        grey = np.rint((values - low) * (255 / (high - low))) if high > low else np.zeros_like(values)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if transparent:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return np.array(image.convert("RGB"))
