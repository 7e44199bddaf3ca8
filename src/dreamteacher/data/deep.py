"""Pictures of more than 8 bits per sample: reading their values, and stretching them to 8 bits."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from dreamteacher.data import tiff
from dreamteacher.data.formats import BadPicture
from dreamteacher.data.tiff import Layout

CHUNK = 4_000_000  # values that are stretched at a time
NO_VALUE = 1e38  # magnitude from which floats count as no data: many tools write the lowest float32 for it, often without a tag


USUAL_NODATA = {-9999.0, -99999.0, -32768.0}  # ESRI; int16 elevation (SRTM)


@dataclass(frozen=True)
class Deep:
    """values: (H, W, C), C = 1 or 3, any number type. alpha: uint8 (H, W) or None. premultiplied: values are multiplied by alpha. nodata:
    the value per band of pixels that the file declares to be no data."""

    values: np.ndarray
    alpha: np.ndarray | None = None
    premultiplied: bool = False
    nodata: tuple[float, ...] | None = None


def read_deep(image: Any, data: bytes) -> Deep | None:
    """The values of a picture other than TIFF at full depth; None if it has 8 bits.

    Raises:
        BadPicture: colour of more than 8 bits in a format whose low bits cannot be read.
    """
    form = image.format
    if form == "PNG" and data[24] == 16:
        return _read_png(image, data)
    if form == "PPM" and image.mode in ("RGB", "I") and image.tile[0].codec_name in ("ppm", "raw"):
        return _read_pnm(image, data)
    if form == "JPEG2000" and image.mode != "I;16" and (bits := jpeg_2000_facts(data).bits) > 8:
        raise BadPicture(
            f"JPEG 2000 of {bits}-bit colour, of which only 8 bits can be read; write it as TIFF or PNG (gdal_translate, opj_decompress)"
        )
    if image.mode[0] in "IF":
        return Deep(np.asarray(image)[..., None])
    return None


def read_deep_tiff(data: bytes, layout: Layout, max_pixels: int) -> Deep:
    """The RGB bands of a TIFF (the first band of one or two) at full depth. Errors: as `tiff.read_values`."""
    bands = list(layout.rgb) if layout.colours == 3 else [0]
    values = tiff.read_values(data, layout, [*bands, *([layout.alpha] if layout.alpha is not None else [])], 8 * max_pixels)
    if layout.bits < 8:
        values = (values * (255 / ((1 << layout.bits) - 1))).round().astype(np.uint8)
    alpha = None
    if layout.alpha is not None:
        # With 16 bits, opaque may be 255, 4095 or 65535, depending on the writer.
        alpha = _by_maximum(values[..., -1]) if values.dtype != np.uint8 else np.ascontiguousarray(values[..., -1])
        values = values[..., :-1]
    return Deep(values, alpha, layout.premultiplied, None if layout.nodata is None else (layout.nodata,) * len(bands))


def stretch(deep: Deep) -> np.ndarray:
    """uint8 (H, W, C): the range over all bands mapped to 0..255; 8-bit values are unchanged.

    Not finite values, values beyond `NO_VALUE`, `nodata` (or one of USUAL_NODATA, far below all others) and fully transparent pixels do not
    affect the range; all but the transparent ones become 0.

    Raises:
        BadPicture: no value is finite.
    """
    values = deep.values
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    deep = _with_usual_nodata(deep)
    height, width, bands = values.shape
    rows = max(1, CHUNK // (width * bands))
    chunks = [slice(y, y + rows) for y in range(0, height, rows)]
    low, high, any_finite = np.inf, -np.inf, False
    for chunk in chunks:
        part, counts = values[chunk], _valid_values(deep, chunk)
        any_finite = any_finite or part.dtype.kind != "f" or bool(np.isfinite(part).any())
        if counts is not None:
            part = part[counts]
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    if not any_finite:
        raise BadPicture("holds no finite value")
    out = np.zeros(values.shape, np.uint8)
    if high > low:
        for chunk in chunks:
            part, counts = values[chunk].astype(np.float64), _valid_values(deep, chunk)
            if counts is not None:
                part = np.where(counts, part, low)
            out[chunk] = np.rint((part - low) * (255 / (high - low)))
    return out


def _with_usual_nodata(deep: Deep) -> Deep:
    """Set `nodata` to an undeclared marker (USUAL_NODATA), if that is the minimum and far below all other values."""
    low = float(np.fmin.reduce(deep.values, axis=None)) if deep.nodata is None and deep.values.dtype.kind in "if" else 0.0
    if low not in USUAL_NODATA:
        return deep
    others = deep.values[deep.values != low]
    if not others.size or float(np.fmin.reduce(others)) < low / 2:
        return deep
    return replace(deep, nodata=(low,) * deep.values.shape[2])


def _valid_values(deep: Deep, rows: slice) -> np.ndarray | None:
    """bool (rows, W, C): which values count for the range of the stretch; None if all do."""
    part = deep.values[rows]
    counts = None
    if part.dtype.kind == "f":
        counts = np.isfinite(part)
        if part.dtype.itemsize > 2:
            counts &= np.abs(part) < NO_VALUE
    if deep.nodata is not None:
        kept = np.zeros(part.shape[:2], bool)
        for band, marker in enumerate(deep.nodata):
            if np.isfinite(marker):
                kept |= part[..., band] != _as_type(marker, part.dtype)
        if np.isfinite(deep.nodata).all():
            counts = np.logical_and(True if counts is None else counts, kept[..., None])
    if deep.alpha is not None:
        counts = np.logical_and(True if counts is None else counts, (deep.alpha[rows] > 0)[..., None])
    return None if counts is None else np.broadcast_to(counts, part.shape)


def _as_type(marker: float, dtype: np.dtype) -> float | np.floating:
    """The marker rounded to the file's type: a tag's -3.40282346638529e+38 is the lowest float32."""
    with np.errstate(over="ignore"):
        return dtype.type(marker) if dtype.kind == "f" else marker


def _by_maximum(alpha: np.ndarray) -> np.ndarray:
    alpha = np.nan_to_num(alpha.astype(np.float32), posinf=0, neginf=0).clip(0)
    return np.rint(alpha * (255 / max(float(alpha.max()), 1e-30))).astype(np.uint8)


def _read_png(image: Image.Image, data: bytes) -> Deep:
    """Pillow reads only the high byte of 16-bit colour; its unpacker for the other byte order reads the low byte, so both are combined."""
    nodata = image.info.get("transparency")
    marker = None if nodata is None or isinstance(nodata, bytes) else tuple(float(v) for v in np.atleast_1d(nodata))
    colour_type = data[25]
    if colour_type == 0:
        return Deep(np.asarray(image)[..., None], nodata=marker)
    if colour_type == 4:  # grey with alpha: both bytes of both
        both = _unpacked(data, "RGBA")
        return Deep(_join(both[..., :1], both[..., 1:2]), np.ascontiguousarray(both[..., 2]))
    high, low = np.asarray(image), _unpacked(data, f"{image.mode};16L")
    alpha = np.ascontiguousarray(high[..., 3]) if colour_type == 6 else None
    return Deep(_join(high[..., :3], low[..., :3]), alpha, nodata=marker)


def _unpacked(data: bytes, raw_mode: str) -> np.ndarray:
    """The pixels of a 16-bit PNG, read with the given raw mode of Pillow."""
    image: Any = Image.open(io.BytesIO(data), formats=("PNG",))
    with image:
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        return np.asarray(image)


def _join(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high.astype(np.uint16) << 8 | low


def _read_pnm(image: Any, data: bytes) -> Deep | None:
    """Binary PGM and PPM with two bytes per value, which Pillow would rescale; None if they have one byte."""
    tile, bands = image.tile[0], len(image.getbands())
    args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    largest = 65535 if args[0] == "I;16B" else args[1] if len(args) > 1 and isinstance(args[1], int) else 255
    if largest < 256:
        return None
    count = image.width * image.height * bands
    if len(data) < tile.offset + 2 * count:
        raise BadPicture("damaged picture: image file is truncated")
    values = np.frombuffer(data, ">u2", count, tile.offset).astype(np.uint16)
    return Deep(values.reshape(image.height, image.width, bands))


@dataclass(frozen=True)
class Jpeg2000Facts:
    """bands: their number. bits: of the deepest. alpha: a band is declared as transparency. lossless: the reversible wavelet is used."""

    bands: int
    bits: int
    alpha: bool
    lossless: bool


def jpeg_2000_facts(data: bytes) -> Jpeg2000Facts:
    """Header fields that Pillow does not expose (ISO 15444-1, A.5.1, A.6.1, I.5.3.6). struct.error if the file is damaged."""
    start = data.index(b"\xff\x4f\xff\x51")
    (bands,) = struct.unpack_from(">H", data, start + 40)
    depths = struct.unpack_from(">" + "Bxx" * min(bands, 64), data, start + 42)
    coding = data.find(b"\xff\x52", start + 42)
    definition = data.find(b"cdef", 0, start)
    kinds: tuple[int, ...] = ()
    if definition >= 0:
        (count,) = struct.unpack_from(">H", data, definition + 4)
        kinds = struct.unpack_from(">" + "xxHxx" * min(count, 64), data, definition + 6)
    return Jpeg2000Facts(
        bands, max(depth & 0x7F for depth in depths) + 1, any(kind in (1, 2) for kind in kinds), coding >= 0 and data[coding + 13] == 1
    )
