"""Strip metadata from picture files, so that broken EXIF, XMP, colour profiles or text do not prevent decoding."""

from __future__ import annotations

import re
import struct

from dreamteacher.data import tiff


def without_metadata(data: bytes) -> tuple[bytes, int | None] | None:
    """(file without metadata, its orientation or None if the file still has it); None for other formats."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _plain_png(data)
    if data[:2] == b"\xff\xd8":
        return _plain_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _plain_webp(data)
    if data[:2] in (b"II", b"MM"):
        layout = tiff.read_layout(data)
        return tiff.without_metadata(data, layout), layout.orientation
    if data[4:8] == b"ftyp":  # AVIF, HEIC: EXIF items are renamed so that readers skip them; the orientation is a property of the picture
        return re.sub(rb"(infe[\x02\x03].{7,9})Exif", rb"\1skip", data, flags=re.DOTALL), None
    return None


def _plain_png(data: bytes) -> tuple[bytes, int]:
    parts, exif, at = [data[:8]], b"", 8
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + size]
        if name[:1].isupper() or name == b"tRNS":
            parts.append(chunk)
        elif name == b"eXIf":
            exif = chunk[8:-4]
        at += 12 + size
    return b"".join(parts), tiff.orientation_of(exif)


def _plain_jpeg(data: bytes) -> tuple[bytes, int]:
    parts, exif, at = [data[:2]], b"", 2
    while at + 4 <= len(data):
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            break
        marker, size = struct.unpack_from(">BH", data, at + 1)
        if marker in (0, 1, 0xFF) or 0xD0 <= marker <= 0xD7:  # padding
            at += 1
            continue
        if marker == 0xDA:  # the scan
            parts.append(data[at:])
            break
        segment = data[at : at + 2 + size]
        settles_colours = marker in (0xE0, 0xEE) and len(segment) >= 16  # JFIF and Adobe segments, if complete
        if (0xE0 <= marker <= 0xEF or marker == 0xFE) and not settles_colours:
            exif = exif or (segment[4:] if segment[4:8] == b"Exif" else b"")
        else:
            parts.append(segment)
        at += 2 + max(size, 2)
    return b"".join(parts), tiff.orientation_of(exif)


def _plain_webp(data: bytes) -> tuple[bytes, int]:
    parts, exif, at = [], b"", 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        chunk = data[at : at + 8 + size + size % 2]
        if name == b"EXIF":
            exif = chunk[8:]
        elif name == b"VP8X" and len(chunk) > 8:
            parts.append(chunk[:8] + bytes([chunk[8] & ~0b101100]) + chunk[9:])  # the flags of ICC profile, EXIF and XMP
        elif name not in (b"ICCP", b"XMP "):
            parts.append(chunk)
        at += 8 + size + size % 2
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body, tiff.orientation_of(exif)
