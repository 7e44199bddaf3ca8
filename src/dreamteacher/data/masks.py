"""Bytes -> what a mask holds: ids of classes, numbers of objects or other values; or a reason why not."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import partial

import numpy as np
from PIL import Image

from dreamteacher.data import tiff
from dreamteacher.data.deep import jpeg_2000_facts
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.items import IGNORE
from dreamteacher.data.load import TIFF_MARKS, Source, load, to_rgb, whatever_the_metadata, without_other_band

VOC_BORDER = 0xE0E0C0  # the colour around objects in Pascal VOC's masks, index 255 of its palette
MANY_COLOURS = 8  # that are not listed
DARK = 64  # of 255; a palette of greys below holds ids, any other colours


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
    return read_mask(data, max_pixels=max_pixels, colours=colours)[0]


def read_mask(
    data: bytes, *, max_pixels: int = 100_000_000, colours: list[tuple[int, int, int]] | None = None
) -> tuple[np.ndarray, dict[int, int]]:
    """The mask as `decode_mask` gives it, and {colour: id} of what it uniquely uses of its palette, {} without one. Where files of a set
    differ in these, a tool has put their palettes in order, and the numbers are no classes. Errors: as `decode_mask`."""
    return whatever_the_metadata(partial(_read_mask, max_pixels=max_pixels, colours=colours), data, "mask", max_pixels)


def decode_numbers(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a mask that numbers objects: int64 (H, W), 0 where there is none, -1 where it has the colour of Pascal VOC's borders.

    Numbers are stored in one channel of any depth, in a palette (the index) or in equal channels; of any other colours each is a number.

    Raises:
        BadPicture: as `decode`; several pages; negative numbers or fractions; transparent pixels; a lossy format.
        MemoryError: an allocation failed.
    """
    if is_lossy(data):
        raise BadPicture("mask is in a lossy format, such as JPEG, which changes numbers; store masks as PNG")
    return whatever_the_metadata(partial(_decode_numbers, max_pixels=max_pixels), data, "mask", max_pixels)


