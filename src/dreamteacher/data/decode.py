"""Decode untrusted bytes to an RGB picture. For masks see `masks`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from dreamteacher.data import tiff
from dreamteacher.data.deep import Deep, stretch
from dreamteacher.data.formats import SUFFIXES, UNREAD, BadPicture
from dreamteacher.data.load import drop_false_alpha, load, retry_without_metadata, to_rgb

__all__ = ["SUFFIXES", "UNREAD", "WARNINGS", "BadPicture", "Picture", "decode"]

ORIENTATION = 0x0112  # EXIF tag
TURNS = {  # EXIF orientation -> transpose that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WARNINGS = {  # key in Picture and Prepared -> message, which follows the number of pictures
    "bands_left_out": "pictures have more bands than are used: of three or more those that the file names red, green and blue, else the "
    "first three, and of two the first, as grey (write others as pictures of their own: gdal_translate -b 4 -b 3 -b 2)",
    "alpha_is_not_transparency": "pictures say that their fourth band is transparency, but it does not look like it; they were composed "
    "on white (drop the band if it is another, such as near infrared)",
    "wholly_transparent": "pictures are wholly transparent and became white; drop their alpha band if it means nothing",
    "mask_is_unknown": "masks have no known pixel (all 255, or of a class that means unknown) and count as no label",
    "boxes_empty": "pictures have boxes without an extent, or wholly outside; those boxes were dropped",
    "boxes_turned": "pictures have boxes whose right or lower side comes first; they were read from the other corner",
    "boxes_from_zero": "pictures have boxes of Pascal VOC at pixel 0; they are read as counted from 1, so if pixels count from 0, boxes "
    "lie one too far up and left",
    "box_of_a_pixel": "pictures have only boxes of the pixel in the corner; if they mean the whole picture, write them in pixels",
    "boxes_outside": "pictures have boxes that reach more than 2 pixels beyond the border, and were cut (are they of other pictures?)",
    "turned_or_not": "labelled pictures are turned by EXIF, and no size tells whether their labels were drawn on the picture as displayed "
    "or as stored; they are read as drawn on the displayed one",
    "boxes_repeated": "pictures have a box more than once; one was kept",
    "keypoints_outside": "pictures have keypoints more than 2 pixels beyond the border, which count as not labelled (are they of other "
    "pictures?)",
    "keypoints_at_origin": "pictures have keypoints at 0, 0 that count as labelled; if these are missing ones, set their third number to 0",
    "keypoints_away": "pictures have an object whose keypoints lie mostly outside its box (are x and y exchanged, or from the box's "
    "corner?)",
    "unknown_among_numbers": "masks hold 255 behind the numbers 1, 2, 3 and so on, which is read as unknown; if it is an object, give it "
    "the next number",
    "background_is_object": "masks have no background (0), and an object in them touches all four sides; write 0 where there is no object",
    "depth_of_8_bits": "maps of depth have 8 bits, so no more than 255 distances; write 16 bits or floats where the source has them",
    "objects_hidden": "pictures have objects that lie wholly below others, or cover no pixel, and were dropped",
    "one_number_in_pieces": "masks hold one number in several pieces; if each is an object, give each its own number",
    "mask_vanished": "masks lost their last known pixel when they were reduced and count as no label; raise ingest.short_side",
}


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what is needed to store it without loss.

    image: uint8 (H, W, 3) RGB, upright. mode: Pillow's mode of the source, or bands and numpy type where Pillow has none. grey: the source
    has one channel. lossless: the source is compressed without loss. suffix: "jpg" or "png" if the source's bytes can be stored unchanged
    (8-bit RGB or grey, no orientation tag, no transparency, one frame), else None. orientation: EXIF's, 1 to 8, which has been applied.
    frames: number of pictures in the file; this is the first. warnings: keys of WARNINGS.
    """

    image: np.ndarray
    mode: str
    grey: bool
    lossless: bool
    suffix: str | None
    orientation: int
    frames: int = 1
    warnings: tuple[str, ...] = ()

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) of the stored pixels, before the orientation was applied."""
        height, width = self.image.shape[:2]
        return (height, width) if self.orientation > 4 else (width, height)


def decode(data: bytes, *, max_pixels: int = 100_000_000, min_side: int = 1) -> Picture:
    """Decode JPEG (also CMYK), PNG, WebP, TIFF, BMP, GIF, PNM, AVIF, JPEG 2000 or HEIC (with pillow-heif).

    - From several pictures (TIFF pages, animations) the first of full size is taken; `frames` counts them.
    - EXIF orientation is applied. Broken metadata is ignored.
    - Transparency is composed on white. A fourth band that the file does not declare as transparency is dropped.
    - With three bands or more, red, green and blue are those that GDAL's metadata names so, else the first three; with one or two the first
      is grey.
    - More than 8 bits (integers or floats, grey or colour) are stretched linearly from the minimum and maximum over all bands to 0..255, as
      in ImageJ: cameras fill 10 to 14 of 16 bits, so scaling by the type's range would give near-black pictures. No-data pixels (GDAL's
      tag, tRNS, NaN, infinite, -9999 and the like) do not affect the range and become 0. 8-bit pictures, CMYK, AVIF and HEIC are not
      stretched.
    - CMYK is converted without its colour profile; embedded profiles are not applied.

    Raises:
        BadPicture: empty, unknown or damaged data; more than `max_pixels` in the header (checked before decoding); a side shorter than
            `min_side`.
        MemoryError: an allocation failed. No other exception is raised, whatever the bytes.
    """
    return retry_without_metadata(partial(_decode, max_pixels=max_pixels, min_side=min_side), data, "picture", max_pixels)


def _decode(data: bytes, orientation: int | None, *, max_pixels: int, min_side: int) -> Picture:
    is_stripped = orientation is not None  # its metadata is broken, which other readers may not tolerate
    source = load(data, max_pixels, min_side)
    image, layout, mode = source.image, source.layout, source.mode
    layer = _to_layer(source.deep) if source.deep else drop_false_alpha(source, data)
    orientation = layout.orientation if layout else orientation or _orientation(image)
    suffix: str | None = None
    warnings: tuple[str, ...] = ("bands_left_out",) * bool(layout.leaves_out_bands if layout else not source.deep and layer is not image)
    if layer.has_transparency_data:
        layer = layer.convert("RGBA")
        warnings += _doubt_alpha(layer)
        layer = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    elif layer is image and mode in ("RGB", "L") and orientation == 1 and not is_stripped:
        is_png = image.format == "PNG" and data[24] == 8 and source.frames == 1
        suffix = "png" if is_png else "jpg" if image.format in ("JPEG", "MPO") else None
    if orientation in TURNS and (source.deep or not layout):  # Pillow applies the orientation of a TIFF when it loads it
        layer = layer.transpose(TURNS[orientation])
    grey = source.deep.values.shape[2] == 1 if source.deep else mode in ("1", "L")
    return Picture(np.array(to_rgb(layer)), mode, grey, source.lossless, suffix, orientation, source.frames, warnings)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        value = tiff.orientation_of(image.info.get("exif") or b"")
    return value if value in TURNS else 1


def _doubt_alpha(layer: Image.Image) -> tuple[str, ...]:
    """Warnings about an implausible alpha band; a real one is 0 or 255 nearly everywhere, or has few values."""
    counts = np.array(layer.getchannel("A").histogram())
    if counts[0] == counts.sum():
        return ("wholly_transparent",)
    return ("alpha_is_not_transparency",) if 2 * (counts[0] + counts[255]) < counts.sum() and (counts > 0).sum() > 16 else ()


def _to_layer(deep: Deep) -> Image.Image:
    """The stretched values as a grey, RGB or RGBA image."""
    shown = stretch(deep)
    layer = Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown)
    if deep.alpha is None:
        return layer
    alpha = Image.fromarray(deep.alpha)
    return Image.merge("RGBa" if deep.premultiplied else "RGBA", [*layer.convert("RGB").split(), alpha])
