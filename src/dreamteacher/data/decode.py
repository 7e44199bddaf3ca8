"""Bytes of unknown origin -> an RGB picture or a class mask, or a reason why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from dreamteacher.data import tiff
from dreamteacher.data.deep import Deep, stretch
from dreamteacher.data.formats import SUFFIXES, UNREAD, BadPicture, name_what_it_is
from dreamteacher.data.items import IGNORE
from dreamteacher.data.load import Source, load, without_other_band
from dreamteacher.data.metadata import without_metadata
from dreamteacher.errors import is_memory_error

__all__ = [
    "SUFFIXES",
    "UNREAD",
    "WARNINGS",
    "BadPicture",
    "Picture",
    "decode",
    "decode_mask",
    "decode_numbers",
    "decode_values",
    "is_lossy",
    "turn_upright",
]

VOC_BORDER = 0xE0E0C0  # the colour around objects in Pascal VOC's masks, index 255 of its palette
MANY_COLOURS = 8  # that are not listed
DARK = 64  # of 255; a palette of greys below holds ids, any other colours
SMALL_BLOCK = 64 << 20  # bytes
MOST_PROBED = 1 << 28  # pixels
ORIENTATION = 0x0112  # EXIF's number of it
TURNS = {  # EXIF's orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WARNINGS = {  # of Picture and Prepared -> words that follow a number
    "alpha_is_not_transparency": "pictures say that their fourth band is transparency, but it does not look like it; they were composed "
    "on white (drop the band if it is another, such as near infrared)",
    "wholly_transparent": "pictures are wholly transparent and became white; drop their alpha band if it means nothing",
    "mask_is_unknown": "masks have no known pixel (all 255, or of a class that means unknown) and count as no label",
    "boxes_empty": "pictures have boxes without an extent, or wholly outside; those boxes were dropped",
    "boxes_outside": "pictures have boxes that reach more than 2 pixels beyond the border, and were cut (are they of other pictures?)",
    "boxes_repeated": "pictures have a box more than once; one was kept",
    "keypoints_outside": "pictures have keypoints more than 2 pixels beyond the border, which count as not labelled (are they of other "
    "pictures?)",
    "objects_hidden": "pictures have objects that lie wholly below others, or cover no pixel, and were dropped",
    "one_number_in_pieces": "masks hold one number in several pieces; if each is an object, give each its own number",
    "mask_vanished": "masks lost their last known pixel when they were reduced and count as no label; raise ingest.short_side",
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what is needed to store it again without loss.

    image: uint8 (H, W, 3) RGB, upright. mode: Pillow's name of the source's pixel type, or bands and numpy type where Pillow has none.
    grey: the source had one channel. lossless: the source's compression lost nothing. suffix: "jpg" or "png" when the source's own
    bytes show exactly this picture to any reader (8-bit RGB or grey, no orientation tag, no transparency, one frame), else None.
    orientation: of EXIF, 1 to 8, before it was turned upright. frames: pictures in the file, of which this is the first. warnings: keys
    of WARNINGS.
    """

    image: np.ndarray
    mode: str
    grey: bool
    lossless: bool
    suffix: str | None
    orientation: int
    frames: int = 1
    warnings: tuple[str, ...] = ()


def decode(data: bytes, *, max_pixels: int = 100_000_000, min_side: int = 1) -> Picture:
    """Decode a picture of any kind people have: JPEG (CMYK too), PNG, WebP, TIFF, BMP, GIF, PNM, AVIF, JPEG 2000, HEIC (with pillow-heif).

    - Of several pictures (TIFF pages, animations) the first of full size is taken; `frames` counts them.
    - EXIF orientation is applied. Broken metadata never costs a picture.
    - Transparency is composed on white, the paper that such pictures are drawn for. A fourth band that is not called so is dropped.
    - Of three bands or more the first three are red, green and blue; of one or two the first is grey.
    - More than 8 bits (integers or floats, grey or colour) are stretched from the picture's smallest value, over all bands together, to its
      largest, to 0..255, as ImageJ shows them: cameras fill 10 to 14 of 16 bits, so scaling by the type's range would leave
      near-black pictures. Pixels of no data (GDAL's tag, tRNS, NaN, infinite, -9999 and the like) count for neither end and become 0.
      8 bits are never stretched, nor what is made for screens or print: CMYK, AVIF, HEIC.
    - CMYK is converted without its colour profile; embedded profiles are not applied.

    Raises:
        BadPicture: empty, unknown or damaged data, more than `max_pixels` by its header (nothing is decoded then), a side shorter
            than `min_side`.
        MemoryError: an allocation failed. Never anything else, whatever the bytes.
    """
    return _whatever_the_metadata(partial(_decode, max_pixels=max_pixels, min_side=min_side), data, "picture", max_pixels)