def decode_values(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """The values of a file of one channel as they are, of any number type (H, W); (H, W, 3) where it has colours.

    Raises:
        BadPicture: as `decode`; several pages; transparent pixels; a lossy format.
        MemoryError: an allocation failed.
    """
    if is_lossy(data):
        raise BadPicture("mask is in a lossy format, such as JPEG, which changes numbers; store masks as PNG")
    return whatever_the_metadata(lambda file, _: _values_of_mask(file, max_pixels, by_colour=False)[0], data, "mask", max_pixels)


def is_lossy(data: bytes) -> bool:
    """Whether it is JPEG or the like, also inside a TIFF, which changes values: no format for masks."""
    with suppress(ValueError, struct.error):  # what is damaged is said when it is read
        if data[:4] in TIFF_MARKS:
            return tiff.read_layout(data).compression in tiff.JPEG
        if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
            return not jpeg_2000_facts(data).lossless
    return data[:2] == b"\xff\xd8" or data[4:8] == b"ftyp" or (data[8:12] == b"WEBP" and b"VP8L" not in data[:64])


def turn_upright(mask: np.ndarray, orientation: int) -> np.ndarray:
    """What EXIF's `orientation` does to a picture, done to its mask (H, W, ...) of any type."""
    if orientation > 4:
        mask = mask.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        mask = mask[::-1]
    return mask[:, ::-1] if orientation in (2, 3, 6, 7) else mask


def _decode_numbers(data: bytes, _: int | None, *, max_pixels: int) -> np.ndarray:
    values, palette = _values_of_mask(data, max_pixels, by_colour=False)
    if values.ndim == 3:
        values = values.astype(np.int64) @ np.array([65536, 256, 1])
        palette = {VOC_BORDER: VOC_BORDER}
    if values.dtype.kind == "f" and not (values == np.rint(values)).all():
        raise BadPicture("mask holds values that are no whole numbers; give each object a number")
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise BadPicture(f"mask holds the value {values.min() if values.min() < 0 else values.max()}; objects are numbered from 1")
    return np.where(values == palette[VOC_BORDER], -1, values.astype(np.int64)) if VOC_BORDER in palette else values.astype(np.int64)


def _values_of_mask(data: bytes, max_pixels: int, *, by_colour: bool) -> tuple[np.ndarray, dict[int, int]]:
    """Numbers (H, W) of any type, or colours (H, W, 3) where the mask has any or, `by_colour`, in any case; the palette of `read_mask`."""
    palette: dict[int, int] = {}
    source = load(data, max_pixels, 1)
    if source.frames > 1:
        raise BadPicture(f"mask holds {source.frames} pages or frames; store class ids in one (of several objects, merge their masks)")
    if source.deep:
        values, alpha = source.deep.values, source.deep.alpha
        if source.layout:
            values = turn_upright(values, source.layout.orientation)
    else:
        values, alpha, palette = _mask_values(source, data, by_colour=by_colour)
    if alpha is not None and alpha.min() < 255:
        raise BadPicture("mask has transparent pixels, which have no class; save it without transparency")
    if not by_colour and values.ndim == 3 and (values.shape[2] == 1 or (values == values[..., :1]).all()):
        return values[..., 0], palette
    return values, palette


def _read_mask(
    data: bytes, _: int | None, *, max_pixels: int, colours: list[tuple[int, int, int]] | None
) -> tuple[np.ndarray, dict[int, int]]:
    values, palette = _values_of_mask(data, max_pixels, by_colour=colours is not None)
    if colours is not None:
        return _by_colour(values, colours), {}
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
    return values.astype(np.int16).astype(np.uint8), palette  # -1 becomes 255


def _mask_values(source: Source, data: bytes, *, by_colour: bool) -> tuple[np.ndarray, np.ndarray | None, dict[int, int]]:
    """Class ids (H, W), or colours (H, W, 3) if the mask is in colours or `by_colour`; its alpha; the palette of `read_mask`."""
    image = without_other_band(source, data)
    if not by_colour and image.mode in ("1", "L", "P"):
        values = np.asarray(image).astype(np.uint8)
        bits = source.layout.bits if source.layout else data[24] if image.format == "PNG" else 8
        if image.mode == "P":
            return _of_palette(image, values)
        if image.mode == "L" and bits < 8:  # Pillow spreads them over 0 to 255
            values //= 255 // ((1 << bits) - 1)
        return values, None, {}
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        pixels = np.asarray(image.convert("RGBA"))
        return pixels[..., :3], pixels[..., 3], {}
    return np.asarray(to_rgb(image)), None, {}


def _of_palette(image: Image.Image, values: np.ndarray) -> tuple[np.ndarray, None, dict[int, int]]:
    """The indices, no alpha, and the palette of `read_mask`.

    The greys of a palette that is too dark to be looked at are the ids, in another order since a tool made the file smaller; white among
    them is 255, unknown.
    """
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(values)
    if used.max() >= len(colours):
        return values, None, {}
    greys, shown = colours[:, 0], colours[used, 0]
    dark = shown[shown < IGNORE]
    are_ids = (
        (colours[used] == colours[used, :1]).all()
        and len(dark) > 0
        and dark.max() < DARK
        and (len(dark) == len(shown) or dark.max() > 0)  # of black and white the indices count
        and len(np.unique(greys[: used.max() + 1])) == used.max() + 1  # a palette that was never filled says nothing
    )
    codes, first, counts = np.unique(colours[used] @ np.array([65536, 256, 1]), return_index=True, return_counts=True)
    ids = shown if are_ids else used
    once = {int(code): int(ids[i]) for code, i, n in zip(codes, first, counts, strict=True) if n == 1}
    return (greys[values] if are_ids else values), None, once


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


def _name(colour: np.ndarray) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)
