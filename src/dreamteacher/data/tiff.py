"""Scientific TIFF: layout from the header, and values at full depth, for which Pillow has no modes."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dreamteacher.data.formats import BadPicture
from dreamteacher.data.tiff_tags import (
    BITS,
    COMPRESSION,
    DESCRIPTION,
    EXTRA,
    FILL_ORDER,
    FORMAT,
    GDAL,
    HEIGHT,
    NODATA,
    PHOTOMETRIC,
    PIXEL_TAGS,
    PLANAR,
    PREDICTOR,
    ROWS,
    SAMPLES,
    STRIP_SIZES,
    STRIPS,
    SUBFILE,
    TILE_HEIGHT,
    TILE_SIZES,
    TILE_WIDTH,
    TILES,
    WIDTH,
    directories_of,
    one_number,
    orientation_in,
    read_tags,
    with_directory,
)  # fmt: skip

_KINDS = {1: "unsigned integer", 2: "signed integer", 3: "float", 4: "unsigned integer", 5: "complex integer", 6: "complex"}
# Lossless compressions, which libtiff decompresses independently of the sample format; the predictor is undone here.
_PLAIN, _WITH_PREDICTOR = {1, 32773}, {5, 8, 32946, 34925, 50000}
JPEG = {6, 7}  # compressions
FIRST_THREE = (0, 1, 2)
_COLOUR_OF_BAND = re.compile(rb'<Item name="(?:COLORINTERP|DESCRIPTION)" sample="(\d{1,4})"[^>]*>\s*(red|green|blue)\s*<', re.IGNORECASE)
_COMPRESSIONS = {6: "old JPEG", 7: "JPEG", 34712: "JPEG 2000", 33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 50002: "JPEG XL"}
_PHOTOMETRICS = {
    4: "a transparency mask",
    8: "CIELab",
    9: "ICCLab",
    32803: "a camera's raw sensor (DNG)",
    34892: "a camera's raw data (DNG)",
}
_PHOTOMETRICS |= {32844: "LogL", 32845: "LogLuv"}


@dataclass(frozen=True)
class Layout:
    """Header of the first full-size picture of a TIFF.

    frames: number of full-size pictures. bits: per sample, 0 if they differ. kind: SampleFormat (1 unsigned, 2 signed, 3 float, 5 and 6
    complex). alpha: index of the band that is declared as transparency, or None. premultiplied: by alpha. nodata: GDAL's marker. rgb:
    indices of the red, green and blue bands by GDAL's metadata, else the first three.
    """

    order: str
    tags: dict[int, tuple]
    frames: int
    width: int
    height: int
    bands: int
    bits: int
    kind: int
    photometric: int
    compression: int
    planar: bool
    alpha: int | None
    premultiplied: bool
    nodata: float | None
    orientation: int
    is_first: bool
    rgb: tuple[int, int, int] = FIRST_THREE

    @property
    def is_deep(self) -> bool:
        """Whether samples need more than unsigned bytes. (16-bit CMYK is left to Pillow, which takes the high byte.)"""
        return self.photometric not in (3, 5) and (self.bits > 8 or self.bits == 0 or self.kind not in (1, 4))

    @property
    def leaves_out_bands(self) -> bool:
        """Whether bands are neither used nor transparency. (CMYK has four.)"""
        return self.photometric != 5 and self.bands - (self.alpha is not None) not in (1, 3)

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of a tile, (1, 1) for a picture in strips."""
        return max(1, one_number(self.tags, TILE_WIDTH, 1)), max(1, one_number(self.tags, TILE_HEIGHT, 1))

    @property
    def colours(self) -> int:
        """3 (RGB) if at least three bands are not transparency, else 1 (grey)."""
        return 3 if self.bands - (self.alpha is not None) >= 3 else 1

    def __str__(self) -> str:
        sample = f"{self.bits}-bit {_KINDS.get(self.kind, 'unknown')}" if self.bits else "different depths"
        words = f"a TIFF of {self.bands} band{'s' * (self.bands > 1)} of {sample}"
        if self.photometric in _PHOTOMETRICS:
            words += f", {_PHOTOMETRICS[self.photometric]}"
        if self.compression not in _PLAIN | _WITH_PREDICTOR:
            words += f", compressed by {_COMPRESSIONS.get(self.compression, f'method {self.compression}')}"
        return words


def orientation_of(exif: bytes) -> int:
    """The orientation (1 to 8) in a block of EXIF, even if it is otherwise damaged; 1 if there is none."""
    try:
        return orientation_in(read_tags(*next(directories_of(exif.removeprefix(b"Exif\0\0")))))
    except (struct.error, StopIteration, ValueError):
        return 1


