"""Broken metadata does not prevent decoding."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from picture_files import encoded, png_chunk, tiff
from PIL import Image, PngImagePlugin

from dreamteacher.data.decode import BadPicture, decode

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
PIXELS = np.zeros((32, 48, 3), np.uint8)
PIXELS[:, :24] = 220
UPRIGHT = PIXELS[::-1].transpose(1, 0, 2)  # of orientation 6
PICTURE = Image.fromarray(PIXELS)
SIX = (0x112, 3, 1, struct.pack("<HH", 6, 0))
LOSSLESS = {"JPEG": {"quality": 95}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "AVIF": {"quality": 95}}


def exif_block(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    body = b"II*\0" + struct.pack("<IH", 8, len(entries))
    body += b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in sorted(entries))
    return body + bytes(4) + tail


def after_entries(count: int) -> bytes:
    return struct.pack("<I", 8 + 2 + 12 * count + 4)


BROKEN = {
    "a rational of -1/0": exif_block(SIX, (0x11A, 10, 1, after_entries(2)), tail=struct.pack("<ii", -1, 0)),
    "a value outside the block": exif_block(SIX, (0x9003, 2, 20, struct.pack("<I", 60_000))),
    "a type that does not exist": exif_block(SIX, (0x11B, 99, 1, bytes(4))),
    "text for a number": exif_block(SIX, (0x8769, 2, 4, b"abc\0")),
    "a directory inside that is itself": exif_block(SIX, (0x8769, 4, 1, struct.pack("<I", 8))),
    "cut off": exif_block(SIX, (0x11A, 5, 1, after_entries(2)))[:-6],
}


def with_exif(form: str, exif: bytes) -> bytes:
    data = encoded(PICTURE, form, **LOSSLESS[form])
    if form == "JPEG":
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + data[2:]
    if form == "PNG":
        return data[:33] + png_chunk(b"eXIf", exif) + data[33:]
    body = b"VP8X" + struct.pack("<II", 10, 8) + struct.pack("<HBHB", 47, 0, 31, 0)
    body += data[12:] + b"EXIF" + struct.pack("<I", len(exif)) + exif + b"\0" * (len(exif) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("what", BROKEN)
def test_broken_exif_leaves_the_pixels_turned_by_their_orientation(form, what):
    picture = decode(with_exif(form, BROKEN[what]))
    assert np.abs(picture.image.astype(int) - UPRIGHT).mean() < 3
    assert picture.orientation == 6


@pytest.mark.parametrize("value", [0, 9, 77])
def test_an_orientation_that_does_not_exist_is_none(value):
    picture = decode(with_exif("JPEG", exif_block((0x112, 3, 1, struct.pack("<HH", value, 0)))))
    assert (picture.image.shape, picture.orientation, picture.suffix) == ((32, 48, 3), 1, "jpg")


def test_broken_tags_of_a_tiff_leave_the_pixels():
    for tags in (
        {282: (5, b"\1\0\0\0\0\0\0\0")},
        {282: (2, b"x\0")},
        {34675: (3, (1,))},
        {282: (10, (-1, 0))},
        {700: (3, (7,))},
        {296: (2, b"in\0")},
    ):
        assert np.array_equal(decode(tiff(PIXELS, photometric=2, tags=tags | {274: (3, (6,))})).image, UPRIGHT), tags


@pytest.mark.parametrize(
    "name", [b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"eXIf", b"tEXt", b"sRGB", b"acTL", b"abCd"]
)
@pytest.mark.parametrize("place", ["before", "after"])
def test_broken_chunks_of_a_png_leave_the_pixels(name, place):
    data = encoded(PICTURE, "PNG")
    at = 33 if place == "before" else len(data) - 12
    bomb = zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 100))
    body = {b"zTXt": b"k\0\0" + bomb, b"iTXt": b"k\0\1\0\0\0" + bomb, b"iCCP": b"k\0\0" + bomb}.get(name, b"\xff")
    wrong_sum = png_chunk(name, body)[:-4] + b"sum?"
    for chunk in (png_chunk(name, body), wrong_sum):
        assert np.array_equal(decode(data[:at] + chunk + data[at:]).image, PIXELS)


def test_broken_segments_of_a_jpeg_leave_the_pixels():
    data = encoded(PICTURE, "JPEG", quality=95)
    plain = np.asarray(Image.open(io.BytesIO(data)))
    for marker, body in (
        (0xE0, b"JFIF\0\1"),
        (0xE1, b"Exif\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation"),
        (0xE2, b"ICC_PROFILE\0\1\2cut"),
        (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1"),
        (0xED, b"Photoshop 3.0\x008BIM\3\xed\0\0\0\0\0\x10\0"),
        (0xFE, b"\xff" * 9),
    ):
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
        assert np.array_equal(decode(data[:2] + segment + data[2:]).image, plain), body


def test_broken_exif_of_an_avif_leaves_the_pixels():
    data = encoded(PICTURE, "AVIF", quality=95, exif=FULL.tobytes())
    broken = re.sub(rb"(Exif\0\0)?(II\*\0|MM\0\*)", lambda found: b"?" * len(found[0]), data, count=1)
    assert broken != data
    assert np.abs(decode(broken).image.astype(int) - UPRIGHT).mean() < 3


FULL = Image.Exif()
FULL.update(
    {0x112: 6, 0x10F: "maker", 0x11A: 72.0, 0x8769: {0x9003: "2026:01:01 00:00:00", 0x829A: 0.01}, 0x8825: {1: "N", 2: (1.0, 2.0, 3.0)}}
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(LOSSLESS)), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=12))
def test_random_damage_to_exif_never_costs_a_picture_that_pillow_can_load(form, damage):
    block = FULL.tobytes().removeprefix(b"Exif\0\0")
    data = bytearray(encoded(PICTURE, form, exif=FULL.tobytes(), **LOSSLESS[form]))
    start = data.find(block[:4]) if form != "TIFF" else struct.unpack_from("<I", data, 4)[0]
    for place, value in damage:
        at = start + place % (len(block) if form != "TIFF" else len(data) - start)
        data[at] = value
    limit = 10_000_000
    try:
        with Image.open(io.BytesIO(bytes(data))) as image:
            loads = image.width * image.height <= limit  # the size of a TIFF is such a tag, too
            if loads:
                image.load()
    except Exception:
        loads = False
    try:
        image = decode(bytes(data), max_pixels=limit).image
        if form != "TIFF":  # of a TIFF the size is such a tag, too
            assert image.shape in ((32, 48, 3), (48, 32, 3))
    except BadPicture as error:
        assert not loads or (form == "TIFF" and error.reason), error.reason


@pytest.mark.parametrize("tile", [(1 << 30, 16), (16, 1 << 30), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tile_that_is_larger_than_any_picture_is_refused_before_memory_is_taken(tile, dtype):
    data = tiff(PIXELS.astype(dtype), photometric=2, tags={322: (4, (tile[0],)), 323: (4, (tile[1],)), 324: (4, (8,)), 325: (4, (99,))})
    with pytest.raises(BadPicture, match="too large"):
        decode(data, max_pixels=10_000_000)
