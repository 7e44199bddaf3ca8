"""Depth maps: reading, statistics, storage."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dreamteacher.data.decode import BadPicture, Picture
from dreamteacher.data.deep import NO_VALUE
from dreamteacher.data.masks import decode_values, to_upright

SUFFIX = "depth.tif"  # of a stored label file
NUMPY = b"\x93NUMPY"
FAR = 1e9  # beyond any camera's range in any unit; Blender writes 1e10 for the background
UNIT_RATIO = 100  # ratio of map medians from which units differ; metres and millimetres differ by 1000
OCTAVES, BINS_PER_OCTAVE = 40, 32  # of the logarithmic histogram, from 2^-40 to 2^40: the median to 1 %


def read_depth(data: bytes, picture: Picture, max_pixels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a depth map: a PNG or TIFF of one channel (integers of any depth, or floats), or a .npy of (H, W).

    Returns:
        float32 (H, W) on the upright `picture`, in the file's unit; 0 where unknown: 0, negative, not finite, FAR or more, or the largest
        16- or 32-bit integer, which sensors write beyond their range. And keys of `decode.WARNINGS`.

    Raises:
        BadPicture: the map is damaged, of another size, in colours or in a lossy format.
    """
    values = _of_numpy(data, max_pixels) if data.startswith(NUMPY) else decode_values(data, max_pixels=max_pixels)
    if values.ndim == 3 or _has_colours(data):
        raise BadPicture("its depth is in colours; store it in one channel of 16 bits or floats")
    height, width = picture.image.shape[:2]
    values = to_upright(values, picture)
    if values.shape != (height, width):
        raise BadPicture(f"its depth is {values.shape[1]} x {values.shape[0]}, its picture {width} x {height}")
    with np.errstate(over="ignore", invalid="ignore"):
        depth = values.astype(np.float32)
    known = np.isfinite(depth) & (depth > 0) & (depth < (FAR if values.dtype.kind == "f" else NO_VALUE))
    if values.dtype.kind in "ui" and values.dtype.itemsize > 1:
        known &= values != np.iinfo(values.dtype).max
    return np.where(known, depth, np.float32(0)), ("depth_of_8_bits",) * (values.dtype.itemsize == 1)


def _has_colours(data: bytes) -> bool:
    """Whether a PNG or TIFF has a colour palette, so that its indices are not depths."""
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "TIFF"))
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    except (OSError, ValueError, SyntaxError):
        return False
    return image.mode == "P" and bool((palette != np.arange(len(palette), dtype=np.uint8)[:, None]).any())


def _of_numpy(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
        if kind.kind not in "uif" or len(shape) not in (2, 3) or not 0 < np.prod(shape, dtype=object) <= max_pixels:
            raise BadPicture(f"its .npy holds {kind} {shape}; depth is numbers (H, W)")
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except BadPicture:
        raise
    except Exception as error:  # numpy's reader raises almost anything
        raise BadPicture(f"damaged .npy: {type(error).__name__}") from error
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values[0] if values.ndim == 3 and len(values) == 1 else values


class DepthCounts:
    """Minimum, median and maximum over many depth maps in constant memory, independent of their order."""

    def __init__(self) -> None:
        self._counts = np.zeros(2 * OCTAVES * BINS_PER_OCTAVE, np.int64)
        self._least, self._most = np.inf, 0.0
        self._middles = np.inf, 0.0

    def add(self, depth: np.ndarray) -> None:
        """Add a map (H, W); unknown pixels (0) are left out."""
        known = depth[depth > 0]
        if known.size:
            places = ((np.log2(known.astype(np.float64)) + OCTAVES) * BINS_PER_OCTAVE).astype(np.int64).clip(0, len(self._counts) - 1)
            self._counts += np.bincount(places, minlength=len(self._counts))
            self._least, self._most = min(self._least, float(known.min())), max(self._most, float(known.max()))
            middle = float(np.median(known))
            self._middles = min(self._middles[0], middle), max(self._middles[1], middle)

    def unit_mismatch(self) -> tuple[float, float] | None:
        """The smallest and the largest median of a map, if they differ so much that units probably differ; else None."""
        return self._middles if self._middles[1] > UNIT_RATIO * self._middles[0] else None

    def span(self) -> dict[str, float]:
        """`min`, `median` and `max`, in the maps' unit; {} if no depth is known."""
        if not self._counts.any():
            return {}
        middle = int(np.searchsorted(self._counts.cumsum(), self._counts.sum() / 2))
        median = min(max(2 ** ((middle + 0.5) / BINS_PER_OCTAVE - OCTAVES), self._least), self._most)
        return {name: float(f"{value:.4g}") for name, value in (("min", self._least), ("median", median), ("max", self._most))}


def describe_span(span: dict[str, float]) -> str:
    """The result of `DepthCounts.span` in words."""
    return "{min:g} to {max:g}, half of it below {median:.3g}".format(**span)


def to_tiff(depth: np.ndarray) -> bytes:
    """Encode a depth map (H, W) for storage, as float32."""
    file = io.BytesIO()
    Image.fromarray(depth.astype(np.float32)).save(file, "TIFF", compression="tiff_adobe_deflate")
    return file.getvalue()


def from_tiff(data: bytes) -> np.ndarray:
    """The inverse of `to_tiff`."""
    return np.array(Image.open(io.BytesIO(data), formats=("TIFF",)), np.float32)