def read_layout(data: bytes) -> Layout:
    """Read the header.

    Raises:
        ValueError, struct.error: it is damaged.
    """
    directories = list(directories_of(data))
    # Skip reduced copies (pyramids, thumbnails) and masks. Entries are sorted, so SUBFILE is among the first.
    full = [each for each in directories if not one_number(read_tags(*each[:2], min(each[2], 4)), SUBFILE, 0) & 0b101]
    if not directories:
        raise ValueError("a TIFF without a picture")
    chosen = (full or directories)[0]
    tags = read_tags(*chosen, strict=True)
    # ImageJ writes one directory for a stack of more than 4 GB.
    stack = re.match(rb"ImageJ=[^\0]*\nimages=(\d{1,9})\s", b"".join(tags.get(DESCRIPTION, ())))
    bands = one_number(tags, SAMPLES, 1)
    bits = tags.get(BITS, (1,))[:bands]
    kinds = tags.get(FORMAT, (1,))[:bands]
    extra = tags.get(EXTRA, ())
    alpha = next((bands - len(extra) + i for i, meaning in enumerate(extra) if meaning in (1, 2, 999)), None)  # 999: CorelDRAW's
    try:
        nodata = float(b"".join(tags.get(NODATA, ())).split(b"\0")[0])
    except ValueError:
        nodata = None
    layout = Layout(
        order="<" if data[:2] == b"II" else ">",
        tags=tags,
        frames=max(len(full), 1, int(stack[1]) if stack and len(directories) == 1 else 0),
        width=one_number(tags, WIDTH),
        height=one_number(tags, HEIGHT),
        bands=bands,
        bits=bits[0] if len(set(bits)) == 1 else 0,
        kind=kinds[0] if len(set(kinds)) == 1 else 0,
        photometric=one_number(tags, PHOTOMETRIC, 0),
        compression=one_number(tags, COMPRESSION, 1),
        planar=one_number(tags, PLANAR, 1) == 2 and bands > 1,
        alpha=alpha if alpha is not None and 0 < alpha < bands else None,
        premultiplied=alpha is not None and 1 in extra,
        nodata=nodata,
        orientation=orientation_in(tags),
        is_first=chosen is directories[0],
        rgb=_named_colours(tags, bands),
    )
    if min(layout.width, layout.height, layout.bands) < 1:
        raise ValueError("a picture without pixels")
    return layout


def _named_colours(tags: dict[int, tuple], bands: int) -> tuple[int, int, int]:
    """Indices of the red, green and blue bands by GDAL's metadata (satellite data often has blue first), if each occurs once and bands can
    be read in any order; else the first three."""
    found = _COLOUR_OF_BAND.findall(b"".join(tags.get(GDAL, ())))
    named = {(name.lower(), int(band)) for band, name in found if int(band) < bands}
    by_name = dict(named)
    readable = one_number(tags, COMPRESSION, 1) in _PLAIN | _WITH_PREDICTOR and one_number(tags, PHOTOMETRIC, 0) in (1, 2)
    if len(named) != 3 or len(by_name) != 3 or not readable:
        return FIRST_THREE
    return by_name[b"red"], by_name[b"green"], by_name[b"blue"]


def without_metadata(data: bytes, layout: Layout) -> bytes:
    """The file with only the tags that pixels need; ValueError if pixel data is missing."""
    return with_directory(data, layout.order, {tag: value for tag, value in layout.tags.items() if tag in PIXEL_TAGS})


