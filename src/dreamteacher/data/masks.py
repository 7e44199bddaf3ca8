"""Decode masks: class ids, object numbers or other values."""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dreamteacher.data import tiff
from dreamteacher.data.deep import jpeg_2000_facts
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.items import IGNORE
from dreamteacher.data.load import TIFF_MARKS, Source, drop_false_alpha, load, retry_without_metadata, to_rgb

if TYPE_CHECKING:
    from dreamteacher.data.decode import Picture

VOC_BORDER = 0xE0E0C0  # the colour around objects in Pascal VOC's masks, index 255 of its palette
MANY_COLOURS = 8  # unlisted colours, from which interpolation is suspected
DARK = 64  # greys below it in a palette are taken as ids, other palettes as colours


def decode_mask(data: bytes, *, max_pixels: int = 100_000_000, colours: list[tuple[int, int, int]] | None = None) -> np.ndarray:
    """Decode a class mask: uint8 (H, W) of class ids, 255 for unknown.

    Without `colours`, ids are stored in one channel of any depth, as palette indices, as bits, or in equal RGB channels; 255 and -1 are
    unknown. With `colours`, a pixel of colour colours[i] has class i; the border colour of Pascal VOC is unknown.

    Raises:
        BadPicture: as `decode`; several pages; an id above 255; a colour that is not in `colours`; colours without a list; transparent
            pixels.
        MemoryError: an allocation failed.
    """
    return read_mask(data, max_pixels=max_pixels, colours=colours)[0]


def read_mask(
    data: bytes, *, max_pixels: int = 100_000_000, colours: list[tuple[int, int, int]] | None = None
) -> tuple[np.ndarray, dict[int, int]]:
    """The mask as `decode_mask` returns it, and {colour: id} of the unique colours used in its palette ({} without one). If these differ
    between files, a tool has sorted the palettes, and indices are not classes. Errors: as `decode_mask`."""
    return retry_without_metadata(partial(_read_mask, max_pixels=max_pixels, colours=colours), data, "mask", max_pixels)


def decode_numbers(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """Decode a mask of object numbers: int64 (H, W), 0 for no object, -1 for the border colour of Pascal VOC.

    Numbers are stored in one channel of any depth, as palette indices or in equal channels; otherwise each colour is a number.

    Raises:
        BadPicture: as `decode`; several pages; negative numbers or fractions; transparent pixels; a lossy format.
        MemoryError: an allocation failed.
    """
    if is_lossy(data):
        raise BadPicture("mask is in a lossy format, such as JPEG, which changes numbers; store masks as PNG")
    return retry_without_metadata(partial(_decode_numbers, max_pixels=max_pixels), data, "mask", max_pixels)


def decode_values(data: bytes, *, max_pixels: int = 100_000_000) -> np.ndarray:
    """The unchanged values of a file: (H, W) of any number type, or (H, W, 3) if it has colours.

    Raises:
        BadPicture: as `decode`; several pages; transparent pixels; a lossy format.
        MemoryError: an allocation failed.
    """
    if is_lossy(data):
        raise BadPicture("mask is in a lossy format, such as JPEG, which changes numbers; store masks as PNG")
    return retry_without_metadata(lambda file, _: _values_of_mask(file, max_pixels, by_colour=False)[0], data, "mask", max_pixels)


def is_lossy(data: bytes) -> bool:
    """Whether the format is lossy, such as JPEG, also inside a TIFF, so that it changes the values of masks."""
    with suppress(ValueError, struct.error):  # damage is reported when it is decoded
        if data[:4] in TIFF_MARKS:
            return tiff.read_layout(data).compression in tiff.JPEG
        if data[:4] == b"\xff\x4f\xff\x51" or data[4:8] == b"jP  ":
            return not jpeg_2000_facts(data).lossless
    return data[:2] == b"\xff\xd8" or data[4:8] == b"ftyp" or (data[8:12] == b"WEBP" and b"VP8L" not in data[:64])


def exif_transpose(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF's `orientation` to a mask (H, W, ...)."""
    if orientation > 4:
        mask = mask.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        mask = mask[::-1]
    return mask[:, ::-1] if orientation in (2, 3, 6, 7) else mask


def to_upright(values: np.ndarray, picture: Picture) -> np.ndarray:
    """A label map (H, W) on the upright `picture`: transposed if only the stored pixels have its size, else unchanged."""
    height, width = picture.image.shape[:2]
    if picture.orientation > 4 and width != height and values.shape == (width, height):
        return exif_transpose(values, picture.orientation)
    return values


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
    """Numbers (H, W), or colours (H, W, 3) if the mask is in colours or `by_colour`; the palette of `read_mask`."""
    palette: dict[int, int] = {}
    source = load(data, max_pixels, 1)
    if source.frames > 1:
        raise BadPicture(f"mask holds {source.frames} pages or frames; store class ids in one (of several objects, merge their masks)")
    if source.deep:
        values, alpha = source.deep.values, source.deep.alpha
        if source.layout:
            values = exif_transpose(values, source.layout.orientation)
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
    """Class ids (H, W), or colours (H, W, 3) if the mask is in colours or `by_colour`; alpha; the palette of `read_mask`."""
    image = drop_false_alpha(source, data)
    if not by_colour and image.mode in ("1", "L", "P"):
        values = np.asarray(image).astype(np.uint8)
        bits = source.layout.bits if source.layout else data[24] if image.format == "PNG" else 8
        if image.mode == "P":
            return _of_palette(image, values)
        if image.mode == "L" and bits < 8:  # Pillow scales them to 0 to 255
            values //= 255 // ((1 << bits) - 1)
        return values, None, {}
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa"):
        pixels = np.asarray(image.convert("RGBA"))
        return pixels[..., :3], pixels[..., 3], {}
    return np.asarray(to_rgb(image)), None, {}


def _of_palette(image: Image.Image, values: np.ndarray) -> tuple[np.ndarray, None, dict[int, int]]:
    """The ids of a palette mask, no alpha, and the palette of `read_mask`.

    Ids are the palette indices. In a palette of very dark greys the greys are the ids, reordered by a tool that optimised the file; white
    is then 255, unknown.
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
        and (len(dark) == len(shown) or dark.max() > 0)  # for black and white the indices are the ids
        and len(np.unique(greys[: used.max() + 1])) == used.max() + 1  # a palette that was never filled has no meaning
    )
    codes, first, counts = np.unique(colours[used] @ np.array([65536, 256, 1]), return_index=True, return_counts=True)
    ids = shown if are_ids else used
    once = {int(code): int(ids[i]) for code, i, n in zip(codes, first, counts, strict=True) if n == 1}
    return (greys[values] if are_ids else values), None, once


def _by_colour(pixels: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """Class ids, uint8 (H, W), of pixels uint8 (H, W, 3): i for colours[i], 255 for VOC_BORDER if that is not listed."""
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