def decode_mask(data: bytes, *, max_pixels: int = 100_000_000, colours: list[tuple[int, int, int]] | None = None) -> np.ndarray:
    """Decode a class mask: uint8 (H, W) of class ids, 255 where unknown.

    Without `colours`, ids are stored in one channel of any depth, in a palette (the index), in one bit, or in equal channels of RGB; 255
    and -1 are unknown. With `colours` a pixel is class i where its colour, whatever the picture's type, is colours[i]; the colour of
    Pascal VOC's borders is unknown.

    Raises:
        BadPicture: as `decode`; several pages; an id above 255; a colour that is not in `colours`; colours without a list; transparent
            pixels.
        MemoryError: an allocation failed.
    """
    return _whatever_the_metadata(partial(_decode_mask, max_pixels=max_pixels, colours=colours), data, "mask", max_pixels)


def decode_numbers(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a mask that numbers objects: int64 (H, W), 0 where there is none.

    Numbers are stored in one channel of any depth, in a palette (the index) or in equal channels; of any other colours each is a number.

    Raises:
        BadPicture: as `decode`; several pages; negative numbers or fractions; transparent pixels; a lossy format.
        MemoryError: an allocation failed.
    """
    if is_lossy(data):
        raise BadPicture("mask is in a lossy format, such as JPEG, which changes numbers; store masks as PNG")
    return _whatever_the_metadata(partial(_decode_numbers, max_pixels=max_pixels), data, "mask", max_pixels)


def decode_values(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """The values of a file of one channel as they are, of any number type (H, W); (H, W, 3) where it has colours.

    Raises:
        BadPicture: as `decode`; several pages; transparent pixels; a lossy format.
        MemoryError: an allocation failed.
    """
    if is_lossy(data):
        raise BadPicture("mask is in a lossy format, such as JPEG, which changes numbers; store masks as PNG")
    return _whatever_the_metadata(lambda file, _: _values_of_mask(file, max_pixels, by_colour=False), data, "mask", max_pixels)


def is_lossy(data: bytes) -> bool:
    """Whether the format is JPEG or the like, which changes values: no format for masks."""
    return data[:2] == b"\xff\xd8" or data[4:8] == b"ftyp" or (data[8:12] == b"WEBP" and b"VP8L" not in data[:64])


def turn_upright(mask: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF's `orientation` does to a picture, done to its mask (H, W, ...) of any type."""
    if orientation > 4:
        mask = mask.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        mask = mask[::-1]
    return mask[:, ::-1] if orientation in (2, 3, 6, 7) else mask


def _whatever_the_metadata(read: Callable[[bytes, int | None], _T], data: bytes, what: str, max_pixels: int) -> _T:
    """read(data, None); if the file seems damaged, once more without its metadata, which may be all that is, and with its orientation."""
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
    except Exception as error:  # what is wrong is said of the whole file
        _raise_if_memory_is_short(error, max_pixels)
    if isinstance(first, UnidentifiedImageError):
        raise BadPicture(name_what_it_is(data, what)) from first
    words = re.sub(r"0x[0-9a-f]+|\s+", " ", str(first)).strip()[:200]
    raise BadPicture(f"damaged {what}: {words or type(first).__name__}") from first


def _raise_if_memory_is_short(error: Exception, max_pixels: int) -> None:
    """A good picture must not be called damaged because memory for it could not be allocated, nor a damaged one end the stage.

    Some libraries report an allocation that failed as damaged data, and some a damaged size as an allocation that failed. So
    allocation is tried: as much as the largest picture needs, or, where the error says nothing of memory, a small block.
    """
    try:
        claimed = is_memory_error(error) or "could not create decoder object" in str(error)  # the latter: WebP
        np.empty(4 * min(max_pixels, MOST_PROBED) if claimed else SMALL_BLOCK, np.uint8)  # not filled, which would take 50 ms
    except MemoryError:
        raise MemoryError(str(error)) from error


def _decode(data: bytes, orientation: int | None, *, max_pixels: int, min_side: int) -> Picture:
    is_stripped = orientation is not None  # what was broken in its metadata, other readers may stumble over
    source = load(data, max_pixels, min_side)
    image, layout, mode = source.image, source.layout, source.mode
    layer = _to_layer(source.deep) if source.deep else without_other_band(source, data)
    orientation = layout.orientation if layout else orientation or _orientation(image)
    suffix: str | None = None
    warnings: tuple[str, ...] = ()
    if layer.has_transparency_data:
        layer = layer.convert("RGBA")
        warnings = _doubt_alpha(layer)
        layer = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    elif layer is image and mode in ("RGB", "L") and orientation == 1 and not is_stripped:
        is_png = image.format == "PNG" and data[24] == 8 and source.frames == 1
        suffix = "png" if is_png else "jpg" if image.format in ("JPEG", "MPO") else None
    if orientation in TURNS and (source.deep or not layout):  # Pillow turns a TIFF when it loads it
        layer = layer.transpose(TURNS[orientation])
    grey = source.deep.values.shape[2] == 1 if source.deep else mode in ("1", "L")
    return Picture(np.array(_to_rgb(layer)), mode, grey, source.lossless, suffix, orientation, source.frames, warnings)


def _decode_numbers(data: bytes, _: int | None, *, max_pixels: int) -> np.ndarray:
    values = _values_of_mask(data, max_pixels, by_colour=False)
    if values.ndim == 3:
        values = values.astype(np.int64) @ np.array([65536, 256, 1])
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        raise BadPicture("mask holds values that are no whole numbers; give each object a number")
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise BadPicture(f"mask holds the value {values.min() if values.min() < 0 else values.max()}; objects are numbered from 1")
    return values.astype(np.int64)


def _values_of_mask(data: bytes, max_pixels: int, *, by_colour: bool) -> np.ndarray:
    """Numbers (H, W) of any type, or colours (H, W, 3) where the mask has any or, `by_colour`, in any case."""
    source = load(data, max_pixels, 1)
    if source.frames > 1:
        raise BadPicture(f"mask holds {source.frames} pages or frames; store class ids in one (of several objects, merge their masks)")
    if source.deep:
        values, alpha = source.deep.values, source.deep.alpha
        if source.layout:
            values = turn_upright(values, source.layout.orientation)
    else:
        values, alpha = _mask_values(source, data, by_colour=by_colour)
    if alpha is not None and alpha.min() < 255:
        raise BadPicture("mask has transparent pixels, which have no class; save it without transparency")
    if not by_colour and values.ndim == 3 and (values.shape[2] == 1 or (values == values[..., :1]).all()):
        return values[..., 0]
    return values


def _decode_mask(data: bytes, _: int | None, *, max_pixels: int, colours: list[tuple[int, int, int]] | None) -> np.ndarray:
    values = _values_of_mask(data, max_pixels, by_colour=colours is not None)
    if colours is not None:
        return _by_colour(values, colours)
    if values.ndim == 3:
        place = np.unravel_index((values != values[..., :1]).any(axis=2).argmax(), values.shape[:2])
        shown = _name(values[place]) if values.dtype == np.uint8 else "#804080"
        raise BadPicture(
            f"mask is in colours; write the colour of each class behind its name in classes.txt, such as: road {shown}; "
            "or store class ids in one channel"
        )
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        raise BadPicture("mask holds values that are no whole numbers; class ids are 0 to 254")
    low, high = values.min(), values.max()
    if low < -1 or high > 255:
        raise BadPicture(
            f"mask holds the value {int(high if high > 255 else low)}; class ids are 0 to 254, 255 and -1 are unknown (write numbers of "
            "classes, not of objects or of panoptic segments, and 1, not the largest value, for the only class; or set ingest.task to "
            "instances if these are numbers of objects)"
        )
    return values.astype(np.int16).astype(np.uint8)  # -1 becomes 255


def _mask_values(source: Source, data: bytes, *, by_colour: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Class ids (H, W), or colours (H, W, 3) if the mask is in colours or `by_colour`; and its alpha."""
    image = without_other_band(source, data)
    if not by_colour and image.mode in ("1", "L", "P"):
        values = np.asarray(image).astype(np.uint8)
        bits = source.layout.bits if source.layout else data[24] if image.format == "PNG" else 8
        if image.mode == "P":
            values = _of_dark_palette(image, values)
        if image.mode == "L" and bits < 8:  # Pillow spreads them over 0 to 255
            values //= 255 // ((1 << bits) - 1)
        return values, None
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        pixels = np.asarray(image.convert("RGBA"))
        return pixels[..., :3], pixels[..., 3]
    return np.asarray(_to_rgb(image)), None


def _of_dark_palette(image: Image.Image, values: np.ndarray) -> np.ndarray:
    """The greys of a palette that is too dark to be looked at: they are the ids, in another order since a tool made the file smaller."""
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(values)
    if used.max() >= len(palette) or (palette[used] != palette[used, :1]).any() or palette[used].max() >= DARK:
        return values
    return palette[:, 0][values]


def _by_colour(pixels: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """uint8 (H, W): i where the pixel is colours[i], 255 where it is VOC_BORDER and that is not listed; pixels: uint8 (H, W, 3)."""
    if pixels.dtype != np.uint8 or pixels.shape[2] != 3:
        raise BadPicture(f"mask holds values of type {pixels.dtype}, and classes.txt names colours of 8 bits; save it as 8-bit RGB")
    weights = np.array([65536, 256, 1], np.uint32)
    codes, listed = pixels @ weights, np.array(colours, np.uint32).reshape(-1, 3) @ weights
    order = np.argsort(listed)
    places = order[np.searchsorted(listed[order], codes).clip(max=len(listed) - 1)] if len(listed) else np.zeros_like(codes, int)
    unknown = codes != listed[places] if len(listed) else np.ones_like(codes, bool)
    border = unknown & (codes == VOC_BORDER)
    unknown &= ~border
    if unknown.any():
        found, counts = np.unique(codes[unknown], return_counts=True)
        most = counts.argmax()
        raise BadPicture(
            f"mask holds the colour #{int(found[most]):06x} in {int(counts[most])} pixels, which no class in classes.txt has"
            f"{f' (and {len(found) - 1} other such colours)' if len(found) > 1 else ''}"
            f"{'; many colours are smoothed edges: resize masks with nearest neighbour' if len(found) > MANY_COLOURS else ''}"
        )
    return np.where(border, IGNORE, places).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:
        value = tiff.orientation_of(image.info.get("exif") or b"")
    return value if value in TURNS else 1


def _doubt_alpha(layer: Image.Image) -> tuple[str, ...]:
    """A real alpha band is 0 or 255 nearly everywhere, or one value, or a few."""
    counts = np.array(layer.getchannel("A").histogram())
    if counts[0] == counts.sum():
        return ("wholly_transparent",)
    return ("alpha_is_not_transparency",) if 2 * (counts[0] + counts[255]) < counts.sum() and (counts > 0).sum() > 16 else ()


def _to_layer(deep: Deep) -> Image.Image:
    """Grey, RGB or RGBA."""
    shown = stretch(deep)
    layer = Image.fromarray(shown[..., 0] if shown.shape[2] == 1 else shown)
    if deep.alpha is None:
        return layer
    alpha = Image.fromarray(deep.alpha)
    return Image.merge("RGBa" if deep.premultiplied else "RGBA", [*layer.convert("RGB").split(), alpha])


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return to_rgb.apply(image)
    return image.convert("RGB")


def _name(colour: np.ndarray) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)