def read_values(data: bytes, layout: Layout, bands: list[int], max_bytes: int) -> np.ndarray:
    """The stored values of some bands: (H, W, len(bands)), of the file's type (depths between 8 and 16 as uint16).

    libtiff (in Pillow) decompresses strips or tiles as rows of bytes, which are interpreted here. Unsigned values are inverted if white is
    zero.

    Raises:
        BadPicture: unsupported samples or compression, or more than `max_bytes` in memory.
        Exception: the data is damaged.
    """
    dtype = _dtype(layout)
    if dtype is None or layout.compression not in _PLAIN | _WITH_PREDICTOR or layout.photometric not in (0, 1, 2):
        raise unsupported(layout)
    samples = 1 if layout.planar else layout.bands  # per pixel of a plane
    across, down = (-(-side // tile) * tile for side, tile in zip((layout.width, layout.height), layout.tile, strict=True))
    if across * down * samples * max(layout.bits // 8, 1) > max_bytes:
        raise BadPicture(f"too large: {layout.width} x {layout.height} pixels of {layout} need more than {max_bytes // 1_000_000} MB")
    if layout.planar:
        values = np.dstack([_read_plane(data, layout, dtype, 1, band) for band in bands])
    else:
        values = _read_plane(data, layout, dtype, samples, 0).reshape(layout.height, layout.width, samples)
        if list(range(samples)) != bands:
            values = np.ascontiguousarray(values[..., bands])
    if layout.photometric == 0 and layout.kind in (1, 4):
        values = ((1 << layout.bits) - 1 - values).astype(values.dtype)
    return values


def unsupported(layout: Layout) -> BadPicture:
    """The error for an unsupported TIFF, with its properties and the remedy."""
    choose = " -b 1 -b 2 -b 3" if layout.colours == 3 else " -b 1"
    return BadPicture(f"{layout}, which is not read; write 8 or 16 bits (gdal_translate{choose} -scale -ot Byte)")


def _dtype(layout: Layout) -> np.dtype | None:
    """The numpy type of a stored sample; packed depths as uint16; None if unsupported."""
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(layout.kind)
    if kind == "u" and 0 < layout.bits < 16 and layout.bits != 8:
        return np.dtype(np.uint16)
    if kind and layout.bits in ((16, 32, 64) if kind == "f" else (8, 16, 32, 64)):
        return np.dtype(f"{layout.order}{kind}{layout.bits // 8}")
    return None


def _read_plane(data: bytes, layout: Layout, dtype: np.dtype, samples: int, band: int) -> np.ndarray:
    """One plane, (H, W * samples). libtiff reads the file as a grey 8-bit picture, as wide as a row has bytes."""
    packed = layout.bits % 8 != 0
    tile_width = one_number(layout.tags, TILE_WIDTH, 0)
    block = tile_width or layout.width  # pixels of a row per strip or tile
    row = (block * samples * layout.bits + 7) // 8
    across = -(-layout.width // block)
    tags = {tag: layout.tags[tag] for tag in (FILL_ORDER, ROWS, TILE_HEIGHT) if tag in layout.tags}
    tags |= {WIDTH: (row * across,), HEIGHT: (layout.height,), BITS: (8,), SAMPLES: (1,), PHOTOMETRIC: (1,), PLANAR: (1,)}
    tags |= {COMPRESSION: (layout.compression,)} | ({TILE_WIDTH: (row,)} if tile_width else {})
    for places, sizes in ((STRIPS, STRIP_SIZES), (TILES, TILE_SIZES)):
        if places in layout.tags:
            tall = one_number(layout.tags, TILE_HEIGHT if tile_width else ROWS, layout.height)
            down = -(-layout.height // max(1, min(tall, layout.height)))
            mine = slice(band * down * across, (band + 1) * down * across) if layout.planar else slice(None)
            tags[places] = layout.tags[places][mine]
            if sizes in layout.tags:
                tags[sizes] = layout.tags[sizes][mine]
    with Image.open(io.BytesIO(with_directory(data, layout.order, tags)), formats=("TIFF",)) as image:
        rows = np.array(image).reshape(layout.height, across, row)
    if packed:
        values = _unpack(rows, layout.bits, block * samples)
    else:
        predictor = one_number(layout.tags, PREDICTOR, 1) if layout.compression in _WITH_PREDICTOR else 1
        if predictor == 3:  # floating-point predictor: byte planes, most significant first, as differences
            rows = np.cumsum(rows.reshape(layout.height, across, -1, samples), axis=2, dtype=np.uint8).reshape(rows.shape)
            planes = rows.reshape(layout.height, across, dtype.itemsize, block * samples)
            values = np.ascontiguousarray(planes.swapaxes(2, 3)).view(dtype.newbyteorder(">"))[..., 0]
        else:
            values = rows.view(dtype)
        values = values.astype(dtype.newbyteorder("="), copy=False)
        if predictor == 2:
            unsigned = values.view(f"u{dtype.itemsize}").reshape(layout.height, across, block, samples)
            values = np.cumsum(unsigned, axis=2, dtype=unsigned.dtype).view(values.dtype).reshape(values.shape)
    return values.reshape(layout.height, -1)[:, : layout.width * samples]


def _unpack(rows: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Unpack samples of `bits` bits, most significant first: (H, blocks, bytes) -> uint16 (H, blocks, count)."""
    values = np.empty((*rows.shape[:2], count), np.uint16)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint16)
    for y in range(len(rows)):
        values[y] = np.unpackbits(rows[y], axis=-1)[:, : count * bits].reshape(-1, count, bits) @ weights
    return values
