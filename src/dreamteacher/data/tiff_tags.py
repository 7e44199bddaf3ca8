"""TIFF directories: fault-tolerant reading of tags, and writing a new directory."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

# Numbers of tags (TIFF 6.0; the last two are GDAL's).
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, DESCRIPTION = 254, 256, 257, 258, 259, 262, 266, 270
STRIPS, ORIENTATION, SAMPLES, ROWS, STRIP_SIZES, PLANAR, PREDICTOR = 273, 274, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES, EXTRA, FORMAT, GDAL, NODATA = 322, 323, 324, 325, 338, 339, 42112, 42113
# Tags that describe the pixels; all others are metadata. (292, 293: CCITT; 320: colour map; 347, 512 to 521: JPEG; 529 to 532: YCbCr.)
PIXEL_TAGS = {
    *(SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIPS, ORIENTATION, SAMPLES, ROWS, STRIP_SIZES, PLANAR),
    *(PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES, EXTRA, FORMAT, 292, 293, 320, 347, *range(512, 522), *range(529, 533)),
}

_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 6: "b", 7: "s", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q", 18: "Q"}
_NEEDED = PIXEL_TAGS | {DESCRIPTION, GDAL, NODATA}
_MAX_VALUES = 4_000_000  # per tag: enough for strips of one row, or tiles of 16 x 16 in 10^9 pixels
_MAX_PAGES = 100_000  # further ones are not counted


class _File(NamedTuple):
    """A file: bytes, byte order, struct formats of offsets and entry counts, and the size of an entry in bytes."""

    data: bytes
    order: str
    word: str
    counter: str
    entry: int


def directories_of(data: bytes) -> Iterator[tuple[_File, int, int]]:
    """Yield (file, offset of the first entry, number of entries) of each directory."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no TIFF")
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    file = _File(data, order, *(("Q", "Q", 20) if big else ("I", "H", 12)))
    (place,) = struct.unpack_from(order + file.word, data, 8 if big else 4)
    seen: set[int] = set()
    while place and place not in seen and len(seen) < _MAX_PAGES:
        seen.add(place)
        try:
            (count,) = struct.unpack_from(order + file.counter, data, place)
            start = place + struct.calcsize(file.counter)
            yield file, start, min(count, max(len(data) - start, 0) // file.entry)
            (place,) = struct.unpack_from(order + file.word, data, start + count * file.entry)
        except (struct.error, OverflowError):
            return


def read_tags(file: _File, start: int, count: int, *, strict: bool = False) -> dict[int, tuple]:
    """{tag: values} of the tags that are needed here; the first entry of each; damaged entries are skipped.

    Raises:
        ValueError: `strict`, and values of a tag that pixels need lie outside the file.
    """
    tags: dict[int, tuple] = {}
    for at in range(start, start + min(count, 65535) * file.entry, file.entry):
        tag, kind = struct.unpack_from(file.order + "HH", file.data, at)
        if tag not in _NEEDED or tag in tags:
            continue
        value = _values(file, kind, at + 4)
        if value:
            tags[tag] = value
        elif value is None and strict and tag in PIXEL_TAGS:
            raise ValueError(f"tag {tag} of the TIFF lies outside the file")
    return tags


def _values(file: _File, kind: int, at: int) -> tuple | None:
    """Values of an entry, rationals as floats, text as one bytes object; () if damaged, None if they lie outside the file."""
    if kind not in _TYPES:
        return ()
    letters, inline = _TYPES[kind], struct.calcsize(file.word)
    (count,) = struct.unpack_from(file.order + file.word, file.data, at)
    place, size = at + inline, struct.calcsize(file.order + letters) * count
    if size > inline:
        (place,) = struct.unpack_from(file.order + file.word, file.data, place)
    if not 0 < count <= _MAX_VALUES:
        return ()
    if place + size > len(file.data):
        return None
    if letters == "s":
        return (file.data[place : place + count],)
    values = struct.unpack_from(f"{file.order}{count * len(letters)}{letters[0]}", file.data, place)
    if len(letters) == 2:
        return tuple(a / b if b else 0.0 for a, b in zip(values[::2], values[1::2], strict=True))
    return values


def orientation_in(tags: dict[int, tuple]) -> int:
    """EXIF orientation, 1 to 8; 1 if missing or invalid."""
    value = tags.get(ORIENTATION, (1,))[0]
    return value if value in range(1, 9) else 1


def one_number(tags: dict[int, tuple], tag: int, default: int | None = None) -> int:
    """The first value of a tag, or the default; ValueError if it is missing or not an integer and there is no default."""
    value = tags.get(tag, (default,))[0]
    value = value if isinstance(value, int) else default
    if value is None:
        raise ValueError(f"tag {tag} of the TIFF is missing or no number")
    return value


def with_directory(data: bytes, order: str, tags: dict[int, tuple]) -> bytes:
    """`data`, in byte order `order`, as a classic TIFF with one directory of these tags; offsets to pixel data stay valid.

    Raises:
        ValueError: a strip or tile is truncated. (Otherwise it would extend into the appended directory.)
    """
    _require_all_data(data, tags)
    start = len(data) + len(data) % 2
    after = start + 2 + 12 * len(tags) + 4
    entries, long = [], b""
    for tag, values in sorted(tags.items()):
        kind = 7 if isinstance(values[0], bytes) else 11 if isinstance(values[0], float) else 4 if max(values) > 0xFFFF else 3
        letter = _TYPES[kind]
        body = b"".join(values) if letter == "s" else struct.pack(f"{order}{len(values)}{letter}", *values)
        count = len(body) if letter == "s" else len(values)
        if len(body) > 4:
            body, long = struct.pack(order + "I", after + len(long)), long + body + b"\0" * (len(body) % 2)
        entries.append(struct.pack(order + "HHI", tag, kind, count) + body.ljust(4, b"\0"))
    directory = struct.pack(order + "H", len(tags)) + b"".join(entries) + bytes(4) + long
    head = data[:2] + struct.pack(order + "HI", 42, start)
    return b"".join((head, memoryview(data)[8:], b"\0" * (len(data) % 2), directory))


def _require_all_data(data: bytes, tags: dict[int, tuple]) -> None:
    for places, sizes in ((STRIPS, STRIP_SIZES), (TILES, TILE_SIZES)):
        for i, place in enumerate(tags.get(places, ())):
            size = tags[sizes][i] if i < len(tags.get(sizes, ())) else 0
            if one_number(tags, COMPRESSION, 1) == 1 and one_number(tags, PHOTOMETRIC, 0) != 6:  # the size of the last is often too large
                size = min(size or sys.maxsize, _plain_size(tags, i))
            if place + size > len(data):
                raise ValueError("image file is truncated")


def _plain_size(tags: dict[int, tuple], i: int) -> int:
    """Size in bytes of an uncompressed strip or tile."""
    height = one_number(tags, HEIGHT)
    planar = one_number(tags, PLANAR, 1) == 2
    bits = tags.get(BITS, (1,))
    depth = bits[0] if planar else sum(bits) if len(bits) > 1 else bits[0] * one_number(tags, SAMPLES, 1)
    if TILE_WIDTH in tags:
        return -(-one_number(tags, TILE_WIDTH) * depth // 8) * one_number(tags, TILE_HEIGHT, height)
    rows = min(max(1, one_number(tags, ROWS, height)), height)
    first = i % -(-height // rows) * rows
    return -(-one_number(tags, WIDTH) * depth // 8) * min(rows, height - first)
