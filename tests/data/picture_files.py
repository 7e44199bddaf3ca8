"""Writers for files of other programs that Pillow cannot write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16(values: np.ndarray, *chunks: bytes) -> bytes:
    """A PNG of 16 bits, (H, W, 1 to 4 bands); `chunks` come before the pixels."""
    height, width, bands = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def tiff(
    *pages: np.ndarray,
    photometric: int = 1,
    extra: tuple[int, ...] | None = None,
    deflate: bool = False,
    predictor: int = 1,
    planar: bool = False,
    tile: int | None = None,
    order: str = "<",
    bits: int | None = None,
    tags: dict[int, tuple[int, bytes | tuple]] | None = None,
) -> bytes:
    """A TIFF of pages (H, W, bands). bits: packed without gaps. tags: {number: (type, value)}, added or in place of the usual."""
    file = bytearray({"<": b"II*\0", ">": b"MM\0*"}[order] + bytes(4))
    link = 4
    for values in pages:
        height, width, bands = values.shape
        planes = [values[..., i : i + 1] for i in range(bands)] if planar else [values]
        places, sizes = [], []
        for plane in planes:
            for block in _blocks(plane, tile):
                data = _block_bytes(block, order, bits, predictor)
                data = zlib.compress(data) if deflate else data
                places.append(len(file))
                sizes.append(len(data))
                file += data + b"\0" * (len(data) % 2)
        kind = {"u": 1, "i": 2, "f": 3, "c": 6}[values.dtype.kind]
        depth = bits or values.dtype.itemsize * 8
        entries: dict[int, tuple[int, bytes | tuple]] = {256: (4, (width,)), 257: (4, (height,)), 258: (3, (depth,) * bands)}
        entries |= {259: (3, (8 if deflate else 1,)), 262: (3, (photometric,)), 277: (3, (bands,)), 284: (3, (2 if planar else 1,))}
        entries |= {339: (3, (kind,) * bands)} | ({338: (3, extra)} if extra is not None else {})
        entries |= {317: (3, (predictor,))} if predictor > 1 else {}
        if tile:
            entries |= {322: (4, (tile,)), 323: (4, (tile,)), 324: (4, tuple(places)), 325: (4, tuple(sizes))}
        else:
            entries |= {278: (4, (16,)), 273: (4, tuple(places)), 279: (4, tuple(sizes))}
        entries |= tags or {}
        body, start = b"", len(file) + 2 + 12 * len(entries) + 4
        file[link : link + 4] = struct.pack(order + "I", len(file))
        file += struct.pack(order + "H", len(entries))
        for tag, (type_, value) in sorted(entries.items()):
            letter = {2: "s", 3: "H", 4: "I", 5: "I", 10: "i", 7: "s"}[type_]
            raw = value if isinstance(value, bytes) else struct.pack(f"{order}{len(value)}{letter}", *value)
            count = len(value) // (2 if type_ in (5, 10) else 1)
            place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", start + len(body))
            body += b"" if len(raw) <= 4 else raw + b"\0" * (len(raw) % 2)
            file += struct.pack(order + "HHI", tag, type_, count) + place
        link = len(file)
        file += bytes(4) + body
    return bytes(file)


def _blocks(plane: np.ndarray, tile: int | None):
    height, width, bands = plane.shape
    if not tile:
        yield from (plane[y : y + 16] for y in range(0, height, 16))
        return
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            block = np.zeros((tile, tile, bands), plane.dtype)
            part = plane[y : y + tile, x : x + tile]
            block[: part.shape[0], : part.shape[1]] = part
            yield block


def _block_bytes(block: np.ndarray, order: str, bits: int | None, predictor: int) -> bytes:
    if bits:
        unpacked = (block.reshape(len(block), -1, 1) >> np.arange(bits - 1, -1, -1)) & 1
        return np.packbits(unpacked.reshape(len(block), -1).astype(np.uint8), axis=1).tobytes()
    if predictor == 3:
        planes = np.moveaxis(block.astype(block.dtype.newbyteorder(">")).view(np.uint8).reshape(len(block), -1, block.dtype.itemsize), 2, 1)
        rows = planes.reshape(len(block), -1, block.shape[2])
        return np.diff(rows, axis=1, prepend=np.zeros_like(rows[:, :1])).tobytes()
    if predictor == 2:
        unsigned = block.view(f"u{block.dtype.itemsize}")
        block = np.diff(unsigned, axis=1, prepend=np.zeros_like(unsigned[:, :1]))
    return block.astype(block.dtype.newbyteorder(order)).tobytes()
